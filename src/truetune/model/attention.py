"""Whether a model keeps samples apart that stand end to end in one row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_LENGTH = 6


def isolates_samples(model: Any) -> bool:
    """True if a sample's logits do not depend on the sample before it.

    Two samples stand end to end, without mask or cache, the second behind either of two others. With positions that
    restart, what changes in its logits must be rounding (experts are computed in groups, whose sizes change), next
    to what shows through when positions go on. Architectures that ignore the restart (linear attention, convolutions,
    ALiBi from a mask, remote code) let the first sample through.
    """
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _row_by_row(model):
            restarting = _influence(model, [*range(_LENGTH), *range(_LENGTH)])
            going_on = _influence(model, [*range(2 * _LENGTH)])
    except (TypeError, ValueError):
        # The model takes no position_ids: it cannot be told where a sample starts.
        return False
    finally:
        model.train(was_training)
    rounding: float = max(1e-4, torch.finfo(model.dtype).eps / 2)
    return restarting < rounding * going_on


def _influence(model: Any, positions: Sequence[int]) -> float:
    """How far the second sample's logits move when the first sample changes."""
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    low = [index % vocabulary for index in range(_LENGTH)]
    high = [(vocabulary - 1 - 5 * index) % vocabulary for index in range(_LENGTH)]
    second = [(7 * index + 3) % vocabulary for index in range(_LENGTH)]
    places = torch.tensor([positions], device=model.device)

    def logits_behind(first: list[int]) -> Any:
        ids = torch.tensor([first + second], device=model.device)
        return model(input_ids=ids, position_ids=places, use_cache=False).logits[0, _LENGTH:].float()

    return float((logits_behind(low) - logits_behind(high)).abs().max())


@contextmanager
def _row_by_row(model: Any) -> Iterator[None]:
    """LLM.int8() picks its outlier columns over all tokens of a batch: without them every token stands alone."""
    layers: list[Any] = []
    if getattr(model, "is_loaded_in_8bit", False):
        from bitsandbytes.nn import Linear8bitLt

        layers = [layer for layer in model.modules() if isinstance(layer, Linear8bitLt)]
    thresholds = [layer.state.threshold for layer in layers]
    for layer in layers:
        layer.state.threshold = 0.0
    try:
        yield
    finally:
        for layer, threshold in zip(layers, thresholds, strict=True):
            layer.state.threshold = threshold
