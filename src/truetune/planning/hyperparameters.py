"""Settings left to `auto`: a number, and the reason it was chosen."""

from dataclasses import dataclass
from typing import Literal

from truetune.planning.memory import Memory

BILLION = 1_000_000_000
_SPARE = 1.25
"""How much more than its estimate a run may take."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting's value with its reason: number, source and limit."""

    name: str
    value: float | int | str | bool
    reason: str


@dataclass(frozen=True, slots=True)
class _Rate:
    below: float
    learning_rate: float
    source: str


_TINKER = "a public sweep of 35 models on one data set (tinker-cookbook, LoRA, alpha 32)"
_LORA_RATES = (
    _Rate(1 * BILLION, 5e-4, "the top of the guide's range for models under 1B (1e-4 to 5e-4)"),
    _Rate(4 * BILLION, 5e-4, f"the low end of what was best at 1-3B in {_TINKER}"),
    _Rate(float("inf"), 3e-4, f"best for five of eight 4-9B models and at 27B and above in {_TINKER}"),
)
_QLORA_RATES = (
    _Rate(13.5 * BILLION, 2e-4, "QLoRA's setting up to 13B"),
    _Rate(float("inf"), 1e-4, "QLoRA's setting above 13B"),
)


_GUIDE_RATES = (
    (1 * BILLION, "1e-4 to 5e-4"),
    (7 * BILLION, "1e-4 to 2e-4"),
    (13 * BILLION, "5e-5 to 2e-4"),
    (float("inf"), "1e-5 to 1e-4"),
)
"""The guide's learning rates, for models of fewer parameters than the number before them; they are LoRA's."""


def learning_rate(*, method: Literal["lora", "full"], parameters: int, is_quantized: bool) -> Choice:
    """The learning rate for a model of so many parameters."""
    table = _QLORA_RATES if is_quantized else _LORA_RATES
    rate = next(rate for rate in table if parameters < rate.below)
    size = f"{parameters / BILLION:.2g}B parameters"
    if method == "lora":
        return Choice("training.learning_rate", rate.learning_rate, f"LoRA, {size}: {rate.source}")
    value = rate.learning_rate / 10
    return Choice(
        "training.learning_rate", value, f"full fine-tuning, {size}: a tenth of LoRA's {rate.learning_rate:g}"
    )


def gradient_checkpointing(kept: Memory, checkpointed: Memory, *, free: int | None) -> Choice:
    """Trades a third more compute for memory where a run that keeps its activations would not fit into what is free.

    A quarter is left over: the estimates are good to that.
    """
    name, needs = "training.gradient_checkpointing", f"needs about {_gigabytes(kept.peak)}"
    if free is None:
        return Choice(name, False, f"{needs}; what is free is not known here")
    needs = f"{needs} of {_gigabytes(free)} free"
    if kept.peak * _SPARE <= free:
        return Choice(name, False, needs)
    needs = f"{needs}, {_gigabytes(checkpointed.peak)} with checkpointing"
    return Choice(name, True, needs if checkpointed.peak <= free else f"{needs}: it may run out of memory")


def _gigabytes(count: int) -> str:
    size = count / 1e9
    return f"{size:.1f} GB" if size < 10 else f"{size:.0f} GB"


def optimizer() -> Choice:
    """AdamW in one fused kernel: works after a plain install, on every device."""
    return Choice("training.optim", "adamw_torch_fused", "exact AdamW, fused; needs no extra package")


def learning_rate_warning(*, method: Literal["lora", "full"], value: float, parameters: int) -> str | None:
    """A warning for a learning rate far outside what is known to work, with the range."""
    low, high = (5e-5, 1e-3) if method == "lora" else (1e-6, 5e-5 if parameters >= BILLION else 1e-4)
    if low <= value <= high:
        return None
    kind = "LoRA" if method == "lora" else "full fine-tuning"
    side = "below" if value < low else "above"
    guide = next(rates for below, rates in _GUIDE_RATES if parameters < below)
    return (
        f"learning rate {value:g} is {side} the usual range for {kind} at this size, {low:g} to {high:g} "
        f"(the guide's range for this size, meant for LoRA: {guide})"
    )
