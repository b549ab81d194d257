"""What the functions of the Python side take alike: a config, rows or their places, a run."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from truetune.config.load import load_config
from truetune.config.names import ALIASES
from truetune.config.schema import Config
from truetune.data.streams import KINDS, suffix_of
from truetune.errors import ConfigError, DataError
from truetune.listener import Listener
from truetune.migrate.foreign import way_in
from truetune.pipeline.run import Run

Data = str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]]

_MODEL_NAMES = {name for name, alias in ALIASES.items() if alias.target == "model.name_or_path"}
_DATA_NAMES = ("dataset", "train_dataset")
"""What other trainers call the rows."""


def directory_of(run: Run | str | Path) -> str | Path:
    """Where a run lies, or whatever else a path names."""
    return run.directory if isinstance(run, Run) else run


def path_of(data: Data | None) -> str | list[str] | None:
    """The path or paths that `data` holds, if it does not hold rows."""
    match data:
        case str() | Path():
            return str(data)
        case [*places] if places and all(isinstance(place, str | Path) for place in places):
            return [str(place) for place in places]
        case _:
            return None


def config_of(
    config: Config | str | Path | Mapping[str, Any] | None,
    model: str | None,
    data: Data | None,
    output_dir: str | Path | None,
    settings: Mapping[str, Any],
    listener: Listener,
) -> tuple[Config, Iterable[Mapping[str, Any]] | None]:
    """The one schema's config, and the rows where `data` holds rows."""
    data, settings = _data_among(data, settings, listener)
    path, rows = _path_or_rows(data)
    named = {
        "model.name_or_path": model,
        "data.path": path,
        "output_dir": str(output_dir) if output_dir else None,
    }
    given = {**{name: value for name, value in named.items() if value is not None}, **settings}
    if isinstance(config, Config):
        config = config.model_dump(mode="json", exclude_unset=True)
    if config is None and model is None and not _MODEL_NAMES & settings.keys():
        raise ConfigError("no model: name one with model=, or pass a config")
    try:
        loaded = load_config(config, settings=given)
    except ConfigError as error:
        hint = way_in(Path(config)) if isinstance(config, str | Path) and Path(config).is_file() else None
        raise ConfigError(error.message, hint=hint or error.hint) from None
    for notice in loaded.notices:
        listener.say(notice)
    return loaded.config, rows


def _data_among(
    data: Data | None, settings: Mapping[str, Any], listener: Listener
) -> tuple[Data | None, Mapping[str, Any]]:
    """`data`, or the rows that stand among the settings under another trainer's name; and the other settings."""
    found = next((name for name in _DATA_NAMES if data is None and _are_rows(settings.get(name))), None)
    if found is None:
        return data, settings
    listener.say(f"{found} is now data")
    return settings[found], {name: value for name, value in settings.items() if name != found}


def _are_rows(value: Any) -> bool:
    """False of a path, and of places as Axolotl lists them: [{"path": …}]."""
    first = value[0] if isinstance(value, list | tuple) and value else value
    is_place = isinstance(first, str | Path) or (isinstance(first, Mapping) and "path" in first)
    return value is not None and not is_place


def _path_or_rows(data: Data | None) -> tuple[str | list[str] | None, Iterable[Mapping[str, Any]] | None]:
    """What `data` holds. DataError for what holds neither."""
    path = path_of(data)
    if data is not None and path is None and not isinstance(data, Iterable):
        raise DataError(f"data: a {type(data).__name__} holds no rows, and rows are expected", hint=_ROWS)
    if isinstance(path, list) and all(" " in each and suffix_of(each) not in KINDS for each in path):
        raise DataError("data: a list of texts is read as paths, and these are none", hint=_ROWS)
    return path, None if path else data  # type: ignore[return-value]


_ROWS = 'give rows, as mappings: [{"instruction": …, "output": …}], or for bare texts [{"text": …}]'
