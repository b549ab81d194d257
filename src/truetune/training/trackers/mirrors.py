"""A tracker as a run sees it: transformers' own callback, and what that does not tell: config, data, rows, scores."""

import copy
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from truetune.training.trackers.facts import (
    RunFacts,
    Scalar,
    Scores,
    Table,
    code_block,
    pairs_table,
    samples_table,
)
from truetune.training.trackers.places import Situation, inside, keep, kept, tensorboard_folder
from truetune.training.trackers.required import OFFLINE, wandb_setting

_FINISH_SECONDS = 60
"""For W&B's last lines, where its server has gone: it would try for ever."""


class Mirror:
    """A tracker of transformers', and nothing beside it."""

    callback: Any

    def __init__(self, callback: TrainerCallback, situation: Situation) -> None:
        self.callback = callback
        self.situation = situation

    def prepare(self, args: TrainingArguments) -> TrainingArguments:
        """Before the callback begins: the arguments that it is to see."""
        args = copy.copy(args)
        args.run_name, args.project = self.situation.run_name, self.situation.project or args.project
        return args

    def tell(self, facts: RunFacts) -> None:
        """What is known when it has begun."""

    def answers(self, table: Table, step: int) -> None:
        """What validation rows were answered at that step."""

    def conclude(self, scores: Scores, step: int) -> None:
        """What came of the run, before the callback ends."""

    def close(self, *, has_failed: bool) -> None:
        """Lets go of what the callback leaves open."""

    def _kept(self, tracker: str) -> dict[str, Any]:
        """What was kept of the run that this one goes on with; nothing of one that begins."""
        return {} if self.situation.resumed_at is None else kept(self.situation.run, tracker)


class TensorBoardMirror(Mirror):
    """Event files in the run. Those of a resumed run hide the steps that it does again."""

    def prepare(self, args: TrainingArguments) -> TrainingArguments:
        from torch.utils.tensorboard import SummaryWriter

        run, resumed_at = self.situation.run, self.situation.resumed_at
        folder = tensorboard_folder(run, self.situation.logging_dir)
        purge_step = None if resumed_at is None else resumed_at + 1
        self._writer = self.callback.tb_writer = SummaryWriter(str(folder), purge_step=purge_step)
        keep(run, "tensorboard", folder=inside(run, folder))
        return super().prepare(args)

    def tell(self, facts: RunFacts) -> None:
        from torch.utils.tensorboard.summary import hparams

        self._writer.add_text("run/config", code_block(facts.config))
        self._writer.add_text("run/data", pairs_table(facts.data))
        if facts.samples:
            self._writer.add_text("run/samples", samples_table(facts.samples).as_markdown())
        # add_hparams would write them into a file of their own, which TensorBoard shows as another run.
        for summary in hparams(dict(facts.settings), {"final/loss": 0.0, "final/eval_loss": 0.0}):
            self._writer.file_writer.add_summary(summary)
        self._writer.flush()

    def answers(self, table: Table, step: int) -> None:
        self._writer.add_text("eval/answers", table.as_markdown(), step)

    def conclude(self, scores: Scores, step: int) -> None:
        for name, value in scores.items():
            if isinstance(value, str):
                self._writer.add_text(f"final/{name}", value, step)
            else:
                self._writer.add_scalar(f"final/{name}", float(value), step)

    def close(self, *, has_failed: bool) -> None:
        self._writer.close()


class WandbMirror(Mirror):
    """A run of W&B's, begun by us, so that its files lie in the run and a resumed run goes on in it.

    A run that the user began is told the same, and left open.
    """

    def prepare(self, args: TrainingArguments) -> TrainingArguments:
        self._run = self._begun(args)
        if not self._run.disabled:
            self._keep()
        return super().prepare(args)

    def _begun(self, args: TrainingArguments) -> Any:
        import wandb

        self._is_own = wandb.run is None
        return wandb.init(**self._options(args, wandb.Settings)) if self._is_own else wandb.run

    def _options(self, args: TrainingArguments, settings: Any) -> dict[str, Any]:
        situation, environment = self.situation, os.environ
        known = self._kept("wandb").get("id")
        goes_on = known is not None and "WANDB_RUN_ID" not in environment
        mode = wandb_setting("mode")
        return {
            "project": situation.project or wandb_setting("project") or args.project,
            "name": situation.run_name,
            "dir": environment.get("WANDB_DIR") or str(situation.run.absolute()),
            **({"id": known} if goes_on else {}),
            **({"resume": "allow"} if goes_on and mode not in OFFLINE and "WANDB_RESUME" not in environment else {}),
            # What was set since the client was first used would be ignored.
            **({"mode": mode} if mode else {}),
            "settings": dict(_settings(settings.model_fields, environment)),
        }

    def _keep(self) -> None:
        run = self.situation.run
        folders = [*self._kept("wandb").get("folders", []), inside(run, Path(self._run.dir).parent)]
        url = None if self._run.offline else self._run.url
        keep(run, "wandb", id=self._run.id, url=url, folders=[*dict.fromkeys(folders)])

    def tell(self, facts: RunFacts) -> None:
        self._run.config.update(
            {"truetune": _nested(facts.settings), "truetune_data": dict(facts.data)}, allow_val_change=True
        )
        if self._run.disabled:
            return
        # W&B has a config.yaml of its own there.
        file = Path(self._run.dir) / "truetune.yaml"
        file.write_text(facts.config, encoding="utf-8")
        self._run.save(str(file), base_path=self._run.dir, policy="now")
        if facts.samples:
            self._run.log({"run/samples": self._table(samples_table(facts.samples))})

    def answers(self, table: Table, step: int) -> None:
        self._run.log({"eval/answers": self._table(table), "train/global_step": step})

    def _table(self, table: Table) -> Any:
        import wandb

        return wandb.Table(columns=[*table.columns], data=[[*row] for row in table.rows])

    def conclude(self, scores: Scores, step: int) -> None:
        self._run.summary.update({f"final/{name}": value for name, value in scores.items()})

    def close(self, *, has_failed: bool) -> None:
        if not self._is_own:
            return
        folder = Path(self._run.dir).parent
        try:
            self._run.finish(exit_code=int(has_failed))
        except TimeoutError:
            raise RuntimeError(f"its server has not taken all; send the rest with: wandb sync {folder}") from None


