"""What becomes of a conversation that a chat template refuses, in training as at inference.

Only a row whose original the template refuses is changed: its system message goes in front of the first user turn,
turns of one role in a row become one, tool calls get ids of a form that every template takes. Tool calls and results
that the template has no place for are written as text.
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
    if not (_calls(taken) and template.adapts_roles and _ignores_calls(taken, text, text_of)):
        return taken, text, notes
    spoken = tuple(map(_with_calls_as_text, taken))
    text = text_of(spoken)
    if any(turn.role == "tool" and turn.content.strip() not in text for turn in spoken):
        spoken = _with_results_as_text(spoken)
        text = text_of(spoken)
    return spoken, text, (*notes, Note("calls-as-text", count=_calls(taken)))


def _calls(turns: Turns) -> int:
    """How many of the turns call tools."""
    return sum(bool(called(turn)) for turn in turns)


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
        for changed, notes in _changes(turns, template):
            with suppress(RowError):
                return changed, text_of(changed), notes
        raise


def _changes(
    turns: tuple[Message, ...], template: Template
) -> Iterable[tuple[tuple[Message, ...], tuple[Note, ...]]]:
    """The turns with other roles; with ids for their calls; with calls and results as text. Only what differs."""
    yield from _roles_changed(turns)
    calls = _calls(turns)
    if calls:
        numbered = _with_ids(turns)
        yield numbered, ()
        yield from _roles_changed(numbered)
    if calls and not template.tells_calls:
        spoken = _with_results_as_text(tuple(map(_with_calls_as_text, turns)))
        note = Note("calls-as-text", count=calls)
        yield spoken, (note,)
        yield from ((changed, (*notes, note)) for changed, notes in _roles_changed(spoken))


def _roles_changed(turns: tuple[Message, ...]) -> Iterable[tuple[tuple[Message, ...], tuple[Note, ...]]]:
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


def _with_results_as_text(turns: Turns) -> tuple[Message, ...]:
    """What tools answered as a user's turn, one for all the results in a row, as Hermes and Qwen write them."""
    changed: list[Message] = []
    for role, group in groupby(turns, key=lambda turn: turn.role):
        together = list(group)
        if role == "tool":
            written = (f"<tool_response>\n{turn.content}\n</tool_response>" for turn in together)
            together = [Message("user", "\n".join(written))]
        changed += together
    return tuple(changed)


def _with_ids(turns: Turns) -> tuple[Message, ...]:
    """Each call with an id of nine letters and figures, which Mistral's templates insist on, and its result with it.

    They count up, so that a prompt has those of its row, and so that there is no chance in what is learned.
    """
    count, waiting = 0, dict[Any, str]()
    changed = []
    for turn in turns:
        extra = dict(turn.extra)
        if called(turn):
            calls = extra["tool_calls"]
            ids = [f"call{count + index:05}" for index in range(len(calls))]
            count += len(calls)
            waiting = {call.get("id") or index: id_ for index, (call, id_) in enumerate(zip(calls, ids, strict=True))}
            extra["tool_calls"] = [{**call, "id": id_} for call, id_ in zip(calls, ids, strict=True)]
        elif turn.role == "tool" and waiting:
            told = extra.get("tool_call_id")
            extra["tool_call_id"] = waiting.pop(told if told in waiting else next(iter(waiting)))
        changed.append(replace(turn, extra=extra))
    return tuple(changed)


def _without_calls(turn: Message) -> dict[str, Any]:
    return {name: value for name, value in turn.extra.items() if name != "tool_calls"}


def _spoken(call: Any) -> dict[str, Any]:
    return {"name": call["function"]["name"], "arguments": call["function"].get("arguments")}
