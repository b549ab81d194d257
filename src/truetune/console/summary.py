"""How a training ended: what was learned, plan and outcome, where things are, and what to do next, in 80 columns."""

from collections.abc import Iterator
from textwrap import wrap
from typing import TYPE_CHECKING

from truetune.console.output import show, to_whoever_is_there

if TYPE_CHECKING:
    from truetune.pipeline.review.outcome import Outcome
    from truetune.report.run_page import Pairs, Planned

_WIDTH = 80
_NAMES = 13
"""Columns of what the lines are named."""


def show_outcome(outcome: "Outcome") -> None:
    """All of it on stdout. Sentences are wrapped; places and commands stay whole, to be copied."""
    sections = (
        [outcome.verdict],
        list(_sentences(outcome.learned)),
        list(_beside(outcome.planned)),
        [_named(*each) for each in outcome.places],
        [_named(*each) for each in outcome.next],
    )
    with to_whoever_is_there():
        show("\n\n".join("\n".join(lines) for lines in sections if lines))


def _sentences(pairs: "Pairs") -> Iterator[str]:
    for name, sentence in pairs:
        first, *others = wrap(sentence, _WIDTH - _NAMES)
        yield _named(name, first)
        yield from (_named("", line) for line in others)


def _beside(planned: "tuple[Planned, ...]") -> Iterator[str]:
    """The plan's figures in columns; nothing where there are none."""
    if planned:
        rows = [(each.name.lower(), each.planned, each.taken, each.difference) for each in planned]
        for name, plan, taken, difference in (("", "planned", "taken", ""), *rows):
            yield _named(name, f"{plan:<16} {taken:<16} {difference}")


def _named(name: str, value: str) -> str:
    return f"{name:<{_NAMES - 1}} {value}".rstrip()
