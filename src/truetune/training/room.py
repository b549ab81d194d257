"""What to do when memory runs out: compute less at a time, and the same step again."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedModel

from truetune.errors import first_line
from truetune.model.slices import Batch, largest, slices

Result = TypeVar("Result")

# transformers 5.24 renamed it, in settings and models; under the old name both warn.
_RENAMED = "activation_checkpointing"
CHECKPOINTING = _RENAMED if hasattr(PreTrainedModel, f"{_RENAMED}_enable") else "gradient_checkpointing"


class Room:
    """How much is computed at a time: slices of `tokens`, or whole batches where that is None, by so many `workers`.

    Batches are not cut unless they `can_be_cut`: a mixture's router loss belongs to the batch as a whole, and several
    processes must cut alike.
    """

    def __init__(self, tokens: int | None, *, can_be_cut: bool, workers: int = 1) -> None:
        self.tokens = tokens if can_be_cut else None
        self.workers = workers if can_be_cut else 1
        self._can_be_cut = can_be_cut

    def workers_for(self, pieces: Sequence[Batch]) -> int:
        """How many of a batch's slices are computed at a time: one, if one of them is a long sample."""
        is_short = self.tokens is not None and all(each["input_ids"].numel() <= 1.5 * self.tokens for each in pieces)
        return self.workers if is_short and len(pieces) > 1 else 1

    def give_way(self, batches: Sequence[Batch], *, model: Any) -> str | None:
        """Takes the next measure against a lack of memory and says it; None if there is no more.

        Slices are computed one by one, then halved until they are single samples; then the model's activations are
        computed twice instead of kept. `model` is None where none are kept.
        """
        workers = max(self.workers_for(slices(batch, self.tokens)) for batch in batches)
        self.workers = 1
        if workers > 1:
            return f"1 slice at a time instead of {workers}"
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
