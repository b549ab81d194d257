"""What becomes of a conversation that a chat template refuses, in training as at inference.

Only a row whose original the template refuses is changed: its system message goes in front of the first user turn,
turns of one role in a row become one. Tool calls that the template has no place for are written as text.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from typing import Any

from truetune.data.examples import Message, Note
from truetune.data.rules import RowError
from truetune.data.templates import Template

Turns = Sequence[Message]


def apply_template(
    turns: Turns, *, template: Template, tools: Sequence[Any] = (), open_answer: bool = False
) -> tuple[tuple[Message, ...], str, tuple[Note, ...]]:
    """The turns as the template takes them, their text, and what was changed. RowError if it refuses all of it."""

    def text_of(messages: Turns) -> str:
        return template.chat_text(messages, tools=tools, open_answer=open_answer)

    taken, text, notes = _taken(tuple(turns), text_of, template)
    calls = sum(bool(called(turn)) for turn in taken)
    if calls and template.adapts_roles and _ignores_calls(taken, text, text_of):
        taken = tuple(map(_with_calls_as_text, taken))
        return taken, text_of(taken), (*notes, Note("calls-as-text", count=calls))
    return taken, text, notes


def _ignores_calls(turns: Turns, text: str, text_of: Callable[[Turns], str]) -> bool:
    """True if the text is the same without them."""
    with suppress(RowError):
        return text_of([replace(turn, extra=_without_calls(turn)) for turn in turns]) == text
    return False


def called(turn: Message) -> list[str]:
    """The names of the tools that a turn calls."""
    return [call["function"]["name"] for call in turn.extra.get("tool_calls") or ()]


def _taken(
    turns: tuple[Message, ...], text_of: Callable[[Turns], str], template: Template
) -> tuple[tuple[Message, ...], str, tuple[Note, ...]]:
    """The turns as they are, or with the least change that the template takes."""
    try:
        return turns, text_of(turns), ()
    except RowError:
        if not template.adapts_roles:
            raise
        for changed, notes in _changes(turns):
            with suppress(RowError):
                return changed, text_of(changed), notes
        raise


def _changes(turns: tuple[Message, ...]) -> Iterable[tuple[tuple[Message, ...], tuple[Note, ...]]]:
    """The turns with equal roles merged, with the system folded, with both; only what differs from the original."""
    folded, merged = _folded(turns), _merged(turns)
    both = _merged(folded)
    fold = (Note("system-folded"),)
    if merged != turns:
        yield merged, (Note("turns-merged", count=len(turns) - len(merged)),)
    if folded != turns:
        yield folded, fold
    if both not in (folded, merged):
        yield both, (*fold, Note("turns-merged", count=len(folded) - len(both)))


def _folded(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The system messages in front of the first user turn, a blank line between."""
    system = [turn.content for turn in turns if turn.role == "system" and turn.content]
    rest = [turn for turn in turns if turn.role != "system"]
    first = next((index for index, turn in enumerate(rest) if turn.role == "user"), None)
    if first is None or len(rest) == len(turns):
        return turns
    content = "\n\n".join([*system, rest[first].content])
    return (*rest[:first], replace(rest[first], content=content), *rest[first + 1 :])


def _merged(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Neighbours of one role as one turn, where they are nothing but text."""
    groups = groupby(turns, key=lambda turn: (turn.role, turn.is_learned, bool(turn.extra) and id(turn)))
    merged = []
    for (role, _, has_extra), group in groups:
        together = list(group)
        if role == "tool" or has_extra or len(together) == 1:
            merged += together
        else:
            merged.append(replace(together[0], content="\n\n".join(turn.content for turn in together)))
    return tuple(merged)


def _with_calls_as_text(turn: Message) -> Message:
    """The calls as models of the Hermes kind write them, behind what the turn says."""
    calls = turn.extra.get("tool_calls")
    if not calls:
        return turn
    written = [f"<tool_call>\n{json.dumps(_spoken(call), ensure_ascii=False)}\n</tool_call>" for call in calls]
    return replace(turn, content="\n".join(filter(None, [turn.content, *written])), extra=_without_calls(turn))


def _without_calls(turn: Message) -> dict[str, Any]:
    return {name: value for name, value in turn.extra.items() if name != "tool_calls"}


def _spoken(call: Any) -> dict[str, Any]:
    return {"name": call["function"]["name"], "arguments": call["function"].get("arguments")}
