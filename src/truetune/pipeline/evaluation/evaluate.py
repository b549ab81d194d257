"""`truetune eval`: is the trained model better than its base, on which rows not, and what has it forgotten?"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from truetune.data.examples import IGNORED, Example, Tokenized
from truetune.errors import ConfigError
from truetune.files import write_json, write_text
from truetune.inference import forgetting
from truetune.inference.batch import choose_batch_size
from truetune.inference.bootstrap import Comparison, compare
from truetune.inference.generate import Answer, Sampling, TrainedModel, load_opened
from truetune.inference.losses import RowLosses, row_losses
from truetune.inference.metrics import Metric, Statistics, mean, named_metrics, without_thinking
from truetune.listener import Listener, LogListener
from truetune.model.tokenizer import pad_token_id
from truetune.pipeline.doctor.libraries import installed_versions
from truetune.pipeline.evaluation.questions import Questions, questions_of
from truetune.pipeline.evaluation.result import (
    Answered,
    Evaluation,
    Figures,
    Forgetting,
    Loss,
    RowLoss,
    Thresholds,
    WorstRow,
    figures_of,
)
from truetune.pipeline.evaluation.rows import (
    HELD_OUT,
    EvaluationRows,
    Subject,
    evaluation_rows,
    learned_rows,
    read_subject,
    require_base,
)
from truetune.pipeline.stages import Formatting, Rows
from truetune.runs.directory import now

_WORST = 10
_EXCERPT = 200
"""Characters of a row that are shown."""
_LOSS_TIE = 1e-3
"""Nats a token, within which two models take a row alike: what rounding in bf16 comes to."""


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """What is measured. `metrics` are names, or auto; of up to `limit` rows the last answer is generated, greedily.

    `compares_base` measures the base as well; `generates` False leaves answers, and forgetting, out. `reference` is a
    file of another model's answers to the same rows. `tokens_at_a_time` changes memory and speed only.
    """

    metrics: tuple[str, ...] = ("auto",)
    regex: str | None = None
    limit: int = 100
    max_new_tokens: int = 256
    compares_base: bool = True
    generates: bool = True
    checks_forgetting: bool = True
    reference: Path | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    tokens_at_a_time: int | None = None


def evaluate_run(
    path: str | Path,
    *,
    data: str | None = None,
    rows: Rows | None = None,
    formatting: Formatting | None = None,
    settings: EvaluationSettings | None = None,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    listener: Listener | None = None,
) -> Evaluation:
    """Measures a run's model, and its base, on the rows of `data` (or `rows`), else on its own validation rows.

    What is wrong with the command or the rows is told before weights load. Raises ConfigError, DataError,
    CheckpointError or BackendError; a threshold that is missed raises nothing (`missed`). The result is stored in the
    run's directory, under evaluations/.
    """
    settings, listener = settings or EvaluationSettings(), listener or LogListener()
    _require_sense(settings)
    named = named_metrics([name for name in settings.metrics if name != "auto"], pattern=settings.regex)
    subject = read_subject(path, base_model=base_model, listener=listener)
    if settings.compares_base and not subject.opened.has_base:
        listener.say(f"{subject.opened.source.name} is a base itself: there is none to compare it with")
        settings = replace(settings, compares_base=False)
    found = evaluation_rows(subject, data=data, rows=rows, formatting=formatting, listener=listener)
    questions = _questions(found, settings, named)
    overlap = None if data is None and rows is None else learned_rows(subject, found, listener)
    if overlap:
        listener.warn(f"{overlap} of {len(found.stored)} rows are rows that the model was trained on")
    if settings.compares_base:
        require_base(subject)
    trained = load_opened(subject.opened, device=device)
    evaluator = _Evaluator(trained, subject, found, questions, settings, listener)
    return _stored(evaluator.run(overlap), subject)


def _questions(rows: EvaluationRows, settings: EvaluationSettings, named: Sequence[Metric]) -> Questions:
    if not settings.generates:
        return Questions()
    return questions_of(
        rows,
        named,
        is_auto="auto" in settings.metrics,
        limit=settings.limit,
        regex=settings.regex,
        reference=settings.reference,
        thresholds=settings.thresholds,
    )


def _require_sense(settings: EvaluationSettings) -> None:
    """ConfigError for settings that ask for what others leave out."""
    thresholds = settings.thresholds
    thresholds.require_known()
    if not settings.generates and (thresholds.metrics or settings.reference or settings.metrics != ("auto",)):
        raise ConfigError("metrics of answers need answers", hint="leave --loss-only out")
    if thresholds.needs_forgetting and not (settings.generates and settings.checks_forgetting):
        raise ConfigError("a threshold names what is left out", hint="leave --no-forgetting and --loss-only out")
    if "instructions_drop" in thresholds.names and not settings.compares_base:
        raise ConfigError("instructions_drop needs the base", hint="leave --no-base out")
    if settings.reference is not None and not settings.reference.is_file():
        raise ConfigError(f"--reference {settings.reference}: there is no such file")


# --- what a model does ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Measured:
    """A model's losses on the rows, its answers, and what it does with the instructions and the general texts."""

    losses: RowLosses
    answers: Sequence[Answer]
    instructions: NDArray[np.float64] | None
    general: RowLosses | None


