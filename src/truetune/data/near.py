"""Rows that are nearly equal: by the Jaccard similarity of their word triples, verified on every pair that is told.

Up to EXACT_ROWS distinct rows no pair is missed: two sets of similarity t or more share one of their rarest triples
(prefix filtering; Chaudhuri et al., ICDE 2006). Beyond, and where rows of few forms share theirs with too many
others, candidates come from MinHash in bands (Broder, 1997): a pair of similarity 0.8 shares a band with probability
0.9998. Of the rows that share a band each is compared with the first and with the one before it, which links them all
where they are alike.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truetune.data.keys import first_of, row_key

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]
Candidates = tuple[Places, Places]

SIMILAR = 0.8
"""The Jaccard similarity from which rows are near duplicates."""

EXACT_ROWS = 20_000
_WORDS_A_SHINGLE = 3
_BANDS, _ROWS_A_BAND = 16, 4
_TEXT_BITS = 16
_MOST_CANDIDATES, _MOST_COMPARED = 4_000_000, 20_000_000
"""Pairs that may share a rare triple, and triples of pairs that may be compared, before MinHash takes over."""
_BATCH, _IN_CACHE = 4_000_000, 60_000
"""Triples that are held at a time, and that a core's cache holds."""
_PRIMES = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese are written without spaces: each sign is taken for a word."""
_SIGN = "[+/<>=%^&]|-+"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+|{_SIGN}")
_ASCII_WORD = re.compile(rf"\w+|{_SIGN}", re.ASCII)


def words(text: str) -> list[str]:
    """The words and the signs of arithmetic of a text, in small letters: other punctuation and blanks do not count.

    A text without any is a word as it stands.
    """
    lowered = text.casefold()
    found = _ASCII_WORD.findall(lowered) if lowered.isascii() else _WORD.findall(lowered)
    return found or [lowered.strip()]


@dataclass(frozen=True, slots=True)
class Shingles:
    """The distinct word triples of several texts, as hashes, end to end: text i has counts[i] of them, sorted.

    A word's hash is the same in every process, so that a split by near duplicates is.
    """

    hashes: Hashes
    counts: Places


def shingles(spoken: Sequence[Sequence[str]]) -> Shingles:
    """The word triples of each text (its `words`); a text of fewer words is one."""
    most = 1 << _TEXT_BITS
    parts = [_shingles(spoken[start : start + most]) for start in range(0, len(spoken), most)]
    if len(parts) == 1:
        return parts[0]
    none = Shingles(np.empty(0, np.uint64), np.empty(0, np.int64))
    hashes, counts = zip(*((part.hashes, part.counts) for part in [none, *parts]), strict=True)
    return Shingles(np.concatenate(hashes), np.concatenate(counts))


def _shingles(spoken: Sequence[Sequence[str]]) -> Shingles:
    lengths = np.array([len(each) for each in spoken], np.int64)
    flat = np.fromiter(map(_word_hash, chain.from_iterable(spoken)), np.uint64, int(lengths.sum()))
    texts_of = np.repeat(np.arange(len(spoken)), lengths)
    mixed = _triples(flat, texts_of)
    ends = np.cumsum(lengths)
    is_whole = (np.arange(len(flat)) + _WORDS_A_SHINGLE) <= ends[texts_of]
    is_whole |= (lengths < _WORDS_A_SHINGLE)[texts_of] & (np.arange(len(flat)) == (ends - lengths)[texts_of])
    return _distinct(mixed[is_whole], texts_of[is_whole], len(spoken))


@lru_cache(maxsize=200_000)
def _word_hash(word: str) -> int:
    return row_key(word)


def _triples(hashes: Hashes, texts: Places) -> Hashes:
    """A hash of each word with the two behind it, as far as its text goes."""
    mixed = hashes * _PRIMES[0]
    for ahead in range(1, _WORDS_A_SHINGLE):
        later = np.zeros_like(hashes)
        later[:-ahead] = np.where(texts[ahead:] == texts[:-ahead], hashes[ahead:], np.uint64(ahead))
        mixed = (mixed ^ (mixed >> np.uint64(29))) * _PRIMES[ahead] + later
    return np.asarray(mixed ^ (mixed >> np.uint64(32)))


def _distinct(hashes: Hashes, texts: Places, count: int) -> Shingles:
    # The text's number takes the place of a few bits, so that one sort orders both.
    bits, shift = np.uint64(_TEXT_BITS), np.uint64(64 - _TEXT_BITS)
    keys = np.unique((texts.astype(np.uint64) << shift) | (hashes >> bits))
    counts = np.bincount((keys >> shift).astype(np.int64), minlength=count)
    return Shingles(keys << bits, counts.astype(np.int64))


class NearIndex:
    """Collects the texts of rows, in any number, and then finds which are nearly equal.

    The triples lie in a file, so that memory holds a few numbers a row.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="truetune-")  # noqa: SIM115 - close() ends it
        self._counts: list[Places] = []

    def add(self, found: Shingles) -> None:
        """Takes the rows of a chunk."""
        self._file.write(found.hashes.tobytes())
        self._counts.append(found.counts)

    def pairs(self) -> "Pairs":
        """Pairs of near duplicates, enough of them to link all; rows of equal triples are linked as well."""
        if not self._counts:
            return NO_PAIRS
        sets = _Sets(self._file, np.concatenate(self._counts))
        equal, firsts = _equal(sets)
        candidates = _by_prefixes(sets, firsts) if len(firsts) <= EXACT_ROWS else None
        return equal.joined(_verified(sets, candidates or _by_bands(sets, firsts)))

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of rows, the earlier one first, and the similarity of each."""

    first: Places
    second: Places
    similarity: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.first)

    def where(self, chosen: NDArray[np.bool_]) -> "Pairs":
        """Some of the pairs."""
        return Pairs(self.first[chosen], self.second[chosen], self.similarity[chosen])

    def joined(self, other: "Pairs") -> "Pairs":
        names = ("first", "second", "similarity")
        return Pairs(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))

    def nearest(self, among: NDArray[np.bool_]) -> dict[int, tuple[int, float]]:
        """For each row outside `among` that is near one of them, that row and the similarity."""
        alike = self.where(self.similarity >= 1).clusters(len(among))
        inside = {int(alike[row]): int(row) for row in np.flatnonzero(among)[::-1]}
        near = {row: (row, 1.0) for row in inside}
        ends = (alike[self.first].tolist(), alike[self.second].tolist(), self.similarity.tolist())
        for one, other, similarity in zip(*ends, strict=True):
            for row, neighbour in ((one, other), (other, one)):
                if neighbour in inside and similarity > near.get(row, (row, 0.0))[1]:
                    near[row] = neighbour, similarity
        found = {row: near[int(alike[row])] for row in np.flatnonzero(~among).tolist() if int(alike[row]) in near}
        return {row: (inside[neighbour], similarity) for row, (neighbour, similarity) in found.items()}

    def clusters(self, rows: int) -> Places:
        """For each of `rows` rows the first row that it is linked with, over others too; itself if there is none."""
        label = np.arange(rows)
        while True:
            low = np.minimum(label[self.first], label[self.second])
            if (label[self.first] == low).all() and (label[self.second] == low).all():
                return label
            for ends in (self.first, self.second):
                np.minimum.at(label, label[ends], low)
                np.minimum.at(label, ends, low)
            while (label != label[label]).any():
                label = label[label]


NO_PAIRS = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


class _Sets:
    """The sets of triples of all rows, memory-mapped."""

    def __init__(self, file: Any, counts: Places) -> None:
        file.flush()
        self.counts = counts
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self._hashes: Hashes = np.memmap(file, np.uint64, "r") if self.starts[-1] else np.empty(0, np.uint64)

    def __len__(self) -> int:
        return len(self.counts)

    def of(self, rows: Places) -> tuple[Hashes, Places]:
        """The triples of these rows end to end, and for each the place of its row among `rows`."""
        counts = self.counts[rows]
        owners = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.asarray(self._hashes[self.starts[rows][owners] + within]), owners

    def least(self, rows: Places, factors: Hashes) -> Hashes:
        """For each row and each of the factors the least of its triples, after they are multiplied by it: MinHash."""
        found = np.empty((len(rows), len(factors)), np.uint64)
        for part in _parts(self.counts[rows], _IN_CACHE):
            hashes, owners = self.of(rows[part])
            starts = np.searchsorted(owners, np.arange(part.stop - part.start))
            mixed = hashes ^ (hashes >> np.uint64(32))
            for place, factor in enumerate(factors):
                found[part, place] = np.minimum.reduceat(mixed * factor, starts)
        return found


def _equal(sets: _Sets) -> tuple[Pairs, Places]:
    """Each row with the first one of the same triples, and all rows that are not the same as an earlier one."""
    every = np.arange(len(sets))
    least = sets.least(every, _PRIMES[:2])
    keys = (least[:, 0] * _PRIMES[2]) ^ least[:, 1] ^ sets.counts.astype(np.uint64)
    firsts = first_of(keys)
    again = np.flatnonzero(firsts != every)
    same = _verified(sets, (firsts[again], again))
    same = same.where(same.similarity >= 1)
    return same, np.setdiff1d(every, same.second)


def _by_prefixes(sets: _Sets, rows: Places) -> Candidates | None:
    """All pairs of `rows` that share one of their rarest triples; None if that would be too many."""
    hashes, owners = sets.of(rows)
    _, ids, frequency = np.unique(hashes, return_inverse=True, return_counts=True)
    ids = ids.reshape(-1)
    order = np.lexsort((ids, frequency[ids], owners))
    ids, owners = ids[order], owners[order]
    counts = sets.counts[rows]
    within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Sets of similarity t share t|x| of x's triples at least, so one among the first |x| - t|x| + 1.
    is_prefix = within < (counts - np.ceil(SIMILAR * counts - 1e-9) + 1)[owners]
    is_prefix &= frequency[ids] > 1
    pairs = _pairs_of(ids[is_prefix], owners[is_prefix], counts)
    if pairs is None or (counts[pairs[0]] + counts[pairs[1]]).sum() > _MOST_COMPARED:
        return None
    return rows[pairs[0]], rows[pairs[1]]


def _pairs_of(keys: Places, owners: Places, counts: Places) -> Candidates | None:
    """The pairs that share a key and whose sets' sizes let them be similar; None if there are too many."""
    order = np.lexsort((owners, keys))
    keys, owners = keys[order], owners[order]
    ends = np.searchsorted(keys, keys, side="right")
    ahead = ends - np.arange(len(keys)) - 1
    if ahead.sum() > _MOST_CANDIDATES:
        return None
    first = np.repeat(np.arange(len(keys)), ahead)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(ahead) - ahead, ahead)
    left, right = owners[first], owners[second]
    near = np.minimum(counts[left], counts[right]) >= SIMILAR * np.maximum(counts[left], counts[right]) - 1e-9
    pairs = np.unique(left[near] * np.int64(len(counts)) + right[near])
    return pairs // len(counts), pairs % len(counts)


