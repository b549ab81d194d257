"""What `truetune eval` stored in a run's directory, as it is found: documents, and beside each its lines of rows."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.runs.directory import RunDirectory
from truetune.runs.documents import json_lines, json_object, mapping, mappings, text

OF_TASKS = "lm-eval"
"""The folder within evaluations/ of those on tasks of lm-evaluation-harness."""
_NUMBERED = re.compile(r"(.+)-(\d+)")


@dataclass(frozen=True, slots=True)
class StoredEvaluation:
    """An evaluation as `truetune eval --json` printed it; `run` is the directory that it may not lead out of."""

    run: Path
    path: Path
    document: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What was evaluated on: "validation" of validation-2.json."""
        return self._numbered[0]

    @property
    def age(self) -> tuple[str, int]:
        """What sorts evaluations from the oldest to the newest: the time in it, then the number of its name."""
        return text(mapping(self.document, "record"), "time"), self._numbered[1]

    @property
    def is_of_tasks(self) -> bool:
        """True for figures of a harness's tasks, False for losses and answers of rows."""
        return bool(mappings(self.document, "figures"))

    @property
    def answers(self) -> list[dict[str, Any]]:
        """A line for each row that was answered."""
        return self._lines("answers")

    @property
    def losses(self) -> list[dict[str, Any]]:
        """A line for each row: a digest of its text, its summed loss and its learned tokens."""
        return self._lines("losses")

    @property
    def _numbered(self) -> tuple[str, int]:
        found = _NUMBERED.fullmatch(self.path.stem)
        return (found[1], int(found[2])) if found else (self.path.stem, 0)

    def _lines(self, kind: str) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = json_lines(self.run, self.path.with_suffix(f".{kind}.jsonl")).value
        return lines


def stored_evaluations(run: RunDirectory) -> list[StoredEvaluation]:
    """All that can be read of a run's evaluations, the newest first."""
    return sorted(_found(run), key=lambda each: each.age, reverse=True)


def _found(run: RunDirectory) -> Iterator[StoredEvaluation]:
    for folder in (run.evaluations, run.evaluations / OF_TASKS):
        for path in folder.glob("*.json"):
            if document := json_object(run.path, path).value:
                yield StoredEvaluation(run.path, path, document)
