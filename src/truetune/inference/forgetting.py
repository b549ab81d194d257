"""What a model forgets by training: instructions whose following code can check, and texts of no particular kind.

The prompts and texts are truetune's own (forgetting.json). They are few: they show that something broke, as much as
that nothing did they cannot show. The kinds of check follow IFEval (arXiv 2311.07911).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from truetune.data.examples import IGNORED, Tokenized
from truetune.inference.metrics import last_number, normalized

MAX_NEW_TOKENS = 80
"""No instruction needs more for an answer."""


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, and what its answer must be: each check is its kind with what it asks for."""

    prompt: str
    checks: tuple[Mapping[str, Any], ...]

    def passes(self, answer: str, *, has_stopped: bool) -> bool:
        """True if the answer meets every check."""
        return bool(answer.strip()) and all(_holds(check, answer.strip(), has_stopped) for check in self.checks)


@cache
def tasks() -> tuple[Task, ...]:
    """The instructions."""
    return tuple(Task(each["prompt"], tuple(each["checks"])) for each in _document()["instructions"])


def general_rows(tokenizer: Any, *, bos: str) -> list[Tokenized]:
    """The texts as rows of which every token but the first is learned."""
    ids = [tokenizer(bos + text, add_special_tokens=False)["input_ids"] for text in _document()["texts"]]
    return [Tokenized(each, [IGNORED, *each[1:]]) for each in ids]


@cache
def _document() -> dict[str, Any]:
    text = resources.files("truetune.inference").joinpath("forgetting.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def _holds(check: Mapping[str, Any], answer: str, has_stopped: bool) -> bool:
    if "stops" in check:
        return has_stopped
    kind = next(name for name in check if name in CHECKS)
    if check.get("any"):
        return any(CHECKS[kind](answer, [each]) for each in check[kind])
    return CHECKS[kind](answer, check[kind])


def _is_between(count: int, bounds: Sequence[int]) -> bool:
    return bounds[0] <= count <= bounds[1]


def _lines(answer: str) -> list[str]:
    return [line for line in answer.splitlines() if line.strip()]


def _has_case(answer: str, case: str) -> bool:
    return answer.isupper() if case == "upper" else answer.islower()


def _has_keys(answer: str, keys: Sequence[str]) -> bool:
    """The answer, or the one fenced block in it, is a JSON object with these keys."""
    fenced = re.search(r"```(?:json)?\s*(.*?)```", answer, re.DOTALL)
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except ValueError:
        return False
    return isinstance(found, dict) and all(key in found for key in keys)


CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    "number": lambda answer, number: last_number(answer) == number,
    "words": lambda answer, bounds: _is_between(len(answer.split()), bounds),
    "sentences": lambda answer, bounds: _is_between(len(re.findall(r"[^.!?]+[.!?]+(?=\s|$)", answer)), bounds),
    "lines": lambda answer, bounds: _is_between(len(_lines(answer)), bounds),
    "bullets": lambda answer, bounds: _is_between(sum(line.lstrip()[0] in "-*•" for line in _lines(answer)), bounds),
    "contains": lambda answer, words: all(word.casefold() in answer.casefold() for word in words),
    "contains_exactly": lambda answer, words: all(word in answer for word in words),
    "avoids": lambda answer, words: not any(word.casefold() in answer.casefold() for word in words),
    "is": lambda answer, words: normalized(answer) in map(normalized, words),
    "starts": lambda answer, words: normalized(answer).startswith(tuple(words)),
    "ends": lambda answer, words: normalized(answer).endswith(tuple(words)),
    "case": _has_case,
    "json": _has_keys,
}
"""The kinds of check: each takes the answer, without blanks around it, and what is asked of it."""
