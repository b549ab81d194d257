"""What to do when memory runs out: compute less at a time, and the same step again."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate.utils.memory import should_reduce_batch_size

from truetune.errors import first_line
from truetune.training.slices import Batch, largest

Result = TypeVar("Result")


class Room:
    """How much is computed at a time: `tokens`, or whole batches where that is None.

    Batches are not cut unless they `can_be_cut`: a mixture's router loss belongs to the batch as a whole, and several
    processes must cut alike.
    """

    def __init__(self, tokens: int | None, *, can_be_cut: bool) -> None:
        self.tokens = tokens if can_be_cut else None
        self._can_be_cut = can_be_cut

    def give_way(self, model: Any, batches: Sequence[Batch]) -> str | None:
        """Takes the next measure against a lack of memory and says it; None if there is no more.

        The slices are halved until they are single samples; then activations are computed twice instead of kept.
        """
        before = largest(batches, self.tokens)
        if self._can_be_cut and largest(batches, before // 2) < before:
            self.tokens = before // 2
            return f"about {self.tokens:,} tokens at a time instead of {before:,}"
        if not model.is_gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            return "gradient checkpointing, which takes a third longer"
        return None


def attempt(compute: Callable[[], Result]) -> tuple[Result, None] | tuple[None, str]:
    """The result, or the reason why memory ran out; by then nothing holds on to what was computed."""
    try:
        return compute(), None
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        return None, first_line(error)
