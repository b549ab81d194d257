"""What is kept of each row to judge the set by: a few numbers, whatever its length."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from truetune.data.examples import Conversation, Example
from truetune.data.near import Hashes, Shingles, shingles, words
from truetune.lint.languages import language_of
from truetune.lint.parts import Part, prompt_and_answer, spoken

_SHORT, _SHORT_WORDS = 100, 4
"""Characters and weighty words of an answer that is taken at its words; a longer one may say the same in others."""
_SLIGHT = {
    "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "he", "i", "in", "is", "it", "its", "of",
    "on", "or", "s", "she", "so", "that", "the", "their", "they", "this", "to", "was", "we", "were", "will",
    "with", "answer",
}  # fmt: skip
"""Words that make no other answer."""
_LAST_LINE_WORDS = 6
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")
_VERDICT = re.compile(r"\s*(?:(?P<yes>yes|true|correct)|no|false|incorrect)(?:\s*[,.!:;]|\s*\Z)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Sketches:
    """Of each row, in columns: 0 stands for what it has not.

    `key` tells equal rows, `prompt` equal prompts; `short`, `number` and `verdict` what an answer comes to;
    lengths are in characters.
    """

    file: NDArray[np.int32]
    line: NDArray[np.int64]
    key: Hashes
    prompt: Hashes
    answer: Hashes
    short: NDArray[np.uint64]
    number: NDArray[np.float64]
    verdict: NDArray[np.int8]
    prompt_length: NDArray[np.int64]
    answer_length: NDArray[np.int64]
    language: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.key)

    def where(self, chosen: NDArray[np.bool_]) -> "Sketches":
        """Some of the rows."""
        return Sketches(*(getattr(self, each.name)[chosen] for each in fields(self)))

    @classmethod
    def joined(cls, chunks: Sequence["Sketches"]) -> "Sketches":
        return cls(*(np.concatenate([getattr(chunk, each.name) for chunk in chunks]) for each in fields(cls)))


@dataclass(frozen=True, slots=True)
class SketchedRow:
    """A row as it is read: its example, its texts and its place."""

    example: Example
    parts: tuple[Part, ...]
    file: int
    line: int


def sketched(rows: Sequence[SketchedRow], *, with_languages: bool) -> Sketches:
    """The columns of these rows."""
    split = [prompt_and_answer(row.parts) for row in rows]
    senses = [_sense(answer) for _, answer in split]
    return Sketches(
        np.array([row.file for row in rows], np.int32),
        np.array([row.line for row in rows], np.int64),
        _hashes([_content(row) for row in rows]),
        _hashes([" ".join(prompt.casefold().split()) for prompt, _ in split]),
        _hashes([" ".join(answer.casefold().split()) for _, answer in split]),
        np.array([_four(short) for short, _, _ in senses], np.uint64).reshape(-1, _SHORT_WORDS),
        np.array([number for _, number, _ in senses], np.float64),
        np.array([verdict for _, _, verdict in senses], np.int8),
        np.array([len(prompt) for prompt, _ in split], np.int64),
        np.array([len(answer) for _, answer in split], np.int64),
        np.array([language_of(spoken(row.parts)) if with_languages else "" for row in rows], "U8"),
    )


def near_sketched(rows: Sequence[tuple[Part, ...]]) -> Shingles:
    """What near duplicates are found by."""
    return shingles([words(spoken(parts)) for parts in rows])


def _content(row: SketchedRow) -> str:
    """All of the row that a model could read, and what it learns of it."""
    texts = "\x00".join(f"{part.kind}\x01{part.text}" for part in row.parts)
    weight = row.example.weight if row.example.weight != 1.0 else ""
    if not isinstance(row.example, Conversation):
        return f"{texts}\x00{weight}"
    extra = [message.extra for message in row.example.messages if message.extra]
    unlearned = [place for place, message in enumerate(row.example.messages) if not message.is_learned]
    return f"{texts}\x00{weight}\x00{extra or ''}{unlearned or ''}{row.example.tools or ''}"


def _hashes(texts: Sequence[str]) -> Hashes:
    """64 bits of each text, 0 of an empty one; the same in this process and its children."""
    return np.fromiter((hash(text) if text else 0 for text in texts), np.int64, len(texts)).view(np.uint64)


def _sense(answer: str) -> tuple[list[str], float, int]:
    """The weighty words of a short answer, the number that its last line gives, and its yes (1) or no (-1)."""
    weighty = sorted({*words(answer)} - _SLIGHT) if len(answer) <= _SHORT else []
    verdict = _VERDICT.match(answer)
    return weighty, _last_number(answer), 0 if verdict is None else 1 if verdict["yes"] else -1


def _four(names: Sequence[str]) -> list[int]:
    """The hashes of up to four words, none of more."""
    few = list(map(hash, names)) if len(names) <= _SHORT_WORDS else []
    return [value & 0xFFFF_FFFF_FFFF_FFFF for value in [*few, *[0] * (_SHORT_WORDS - len(few))]]


def _last_number(answer: str) -> float:
    """The one number of the last line, or of what stands behind its last =; NaN where there is none."""
    last = answer.rstrip().rpartition("\n")[2].rpartition("=")[2]
    found = _NUMBER.findall(last) if len(last) < 80 and len(last.split()) <= _LAST_LINE_WORDS else []
    return float(found[0].replace(",", "")) if len(found) == 1 else np.nan
