"""From a YAML file, `key=value` settings and Python keywords to one Config, with every mistake told at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.config.document import (
    MAPPING,
    SETTINGS,
    Given,
    Problem,
    read_file,
    read_mapping,
    read_overrides,
    yaml_text,
)
from truetune.config.resolve import Named, Notice, laid_over, under_our_names
from truetune.config.schema import Config
from truetune.config.validate import Source, missing, validated
from truetune.config.words import fields
from truetune.errors import ConfigError

__all__ = ["Loaded", "config_document", "dump_config", "dump_given", "fields", "load_config", "named_settings"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The config, and one line for each old name that was translated."""

    config: Config
    notices: tuple[str, ...]


def load_config(
    source: Source = None,
    *,
    overrides: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    required: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Loaded:
    """The Config that `source` (a YAML or JSON file, or a mapping), `settings` and `overrides` say; later wins.

    `defaults` are our dotted names with what they are where none of these says it.

    `overrides` are "key=value" texts whose values are YAML 1.2. A name may be dotted, bare where it is unique, or one
    that another tool uses; `required` ones must be given. Raises ConfigError with a line for each problem of all, in
    the order of the file, then of `settings`, then of `overrides`.
    """
    problems: list[Problem] = []
    file = _read(source, problems)
    layers = (file or [], read_mapping(settings or {}, SETTINGS), read_overrides(overrides, problems))
    values: dict[str, Named] = {}
    notices: list[Notice] = []
    for layer in layers:
        values = laid_over(values, under_our_names(layer, problems, notices), notices)
    if file is not None:
        problems += [missing(name, source) for name in required if name not in values]
    for given in read_mapping(defaults or {}, MAPPING):
        values.setdefault(given.name, Named(given.name, given.value, given))
    config = validated(values, problems, source=source, may_miss=file is None)
    if problems or config is None:
        raise ConfigError("\n".join(dict.fromkeys(map(str, sorted(problems, key=lambda problem: problem.place)))))
    told = (notice.told(config) for notice in notices)
    return Loaded(config, tuple(dict.fromkeys(line for line in told if line)))


def named_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """What "key=value" texts set, by our dotted names. ConfigError with a line for each name that sets nothing."""
    problems: list[Problem] = []
    values = under_our_names(read_overrides(overrides, problems), problems, [])
    if problems:
        raise ConfigError("\n".join(map(str, problems)))
    return {name: named.value for name, named in values.items()}


def dump_given(config: Config) -> str:
    """The settings of the config that were given, as YAML; the rest are defaults, and stay free to be decided."""
    return yaml_text(config.model_dump(mode="json", exclude_unset=True))


def dump_config(config: Config) -> str:
    """The config as YAML that load_config reads back to an equal one."""
    return yaml_text(config_document(config))


def config_document(config: Config) -> dict[str, Any]:
    """The config's sections and settings, in their order, as a file has them."""
    document = config.model_dump(mode="json")
    if config.training.warmup_steps is not None:
        # Set beside warmup_steps, the ratio would contradict it.
        del document["training"]["warmup_ratio"]
    return document


def _read(source: Source, problems: list[Problem]) -> list[Given] | None:
    """The settings of the source; None, with a problem, for a file that cannot be read."""
    match source:
        case None:
            return []
        case Mapping():
            return list(read_mapping(source, MAPPING))
    try:
        return read_file(Path(source), name=str(source))
    except ConfigError as error:
        problems.append(Problem(MAPPING, f"{error.message}: {error.hint}" if error.hint else error.message))
    return None
