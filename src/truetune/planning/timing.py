"""How long a run takes: from two measured steps, or roughly from the operations in it and a device's rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from truetune.model.shape import ModelShape

CPU_RATES = {"bf16": 80e9, "fp16": 80e9, "fp32": 30e9}
"""Operations a second that a CPU's thread reaches in a whole training of SmolLM2-135M; larger models reach more."""

_OF_A_GPUS_PEAK = 0.35
"""What a training reaches of a GPU's rate for dense matrix products: an assumption, not measured here."""

_QUANTIZED = 1.5
"""How much longer a step over a quantised base takes: an assumption, not measured here."""

_ANSWERED = 3.0
"""How many times as long a token takes that is generated, 16 rows at a time, as one that is read: SmolLM2-135M in
fp32 on a CPU, 28 against 11 ms of its time. Elsewhere an assumption."""

_ALIKE = 1.2
"""Steps whose tokens are within this factor of each other tell one rate, and no cost of a step itself."""

Source = Literal["probe", "estimate"]


@dataclass(frozen=True, slots=True)
class Timed:
    """So many tokens took so many seconds."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Amount:
    """What a run computes: steps and their tokens, padding aside, and what it evaluates and saves on the way.

    `answer_tokens` are those that each evaluation generates.
    """

    steps: int
    tokens: int
    evaluations: int
    evaluation_tokens: int
    checkpoints: int
    answer_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds of a run, from the first step to the last save; the model has loaded. `source` is how it is known."""

    training: float
    evaluating: float
    saving: float
    source: Source

    @property
    def total(self) -> float:
        return self.training + self.evaluating + self.saving


@dataclass(frozen=True, slots=True)
class Probed:
    """Real steps of the run, at its `largest` and its `usual` batch; `first` is the first of all, which warms up.

    `evaluation` and `saving` (seconds) are None where the run has none of it; `peak_bytes` is as run.json's.
    """

    first: Timed
    largest: Timed
    usual: Timed
    evaluation: Timed | None
    saving: float | None
    loading: float
    peak_bytes: int


def measured(probe: Probed, amount: Amount) -> Duration:
    """The run's time, by the cost of a step and of a token that the probe's two batches tell."""
    per_step, per_token = _costs(probe.usual, probe.largest)
    warming = max(0.0, probe.first.seconds - per_step - per_token * probe.first.tokens)
    evaluated = probe.evaluation
    rate = evaluated.seconds / evaluated.tokens if evaluated else 0.0
    return Duration(
        training=amount.steps * per_step + amount.tokens * per_token + warming,
        evaluating=amount.evaluations * (amount.evaluation_tokens + _ANSWERED * amount.answer_tokens) * rate,
        saving=amount.checkpoints * (probe.saving or 0.0),
        source="probe",
    )


def _costs(usual: Timed, largest: Timed) -> tuple[float, float]:
    """Seconds of a step and of a token, neither below zero."""
    if largest.tokens > _ALIKE * usual.tokens:
        per_token = (largest.seconds - usual.seconds) / (largest.tokens - usual.tokens)
        per_step = usual.seconds - per_token * usual.tokens
        if per_token > 0 and per_step > 0:
            return per_step, per_token
    return 0.0, usual.seconds / usual.tokens


def reckoned(
    shape: ModelShape,
    amount: Amount,
    *,
    rate: float,
    learned: float,
    are_adapters: bool,
    is_quantized: bool,
    checkpointing: bool,
) -> Duration:
    """The run's time at `rate` operations a second, where a share `learned` of the tokens meets the output layer."""
    passes = 2 + (0 if are_adapters else 1) + (1 if checkpointing else 0)
    slower = _QUANTIZED if is_quantized else 1.0
    head = shape.vocabulary * shape.hidden
    forward, whole = (2 * (shape.linear_weights + share * head) * slower / rate for share in (learned, 1.0))
    evaluation = amount.evaluation_tokens * forward + _ANSWERED * amount.answer_tokens * whole
    return Duration(amount.tokens * passes * forward, amount.evaluations * evaluation, 0.0, source="estimate")


def cpu_rate(precision: Literal["fp32", "bf16", "fp16"], threads: int) -> float:
    """Operations a second of a training on so many threads."""
    return threads * CPU_RATES[precision]


def gpu_rate(peak: float, count: int) -> float:
    """Operations a second of a training on so many devices of this peak rate for dense products."""
    return count * peak * _OF_A_GPUS_PEAK


def spread(lengths: Sequence[int], count: int, *, offset: float) -> list[int]:
    """Places of `count` sequences, by length evenly from the shortest to the longest; `offset` (0 to 1) shifts it."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[int((place + offset) / count * len(order))] for place in range(count)]
