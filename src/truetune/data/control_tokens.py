"""Words of a row that the tokenizer would take for control tokens: refused, or broken so that they stay text."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from truetune.data.examples import Completion, Conversation, Example, Instruction, Message, Rendered
from truetune.data.rules import RowError
from truetune.data.templates import BREAK, ControlTokens, Template

_BREAKS = re.compile(BREAK)


def with_breaks(example: Example, template: Template, *, policy: ControlTokens) -> Example:
    """The example itself, if nothing in it reads as a control token; else RowError, or breaks inside each such word.

    Plain text is exempt: it is written for the tokenizer.
    """
    if (
        isinstance(example, Completion)
        and not (template.completion_as_chat and example.prompt)
        and not example.system
    ):
        return example
    search = template.control_tokens.search
    for name, text in _texts(example):
        if found := search(text):
            if policy == "as_text":
                return _broken_example(example, template)
            raise RowError(
                "control-token",
                f"holds the control token {found[0]!r}, which the tokenizer does not read as text",
                field=name,
                hint="take the token out of the text, or set data.control_tokens to as_text",
            )
    return example


def _broken_example(example: Example, template: Template) -> Example:
    if any(BREAK in text for _, text in _texts(example)):
        raise RowError(
            "control-token", f"holds a control token, and the character U+{ord(BREAK):04X} that marks them"
        )
    return cast(Example, _broken(example, template.control_tokens))


def _texts(example: Example) -> Iterator[tuple[str, str]]:
    """All that the example brings into a template, each with its place."""
    if not isinstance(example, Conversation):
        names = ("prompt", "completion") if isinstance(example, Completion) else ("instruction", "input", "output")
        yield from ((name, getattr(example, name)) for name in (*names, "system"))
        if isinstance(example, Instruction) and example.history:
            yield "history", "\n".join(map("\n".join, example.history))
        return
    for index, message in enumerate(example.messages):
        yield f"messages[{index}].content", message.content
        for name, value in message.extra.items():
            yield f"messages[{index}].{name}", _as_json(value)
    if example.tools:
        yield "tools", _as_json(example.tools)


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _broken(value: Any, tokens: re.Pattern[str]) -> Any:
    """The value with a break behind the first character of each control token in its texts."""

    def broken(inner: Any) -> Any:
        return _broken(inner, tokens)

    match value:
        case str():
            return tokens.sub(lambda found: found[0][0] + BREAK + found[0][1:], value)
        case Mapping():
            return {broken(name): broken(inner) for name, inner in value.items()}
        case list() | tuple():
            return type(value)(map(broken, value))
        case Message():
            return replace(value, content=broken(value.content), extra=broken(value.extra))
        case Conversation():
            return replace(value, messages=broken(value.messages), tools=broken(value.tools))
        case Instruction():
            return replace(
                value, **_broken_fields(value, tokens, ("instruction", "input", "output", "system", "history"))
            )
        case Completion():
            return replace(value, **_broken_fields(value, tokens, ("prompt", "completion", "system")))
        case _:
            return value


def _broken_fields(value: Example, tokens: re.Pattern[str], names: Sequence[str]) -> dict[str, Any]:
    return {name: _broken(getattr(value, name), tokens) for name in names}


def without_breaks(rendered: Rendered) -> Rendered:
    """The text as it reads, with the breaks as places in it."""
    if BREAK not in rendered.text:
        return rendered
    places = [match.start() for match in _BREAKS.finditer(rendered.text)]

    def moved(place: int) -> int:
        return place - sum(each < place for each in places)

    return replace(
        rendered,
        text=rendered.text.replace(BREAK, ""),
        spans=tuple((moved(start), moved(end)) for start, end in rendered.spans),
        breaks=tuple(place - index for index, place in enumerate(places)),
        prompts=tuple(map(moved, rendered.prompts)),
    )