@dataclass(frozen=True, slots=True)
class _Evaluator:
    """One evaluation, with the model loaded."""

    trained: TrainedModel
    subject: Subject
    rows: EvaluationRows
    questions: Questions
    settings: EvaluationSettings
    listener: Listener

    def run(self, overlap: int | None) -> Evaluation:
        if self.settings.thresholds.needs_forgetting and not self._checks_forgetting:
            message = "a threshold names what only models that follow prompts are asked, and this one does not"
            raise ConfigError(message, hint="leave the figures of forgetting out")
        tuned, base = self._measured(self.trained, "tuned"), None
        if self.settings.compares_base:
            with self.trained.without_adapter() as model:
                base = self._measured(model, "base")
        return self._evaluation(tuned, base, overlap)

    def _measured(self, model: TrainedModel, name: str) -> _Measured:
        losses = self._losses(model, self.rows.stored, f"{name}: loss of the rows")
        answers = self._answers(
            model, [each.example for each in self.questions.asked], f"{name}: answers", self.settings.max_new_tokens
        )
        if not self._checks_forgetting:
            return _Measured(losses, answers, None, None)
        tasks = forgetting.tasks()
        given = self._answers(
            model,
            [model.as_example(task.prompt) for task in tasks],
            f"{name}: general instructions",
            forgetting.MAX_NEW_TOKENS,
        )
        passed = [
            task.passes(answer.text, has_stopped=answer.stop_reason == "stop")
            for task, answer in zip(tasks, given, strict=True)
        ]
        texts = forgetting.general_rows(model.tokenizer, bos=model.template.bos)
        general = self._losses(model, texts, f"{name}: loss of general texts")
        return _Measured(losses, answers, np.array(passed, dtype=np.float64), general)

    def _losses(self, model: TrainedModel, rows: Sequence[Tokenized], stage: str) -> RowLosses:
        return row_losses(
            model.model,
            rows,
            pad_token_id=pad_token_id(model.tokenizer),
            tokens_at_a_time=self.settings.tokens_at_a_time,
            progress=lambda done, total: self.listener.progress(stage, done, total),
        )

    def _answers(
        self, model: TrainedModel, examples: Sequence[Example], stage: str, max_new_tokens: int
    ) -> list[Answer]:
        """Greedy answers, in order."""
        longest = max((len(model.prompt_ids(each)) for each in examples), default=0) + max_new_tokens
        size = choose_batch_size("auto", model.model, longest=longest).size
        answers: dict[int, Answer] = {}
        sampling = Sampling(max_new_tokens=max_new_tokens)
        for number, answer in model.answers(enumerate(examples), sampling=sampling, batch_size=size):
            answers[number] = answer
            self.listener.progress(stage, len(answers), len(examples))
        return [answers[number] for number in range(len(examples))]

    @property
    def _checks_forgetting(self) -> bool:
        """A model that was trained on bare texts or completions follows no instructions, and never did."""
        is_instructed = self.trained.prompt_format.row_format in ("chat", "instruction")
        return self.settings.generates and self.settings.checks_forgetting and is_instructed

    # --- figures --------------------------------------------------------------------------------------

    def _evaluation(self, tuned: _Measured, base: _Measured | None, overlap: int | None) -> Evaluation:
        forgotten = _forgotten(tuned, base)
        figures = self._figures(tuned)
        known = figures_of(figures, forgotten)
        for warning in forgotten.warnings() if forgotten else ():
            self.listener.warn(warning)
        reference = self.questions.reference
        return Evaluation(
            data=self.rows.name,
            rows=len(self.rows.stored),
            tokens=int(tuned.losses.tokens.sum()),
            tuned=figures,
            base=self._figures(base) if base else None,
            reference=None if reference is None else Figures(None, self._metrics(reference)),
            comparison=self._comparison(tuned, base) if base else {},
            metrics_reason=self.questions.reason,
            worst_rows=tuple(self._worst(tuned, base)),
            answers=tuple(self._answered(tuned, base)),
            forgetting=forgotten,
            learned_rows=overlap,
            missed=tuple(self.settings.thresholds.missed(known)),
            record=self._record(),
            row_losses=tuple(self._row_losses(tuned)),
        )

    def _figures(self, measured: _Measured) -> Figures:
        losses = measured.losses
        loss = Loss(losses.loss, losses.perplexity, losses.token_accuracy)
        return Figures(loss, self._metrics(_texts(measured)))

    def _metrics(self, answers: Sequence[str]) -> dict[str, float]:
        return {each.name: each.figure(self._statistics(each, answers).sum(0)) for each in self.questions.metrics}

    def _statistics(self, metric: Metric, answers: Sequence[str]) -> Statistics:
        return metric.statistics([without_thinking(answer) for answer in answers], self.questions.expected)

    def _comparison(self, tuned: _Measured, base: _Measured) -> dict[str, Comparison]:
        mine, others = (np.stack([each.losses.sums, each.losses.tokens], axis=1) for each in (tuned, base))
        found = {"eval_loss": compare(mine, others, mean, higher_is_better=False, tie=_LOSS_TIE)}
        for metric in self.questions.metrics:
            mine, others = (self._statistics(metric, _texts(each)) for each in (tuned, base))
            found[metric.name] = compare(mine, others, metric.figure)
        return found

    def _row_losses(self, tuned: _Measured) -> Iterator[RowLoss]:
        stored, losses = self.rows.stored, tuned.losses
        keys = stored.column("key")[stored.places].tolist()
        for key, loss, tokens in zip(keys, losses.sums.tolist(), losses.tokens.tolist(), strict=True):
            yield RowLoss(f"{key:016x}", loss, tokens)

    def _worst(self, tuned: _Measured, base: _Measured | None) -> Iterator[WorstRow]:
        means = tuned.losses.means
        places = np.argsort(-means, kind="stable")[:_WORST].tolist()
        traced = self.rows.traced(places)
        for place in places:
            record, _, tokens = traced[place]
            text, answer = self._excerpts(tokens)
            before = None if base is None else float(base.losses.means[place])
            count = int(tuned.losses.tokens[place])
            yield WorstRow(record.where, float(means[place]), before, count, text, answer)

    def _excerpts(self, row: Tokenized) -> tuple[str, str]:
        """The end of what stands before a row's first learned token, and the beginning of what it learns."""
        first = next(place for place, label in enumerate(row.labels) if label != IGNORED)
        learned = [token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED]
        text, answer = (self.trained.tokenizer.decode(ids) for ids in (row.input_ids[:first], learned))
        return text[-_EXCERPT:], answer[:_EXCERPT]

    def _answered(self, tuned: _Measured, base: _Measured | None) -> Iterator[Answered]:
        scores = {
            each.name: each.row_scores(self._statistics(each, _texts(tuned))) for each in self.questions.metrics
        }
        for index, (row, answer) in enumerate(zip(self.questions.asked, tuned.answers, strict=True)):
            yield Answered(
                where=row.where,
                id=row.fields.get("id"),
                prompt=row.prompt,
                expected=row.expected.text or json.dumps([asdict(call) for call in row.expected.calls]),
                answer=answer.text,
                stop_reason=answer.stop_reason,
                scores={name: found[index] for name, found in scores.items()},
                base_answer=base.answers[index].text if base else None,
                reference_answer=self.questions.reference[index] if self.questions.reference else None,
            )

    def _record(self) -> dict[str, Any]:
        settings = asdict(replace(self.settings, reference=None))
        model = self.trained.model
        return {
            "time": now(),
            "weights": self.subject.opened.source.path,
            "data_fingerprint": self.rows.prepared.fingerprint,
            "settings": {**settings, "reference": self.settings.reference and str(self.settings.reference)},
            "device": model.device.type,
            "dtype": str(model.dtype).removeprefix("torch."),
            "versions": installed_versions(),
        }


