"""What lm-evaluation-harness found: each task's figures, tuned beside base, and proof that it asked this model."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from truetune.inference.bootstrap import Comparison
from truetune.inference.harness import SentPrompts, figure_name
from truetune.inference.parity import Parity, as_json, told_answers


@dataclass(frozen=True, slots=True)
class TaskFigure:
    """One metric of a task or group, as the harness names both, with its standard errors where it gives some.

    `filter` is how answers were cut out ("none": not at all). `comparison` is tuned less base by rows, where the
    figure is a mean over rows.
    """

    task: str
    metric: str
    filter: str
    tuned: float
    stderr: float | None
    base: float | None
    base_stderr: float | None
    higher_is_better: bool | None
    comparison: Comparison | None

    @property
    def name(self) -> str:
        """As thresholds name it."""
        return figure_name(self.task, self.metric, self.filter)


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """How a task was asked: examples shown, documents asked of how many, and the task's version."""

    num_fewshot: int | None
    documents: int | None
    of: int | None
    version: Any


@dataclass(frozen=True, slots=True)
class HarnessProof:
    """That the harness asked the trained model, with its adapter on and by its template.

    `answers` replays what was recorded when it was trained (None: nothing was). `max_abs_logit_difference` is by how
    much the first prompt's next-token logits differ from the base's (None: no base to compare). `prompts` holds what
    was sent against training's prompts. `cut` requests, of the tuned model's, were longer than it can read.
    """

    answers: Parity | None
    max_abs_logit_difference: float | None
    prompts: SentPrompts
    cut: int

    def warnings(self) -> Iterator[str]:
        """What makes figures less than they seem."""
        if self.max_abs_logit_difference == 0:
            yield "the first prompt's logits are the base's to the bit: the training has changed nothing there"
        if self.prompts.first_difference:
            differing = self.prompts.compared - self.prompts.equal
            yield (
                f"{differing} of {self.prompts.compared} prompts of the harness are not what training makes of them: "
                f"{self.prompts.first_difference}"
            )
        if self.cut:
            yield f"{self.cut} requests are longer than the model can read: the harness has cut them from the left"

    def told(self) -> str:
        """In a line."""
        parts = []
        if self.answers is not None:
            parts.append(told_answers(self.answers, where=" as recorded"))
        if self.max_abs_logit_difference is not None:
            parts.append(f"logits up to {self.max_abs_logit_difference:.3g} off the base's on the first prompt")
        prompts = self.prompts
        if prompts.compared:
            parts.append(f"{prompts.equal} of {prompts.compared} prompts are training's, token by token")
        if prompts.left_out:
            parts.append(f"{prompts.left_out} have no counterpart in training")
        return f"proof: {'; '.join(parts) or 'nothing was recorded that could prove it'}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "answers": self.answers and as_json(self.answers)}


@dataclass(frozen=True, slots=True)
class Sample:
    """A document as it was asked: the prompt, what is right, both models' responses after the filter, and scores."""

    task: str
    filter: str
    document: int
    prompt: str
    target: Any
    tuned: Any
    scores: Mapping[str, Any]
    base: Any = None
    base_scores: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class TaskEvaluation:
    """All that was found. `missed` has a line for each threshold not met; `path` is where it is stored, or None."""

    tasks: Mapping[str, TaskFacts]
    figures: tuple[TaskFigure, ...]
    samples: tuple[Sample, ...]
    proof: HarnessProof
    missed: tuple[str, ...]
    record: Mapping[str, Any]
    path: Path | None = None

    @property
    def values(self) -> dict[str, float]:
        """The tuned model's figures by the names that thresholds use."""
        return {each.name: each.tuned for each in self.figures}

    def as_json(self) -> dict[str, Any]:
        """As `truetune eval --lm-eval --json` prints it, and as it is stored; samples have a file of their own."""
        return {
            "tasks": {name: asdict(facts) for name, facts in self.tasks.items()},
            "figures": [{"name": each.name, **asdict(each)} for each in self.figures],
            "proof": self.proof.as_json(),
            "missed": list(self.missed),
            "record": dict(self.record),
            "path": self.path and str(self.path),
        }
