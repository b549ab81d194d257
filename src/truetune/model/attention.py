"""Whether a model keeps samples apart that stand end to end in one row, and whether it can do so at less cost."""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

_LENGTH = 6
_TOKENS = 17
_WINDOWS = (_TOKENS, 4)
_REFUSALS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What models raise that do not take our attention, our masks, positions or `use_cache`."""


def fit_attention(model: Any) -> bool:
    """Gives the model attention sample by sample, where that proves to be its own; True if it keeps samples apart.

    Proved on the model itself: in each layer it computes what the attention does that the model came with, and two
    samples end to end have the logits that each has alone. A model that has no such attention keeps its own, and its
    samples apart if it can.
    """
    from truetune.model.packed_attention import NAME, register

    register()
    own = model.config._attn_implementation
    with suppress(*_REFUSALS), _undisturbed(model):
        expected = _Expected.of(model)
        _implement(model, NAME)
        if model.config._attn_implementation == NAME and isolates_samples(model) and _is_own(model, own, expected):
            return True
    _implement(model, own)
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


@dataclass(frozen=True, slots=True)
class _Expected:
    """The logits of two samples of six and eleven tokens, each alone, and how far rounding moves them."""

    logits: Any
    rounding: float

    @classmethod
    def of(cls, model: Any) -> "_Expected":
        import torch

        first, second = _samples(model)
        alone, behind = _logits(model, first), _logits(model, second)
        # More tokens behind a sample change nothing of it, but the order in which numbers are added up.
        rounding = _distance(_logits(model, torch.cat([first, second], dim=1))[:_LENGTH], alone)
        return cls(torch.cat([alone, behind]), max(1e-4, 4 * rounding, 4 * torch.finfo(model.dtype).eps))


def _logits(model: Any, input_ids: Any, **inputs: Any) -> Any:
    return model(input_ids=input_ids, **inputs, use_cache=False).logits[0].float()


def _distance(found: Any, expected: Any) -> float:
    """How far the logits are off; of the median token, since rounding sends some to other experts."""
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median())


def _is_own(model: Any, own: str, expected: _Expected) -> bool:
    """True if each layer computes what it did, and two samples end to end have the logits that each has alone."""
    import torch

    samples = _samples(model)
    places = torch.cat([torch.arange(ids.shape[1], device=model.device) for ids in samples]).unsqueeze(0)
    with _compared(own) as verdicts:
        found = _logits(model, torch.cat(samples, dim=1), position_ids=places)
    is_near = _distance(found, expected.logits) <= expected.rounding
    return is_near and bool(verdicts) and all(verdicts.values())


def _samples(model: Any) -> tuple[Any, Any]:
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.tensor([[(7 * index + 3) % vocabulary for index in range(_TOKENS)]], device=model.device)
    return ids[:, :_LENGTH], ids[:, _LENGTH:]


# --- each layer's attention -------------------------------------------------------------------------------


@contextmanager
def _compared(own: str) -> Iterator[dict[str, bool]]:
    """While it lasts, the calls of our attention tell of each kind whether it computes what the model's own does."""
    from transformers import AttentionInterface

    from truetune.model.packed_attention import NAME, register

    ours = AttentionInterface()[NAME]
    verdicts: dict[str, bool] = {}

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        call = _Call.like(query, key, value, module=module, options=options)
        if (kind := call.kind()) not in verdicts:
            verdicts[kind] = _computes_alike(call, own=own, ours=ours)
        return ours(module, query, key, value, mask, **options)

    AttentionInterface.register(NAME, attend)
    try:
        yield verdicts
    finally:
        register()


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of an attention function: its layer, queries, keys and values, and the layer's options."""

    module: Any
    inputs: tuple[Any, ...]
    options: dict[str, Any]

    @classmethod
    def like(cls, query: Any, key: Any, value: Any, *, module: Any, options: dict[str, Any]) -> "_Call":
        """A call with other numbers: its scores spread by 4, while those of a model hardly trained are all near 0."""
        spread = 4.0 / (float(options.get("scaling") or query.shape[-1] ** -0.5) * query.shape[-1] ** 0.5)
        drawn = _noise(query, seed=0) * spread, _noise(key, seed=1), _noise(value, seed=2)
        return cls(module, drawn, options)

    def kind(self) -> str:
        """What layers have in common that compute the same."""
        settings = {**vars(self.module), **self.options, "layer_idx": None}
        plain = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}
        return repr((type(self.module), [(each.shape, each.dtype) for each in self.inputs], sorted(plain.items())))

    def made_by(self, attend: Callable[..., Any], *, implementation: str, window: int, dtype: Any) -> list[Any]:
        """What the function makes of three samples end to end, and the gradients of queries, keys and values."""
        import torch
        from transformers import AttentionMaskInterface

        inputs = [each.to(dtype).detach().requires_grad_() for each in self.inputs]
        mask = AttentionMaskInterface()[implementation](
            batch_size=1,
            q_length=_TOKENS,
            kv_length=_TOKENS,
            mask_function=_rule(window),
            allow_is_causal_skip=False,
            dtype=dtype,
            device=inputs[0].device,
        )
        with torch.enable_grad():
            made = attend(self.module, *inputs, mask, **self.options)[0]
            return [made.detach(), *torch.autograd.grad(made, inputs, _noise(made, seed=3))]