def _each_once(values: NDArray[np.float64]) -> Statistics:
    """The statistics of a mean."""
    return np.stack([values, np.ones(len(values))], axis=1)


def _texts(measured: _Measured) -> list[str]:
    return [answer.text for answer in measured.answers]


def _forgotten(tuned: _Measured, base: _Measured | None) -> Forgetting | None:
    if tuned.instructions is None or tuned.general is None:
        return None
    tasks, mine = forgetting.tasks(), tuned.instructions
    before = base.instructions if base else None
    is_lost = mine < before if before is not None else np.zeros(len(mine), dtype=bool)
    return Forgetting(
        instructions=len(tasks),
        passed=int(mine.sum()),
        base_passed=None if before is None else int(before.sum()),
        general_perplexity=tuned.general.perplexity,
        base_general_perplexity=base.general.perplexity if base and base.general else None,
        comparison=None if before is None else compare(_each_once(mine), _each_once(before), mean),
        lost=tuple(task.prompt for task, lost in zip(tasks, is_lost, strict=True) if lost),
    )


# --- the store --------------------------------------------------------------------------------------------


def _stored(found: Evaluation, subject: Subject) -> Evaluation:
    """The evaluation with its place in the run's directory: <name>-<n>.json, answers and rows' losses beside it."""
    path = subject.place("validation" if found.data == HELD_OUT else Path(found.data).stem)
    if path is None:
        return found
    for name, rows in (("answers", found.answers), ("losses", found.row_losses)):
        lines = (json.dumps(asdict(each), ensure_ascii=False, default=str) + "\n" for each in rows)
        if rows:
            write_text(path.with_suffix(f".{name}.jsonl"), "".join(lines))
    found = replace(found, path=path)
    write_json(path, found.as_json())
    return found
