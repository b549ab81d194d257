"""Whether a model keeps samples apart that stand end to end in one row."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

_LENGTH = 6


def fit_attention(model: Any) -> bool:
    """Gives the model attention sample by sample, where that proves to be its own; True if it keeps samples apart.

    Proved on the model itself: two samples end to end have the logits that each has alone, with the attention it came
    with, up to rounding. A model that has no such attention keeps its own, and its samples apart if it can.
    """
    from truetune.model.packed_attention import NAME, register

    register()
    before = model.config._attn_implementation
    expected = _logits_alone(model)
    with suppress(TypeError, ValueError, IndexError, RuntimeError, NotImplementedError):
        _implement(model, NAME)
        if model.config._attn_implementation == NAME and isolates_samples(model) and _agrees(model, expected):
            return True
    _implement(model, before)
    return isolates_samples(model)


def _implement(model: Any, name: str) -> None:
    """Sets the attention's implementation; transformers' word on models that know one only is not ours to pass on."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        model.set_attn_implementation(name)
    finally:
        logger.setLevel(level)


def _logits_alone(model: Any) -> Any:
    """The logits of two samples of six and eleven tokens, each by itself, end to end."""
    import torch

    with torch.no_grad(), _row_by_row(model):
        alone = [model(input_ids=ids, use_cache=False).logits[0].float() for ids in _samples(model)]
    return torch.cat(alone)


def _agrees(model: Any, expected: Any) -> bool:
    """True if the two samples' logits, end to end, are the expected ones."""
    import torch

    samples = _samples(model)
    places = torch.cat([torch.arange(ids.shape[1], device=model.device) for ids in samples]).unsqueeze(0)
    with torch.no_grad(), _row_by_row(model):
        found = model(input_ids=torch.cat(samples, dim=1), position_ids=places, use_cache=False).logits[0].float()
    # bf16 rounds after every operation: dozens of its steps come together over the layers.
    rounding = max(1e-4, 16 * torch.finfo(model.dtype).eps)
    return bool((found - expected).abs().max() <= rounding * max(1.0, float(expected.abs().max())))


def _samples(model: Any) -> tuple[Any, Any]:
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.tensor([[(7 * index + 3) % vocabulary for index in range(17)]], device=model.device)
    return ids[:, :_LENGTH], ids[:, _LENGTH:]


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
