"""What a backward pass on a CPU makes once more instead of keeping it: little work, and much of what a slice keeps.

Elsewhere memory is saved by gradient checkpointing, which does more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a tensor is made, to the bit, of others that are kept anyway."""

    make: Callable[..., Tensor]
    ingredients: tuple[Tensor | None, ...]

    def then(self, use: Callable[..., Tensor], *others: Tensor | None) -> "Recipe":
        """How `use` makes a tensor of this recipe's and the others."""
        return Recipe(partial(_in_turn, self.make, len(self.ingredients), use), (*self.ingredients, *others))


def with_recipe(made: Tensor, recipe: Recipe) -> Tensor:
    """The tensor; whoever would keep it for a backward pass can keep what it is made of."""
    if made.device.type == "cpu" and not torch.compiler.is_compiling():
        made.recipe = (recipe, made._version)
    return made


def recipe_of(tensor: Tensor) -> Recipe:
    """How to make the tensor again; one that came without a recipe, or was changed since, is kept itself."""
    recipe, version = getattr(tensor, "recipe", (None, None))
    return recipe if recipe is not None and version == tensor._version else Recipe(_itself, (tensor,))


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _in_turn(first: Callable[..., Tensor], count: int, then: Callable[..., Tensor], *tensors: Any) -> Tensor:
    return then(first(*tensors[:count]), *tensors[count:])
