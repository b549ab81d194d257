"""How the next token is chosen: what a caller may ask for."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from truetune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sampling:
    """`temperature` 0 is greedy: the same answer every time.

    `top_k` 0, `top_p` 1 and `min_p` 0 leave nothing out; `repetition_penalty` 1 punishes nothing. `seed` makes drawn
    answers come again: each row of a batch draws by itself, so that its answer hangs on the seed and on its number
    alone. An answer also ends before each text in `stop`. Raises ConfigError for values out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ConfigError("; ".join(problems))

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    def _problems(self) -> Iterator[str]:
        if self.max_new_tokens < 1:
            yield f"max_new_tokens must be positive (got {self.max_new_tokens})"
        if not 0 <= self.temperature < float("inf"):
            yield f"temperature must be 0 (greedy) or more (got {self.temperature})"
        if not 0 < self.top_p <= 1:
            yield f"top_p must be above 0 and at most 1 (got {self.top_p})"
        if self.top_k < 0:
            yield f"top_k must be 0 (off) or more (got {self.top_k})"
        if not 0 <= self.min_p < 1:
            yield f"min_p must be at least 0 and below 1 (got {self.min_p})"
        if not 0 < self.repetition_penalty < float("inf"):
            yield f"repetition_penalty must be positive (got {self.repetition_penalty})"
        if "" in self.stop:
            yield "stop must not hold an empty text"
        if self.is_greedy and (self.top_p < 1 or self.top_k or self.min_p):
            yield "top_p, top_k and min_p choose what is drawn from, and temperature 0 draws nothing: set temperature"


def chosen(sampling: Sampling | None, settings: Mapping[str, Any]) -> Sampling:
    """`sampling`, or greedy, with what `settings` say by its names over it. ConfigError for a name that is none."""
    names = [field.name for field in fields(Sampling)]
    for name in settings.keys() - names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
        raise ConfigError(f"{name}: an answer is not chosen by that", hint=hint)
    stop = settings.get("stop", ())
    texts = {"stop": (stop,) if isinstance(stop, str) else tuple(stop)} if "stop" in settings else {}
    return replace(sampling or Sampling(), **{**settings, **texts})
