"""`truetune train`: a config and rows in, a run's directory with a verified model out."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from truetune.config.load import load_config
from truetune.config.schema import Config
from truetune.data.examples import Record
from truetune.data.store import StoredRows
from truetune.errors import BackendError, CheckpointError, first_line
from truetune.figures import byte_size
from truetune.files import free_bytes, remedy, write_json, write_text
from truetune.listener import Listener, LogListener
from truetune.model.hardware import threads
from truetune.model.tokenizer import with_chat_template
from truetune.pipeline.backends import open_session, settle
from truetune.pipeline.check import prepare_for
from truetune.pipeline.commented import commented_config
from truetune.pipeline.duration import reckoned_duration
from truetune.pipeline.evaluation.rows import held_out
from truetune.pipeline.evaluation.scored_rows import scored_rows
from truetune.pipeline.fixed_prompts import own_prompts, row_prompts
from truetune.pipeline.machine import Machine, ask_machine, model_request
from truetune.pipeline.plan import keep_decisions, plan_run, plan_without_packs, train_job
from truetune.pipeline.prepare import PreparedDataset
from truetune.pipeline.resume import Resume, identity, require_same_run, tell_roundings, where_to_resume
from truetune.pipeline.stages import Formatting, Rows, require_rows, rereadable, shaped_records, training_files
from truetune.pipeline.tracked import run_facts, scores_of
from truetune.runs.checkpoints import checkpoint_step
from truetune.runs.directory import RunDirectory, next_directory, now, public
from truetune.runs.log import RunLog
from truetune.training.session import Destination, LoadedModel, ScoredRows, Session, Tracking, TrainingRows
from truetune.training.trackers import require_reachable


@dataclass(frozen=True, slots=True)
class Run:
    """A training run: `adapter` is the folder of its weights (of the whole model after full fine-tuning).

    `best_metric` is the best value of `metric_for_best_model`, at `best_step`, whether or not its weights were kept.
    """

    directory: Path
    config: Config
    status: str
    steps: int
    final_loss: float | None
    eval_loss: float | None
    adapter: Path | None
    stopped_by: str | None = None
    metric_for_best_model: str | None = None
    best_metric: float | None = None
    best_step: int | None = None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The logged lines, in order: step, loss, learning_rate, grad_norm …"""
        return RunDirectory(self.directory).read_metrics()

    @property
    def losses(self) -> list[float]:
        """The logged training losses, in order."""
        return [line["loss"] for line in self.metrics if "loss" in line]


def open_run(path: str | Path) -> Run:
    """The run in a directory, as its run.json has it. CheckpointError if there is none."""
    directory = RunDirectory(Path(path))
    record = directory.read_record()
    adapter = record.get("adapter")
    return Run(
        directory=directory.path,
        config=load_config(directory.config).config,
        status=record["status"],
        steps=record.get("steps", 0),
        final_loss=record.get("final_loss"),
        eval_loss=record.get("eval_loss"),
        adapter=directory.path / adapter if adapter else None,
        stopped_by=record.get("stopped_by"),
        metric_for_best_model=record.get("metric_for_best_model"),
        best_metric=record.get("best_metric"),
        best_step=record.get("best_step"),
    )


def train_run(
    config: Config,
    *,
    rows: Iterable[Mapping[str, Any]] | None = None,
    formatting: Formatting | None = None,
    callbacks: Sequence[Any] = (),
    resume: Resume = "never",
    overwrite: bool = False,
    dry_run: bool = False,
    listener: Listener | None = None,
    log: RunLog | None = None,
) -> Run:
    """Trains as configured. Everything that can be refused is refused before the model's weights load.

    `dry_run` stops before the first step, with every setting decided and nothing written. `log` becomes the file of
    the run in which a command's words are kept.

    Raises ConfigError, DataError, BackendError or CheckpointError; a run that fails later says so in its run.json.
    """
    listener = listener or LogListener()
    require_rows(config.data, rows)
    directory = RunDirectory(Path(config.output_dir) if config.output_dir else next_directory(_data_name(config)))
    with nullcontext() if dry_run else _at_work(directory, log):
        resume_from = where_to_resume(directory, resume, overwrite=overwrite, listener=listener)
        if log and not dry_run:
            log.open(directory.log, goes_on=resume_from is not None)
        if resume_from is not None and directory.config.exists():
            config = keep_decisions(config, load_config(directory.config).config)
        machine = ask_machine(config, listener, has_callbacks=bool(callbacks))
        if not dry_run:
            require_reachable(config.logging.report_to)
        config = settle(config, backend=machine.backend, device=machine.device, listener=listener)
        source = rereadable(rows)
        prepared = prepare_for(machine, config, source=source, formatting=formatting, listener=listener)
        training = _Training(config, directory, machine, prepared, resume_from, listener, log)
        training.tell_plan()
        training.score_answers(source, formatting)
        if dry_run:
            return Run(directory.path, training.plan.config, "dry run", 0, None, None, None)
        if machine.num_processes > 1:
            raise BackendError(
                f"{machine.num_processes} processes are running, and training on several is not supported yet",
                hint="start one process, without torchrun or accelerate launch; --dry-run plans for any number",
            )
        training.refuse_another_run()
        if not training.is_complete():
            own_rows = _own_rows(config, source, formatting, listener)
            training.run(own_rows, callbacks)
        return open_run(directory.path)


