"""From a command's words to a config."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    loaded = load_config(
        options.config,
        settings=given,
        overrides=options.settings,
        required=required,
        defaults={"model.name_or_path": model} if model else {},
    )
    for notice in loaded.notices:
        listener.say(notice)
    return loaded.config
