"""`truetune train`: a config and rows in, a run's directory with a verified model out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from truetune.config.load import load_config
from truetune.config.schema import Config
from truetune.data.examples import Record
from truetune.data.store import StoredRows
from truetune.errors import CheckpointError, first_line
from truetune.files import remedy, write_json
from truetune.listener import Listener, LogListener, Unheard
from truetune.model.hardware import threads
from truetune.model.source import cache_directory
from truetune.model.tokenizer import with_chat_template
from truetune.pipeline.backends import open_session, settle
from truetune.pipeline.begin import begin_run, rows_to_keep
from truetune.pipeline.check import prepare_for
from truetune.pipeline.evaluation.rows import held_out
from truetune.pipeline.evaluation.scored_rows import scored_rows
from truetune.pipeline.fixed_prompts import own_prompts, row_prompts
from truetune.pipeline.job import train_job
from truetune.pipeline.machine import Machine, ask_machine, model_request, processes_of, require_started
from truetune.pipeline.plan import RunPlan, keep_decisions, plan_run, plan_without_packs
from truetune.pipeline.prepare import PreparedDataset
from truetune.pipeline.resume import (
    Resume,
    identity,
    own_directory,
    require_same_run,
    tell_roundings,
    where_to_resume,
)
from truetune.pipeline.run import Run, run_of
from truetune.pipeline.stages import Formatting, Rows, require_rows, rereadable
from truetune.pipeline.streaming import StreamedRows, StreamOf, streamed
from truetune.pipeline.tell import tell_coverage, tell_plan
from truetune.pipeline.tracked import run_facts, scores_of
from truetune.runs.checkpoints import checkpoint_step, newest_listed
from truetune.runs.directory import RunDirectory, now
from truetune.runs.log import RunLog
from truetune.training.carried import within_reach
from truetune.training.scored import ScoredRows
from truetune.training.session import Destination, LoadedModel, Session, Tracking, TrainingRows
from truetune.training.trackers import require_reachable
from truetune.training.world import World, open_world


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

    `dry_run` stops before the first step, with every setting decided and nothing written. Of several processes that a
    launcher started each calls this alike; the first one writes and tells. `log` becomes the file of the run in which
    a command's words are kept.

    Raises ConfigError, DataError, BackendError or CheckpointError; a run that fails later says so in its run.json.
    """
    with nullcontext(World()) if dry_run else open_world() as world:
        require_rows(config.data, rows)
        return _train_in(
            world,
            config,
            source=rereadable(rows),
            formatting=formatting,
            callbacks=callbacks,
            resume=resume,
            overwrite=overwrite,
            dry_run=dry_run,
            listener=(listener or LogListener()) if world.is_first else Unheard(),
            log=log if world.is_first else None,
        )


def _train_in(
    world: World,
    config: Config,
    *,
    source: Rows | None,
    formatting: Formatting | None,
    callbacks: Sequence[Any],
    resume: Resume,
    overwrite: bool,
    dry_run: bool,
    listener: Listener,
    log: RunLog | None,
) -> Run:
    world.require_same(_given(config))
    place = world.told_by_first(lambda: config.output_dir or own_directory(config, resume, listener))
    directory = RunDirectory(Path(place))
    with nullcontext() if dry_run or not world.is_first else _at_work(directory, log):
        found = world.told_by_first(
            lambda: _named(where_to_resume(directory, resume, overwrite=overwrite, listener=listener))
        )
        resume_from = Path(found) if found else None
        if log and not dry_run:
            log.open(directory.log, goes_on=resume_from is not None)
        if resume_from is not None:
            config = _with_decisions(config, directory, world)
        with world.first_on_each_machine("prepared"):
            machine = ask_machine(config, listener, has_callbacks=bool(callbacks))
            if not dry_run:
                require_started(machine)
                require_reachable(config.logging.report_to)
            config = settle(config, backend=machine.backend, device=machine.device, listener=listener)
            prepared = prepare_for(machine, config, source=source, formatting=formatting, listener=listener)
        training = _Training(config, directory, machine, prepared, resume_from, listener, world, log)
        tell_plan(training.plan, machine, directory.path, listener)
        training.score_answers(source, formatting)
        if dry_run:
            return Run(directory.path, training.plan.config, "dry run", 0, None, None, None)
        training.refuse_another_run()
        if not world.told_by_first(training.is_complete):
            own_rows = rows_to_keep(config, source, formatting, listener)
            with within_reach(world, resume_from, copies=cache_directory(), say=listener.say) as training.resume_from:
                training.run(own_rows, callbacks)
        record = world.told_by_first(directory.read_record)  # All is written.
        return run_of(directory, record, Config.model_validate(record["config"]))


