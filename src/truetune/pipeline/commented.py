"""A config as YAML in which every setting says what it does, or why it is what it is."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from truetune.config.load import config_document, dump_config, fields
from truetune.config.schema import SECTIONS, Config, value_of
from truetune.planning.hyperparameters import Choice

WIDTH = 110
"""Columns that a line with a comment keeps to; a longer comment is wrapped above its setting."""
_COLUMN = 44


def commented_config(config: Config, choices: Sequence[Choice]) -> str:
    """The config as YAML that load_config reads back to an equal one, with a comment at each setting.

    A choice whose value is the config's gives its reason; other settings have the schema's description.
    """
    reasons = {name: description for name, _, description, _ in fields()}
    reasons |= {choice.name: choice.reason for choice in choices if value_of(config, choice.name) == choice.value}
    lines = dump_config(config).splitlines()
    starts = dict(_starts(lines, config_document(config)))
    shown = []
    for start, end in pairwise([*starts, len(lines)]):
        if start and "." not in starts[start]:
            shown.append("")
        shown += _with_reason(lines[start:end], reasons.get(starts[start], ""))
    return "\n".join(shown) + "\n"


def _starts(lines: Sequence[str], document: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """The line on which each section and each setting begins: what a value has on lines of its own stands further in.

    Parsing the text for it took as long as all else of writing a config.
    """
    numbered = iter(enumerate(lines))
    for name, value in document.items():
        yield _next_at(f"{name}:", numbered), name
        for leaf in value if name in SECTIONS else ():
            yield _next_at(f"  {leaf}:", numbered), f"{name}.{leaf}"


def _next_at(beginning: str, numbered: Iterator[tuple[int, str]]) -> int:
    return next(number for number, line in numbered if line.startswith(beginning))


def _with_reason(lines: Sequence[str], reason: str) -> list[str]:
    """A setting's lines with its reason behind them; above, where that is too long or the value has several lines."""
    reason = " ".join(reason.split())
    if not reason:
        return list(lines)
    behind = f"{lines[0]:<{_COLUMN}}  # {reason}"
    if len(lines) == 1 and len(behind) <= WIDTH:
        return [behind]
    margin = " " * (len(lines[0]) - len(lines[0].lstrip())) + "# "
    return [*textwrap.wrap(reason, WIDTH, initial_indent=margin, subsequent_indent=margin), *lines]
