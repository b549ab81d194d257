"""Rules that only all rows together show: equal rows, nearly equal ones, contradictions, what stands out."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from truetune.data.examples import Location
from truetune.data.keys import first_of
from truetune.data.near import Pairs
from truetune.data.rules import Problem
from truetune.lint.sketch import Sketches

Flags = NDArray[np.bool_]
Where = Callable[[int], Location]
"""A row's place by its number."""

_FEW, _FEW_LANGUAGE = 10, 0.1
_MAIN_LANGUAGE = 0.8
_SAME_ANSWERS, _SAME_SHARE = 20, 0.2
_CLASS_SHARE, _CLASSES = 0.8, 50
_OUTLIER_SPREADS, _OUTLIER_TIMES, _OUTLIER_ROWS = 6.0, 10.0, 50


def duplicates(rows: Sketches, where: Where, *, is_held_out: Flags) -> Iterator[Problem]:
    """Each row that is the same as an earlier one of its side, in every text."""
    for row, first in _repeats(np.where(is_held_out, rows.key ^ np.uint64(1), rows.key)):
        yield Problem.found("duplicate-rows", f"equals {where(first)}", where(row), related=(where(first),))


def near_duplicates(rows: Sketches, pairs: Pairs, where: Where, *, is_held_out: Flags) -> Iterator[Problem]:
    """Each row that says nearly what an earlier one of its side does, by words; equal rows are told as such."""
    pairs = pairs.where(is_held_out[pairs.first] == is_held_out[pairs.second])
    seen: set[int] = set()
    order = np.lexsort((pairs.first, pairs.second))
    for first, second, similarity in zip(
        pairs.first[order].tolist(), pairs.second[order].tolist(), pairs.similarity[order].tolist(), strict=True
    ):
        if second in seen or rows.key[first] == rows.key[second]:
            continue
        seen.add(second)
        share = f"{int(100 * similarity)} % of their word triples are the same" if similarity < 1 else "word for word"
        message = f"says nearly what {where(first)} does: {share}"
        yield Problem.found("near-duplicates", message, where(second), related=(where(first),))


def contradictions(rows: Sketches, where: Where) -> Iterator[Problem]:
    """Each row that answers a prompt otherwise than an earlier one: in a few words, its number, yes or no."""
    for row, first in _repeats(rows.prompt):
        if rows.answer[row] == rows.answer[first]:
            continue
        if _differ(rows, first, row):
            message = f"answers the prompt of {where(first)} otherwise"
            yield Problem.found("contradiction", message, where(row), related=(where(first),))


def _differ(rows: Sketches, one: int, other: int) -> bool:
    """True if the two answers cannot both be right: by number, by yes and no, or by words of which none has all."""
    if rows.verdict[one] * rows.verdict[other] < 0:
        return True
    is_number = ~np.isnan(rows.number[[one, other]])
    if is_number.any():
        return bool(is_number.all() and rows.number[one] != rows.number[other])
    left, right = ({*rows.short[row].tolist()} - {0} for row in (one, other))
    return bool(left and right and not left <= right and not right <= left)


def leaks(rows: Sketches, pairs: Pairs, where: Where, *, is_held_out: Flags) -> Iterator[Problem]:
    """Each validation row that training has, too: the same, or nearly."""
    if not is_held_out.any() or is_held_out.all():
        return
    trained = {int(rows.key[row]): int(row) for row in np.flatnonzero(~is_held_out)[::-1]}
    exact = set()
    for row in np.flatnonzero(is_held_out).tolist():
        first = trained.get(int(rows.key[row]))
        if first is not None:
            exact.add(row)
            message = f"is a training row too: {where(first)}"
            yield Problem.found("leaked-rows", message, where(row), related=(where(first),))
    for row, (first, similarity) in pairs.nearest(~is_held_out).items():
        if row not in exact:
            share = f"{int(100 * similarity)} % of the word triples"
            message = f"is nearly a training row: it shares {share} with {where(first)}"
            yield Problem.found("near-leaked", message, where(row), related=(where(first),))


def strange_languages(rows: Sketches, where: Where) -> Iterator[Problem]:
    """Rows in a language that few have, where one has most. A set of several languages has none."""
    known = rows.language[rows.language != ""]
    if len(known) < _FEW:
        return
    names, counts = np.unique(known, return_counts=True)
    main = names[np.argmax(counts)]
    if counts.max() / len(known) < _MAIN_LANGUAGE:
        return
    few = names[(counts / len(known) < _FEW_LANGUAGE) & (names != main)]
    for row in np.flatnonzero(np.isin(rows.language, few)).tolist():
        most = f"{counts.max() / len(known):.0%} of the rows are in {str(main)!r}"
        message = f"is in the language {str(rows.language[row])!r}; {most}"
        yield Problem.found("mixed-languages", message, where(row))


def strange_lengths(rows: Sketches, where: Where) -> Iterator[Problem]:
    """Rows whose prompt or answer is far longer than all but a few: by six spreads of the logarithm, and tenfold."""
    if len(rows) < _OUTLIER_ROWS:
        return
    for name, lengths in (("prompt", rows.prompt_length), ("answer", rows.answer_length)):
        some = lengths[lengths > 0]
        if not len(some):
            continue
        logs = np.log(np.maximum(lengths, 1))
        middle = float(np.median(np.log(some)))
        spread = 1.4826 * float(np.median(np.abs(np.log(some) - middle)))  # The deviation of a normal distribution.
        limit = middle + max(_OUTLIER_SPREADS * spread, np.log(_OUTLIER_TIMES))
        for row in np.flatnonzero(logs > limit).tolist():
            message = f"its {name} has {lengths[row]:,} characters, half of the others at most {np.exp(middle):,.0f}"
            yield Problem.found("length-outlier", message, where(row))


def same_answers(rows: Sketches, where: Where) -> Iterator[Problem]:
    """An answer that a great part of the prompts have. Of a few classes, one may have more: four fifths."""
    asked = np.flatnonzero((rows.prompt != 0) & (rows.answer != 0))
    if len(asked) < _SAME_ANSWERS:
        return
    answers, firsts, counts = np.unique(rows.answer[asked], return_index=True, return_counts=True)
    limit = _CLASS_SHARE if len(answers) <= _CLASSES else _SAME_SHARE
    commonest = int(np.argmax(counts))
    if len(answers) > 1 and counts[commonest] / len(asked) > limit:
        share, first = counts[commonest] / len(asked), int(asked[firsts[commonest]])
        message = f"one answer stands in {share:.0%} of the rows ({counts[commonest]:,} of {len(asked):,})"
        yield Problem.found("same-answer", message, where(first), rows=int(counts[commonest]))


def too_few(rows: int, first: Location) -> Iterator[Problem]:
    """Fewer rows than a training can learn from."""
    if rows < _FEW:
        yield Problem.found("too-few-rows", f"{rows} row{'s'[: rows != 1]} can be used", first, rows=rows)


def _repeats(keys: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Each row whose key an earlier one has, in the rows' order, with the first that has it. A key of 0 is none."""
    firsts = first_of(keys)
    for row in np.flatnonzero((firsts != np.arange(len(keys))) & (keys != 0)).tolist():
        yield row, int(firsts[row])
