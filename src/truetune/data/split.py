"""Training and validation rows: seeded, the same after a restart, stable when rows are appended."""

from collections.abc import Sequence
from hashlib import blake2b

DEFAULT_FRACTION, DEFAULT_CAP, DEFAULT_MINIMUM = 0.1, 1_000, 100


def split_examples(texts: Sequence[str], *, test_size: float | int | None, seed: int) -> list[bool]:
    """True for each row that belongs to validation.

    A row's side hangs on its own text and the seed alone, so equal rows share a side and appended rows move no
    other; the share taken is therefore near `test_size`, not exact. A whole number asks for about that many rows;
    None takes a tenth, at most 1,000 rows, and none under 100 rows. At least one row stays on each side.
    """
    fraction = validation_fraction(len(texts), test_size)
    if not fraction:
        return [False] * len(texts)
    places = [_place(text, seed) for text in texts]
    taken = [place < fraction for place in places]
    if not any(taken):
        lowest = min(places)
        taken = [place == lowest for place in places]
    if all(taken):
        highest = max(places)
        taken = [place != highest for place in places]
    return taken if any(taken) else [False] * len(texts)


def validation_fraction(rows: int, test_size: float | int | None) -> float:
    """The share of `rows` that `test_size` asks for."""
    if test_size is None:
        return 0.0 if rows < DEFAULT_MINIMUM else min(DEFAULT_FRACTION, DEFAULT_CAP / rows)
    if test_size >= 1:
        return min(test_size / rows, 0.5)
    return float(test_size) if rows > 1 else 0.0


def _place(text: str, seed: int) -> float:
    """Where the text falls in [0, 1)."""
    digest = blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") / 2**64