def _noise(like: Any, *, seed: int) -> Any:
    """Normal noise, on its own generator: a run's random numbers stay what they are."""
    import torch

    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


def _rule(window: int) -> Callable[..., Any]:
    """The mask of samples of six, one and ten tokens, as a rule of transformers."""

    def sees(_row: Any, _head: Any, query: Any, key: Any) -> Any:
        same = ((query >= _LENGTH) == (key >= _LENGTH)) & ((query > _LENGTH) == (key > _LENGTH))
        return same & (key <= query) & (query - key < window)

    return sees


def _computes_alike(call: _Call, *, own: str, ours: Callable[..., Any]) -> bool:
    """True if both functions make the same of the call, in fp32 to its rounding, and in the model's dtype too.

    In bf16 rounding hides a softcap; in fp32 another kernel may be at work. How near is near in the model's dtype,
    its own function tells: ours may be six times as far from the truth. Measured: 2 times, 4 where keys are wider
    than values; 10 to 40 times with scores that are a tenth too large.
    """
    import torch

    from truetune.model.packed_attention import NAME

    its_own = _function(call.module, own)
    for window in _WINDOWS:
        truth = call.made_by(its_own, implementation=own, window=window, dtype=torch.float32)
        for dtype in {torch.float32, call.inputs[-1].dtype}:
            expected = call.made_by(its_own, implementation=own, window=window, dtype=dtype)
            found = call.made_by(ours, implementation=NAME, window=window, dtype=dtype)
            if not all(map(_is_as_near, found, expected, truth)):
                return False
    return True


def _is_as_near(found: Any, expected: Any, truth: Any) -> bool:
    error, usual = (found.float() - truth).norm(), (expected.float() - truth).norm()
    return bool(error <= 6 * usual + 1e-4 * truth.norm())


def _function(module: Any, implementation: str) -> Callable[..., Any]:
    """The attention function of that name, as the layer finds it: "eager" is one of the layer's own file."""
    from transformers import AttentionInterface

    eager = inspect.unwrap(type(module).forward).__globals__.get("eager_attention_forward")
    function: Callable[..., Any] = AttentionInterface().get_interface(implementation, eager)
    return function


# --- samples apart ----------------------------------------------------------------------------------------


def isolates_samples(model: Any) -> bool:
    """True if a sample's logits do not depend on the sample before it.

    Two samples stand end to end, without mask or cache, the second behind either of two others. With positions that
    restart, what changes in its logits must be rounding (experts are computed in groups, whose sizes change), next
    to what shows through when positions go on. Architectures that ignore the restart (linear attention, convolutions,
    ALiBi from a mask, remote code) let the first sample through.
    """
    import torch

    try:
        with _undisturbed(model):
            restarting = _influence(model, [*range(_LENGTH), *range(_LENGTH)])
            going_on = _influence(model, [*range(2 * _LENGTH)])
    except (AttributeError, TypeError, ValueError):
        # The model takes no position_ids, or no use_cache: it cannot be told where a sample starts.
        return False
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
        return _logits(model, ids, position_ids=places)[_LENGTH:]

    return float((logits_behind(low) - logits_behind(high)).abs().max())


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """The model in evaluation mode, without gradients, each token by itself; afterwards it is as it was."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _row_by_row(model):
            yield
    finally:
        model.train(was_training)


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
