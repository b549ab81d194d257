"""Texts of rows as a page shows them: cut where nothing is to be seen, and marked where something is."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

Mark = Literal["", "learned", "differs", "evidence", "missing", "cut"]

_WORD = re.compile(r"\s+|\w+|[^\w\s]")
_QUOTED = re.compile(r"(?<!\w)'((?:[^'\\]|\\.)+)'(?!\w)|(?<!\w)\"((?:[^\"\\]|\\.)+)\"(?!\w)|: (\S+…\S*)$")
_WEIGHED = 3_000
"""Characters of each row that are compared: comparing takes the square of them."""
_BESIDE_A_DIFFERENCE = 200
_MOST_BEFORE_EVIDENCE = 200


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a text and what is to be seen of it."""

    text: str
    mark: Mark = ""


Stretches = tuple[Stretch, ...]


def cut(text: str, *, most: int, mark: Mark = "") -> Stretches:
    """The text; of one longer than `most` characters its beginning and end, and between them how much is left out.

    >>> [each.text for each in cut("abcdefgh", most=4)]
    ['ab', ' … 4 characters … ', 'gh']
    """
    if len(text) <= most:
        return (Stretch(text, mark),) if text else ()
    half = most // 2
    left_out = f" … {len(text) - 2 * half:,} characters … "
    return (Stretch(text[:half], mark), Stretch(left_out, "cut"), Stretch(text[len(text) - half :], mark))


def cut_all(stretches: Iterable[Stretch], *, most: int) -> Stretches:
    """Each of the stretches cut by itself, so that what is marked stays in sight."""
    return tuple(part for each in stretches for part in cut(each.text, most=most, mark=each.mark))


def with_evidence(text: str, message: str, *, most: int) -> Stretches:
    """The text with the words marked that the message of a finding quotes of it; they are never cut away."""
    for quoted in _QUOTED.finditer(message):
        words = next(filter(None, quoted.groups())).split()
        # Messages quote on one line, and refusals in small letters.
        found = re.search(r"\s+".join(map(re.escape, words)), text, re.IGNORECASE) if words else None
        if found:
            start, end = found.span()
            before = cut(text[:start], most=min(most, _MOST_BEFORE_EVIDENCE))
            return (*before, *cut(found[0], most=most, mark="evidence"), *cut(text[end:], most=most))
    return cut(text, most=most)


def differing(text: str, first: str) -> Stretches:
    """The text with the words marked that `first` does not have there, and with those that only `first` has.

    Where both are equal, it is cut.
    """
    words, others = (_WORD.findall(each[:_WEIGHED]) for each in (text, first))
    blocks = difflib.SequenceMatcher(None, others, words, autojunk=False).get_opcodes()
    found = [_block(kind, others[i:j], words[k:m]) for kind, i, j, k, m in blocks]
    return (*cut_all(_joined(found), most=_BESIDE_A_DIFFERENCE), *cut(text[_WEIGHED:], most=0))


def _block(kind: str, others: list[str], words: list[str]) -> Stretch:
    match kind:
        case "equal":
            return Stretch("".join(words))
        case "delete":
            return Stretch("".join(others), "missing")
        case _:
            return Stretch("".join(words), "differs")


def _joined(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """Differences that only blanks keep apart are one."""
    held: list[Stretch] = []
    for each in stretches:
        held.append(each)
        if len(held) >= 3 and not held[-2].text.strip() and held[-3].mark == held[-1].mark == "differs":
            held[-3:] = [replace(each, text="".join(part.text for part in held[-3:]))]
    return iter(held)
