"""What a backward pass on a CPU makes once more instead of keeping it: little work, and much of what a slice keeps.

Elsewhere memory is saved by gradient checkpointing, which does more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(slots=True)
class Maker:
    """Makes a tensor again, once for all that asked for it to be kept; `base` makes the first of its arguments."""

    make: Callable[..., Tensor]
    base: "Maker | None" = None
    own: int = 0
    asked: int = 0
    made: Tensor | None = None

    def ask(self) -> None:
        """One more will call `again`."""
        self.asked += 1
        if self.base is not None:
            self.base.ask()

    def again(self, tensors: Sequence[Any]) -> Tensor:
        """The tensor, of those that were kept for it. The first to ask has it made, the last has it forgotten."""
        if self.base is not None:
            place = len(tensors) - self.own
            return self.make(self.base.again(tensors[:place]), *tensors[place:])
        made = self.make(*tensors) if self.made is None else self.made
        self.asked -= 1
        self.made = made if self.asked > 0 else None
        return made


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a tensor is made, to the bit, of others that are kept anyway."""

    maker: Maker
    ingredients: tuple[Tensor | None, ...]

    def then(self, use: Callable[..., Tensor], *others: Tensor | None) -> "Recipe":
        """How `use` makes a tensor of this recipe's and the others."""
        return Recipe(Maker(use, self.maker, len(others)), (*self.ingredients, *others))

    def keep(self) -> tuple[Tensor | None, ...]:
        """What to keep for a backward pass, which will have the maker make the tensor of it."""
        self.maker.ask()
        return self.ingredients


def with_recipe(made: Tensor, recipe: Recipe) -> Tensor:
    """The tensor; whoever would keep it for a backward pass can keep what it is made of."""
    if made.device.type == "cpu" and not made.is_inference():  # Those have no versions, and no backward pass.
        made.recipe = (recipe, made._version)
    return made


def recipe_of(tensor: Tensor) -> Recipe:
    """How to make the tensor again; one that came without a recipe, or was changed since, is kept itself."""
    recipe, version = getattr(tensor, "recipe", (None, None))
    return recipe if recipe is not None and version == tensor._version else Recipe(Maker(_itself), (tensor,))


def _itself(tensor: Tensor) -> Tensor:
    return tensor
