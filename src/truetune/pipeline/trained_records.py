"""What is written down about a folder of weights, by the run that trained it and beside the weights."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.config.load import load_config
from truetune.config.schema import Config, SourceConfig
from truetune.errors import TruetuneError
from truetune.inference import prompt_format
from truetune.inference.prompt_format import PromptFormat, find_prompt_format
from truetune.model.source import DEMO
from truetune.runs.directory import RunDirectory
from truetune.runs.trained import run_of

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class Records:
    """What is written down about a folder of weights. `run` is the run it was trained in, where that is known.

    `trained` is the folder that training wrote, which a merged or converted `folder` was made of.
    """

    folder: Path
    trained: Path
    run: RunDirectory | None
    record: Mapping[str, Any]
    config: Config | None
    report: Mapping[str, Any]
    prompt_format: PromptFormat | None


def read_records(folder: Path, *, trained: Path | None = None) -> Records:
    """The records of a folder of weights; what is missing or damaged is left out, and told as not known."""
    trained = trained or folder
    run = run_of(trained)
    return Records(
        folder=folder,
        trained=trained,
        run=run,
        record=document(run.record) if run else {},
        config=_config(run),
        report=document(run.data_report) if run else {},
        prompt_format=next((found for home in (trained, folder) if (found := _prompt_format(home))), None),
    )


def recorded_base(records: Records) -> tuple[str | None, str | None]:
    """The base's name, which may be a path, and its revision: by the run, else by what lies beside the weights."""
    model = records.record.get("model") or {}
    if model.get("name_or_path"):
        return model["name_or_path"], model.get("revision")
    name, revision = prompt_format.recorded_base(records.trained, records.prompt_format)
    return name or None, revision


def local_paths(records: Records) -> list[str]:
    """What the run was told about this machine's places: the base's and the data's, where they are no hub ids."""
    named = [recorded_base(records)[0], *data_paths(records.config)]
    return [name for name in named if name and name != DEMO and not is_hub_name(name)]


def is_hub_name(name: str) -> bool:
    """True for what is a name on the hub by its form, and no path here."""
    return bool(_HUB_ID.fullmatch(name)) and Path(name).suffix != ".gguf" and not Path(name).exists()


def is_hub_data(path: str) -> bool:
    """True for what is a data set's name on the hub by its form, and no path here."""
    return is_hub_name(path) and "." not in last_name(path)


def data_paths(config: Config | None) -> list[str]:
    """The places that rows came from, as the run was told."""
    if config is None or config.data.path is None:
        return []
    entries = [config.data.path] if isinstance(config.data.path, str) else list(config.data.path)
    return [entry.path if isinstance(entry, SourceConfig) else entry for entry in entries]


def document(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none that can be read."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def of(record: Mapping[str, Any], *names: str) -> Any:
    """What stands under these names, one in the other; None where nothing does."""
    for name in names:
        record = record.get(name) or {}
    return record or None


def last_name(path: str) -> str:
    """A file's or folder's own name, of a path of any system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _config(run: RunDirectory | None) -> Config | None:
    if run is None or not run.config.is_file():
        return None
    with suppress(TruetuneError):
        return load_config(run.config).config
    return None


def _prompt_format(folder: Path) -> PromptFormat | None:
    with suppress(TruetuneError):
        return find_prompt_format(folder)
    return None