def _with_decisions(config: Config, directory: RunDirectory, world: World) -> Config:
    """The config with what the run so far decided, which the first process reads: the others may not see its disk."""
    if world.is_first and directory.config.exists():
        config = keep_decisions(
            config,
            load_config(directory.config).config,
            processes=processes_of(config),
            processes_before=directory.read_record().get("num_processes", 1),
        )
    told = world.told_by_first(lambda: config.model_dump(mode="json"))
    return config if world.is_first else Config.model_validate(told)


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
        world: World,
        log: RunLog | None = None,
    ) -> None:
        self.config = config
        self.log = log
        self.directory = directory
        self.machine = machine
        self.prepared = prepared
        self.resume_from = resume_from
        self.listener = listener
        self.world = world
        self.plan: RunPlan
        self._plan()
        self._scored: ScoredRows | None = None
        self._has_begun = False

    def _plan(self) -> None:
        """The plan; of several processes the first one decides, by what its own device has left."""

        def decide() -> dict[str, Any]:
            self.plan = plan_run(self.config, machine=self.machine, prepared=self.prepared)
            return self.plan.config.model_dump(mode="json")

        decided = self.world.told_by_first(decide)
        if not self.world.is_first:
            self.config = Config.model_validate(decided)
            decide()

    def score_answers(self, source: Rows | None, formatting: Formatting | None) -> None:
        """Chooses the validation rows that are answered while it trains, if any are asked for."""
        if self.config.evaluation.generate:
            held = held_out(self.config, self.prepared, source=source, formatting=formatting, listener=self.listener)
            context, folder = self.machine.facts.context_length, self.directory.answers
            self._scored = scored_rows(held, context_length=context, folder=folder, listener=self.listener)

    def run(self, own_rows: Iterable[Record] | None, callbacks: Sequence[Any]) -> None:
        """Trains, while the blocks of a stream are prepared behind it."""
        with streamed(
            self.config,
            self.prepared,
            machine=self.machine,
            checkpoint=self.resume_from,
            run=self.directory.path,
            world=self.world,
        ) as stream_of:
            self._run(own_rows, callbacks, stream_of)

    def _run(self, own_rows: Iterable[Record] | None, callbacks: Sequence[Any], stream_of: StreamOf | None) -> None:
        """From the base's weights to verified ones; what was there before goes only when the model has loaded."""
        session = self._open_session()
        try:
            model = self._load(session)
            self.world.meet()
            if self.world.is_first:
                if self.resume_from is None:
                    data, base = self.config.data.path, self.config.model.name_or_path
                    self.directory.clear(data=data, base=base, keeps_log=self.log is not None)
                self._begin(model, own_rows)
            self._train(session, model, callbacks, stream_of and stream_of(self.plan, self.listener))
        except BaseException as error:
            self._write_failure(error)
            raise
        finally:
            session.close()

    def _begin(self, model: LoadedModel, own_rows: Iterable[Record] | None) -> None:
        begin_run(
            self.directory,
            self.plan,
            machine=self.machine,
            prepared=self.prepared,
            model=model,
            own_rows=own_rows,
            resume_from=self.resume_from,
            listener=self.listener,
        )
        self._has_begun = True
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
            world=self.world,
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
        tell_coverage(model, machine, self.listener)
        if not model.isolates:
            self.plan = plan_without_packs(self.config, machine, self.prepared, self.listener)
        if self.resume_from is not None:
            require_same_run(self.resume_from, self._identity(model))
        return model

    def refuse_another_run(self) -> None:
        """CheckpointError if going on would make another run; tells what will only change its last digits."""
        now_ = identity(self.plan, self.machine, self.prepared)
        self.world.require_same({name: value for name, value in now_.items() if name != "threads"})
        if self.resume_from is not None and self.world.is_first:
            require_same_run(self.resume_from, now_)
            tell_roundings(self.resume_from, now_, self.listener)

    def _identity(self, model: LoadedModel) -> dict[str, Any]:
        return {**identity(self.plan, self.machine, self.prepared), "model.revision": model.revision}

    def _train(
        self, session: Session, model: LoadedModel, callbacks: Sequence[Any], stream: StreamedRows | None
    ) -> None:
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
        rows = TrainingRows(self.plan.sequences, self.prepared.validation, tokenizer, self._scored, stream)
        watching = stream.watchers() if stream is not None else []
        result = session.train(job, rows, self._tracking(), [*watching, *callbacks])
        folder = None if result.stopped_by else self._save(session)
        if not self.world.is_first:
            return
        if stream is not None:
            stream.conclude(self.directory)
        outcome = {**asdict(result), "ended": now()}
        if folder is None:
            self.directory.update_record(status="stopped", **outcome)
            self.listener.warn(f"stopped by {result.stopped_by} after step {result.steps}; go on with --resume")
        else:
            self.directory.update_record(status="finished", adapter=folder.name, **outcome)
        session.conclude(scores_of(result, is_verified=not result.stopped_by))

    def _tracking(self) -> Tracking:
        """Where trackers write, and what they are told beside the metrics."""
        logging, prepared, facts = self.config.logging, self.prepared, None
        if logging.report_to and self.world.is_first:
            tokenizer = prepared.template.tokenizer
            facts = run_facts(self.directory, prepared.train, tokenizer, shown=logging.report_rows)
        return Tracking(self.directory.path, logging.logging_dir, logging.project, facts)

    def _save(self, session: Session) -> Path:
        """The folder of the verified weights. The first process writes; all take part, each with its share."""
        from truetune.inference import prompt_format

        source, template = self.machine.source, self.prepared.template
        folder = self.directory.adapter if self.config.adapter.method == "lora" else self.directory.model
        prompts = prompt_format.prompt_format(
            template, self.prepared.formats, base_model=source.name, revision=source.revision
        )
        if self.world.is_first:
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
            if status == "stopped":
                last = newest_listed(self.directory.checkpoints)
                way = f"--resume goes on from {last.name}" if last else "it has no checkpoint yet: start it again"
                self.listener.warn(f"stopped at once, in the middle of a step; {way}")

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


def _named(checkpoint: Path | None) -> str | None:
    return None if checkpoint is None else str(checkpoint)


def _given(config: Config) -> dict[str, Any]:
    """The settings of all sections, by their names."""
    sections = {name: values for name, values in config.model_dump(mode="json").items() if isinstance(values, dict)}
    return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
