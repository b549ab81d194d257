"""From a command's words to a config."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truetune.errors import ConfigError

if TYPE_CHECKING:
    from truetune.config.schema import Config


def load(
    options: argparse.Namespace, listener: Any, *, model: str | None = None, required: Sequence[str] = ("data.path",)
) -> "Config":
    """The config of the file, the flags and the key=value settings; old names are told once.

    `model` stands in where none is named.
    """
    from truetune.config.load import load_config

    flags = {
        "model.name_or_path": options.model,
        "data.path": options.data,
        "output_dir": getattr(options, "output_dir", None),
        "training.num_processes": getattr(options, "num_processes", None),
        **{f"check.{name}": getattr(options, name, None) for name in ("select", "ignore", "fail_on")},
    }
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        loaded = load_config(
            options.config,
            settings=given,
            overrides=options.settings,
            required=required,
            defaults={"model.name_or_path": model} if model else {},
        )
    except ConfigError as error:
        raise _with_way_in(error, options.config) from None
    for notice in loaded.notices:
        listener.say(notice)
    return loaded.config


def _with_way_in(error: ConfigError, config: str | None) -> ConfigError:
    """The error, for a file of another tool's with the command that translates it."""
    from truetune.migrate.foreign import way_in

    hint = way_in(Path(config)) if config and Path(config).is_file() else _given_by(error.message)
    return ConfigError(error.message, hint=hint) if hint else error


def _given_by(message: str) -> str | None:
    """How what is missing is given on a command line."""
    ways = [way for words, way in _WAYS.items() if words in message]
    return "; ".join(ways) or None


_WAYS = {
    "config file not found": "truetune init DATA --model M -o run.yaml writes one",
    "data.path is missing": "rows are named with --data, or as in truetune check DATA",
    "model.name_or_path is missing": "a model is named with --model: --model demo is a small one to try with",
}