def _by_bands(sets: _Sets, rows: Places) -> Candidates:
    """Of the rows that share a band each with the first and with the one before it: linear in the rows."""
    chance = np.random.Generator(np.random.PCG64(0))
    factors = chance.integers(1 << 63, size=_BANDS * _ROWS_A_BAND, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    found = []
    for band in _banded(sets, rows, factors).T:
        order = np.argsort(band, kind="stable")
        is_start = np.ones(len(order), np.bool_)
        is_start[1:] = band[order][1:] != band[order][:-1]
        start = np.maximum.accumulate(np.where(is_start, np.arange(len(order)), 0))
        again = np.flatnonzero(~is_start)
        for other in (start[again], again - 1):
            found.append(rows[order[other]] * np.int64(len(sets)) + rows[order[again]])
    pairs = np.unique(np.concatenate(found))
    return pairs // len(sets), pairs % len(sets)


def _banded(sets: _Sets, rows: Places, factors: Hashes) -> Hashes:
    """For each row the hash of each band: of _ROWS_A_BAND of its least triples."""
    found = np.empty((len(rows), _BANDS), np.uint64)
    for start in range(0, len(rows), _IN_CACHE):
        part = slice(start, start + _IN_CACHE)
        least = sets.least(rows[part], factors).reshape(-1, _BANDS, _ROWS_A_BAND)
        bands = least[:, :, 0] * _PRIMES[0]
        for place in range(1, _ROWS_A_BAND):
            bands = (bands ^ (bands >> np.uint64(31)) ^ least[:, :, place]) * _PRIMES[0]
        found[part] = bands
    return found


def _verified(sets: _Sets, candidates: Candidates) -> Pairs:
    """Those of the candidates that are similar, each set compared whole."""
    first, second = candidates
    sizes = sets.counts[first] + sets.counts[second]
    similar = [_similarity(sets, first[part], second[part]) for part in _parts(sizes, _BATCH)]
    similarity = np.concatenate(similar) if similar else np.empty(0)
    return Pairs(first, second, similarity).where(similarity >= SIMILAR - 1e-9)


def _parts(sizes: Places, most: int) -> Iterator[slice]:
    """Stretches of about `most` in all."""
    sums = np.cumsum(sizes)
    start = 0
    while start < len(sums):
        spent = sums[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(sums, spent + most, side="right")))
        yield slice(start, stop)
        start = stop


def _similarity(sets: _Sets, first: Places, second: Places) -> NDArray[np.float64]:
    """The Jaccard similarity of each pair; 40 bits of each hash tell the triples of one pair apart."""
    one, one_of = sets.of(first)
    other, other_of = sets.of(second)
    pair = np.concatenate([one_of, other_of]).astype(np.uint64)
    keys = np.sort((pair << np.uint64(40)) | (np.concatenate([one, other]) >> np.uint64(24)))
    shared = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(40)
    common = np.bincount(shared.astype(np.int64), minlength=len(first))
    union = sets.counts[first] + sets.counts[second] - common
    return np.asarray(common / union)
