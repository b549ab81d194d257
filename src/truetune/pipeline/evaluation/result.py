"""What an evaluation found: figures of the trained model beside its base's, with intervals, rows and thresholds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from truetune.data.examples import Location
from truetune.errors import ConfigError
from truetune.inference.bootstrap import Comparison
from truetune.inference.metrics import MEASURED

_OF_LOSS = ("eval_loss", "perplexity", "token_accuracy")
_OF_FORGETTING = ("instructions", "instructions_drop", "general_perplexity")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The least and the most that figures may be."""

    fail_under: Mapping[str, float] = field(default_factory=dict)
    fail_over: Mapping[str, float] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [*self.fail_under, *self.fail_over]

    @property
    def metrics(self) -> list[str]:
        """Those of answers, which have to be measured then."""
        return [name for name in self.names if name in MEASURED]

    @property
    def needs_forgetting(self) -> bool:
        return any(name in _OF_FORGETTING for name in self.names)

    def require_known(self, known: Sequence[str] = (*_OF_LOSS, *MEASURED, *_OF_FORGETTING)) -> None:
        """ConfigError for a figure that there is none of."""
        for name in self.names:
            if name not in known:
                raise ConfigError(f"thresholds: there is no figure {name}", hint=f"figures: {', '.join(known)}")

    def missed(self, figures: Mapping[str, float]) -> Iterator[str]:
        """A line for each threshold that is not met; a figure that is no number meets none."""
        for name, least in self.fail_under.items():
            if not (found := figures.get(name, math.nan)) >= least:
                yield f"{name} is {found:.4g}, and must be at least {least:g}"
        for name, most in self.fail_over.items():
            if not (found := figures.get(name, math.nan)) <= most:
                yield f"{name} is {found:.4g}, and must be at most {most:g}"


@dataclass(frozen=True, slots=True)
class Loss:
    """Over all learned tokens, each counting alike: nats a token, exp of that, and the share predicted right."""

    eval_loss: float
    perplexity: float
    token_accuracy: float


@dataclass(frozen=True, slots=True)
class WorstRow:
    """A row with a high loss, in nats a learned token; `text` is the end of what it asks, `answer` what it learns."""

    where: Location
    loss: float
    base_loss: float | None
    tokens: int
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class RowLoss:
    """A row's loss, summed over its learned `tokens`, in nats. `row` stands for its text, in every run alike."""

    row: str
    loss: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A row's expected answer beside those that were given; `scores` has each metric of the tuned model's."""

    where: Location
    prompt: str
    expected: str
    answer: str
    stop_reason: str
    scores: Mapping[str, float | None]
    base_answer: str | None = None
    reference_answer: str | None = None
    id: Any = None


@dataclass(frozen=True, slots=True)
class Forgetting:
    """Checked instructions that each model followed, of how many, and its perplexity on general texts.

    `lost` are the prompts that the base followed and the tuned model does not.
    """

    instructions: int
    passed: int
    base_passed: int | None
    general_perplexity: float
    base_general_perplexity: float | None
    comparison: Comparison | None
    lost: tuple[str, ...]

    @property
    def drop(self) -> float | None:
        """By how much the share of followed instructions fell."""
        return None if self.base_passed is None else (self.base_passed - self.passed) / self.instructions

    def warnings(self) -> Iterator[str]:
        """What the training has cost, as far as this small set can tell."""
        if self.drop and self.drop > 0:
            sure = "" if self.comparison and self.comparison.is_sure else ", which may be chance"
            yield (
                f"forgetting: {self.passed} of {self.instructions} instructions are followed, "
                f"{self.base_passed} before the training{sure}"
            )
        before = self.base_general_perplexity
        if before is not None and self.general_perplexity > 1.1 * before:
            yield f"forgetting: perplexity on general texts is {self.general_perplexity:.3g}, {before:.3g} before"


@dataclass(frozen=True, slots=True)
class Figures:
    """A model's figures: its loss (None of recorded answers), and each metric of its answers."""

    loss: Loss | None
    metrics: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        return {**(asdict(self.loss) if self.loss else {}), "metrics": dict(self.metrics)}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found on `rows` rows with `tokens` learned tokens; `answered` of them were answered.

    `comparison` is tuned less base for eval_loss and each metric. `missed` has a line for each threshold not met.
    `path` is where all of it is stored, None where the weights belong to no run.
    """

    data: str
    rows: int
    tokens: int
    tuned: Figures
    base: Figures | None
    reference: Figures | None
    comparison: Mapping[str, Comparison]
    metrics_reason: str
    worst_rows: tuple[WorstRow, ...]
    answers: tuple[Answered, ...]
    forgetting: Forgetting | None
    learned_rows: int | None
    missed: tuple[str, ...]
    record: Mapping[str, Any]
    row_losses: tuple[RowLoss, ...] = ()
    path: Path | None = None

    @property
    def eval_loss(self) -> float:
        return self.loss.eval_loss

    @property
    def perplexity(self) -> float:
        return self.loss.perplexity

    @property
    def loss(self) -> Loss:
        assert self.tuned.loss is not None
        return self.tuned.loss

    @property
    def metrics(self) -> Mapping[str, float]:
        """The tuned model's metrics of answers."""
        return self.tuned.metrics

    @property
    def figures(self) -> dict[str, float]:
        """All that thresholds can name, as far as it was measured."""
        return figures_of(self.tuned, self.forgetting)

    def as_json(self) -> dict[str, Any]:
        """As `truetune eval --json` prints it, and as it is stored; answers and rows' losses lie beside it."""
        document = {
            **self.tuned.as_json(),
            "data": self.data,
            "rows": self.rows,
            "tokens": self.tokens,
            "answered": len(self.answers),
            "base": self.base and self.base.as_json(),
            "reference": self.reference and self.reference.as_json(),
            "comparison": {name: asdict(each) for name, each in self.comparison.items()},
            "metrics_reason": self.metrics_reason,
            "worst_rows": [asdict(row) for row in self.worst_rows],
            "forgetting": self.forgetting and {**asdict(self.forgetting), "drop": self.forgetting.drop},
            "rows_trained_on": self.learned_rows,
            "missed": list(self.missed),
            "record": dict(self.record),
            "path": self.path and str(self.path),
        }
        return {name: _as_json(value) for name, value in document.items()}


def _as_json(value: Any) -> Any:
    """The value with null in the place of what JSON has no number for."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {name: _as_json(each) for name, each in value.items()}
        case list() | tuple():
            return [_as_json(each) for each in value]
        case _:
            return value


def figures_of(tuned: Figures, forgetting: Forgetting | None) -> dict[str, float]:
    """The figures by the names that thresholds use."""
    figures: dict[str, float] = {**(asdict(tuned.loss) if tuned.loss else {}), **tuned.metrics}
    if forgetting is not None:
        figures["instructions"] = forgetting.passed / forgetting.instructions
        figures["general_perplexity"] = forgetting.general_perplexity
        if forgetting.drop is not None:
            figures["instructions_drop"] = forgetting.drop
    return figures
