"""How much a training step computes at a time: numbers that the engine works by, and that a plan reckons with."""

TOKENS: dict[str, int | None] = {"cpu": 512}
"""About how many tokens are computed at a time: a CPU gains little from more, a GPU takes all it is given."""

WORKERS = 2
"""Slices that a CPU computes at a time: each more would hold the activations of another."""

_LOGITS = {"cpu": 1 << 20}
"""Logits that are held at a time: on a CPU what its caches hold."""
_LOGITS_ELSEWHERE = 1 << 24
_FEWEST_WORDS = 1024
"""Words at a time, however many tokens there are: with fewer, a product takes as long as with these."""


def words_at_a_time(tokens: int, device: str) -> int:
    """How many words' logits are held at a time, for so many tokens."""
    words = _LOGITS.get(device, _LOGITS_ELSEWHERE) // max(tokens, 1)
    return max(_FEWEST_WORDS, words // _FEWEST_WORDS * _FEWEST_WORDS)