@contextmanager
def _at_work(directory: RunDirectory, log: RunLog | None) -> Iterator[None]:
    """The directory is this process's alone; what its disk refuses is told by name."""
    try:
        with directory.locked(), _left(log):
            yield
    except OSError as error:
        place = Path(error.filename or directory.path)
        hint = remedy(error)
        if hint is None or not (place == directory.path or directory.path in place.parents):
            raise
        raise CheckpointError(f"{place} cannot be written: {first_line(error)}", hint=hint) from error


@contextmanager
def _left(log: RunLog | None) -> Iterator[None]:
    """A run that has not begun leaves no log."""
    try:
        yield
    finally:
        if log:
            log.leave()


class _Training:
    """One run from prepared rows to verified weights."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        machine: Machine,
        prepared: PreparedDataset,
        resume_from: Path | None,
        listener: Listener,
        log: RunLog | None = None,
    ) -> None:
        self.config = config
        self.log = log
        self.directory = directory
        self.machine = machine
        self.prepared = prepared
        self.resume_from = resume_from
        self.listener = listener
        self.plan = plan_run(config, machine=machine, prepared=prepared)
        self._scored: ScoredRows | None = None
        self._has_begun = False

    def score_answers(self, source: Rows | None, formatting: Formatting | None) -> None:
        """Chooses the validation rows that are answered while it trains, if any are asked for."""
        if self.config.evaluation.generate:
            held = held_out(self.config, self.prepared, source=source, formatting=formatting, listener=self.listener)
            context, folder = self.machine.facts.context_length, self.directory.answers
            self._scored = scored_rows(held, context_length=context, folder=folder, listener=self.listener)

    def run(self, own_rows: Iterable[Record] | None, callbacks: Sequence[Any]) -> None:
        """From the base's weights to verified ones; what was there before goes only when the model has loaded."""
        session = self._open_session()
        try:
            model = self._load(session)
            if self.resume_from is None:
                data, base = self.config.data.path, self.config.model.name_or_path
                self.directory.clear(data=data, base=base, keeps_log=self.log is not None)
            self._write_start(model, own_rows)
            self._begin_log()
            self._train(session, model, callbacks)
        except BaseException as error:
            self._write_failure(error)
            raise
        finally:
            session.close()

    def _begin_log(self) -> None:
        if self.log:
            self.log.begin()
            if self.log.path:
                self.listener.say(f"log: {self.log.path}, with what libraries say")

    def _open_session(self) -> Session:
        return open_session(
            self.machine.backend,
            device=self.machine.device,
            directory=self.directory.path,
            log=self.log.file if self.log else None,
            listener=self.listener,
            write_metrics=self.directory.append_metrics,
        )

    def _load(self, session: Session) -> LoadedModel:
        """The model; packs are given up if it does not keep concatenated rows apart."""
        machine, engine = self.machine, "" if self.machine.backend == "trl" else " with Unsloth"
        by = f" with {threads()}" if machine.device == "cpu" else ""
        self.listener.say(
            f"loading {machine.source.name} on {machine.device}{engine}, computing in {machine.precision}{by}"
        )
        max_length = self.prepared.report.stats["max_length"]
        model = session.load(model_request(self.plan.config, machine, max_length=max_length))
        share = model.trained_weights / model.weights
        self.listener.say(f"{model.trained_weights:,} of {model.weights:,} weights are trained ({share:.2%})")
        self._tell_coverage(model)
        if not model.isolates:
            self.plan = plan_without_packs(self.config, machine, self.prepared, self.listener)
        if self.resume_from is not None:
            require_same_run(self.resume_from, self._identity(model))
        return model

    def refuse_another_run(self) -> None:
        """CheckpointError if going on would make another run; tells what will only change its last digits."""
        if self.resume_from is not None:
            now_ = identity(self.plan, self.machine, self.prepared)
            require_same_run(self.resume_from, now_)
            tell_roundings(self.resume_from, now_, self.listener)

    def _identity(self, model: LoadedModel) -> dict[str, Any]:
        return {**identity(self.plan, self.machine, self.prepared), "model.revision": model.revision}

    def _tell_coverage(self, model: LoadedModel) -> None:
        if self.config.adapter.method == "lora":
            share = model.reached_weights / self.machine.parameters
            self.listener.say(f"adapters on {model.reached_weights:,} of the base's weights ({share:.0%})")
        if model.missed_experts:
            self.listener.warn(
                f"adapter.target_modules: no adapter on the experts ({', '.join(model.missed_experts)}), which hold "
                "most of this model's weights; all-linear reaches them, or adapter.target_parameters"
            )

    def _train(self, session: Session, model: LoadedModel, callbacks: Sequence[Any]) -> None:
        """Trains, then saves and verifies; run.json says at any time how far it came."""
        job = train_job(
            self.plan,
            machine=self.machine,
            checkpoints=self.directory.checkpoints,
            is_padding_free=model.isolates,
            resume_from=self.resume_from,
            identity=self._identity(model),
        )
        tokenizer = with_chat_template(self.machine.tokenizer, self.prepared.template.servers_chat_template)
        rows = TrainingRows(self.plan.sequences, self.prepared.validation, tokenizer, self._scored)
        result = session.train(job, rows, self._tracking(), callbacks)
        outcome = {**asdict(result), "ended": now()}
        if result.stopped_by:
            self.directory.update_record(status="stopped", **outcome)
            self.listener.warn(f"stopped by {result.stopped_by} after step {result.steps}; go on with --resume")
        else:
            folder = self._save(session)
            self.directory.update_record(status="finished", adapter=folder.name, **outcome)
        session.conclude(scores_of(result, is_verified=not result.stopped_by))

    def _tracking(self) -> Tracking:
        """Where trackers write, and what they are told beside the metrics."""
        logging, prepared, facts = self.config.logging, self.prepared, None
        if logging.report_to:
            tokenizer = prepared.template.tokenizer
            facts = run_facts(self.directory, prepared.train, tokenizer, shown=logging.report_rows)
        return Tracking(self.directory.path, logging.logging_dir, logging.project, facts)

    def _save(self, session: Session) -> Path:
        from truetune.inference import prompt_format

        source, template = self.machine.source, self.prepared.template
        folder = self.directory.adapter if self.config.adapter.method == "lora" else self.directory.model
        prompts = prompt_format.prompt_format(
            template, self.prepared.formats, base_model=source.name, revision=source.revision
        )
        self.directory.parity.unlink(missing_ok=True)  # What it holds was answered by the weights that go now.
        context = self.machine.facts.context_length
        saved = session.save(
            Destination(
                folder,
                source.name,
                source.revision,
                template.stop_token_ids,
                documents={prompt_format.FILE: asdict(prompts)},
                prompts=tuple(own_prompts(template, prompts.row_format, context_length=context)),
                row_prompts=tuple(row_prompts(self._asked_rows(), template.tokenizer, context_length=context)),
            )
        )
        if saved.row_fixtures is not None:
            write_json(self.directory.parity, saved.row_fixtures.as_document())
        self.listener.say(f"saved and verified: {saved.tensors} tensors in {folder}")
        return folder

    def _asked_rows(self) -> StoredRows:
        return self.prepared.validation if len(self.prepared.validation) else self.prepared.train

    def _write_failure(self, error: BaseException) -> None:
        """How the run ended, if it had begun, and where its disk still takes that."""
        if self._has_begun and self.directory.record.exists():
            status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(OSError):
                self.directory.update_record(status=status, error=str(error), ended=now())

    def _write_start(self, model: LoadedModel, own_rows: Iterable[Record] | None) -> None:
        """The directory as it stands before the first step: config, report, record, and rows from Python."""
        directory, plan, report = self.directory, self.plan, self.prepared.report
        directory.path.mkdir(parents=True, exist_ok=True)
        config = plan.config.model_copy(update={"output_dir": str(directory.path)})
        if own_rows is not None:
            lines = (json.dumps(record.fields, ensure_ascii=False) + "\n" for record in own_rows)
            write_text(directory.own_data, "".join(lines))
            data = config.data.model_copy(update={"path": str(directory.own_data)})
            config = config.model_copy(update={"data": data})
        write_text(directory.config, commented_config(config, plan.settings))
        write_json(directory.data_report, report.as_json())
        if self.resume_from is not None:
            for later in directory.go_back_to(self.resume_from):
                self.listener.say(f"{later.name} is set aside: the run goes on from {self.resume_from.name}")
        directory.begin_record(
            started=now(),
            command=public(sys.argv),
            resumed_from=self.resume_from and str(self.resume_from),
            **self.machine.as_record(model),
            data={
                "path": config.data.path,
                "fingerprint": self.prepared.fingerprint,
                "rows_read": report.rows_read,
                "rows_kept": report.rows_kept,
            },
            total_steps=plan.steps.total_steps,
            effective_batch_size=plan.steps.effective_batch_size,
            config=config.model_dump(mode="json"),
            settings=[asdict(choice) for choice in plan.settings],
            planned=self._planned(),
        )
        self._has_begun = True

    def _planned(self) -> dict[str, Any]:
        """What the run is held to at its end."""
        plan = self.plan
        duration = reckoned_duration(plan, self.machine, self.prepared)
        memory = {"peak_bytes": plan.memory.peak, "parts": plan.memory.parts}
        return {"memory": memory, "seconds": duration and duration.total, "disk_bytes": plan.disk_bytes}

    def is_complete(self) -> bool:
        """True if nothing is left to train; a schedule that changed is told."""
        if self.resume_from is None:
            return False
        record, total = self.directory.read_record(), self.plan.steps.total_steps
        if record["status"] == "finished" and checkpoint_step(self.resume_from) >= total:
            self.listener.say(f"the run is complete: {total} of {total} steps are done")
            return True
        if (before := record.get("total_steps")) != total:
            self.listener.warn(f"the schedule changed: {before} steps before, {total} now")
        return False

    def tell_plan(self) -> None:
        steps, training = self.plan.steps, self.plan.config.training
        self.listener.say(
            f"{steps.total_steps} steps, {steps.steps_per_epoch} an epoch of {steps.micro_batches} batches a process"
            f"; {steps.effective_batch_size} sequences a step = {training.per_device_train_batch_size} per device x "
            f"{steps.gradient_accumulation_steps} accumulated x {self.machine.num_processes} processes"
            f"; {steps.warmup_steps} warm-up steps"
        )
        for choice in self.plan.choices:
            self.listener.say(f"{choice.name}: {choice.value} ({choice.reason})")
        for warning in self.plan.warnings:
            self.listener.warn(warning)
        self._tell_disk()

    def _tell_disk(self) -> None:
        """Warns where the run's checkpoints will not fit."""
        free, needed = free_bytes(self.directory.path), self.plan.disk_bytes
        if free < needed:
            self.listener.warn(
                f"{self.directory.path}: checkpoints and weights will take about {byte_size(needed)}, and "
                f"{byte_size(free)} are free on its disk; a lower checkpoints.save_total_limit takes less"
            )


def _own_rows(
    config: Config, rows: Rows | None, formatting: Formatting | None, listener: Listener
) -> Iterable[Record] | None:
    """The rows as the run's directory keeps them: from Python, or through a function of the user's."""
    if rows is not None:
        return shaped_records(rows, formatting)
    if formatting is None:
        return None
    return (record for file in training_files(config.data, listener) for record in shaped_records(file, formatting))


def _data_name(config: Config) -> str | None:
    """What the run is named after."""
    path = config.data.path
    first = path if path is None or isinstance(path, str) else path[0]
    return first if first is None or isinstance(first, str) else first.path
