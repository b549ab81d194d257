"""What a sweep's words ask for: settings with several values, and a config for each way to choose one of each."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from truetune.config.load import named_settings
from truetune.config.schema import Config, value_of
from truetune.data.keys import row_key
from truetune.errors import ConfigError

Load = Callable[[Sequence[str]], Config]
"""Makes a config of "key=value" texts, on top of whatever else is given. Raises ConfigError."""

_LONGEST = 40
"""Characters of a value in a folder's name, the last ones: of a path, the most telling."""


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a grid: the name of its folder, its values of the swept settings, and its whole config."""

    name: str
    settings: Mapping[str, Any]
    config: Config


@dataclass(frozen=True, slots=True)
class Grid:
    """The values of each swept setting, by dotted name, what is given for all runs alike (`base`), and the runs."""

    values: Mapping[str, Sequence[Any]]
    base: Mapping[str, Any]
    points: tuple[Point, ...]


def read_grid(words: Sequence[str], load: Load) -> Grid:
    """The grid of "key=value" texts, of which some have several values with commas between them.

    What stands in brackets, braces or quotes is one value: target_modules=[q_proj,v_proj],all-linear has two.

    Raises ConfigError with all that is wrong with any of the configs, or if nothing is swept.
    """
    choices = [[f"{name}={value}" for value in values] for name, values in map(_values, words)]
    swept = [place for place, texts in enumerate(choices) if len(texts) > 1]
    if not swept:
        raise ConfigError(
            "nothing is swept: no setting has several values", hint="write them with commas: learning_rate=1e-4,2e-4"
        )
    chosen = list(product(*choices))
    configs = _loaded(chosen, load)
    names = [_setting(choices[place]) for place in swept]
    settings = [{name: value_of(config, name) for name in names} for config in configs]
    labels = _labels(settings, names)
    points = tuple(map(Point, labels, settings, configs))
    values = {name: list(dict.fromkeys(_hashable(each[name]) for each in settings)) for name in names}
    return Grid(values, _base(configs, without=names), points)


def _values(word: str) -> tuple[str, list[str]]:
    """The name, and each of its values: commas in brackets, braces and quotes part nothing."""
    name, _, text = word.partition("=")
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        depth += (letter in "[{") - (letter in "]}") if not quote else 0
        if letter == "," and depth <= 0 and not quote:
            values.append("")
        else:
            values[-1] += letter
    if len(values) > 1 and not all(value.strip() for value in values):
        raise ConfigError(f"{word}: a value is missing beside a comma")
    return name, values


def _loaded(chosen: Sequence[Sequence[str]], load: Load) -> list[Config]:
    """A config for each choice, or an error with the problems of all."""
    configs: list[Config] = []
    problems: dict[str, None] = {}
    for texts in chosen:
        try:
            configs.append(load(texts))
        except ConfigError as error:
            problems |= dict.fromkeys(error.message.splitlines())
    if problems:
        raise ConfigError("\n".join(problems))
    return configs


def _setting(texts: Sequence[str]) -> str:
    """The dotted name of the setting that all of these texts set."""
    named = [list(named_settings([text])) for text in texts]
    if any(len(names) != 1 for names in named) or any(names != named[0] for names in named):
        raise ConfigError(f"{', '.join(texts)}: not all of these set something", hint="name the setting itself")
    return named[0][0]


def _labels(settings: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """A folder's name for each run, by its values: learning_rate=0.0001,r=8."""
    leaves = [name.rpartition(".")[2] for name in names]
    shown = dict(zip(names, leaves if len(set(leaves)) == len(leaves) else names, strict=True))
    labels = [",".join(f"{shown[name]}={_word(value)}" for name, value in each.items()) for each in settings]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ConfigError(f"{twice[0]}: the same run twice", hint="give each value once")
    return labels


def _word(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.10g}"
        case list() | tuple():
            return _safe("+".join(map(str, value)))
        case _:
            return _safe(str(value))


def _safe(text: str) -> str:
    """The text as part of a folder's name; where that says less than the text, with a digest of it."""
    safe = re.sub(r"[^\w.+-]+", "-", text)[-_LONGEST:].strip("-.")
    return safe if safe == text else f"{safe}-{row_key(text) % 16**6:06x}"


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _base(configs: Sequence[Config], *, without: Sequence[str]) -> dict[str, Any]:
    """What was given for all runs alike, by dotted name; where they lie is no part of it."""
    given = [dict(_given(config)) for config in configs]
    return {
        name: value
        for name, value in given[0].items()
        if name not in (*without, "output_dir") and all(each.get(name) == value for each in given)
    }


def _given(config: Config) -> Iterator[tuple[str, Any]]:
    for name, value in config.model_dump(mode="json", exclude_unset=True).items():
        if isinstance(value, dict):
            yield from ((f"{name}.{leaf}", inner) for leaf, inner in value.items())
        else:
            yield name, value
