"""What trackers are shown of a run beside its metrics, as plain values that another process can be handed."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from truetune.lint.private import without_secrets

Scalar = bool | int | float | str
Scores = Mapping[str, Scalar]
"""What came of a run, by name, in the order to show it."""

_OPEN, _CLOSE = "⟦", "⟧"
_SHOWN = 2_000
"""Characters of a text: trackers' tables are to be looked at."""


@dataclass(frozen=True, slots=True)
class TrackedSample:
    """A row as it was learned: its place, and its text in pieces, each with whether it bore loss."""

    where: str
    pieces: tuple[tuple[str, bool], ...]

    @property
    def text(self) -> str:
        """The whole, with what was learned between ⟦ and ⟧."""
        return "".join(f"{_OPEN}{text}{_CLOSE}" if learned else text for text, learned in self.pieces)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run as its trackers are to know it: no secret is in it.

    `config` is the run's config.yaml, `settings` the same by dotted name, `data` what became of the rows. Of answers
    to validation rows, those to the first `rows` are shown.
    """

    config: str
    settings: Mapping[str, Scalar]
    data: tuple[tuple[str, str], ...]
    samples: tuple[TrackedSample, ...] = ()
    rows: int = 0
    answers: Path | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A few rows of texts under `columns`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_markdown(self) -> str:
        """Each row as a heading and blocks of code: nothing in a text is taken for markdown, or for HTML."""
        return "\n\n".join(_section(zip(self.columns, row, strict=True)) for row in self.rows)


def samples_table(samples: Iterable[TrackedSample]) -> Table:
    """The samples, what was learned marked."""
    rows = ((sample.where, sample.text) for sample in samples)
    return Table(("row", f"text, {_OPEN}learned{_CLOSE}"), tuple(rows))


def answers_table(file: Path, *, most: int) -> Table:
    """The first answers of a file that training/answers.py wrote, without secrets."""
    with file.open(encoding="utf-8") as lines:
        return Table(("prompt", "expected", "answer", "scores"), tuple(map(_answer, islice(lines, most))))


def _answer(line: str) -> tuple[str, ...]:
    answer: dict[str, Any] = json.loads(line)
    texts = (cut(without_secrets(str(answer.get(name) or ""))) for name in ("prompt", "expected", "answer"))
    return (*texts, ", ".join(f"{name} {value:.3g}" for name, value in answer.get("scores", {}).items()))


def cut(text: str) -> str:
    """The text; of a long one its beginning and its end."""
    if len(text) <= _SHOWN:
        return text
    half = _SHOWN // 2
    return f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"


def code_block(text: str) -> str:
    """The text as a block of code in markdown, whatever is in it."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def pairs_table(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values as a table in markdown."""
    rows = (f"| {_cell(name)} | {_cell(value)} |" for name, value in pairs)
    return "\n".join(("| | |", "|---|---|", *rows))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _section(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n\n".join(f"**{name}**\n\n{code_block(text)}" for name, text in pairs)
