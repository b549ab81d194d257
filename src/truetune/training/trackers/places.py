"""Where each tracker's copy of a run is: kept in the run, so that it is found again, gone on with, and told."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.files import write_json
from truetune.runs.directory import RunDirectory
from truetune.runs.documents import json_object, mapping, text

_PROJECT = {
    "clearml": "CLEARML_PROJECT",
    "comet_ml": "COMET_PROJECT_NAME",
    "dagshub": "MLFLOW_EXPERIMENT_NAME",
    "mlflow": "MLFLOW_EXPERIMENT_NAME",
    "swanlab": "SWANLAB_PROJECT",
}
"""The variables that transformers' callbacks take a project's name from; the others are told it in Python."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Where trackers write, and what for: a run's directory and name, the user's folder and project.

    `resumed_at` is the step that a resumed run goes on from.
    """

    run: Path
    run_name: str
    logging_dir: str | None = None
    project: str | None = None
    resumed_at: int | None = None


def kept(run: Path, tracker: str) -> dict[str, Any]:
    """What was kept of a run's copy at a tracker; nothing where there is none."""
    path = RunDirectory(run).trackers
    return mapping(json_object(run, path).value, tracker)


def keep(run: Path, tracker: str, **facts: Any) -> None:
    """Keeps where a run's copy is, so that a resumed run goes on in it."""
    path = RunDirectory(run).trackers
    write_json(path, {**json_object(run, path).value, tracker: facts})


def inside(run: Path, folder: str | Path) -> str:
    """A folder as it is kept: of one in the run the way from there, which holds where the run is moved."""
    whole = Path(folder).expanduser().absolute()
    own = run.absolute()
    return str(whole.relative_to(own) if whole.is_relative_to(own) else whole)


def tensorboard_folder(run: Path, logging_dir: str | None) -> Path:
    """Where TensorBoard's files go: as set, as the environment says, else in the run."""
    return Path(logging_dir or os.environ.get("TENSORBOARD_LOGGING_DIR") or run / "tensorboard").expanduser()


def tracker_places(run: Path) -> list[tuple[str, str]]:
    """Each tracker that has a copy of the run, and the command or the address that shows it."""
    document = json_object(run, RunDirectory(run).trackers).value
    found = ((name, _place(run, name, facts)) for name in document if (facts := mapping(document, name)))
    return [(name, place) for name, place in found if place]


def _place(run: Path, name: str, facts: Mapping[str, Any]) -> str:
    match name:
        case "tensorboard":
            return shlex.join(["tensorboard", "--logdir", str(run / text(facts, "folder"))])
        case "wandb":
            return text(facts, "url") or shlex.join(["wandb", "sync", *_folders(run, facts)])
        case "trackio":
            return text(facts, "url") or shlex.join(["trackio", "show", "--project", text(facts, "project")])
        case "mlflow" | "dagshub":
            uri = text(facts, "uri")
            return uri if uri.startswith("http") else shlex.join(["mlflow", "ui", "--backend-store-uri", uri])
        case _:
            return ""


def _folders(run: Path, facts: Mapping[str, Any]) -> list[str]:
    folders = facts.get("folders")
    return [str(run / each) for each in folders if isinstance(each, str)] if isinstance(folders, list) else []


@contextmanager
def tracker_environment(report_to: Sequence[str], situation: Situation) -> Iterator[None]:
    """While it lasts, trackers that ask the environment alone find the project, and the run to go on with there."""
    values = {_PROJECT[name]: situation.project for name in report_to if name in _PROJECT and situation.project}
    defaults = {"CLEARML_TASK": situation.run_name} if "clearml" in report_to else {}
    if situation.resumed_at is not None and (known := text(kept(situation.run, "mlflow"), "id")):
        defaults["MLFLOW_RUN_ID"] = known
    changes = {**{name: value for name, value in defaults.items() if name not in os.environ}, **values}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
