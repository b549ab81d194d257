"""A training, from the base's weights to verified ones: load, train, save, here or in a process of its own."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from truetune.data.examples import Packed, Tokenized
from truetune.errors import first_line
from truetune.listener import Listener
from truetune.model.adapter import LoraSettings
from truetune.model.fixtures import FILE, FixedPrompt, Fixtures, record
from truetune.model.load import ModelOptions
from truetune.model.source import ModelSource
from truetune.runs.checkpoints import checkpoint_step
from truetune.training.job import TrainJob, TrainResult
from truetune.training.scored import ScoredRows
from truetune.training.trackers.facts import RunFacts, Scores
from truetune.training.world import World

WriteMetrics = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """The model to train: `adapter` is None where all its weights are. `max_length` is the longest row, in tokens."""

    source: ModelSource
    options: ModelOptions
    adapter: LoraSettings | None
    seed: int
    max_length: int
    gradient_checkpointing: bool


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What became of a request: `isolates` is True if concatenated rows are kept apart; weights are counted.

    `reached_weights` of the base have an adapter, `missed_experts` name those of a mixture that have none.
    """

    dtype: str
    revision: str | None
    isolates: bool
    trained_weights: int
    weights: int
    reached_weights: int
    missed_experts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """The rows to train and to validate on; `tokenizer` has the chat template that is saved with the model.

    `scored` are those of the validation rows that are answered as well, if any are. Of a `stream`, which has all
    sequences of the run in the order in which they are learned, `train` are some of the first.
    """

    train: Sequence[Tokenized | Packed]
    validation: Sequence[Tokenized]
    tokenizer: Any
    scored: ScoredRows | None = None
    stream: Sequence[Tokenized | Packed] | None = None


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where trackers write (a run's directory, TensorBoard's folder, the project's name), and what beside metrics."""

    run: Path
    logging_dir: str | None = None
    project: str | None = None
    facts: RunFacts | None = None


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the trained weights go, what is recorded of their base, and `documents` that go beside, by file name.

    The model's answers to `prompts` go beside too. Those to `row_prompts` are handed back: whoever passes the folder
    on does not pass on rows.
    """

    folder: Path
    base_model: str
    revision: str | None
    stop_token_ids: tuple[int, ...]
    documents: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[FixedPrompt, ...] = ()
    row_prompts: tuple[FixedPrompt, ...] = ()


@dataclass(frozen=True, slots=True)
class Saved:
    """How many tensors were saved and verified, and the answers to the rows' prompts, where any were recorded."""

    tensors: int
    row_fixtures: Fixtures | None


class Session(Protocol):
    """One training. The calls are made in this order, each once; `close` at the end, whatever happened.

    A training that was stopped is concluded without a save.
    """

    def load(self, request: ModelRequest) -> LoadedModel:
        """Loads the base and adds the adapter. BackendError if it cannot be loaded or does not take it."""

    def train(self, job: TrainJob, rows: TrainingRows, tracking: Tracking, callbacks: Sequence[Any]) -> TrainResult:
        """Trains to the end, or to the step after SIGINT or SIGTERM."""

    def save(self, destination: Destination) -> Saved:
        """Saves the trained weights, verified, with the model's answers; answers that fail cost a warning only.

        Of several processes the first one does, and is answered; the others help.
        """

    def conclude(self, scores: Scores) -> None:
        """Tells the trackers what came of the run, and ends them."""

    def close(self) -> None:
        """Lets go of the model."""


@dataclass
class TrlSession:
    """A training in this process, one of those of `world`, with TRL's trainer."""

    listener: Listener
    write_metrics: WriteMetrics
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    world: World = field(default_factory=World)
    _request: ModelRequest | None = None
    _model: Any = None
    _engine: Any = None
    _trackers: Sequence[Any] = ()

    def load(self, request: ModelRequest) -> LoadedModel:
        from truetune.model.adapter import missed_experts, reached_weights

        self._request = request
        self._model, isolates = self._load(request)
        parameters = list(self._model.parameters())
        has_adapter = request.adapter is not None
        return LoadedModel(
            dtype=str(self._model.dtype).removeprefix("torch."),
            revision=getattr(self._model.config, "_commit_hash", None) or request.source.revision,
            isolates=isolates,
            trained_weights=sum(each.numel() for each in parameters if each.requires_grad),
            weights=sum(each.numel() for each in parameters),
            reached_weights=reached_weights(self._model) if has_adapter else 0,
            missed_experts=missed_experts(self._model) if has_adapter else (),
        )

    def _load(self, request: ModelRequest) -> tuple[Any, bool]:
        """The model, ready to train, and whether it keeps concatenated rows apart."""
        from truetune.model.adapter import add_adapter
        from truetune.model.attention import fit_attention
        from truetune.model.fused_blocks import fuse_blocks
        from truetune.model.load import load_model

        model = load_model(request.source, request.options)
        fuse_blocks(model)
        isolates = fit_attention(model)
        if request.adapter is None:
            return model, isolates
        return add_adapter(model, request.adapter, seed=request.seed), isolates

    def train(self, job: TrainJob, rows: TrainingRows, tracking: Tracking, callbacks: Sequence[Any]) -> TrainResult:
        from truetune.training.monitor import MetricsCallback
        from truetune.training.trl import build_engine, train

        with self._tracked(job, tracking) as trackers:
            self._engine = build_engine(
                job,
                model=self._model,
                tokenizer=rows.tokenizer,
                train=rows.train,
                validation=rows.validation,
                scored=rows.scored,
                stream=rows.stream,
                listener=self.listener,
                callbacks=[*trackers, *callbacks],
                world=self.world,
                **self.engine_options,
            )
            return train(self._engine, job, metrics=MetricsCallback(self.write_metrics))

    @contextmanager
    def _tracked(self, job: TrainJob, tracking: Tracking) -> Iterator[Sequence[Any]]:
        """The job's trackers, which find their environment while it lasts; they stay until `conclude` or `close`."""
        from truetune.training.trackers.guard import guarded_trackers
        from truetune.training.trackers.places import Situation, tracker_environment

        report_to = job.report_to if self.world.is_first else ()
        name = job.run_name or os.environ.get("WANDB_NAME") or tracking.run.absolute().name
        resumed_at = checkpoint_step(job.resume_from) if job.resume_from else None
        situation = Situation(tracking.run, name, tracking.logging_dir, tracking.project, resumed_at)
        with tracker_environment(report_to, situation):
            self._trackers = guarded_trackers(report_to, self.listener, situation, tracking.facts)
            yield self._trackers

    def conclude(self, scores: Scores) -> None:
        for tracker in self._trackers:
            tracker.conclude(scores)

    def save(self, destination: Destination) -> Saved:
        saved = Saved(0, None)

        def save() -> None:
            nonlocal saved
            saved = self._answered_and_saved(destination)

        self._engine.strategy.first_alone(save)
        return saved

    def _answered_and_saved(self, destination: Destination) -> Saved:
        answers = self._answers(destination)
        if answers is None:
            return Saved(self._save(destination), None)
        ours, of_rows = answers.split(len(destination.prompts))
        documents = {**destination.documents, FILE: ours.as_document()}
        return Saved(self._save(replace(destination, documents=documents)), of_rows)

    def _answers(self, destination: Destination) -> Fixtures | None:
        """What the trained model answers, computed as likeliest is; None where nothing is asked, or it fails."""
        from truetune.model.fused_lora import as_peft

        prompts = (*destination.prompts, *destination.row_prompts)
        if not prompts:
            return None
        try:
            model = self._engine.accelerator.unwrap_model(self._engine.model)
            with as_peft(model):
                return record(
                    model,
                    prompts,
                    stop_token_ids=destination.stop_token_ids,
                    has_drafts=self._engine.generates,
                )
        except Exception as error:  # noqa: BLE001 - whatever it is, the trained weights must not be lost by it
            self.listener.warn(
                f"the model's answers could not be recorded ({first_line(error)}): the weights are saved, and what "
                "is made of them later cannot be held against answers"
            )
            return None

    def _save(self, destination: Destination) -> int:
        from truetune.model.load import load_model
        from truetune.training.saving import save_adapter, save_full_model

        folder = destination.folder
        if self._request and self._request.adapter:
            request = self._request
            return save_adapter(
                self._engine,
                folder,
                base_model=destination.base_model,
                revision=destination.revision,
                load_base=lambda: load_model(request.source, request.options),
                documents=destination.documents,
            )
        return save_full_model(
            self._engine,
            folder,
            stop_token_ids=destination.stop_token_ids,
            documents=destination.documents,
        )

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.abandon()
        if self._engine is not None:
            self._engine.strategy.close()
        self._model = self._engine = None