def _settings(known: Iterable[str], environment: Mapping[str, str]) -> Iterable[tuple[str, Any]]:
    """What W&B is set to where it knows it and the user has not said otherwise."""
    # It would copy all that the process prints, a live view among it: truetune's words are in the run anyway.
    wanted: dict[str, Any] = {"console": "off"}
    if environment.get("WANDB_LOG_MODEL", "false").lower() == "false":
        wanted |= {"finish_timeout": _FINISH_SECONDS, "finish_timeout_raises": True}
    for name, value in wanted.items():
        if name in known and f"WANDB_{name.upper()}" not in environment:
            yield name, value


class TrackioMirror(Mirror):
    """A run of a name that its project does not have yet: Trackio would go on in the one that has it."""

    def prepare(self, args: TrainingArguments) -> TrainingArguments:
        import trackio

        self._trackio: Any = trackio
        project = self.situation.project or os.environ.get("TRACKIO_PROJECT") or args.project
        known = self._kept("trackio").get("name")
        name = known or _free(self.situation.run_name, taken=_runs(trackio, project))
        args = super().prepare(args)
        args.project, args.run_name = project, name
        keep(self.situation.run, "trackio", project=project, name=name, url=_trackio_url())
        return args

    def tell(self, facts: RunFacts) -> None:
        self._trackio.config.update(facts.settings)
        self._trackio.config.update({f"rows.{name}": value for name, value in facts.data})
        tables = {"run/samples": self._table(samples_table(facts.samples))} if facts.samples else {}
        self._trackio.log({"run/config": self._trackio.Markdown(code_block(facts.config)), **tables})

    def answers(self, table: Table, step: int) -> None:
        self._trackio.log({"eval/answers": self._table(table), "train/global_step": step})

    def _table(self, table: Table) -> Any:
        return self._trackio.Table(columns=[*table.columns], data=[[*row] for row in table.rows])

    def conclude(self, scores: Scores, step: int) -> None:
        final = {f"final/{name}": value for name, value in scores.items()}
        self._trackio.log({**final, "train/global_step": step})

    def close(self, *, has_failed: bool) -> None:
        with suppress(RuntimeError):  # Where the callback has ended it.
            self._trackio.finish()


class MlflowMirror(Mirror):
    """A run of MLflow's: its callback sends metrics and arguments; beside go the config and the scores."""

    def tell(self, facts: RunFacts) -> None:
        import mlflow

        if (active := mlflow.active_run()) is not None:
            keep(self.situation.run, "mlflow", id=active.info.run_id, uri=mlflow.get_tracking_uri())
        mlflow.log_text(facts.config, "config.yaml")

    def conclude(self, scores: Scores, step: int) -> None:
        import mlflow

        numbers = {f"final/{name}": float(value) for name, value in scores.items() if not isinstance(value, str)}
        mlflow.log_metrics(numbers, step=step)

    def close(self, *, has_failed: bool) -> None:
        import mlflow

        if has_failed and mlflow.active_run() is not None:
            mlflow.end_run("FAILED")


_MIRRORS: Mapping[str, type[Mirror]] = {
    "tensorboard": TensorBoardMirror,
    "wandb": WandbMirror,
    "trackio": TrackioMirror,
    "mlflow": MlflowMirror,
    "dagshub": MlflowMirror,
}


def mirror_of(name: str, callback: TrainerCallback, situation: Situation) -> Mirror:
    """The mirror of a tracker that transformers knows by this name."""
    return _MIRRORS.get(name, Mirror)(callback, situation)


def _nested(settings: Mapping[str, Scalar]) -> dict[str, Any]:
    """By section: W&B reads dots in names as sections of its own."""
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, leaf = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    return nested


def _free(name: str, *, taken: set[str]) -> str:
    """The name, or the first of name-2, name-3 … that is free."""
    names = (name, *(f"{name}-{number}" for number in range(2, len(taken) + 2)))
    return next(each for each in names if each not in taken)


def _trackio_url() -> str | None:
    """Where the run is shown if not on this machine; a token to write with is not part of it."""
    if space := os.environ.get("TRACKIO_SPACE_ID"):
        return f"https://huggingface.co/spaces/{space}"
    server = os.environ.get("TRACKIO_SERVER_URL")
    return server.partition("?")[0] if server else None


def _runs(trackio: Any, project: str) -> set[str]:
    """The names of a project's runs on this machine."""
    try:
        return {run.name for run in trackio.Api().runs(project)}
    except ValueError:  # The project does not exist.
        return set()
