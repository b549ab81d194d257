"""What to do when memory runs out: compute less at a time, and the same step again."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedModel

from truetune.errors import first_line
from truetune.training.slices import Batch, largest

Result = TypeVar("Result")

# transformers 5.24 renamed it, in settings and models; under the old name both warn.
_RENAMED = "activation_checkpointing"
CHECKPOINTING = _RENAMED if hasattr(PreTrainedModel, f"{_RENAMED}_enable") else "gradient_checkpointing"


class Room:
    """How much is computed at a time: `tokens`, or whole batches where that is None.

    Batches are not cut unless they `can_be_cut`: a mixture's router loss belongs to the batch as a whole, and several
    processes must cut alike.
    """

    def __init__(self, tokens: int | None, *, can_be_cut: bool) -> None:
        self.tokens = tokens if can_be_cut else None
        self._can_be_cut = can_be_cut

    def give_way(self, batches: Sequence[Batch], *, model: Any) -> str | None:
        """Takes the next measure against a lack of memory and says it; None if there is no more.

        The slices are halved until they are single samples; then the model's activations are computed twice instead
        of kept. `model` is None where none are kept.
        """
        before = largest(batches, self.tokens)
        if self._can_be_cut and (fewer := _fewer_tokens(batches, before)):
            self.tokens = fewer
            return f"about {fewer:,} tokens at a time instead of {before:,}"
        if model is not None and _recompute(model):
            return "gradient checkpointing, which takes a third longer"
        return None


def _fewer_tokens(batches: Sequence[Batch], before: int) -> int | None:
    """Half as many tokens at a time, or a quarter: cuts lie near even places, and a quarter cuts any two samples."""
    return next((tokens for tokens in (before // 2, before // 4) if largest(batches, tokens) < before), None)


def _recompute(model: Any) -> bool:
    """Switches gradient checkpointing on; False where it is on, or the model has none."""
    if getattr(model, f"is_{CHECKPOINTING}") or not model.supports_gradient_checkpointing:
        return False
    getattr(model, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}})
    return True


def persist(compute: Callable[[], Result], give_way: Callable[[str], None]) -> Result:
    """The result; wherever memory runs out, `give_way` hears why, and it is computed again."""
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = first_line(error)
        # Not in the except clause, where the error still holds all that was computed.
        give_way(failure)


def is_out_of_memory(error: BaseException) -> bool:
    """True where less at a time may help: what accelerate recognises, and what CUDA and its libraries say besides."""
    said = str(error)
    return (
        isinstance(error, MemoryError)
        or should_reduce_batch_size(error)
        or any(words in said for words in ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"))
    )
