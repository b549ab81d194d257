"""`truetune inspect`: what the model will read and what it will learn, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from truetune.config.schema import Config
from truetune.data.examples import IGNORED, Location, Tokenized
from truetune.data.rules import Report
from truetune.errors import DataError
from truetune.pipeline.prepare import trace_rows
from truetune.pipeline.stages import Formatting, Rows, load_data_tokenizer


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """One row: its tokens and labels, and its text in pieces, each with whether it is learned."""

    where: Location
    text: str
    tokens: Tokenized
    pieces: tuple[tuple[str, bool], ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "where": {"path": self.where.path, "line": self.where.line},
            "text": self.text,
            "input_ids": self.tokens.input_ids,
            "labels": self.tokens.labels,
            "spans": [piece for piece, is_learned in self.pieces if is_learned],
        }


@dataclass(frozen=True, slots=True)
class Inspection:
    """The rows looked at, and the report of all that were read to find them."""

    rows: tuple[InspectedRow, ...]
    report: Report

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": [row.as_json() for row in self.rows],
            "tokens": sum(len(row.tokens.input_ids) for row in self.rows),
            "supervised_tokens": sum(row.tokens.supervised for row in self.rows),
            "problems": self.report.as_json()["problems"],
        }


def inspect_rows(
    config: Config, *, source: Rows | None = None, formatting: Formatting | None = None, limit: int = 3
) -> Inspection:
    """The first `limit` usable rows as training will see them. Loads the tokenizer, never the weights."""
    loaded = load_data_tokenizer(config)
    tokenizer = loaded["tokenizer"]
    rows, report = trace_rows(config, source=source, formatting=formatting, limit=limit, **loaded)
    if not rows:
        first = f"; the first: {report.problems[0]}" if report.rejected else ""
        raise DataError(f"0 of {report.rows_read} rows are usable{first}")
    inspected = [
        InspectedRow(row.record.where, row.rendered.text, row.tokens, pieces_of(row.tokens, tokenizer))
        for row in rows
    ]
    return Inspection(tuple(inspected), report)


def pieces_of(tokens: Tokenized, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
    """The decoded text in stretches of learned and unlearned tokens, as the labels have them."""
    pairs: Sequence[tuple[int, int]] = list(zip(tokens.input_ids, tokens.labels, strict=True))
    stretches = groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    return tuple((tokenizer.decode([token for token, _ in stretch]), is_learned) for is_learned, stretch in stretches)
