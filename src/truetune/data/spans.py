"""Where the answers stand in the text that a chat template makes of a conversation.

Three ways, each verified, the first that holds: a second rendering with invisible marks around each answer, which
must equal the text once the marks are out; the template's own generation marks, which many templates lack and some
put around the header or the line break behind the stop token; rendering turn by turn, where every beginning must be a
beginning of the whole.
"""

import re
from dataclasses import replace

from truetune.data.examples import Conversation, Message, Span
from truetune.data.rules import RowError
from truetune.data.templates import CLOSE, Template

# Private-use characters: no text holds them (checked), no template treats them as blank.
_OPEN = "\ue0f0"
_MARKS = str.maketrans("", "", _OPEN + CLOSE)
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def locate_answers(row: Conversation, text: str, *, template: Template) -> tuple[Span, ...]:
    """The span of each answer in `text`, the row's rendering: from where the model takes over to its terminator.

    Raises RowError where none of the three ways can be verified.
    """
    ways = (_marked_by_us, _marked_by_template, _by_prefix)
    for way in ways:
        if spans := way(row, template, text):
            return spans
    raise RowError("unverifiable-mask", "the answers cannot be located in the text that the template makes")


def _marked_by_template(row: Conversation, template: Template, text: str) -> tuple[Span, ...] | None:
    """Spans from the template's own {% generation %} marks, one for each answer."""
    if not _GENERATION.search(template.chat or ""):
        return None
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, spans = render_jinja_template(
        [[message.for_template() for message in row.messages]],
        tools=list(row.tools) or None,
        chat_template=template.chat,
        return_assistant_tokens_mask=True,
        **template.tokenizer.special_tokens_map,
    )
    if rendered[0] != text or len(spans[0]) != _answers(row):
        return None
    return tuple((start, _closed(text, end, template)) for start, end in spans[0])


def _marked_by_us(row: Conversation, template: Template, text: str) -> tuple[Span, ...] | None:
    """Spans from a second rendering with marks around each answer; None unless it proves equal."""
    if _OPEN in text or CLOSE in text or not all(_is_plain(message) for message in row.messages):
        return None
    marked = template.chat_text([_mark(message) for message in row.messages], tools=row.tools)
    places = [
        (match.start() - index, match[0]) for index, match in enumerate(re.finditer(f"[{_OPEN}{CLOSE}]", marked))
    ]
    order = "".join(mark for _, mark in places)
    if marked.translate(_MARKS) != text or order != (_OPEN + CLOSE) * _answers(row):
        return None
    spans: list[Span] = []
    for (start, _), (end, _) in zip(places[::2], places[1::2], strict=True):
        opened = _opened(text, start, template, after=spans[-1][1] if spans else 0)
        spans.append((opened, _closed(text, end, template)))
    return tuple(spans)


def _is_plain(message: Message) -> bool:
    """False for an answer that the template builds from more than its content."""
    return message.role != "assistant" or bool(message.content.strip() and not message.extra.get("tool_calls"))


def _mark(message: Message) -> Message:
    """Marks around the visible part of an answer: templates may trim its ends and drop its thinking."""
    if message.role != "assistant":
        return message
    thinking, tag, answer = message.content.rpartition("</think>")
    body = answer.strip()
    start = answer.find(body)
    marked = answer[:start] + _OPEN + body + CLOSE + answer[start + len(body) :]
    return replace(message, content=thinking + tag + marked)


def _opened(text: str, start: int, template: Template, *, after: int) -> int:
    """Where the model takes over: behind the answer's header, so that what the template puts between is learned."""
    place = text.rfind(template.header, after, start) if template.header else -1
    return start if place < 0 else place + len(template.header)


def _closed(text: str, end: int, template: Template) -> int:
    """The answer's end with its blanks and its terminator."""
    if template.terminator and text[:end].endswith(template.terminator):
        return end
    body = end + len(text[end:]) - len(text[end:].lstrip())
    for place in (end, body):
        if template.terminator and text.startswith(template.terminator, place):
            return place + len(template.terminator)
    return end


def _by_prefix(row: Conversation, template: Template, text: str) -> tuple[Span, ...] | None:
    """Spans from rendering the row turn by turn, for answers without text (tool calls)."""
    spans = []
    for index, message in enumerate(row.messages):
        if message.role != "assistant":
            continue
        before = template.chat_text(row.messages[:index], tools=row.tools, open_answer=True)
        upto = template.chat_text(row.messages[: index + 1], tools=row.tools)
        end = upto.rfind(template.terminator) + len(template.terminator) if template.terminator else len(upto)
        is_beginning = text.startswith(before) and text.startswith(upto[:end])
        if not is_beginning or message.content.strip() not in text[len(before) : end]:
            return None
        spans.append((len(before), end))
    return tuple(spans)


def _answers(row: Conversation) -> int:
    return sum(message.role == "assistant" for message in row.messages)
