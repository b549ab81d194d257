"""Where the answers stand in the text that a chat template makes of a conversation.

Four ways, the first that holds: where control tokens delimit the answers, between these; a second rendering with
invisible marks in each answer, which must equal the text once the marks are out; the template's own generation marks,
which many templates lack and some put around the header or the line break behind the stop token; rendering turn by
turn, where every beginning must be a beginning of the whole. Each must find every answer's text and tool calls inside
its span.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

from truetune.data.adapt import called
from truetune.data.examples import Conversation, Message, Span
from truetune.data.rules import RowError
from truetune.data.templates import BAR, CLOSE, OPEN, Template

# Behind an opening mark stands which pair it opens, since a template may write a call's name again beside the result.
_PAIRS = "".join(map(chr, range(0xE100, 0xE200)))
_MARKS = re.compile(f"[{OPEN}{CLOSE}{BAR}{_PAIRS}]")
_IN_PAIRS = re.compile(f"(?:{OPEN}[{_PAIRS}]{CLOSE})*")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THOUGHT = "</think>"


def locate_answers(row: Conversation, text: str, *, template: Template) -> tuple[Span, ...]:
    """The span of each answer in `text`, the row's rendering: from where the model takes over to its terminator.

    Raises RowError where none of the ways can be verified.
    """
    ways = (_delimited, _marked_by_us, _marked_by_template, _by_prefix)
    for way in ways:
        with suppress(RowError):  # A template may refuse a marked or a shortened row.
            spans = way(row, template, text)
            if spans and _hold_answers(spans, row, text):
                return spans
    raise RowError(
        "unverifiable-mask",
        "the answers cannot be located in the text that the template makes",
        hint="the template may leave an answer or a tool call out; data.template names another one",
    )


def _hold_answers(spans: Sequence[Span], row: Conversation, text: str) -> bool:
    """True if there is a span for each answer, which holds its visible text and the name of each of its calls."""
    answers = _answers(row)
    return len(spans) == len(answers) and all(
        text.count(part, start, end) >= count
        for (start, end), answer in zip(spans, answers, strict=True)
        for part, count in Counter(filter(None, (_visible(answer), *called(answer)))).items()
    )


def _answers(row: Conversation) -> list[Message]:
    return [message for message in row.messages if message.role == "assistant"]


def _visible(answer: Message) -> str:
    """The answer without its thinking, which templates may drop, and its outer blanks, which they may trim."""
    return answer.content.rpartition(_THOUGHT)[2].strip()


# --- between control tokens -------------------------------------------------------------------------------


def _delimited(row: Conversation, template: Template, text: str) -> tuple[Span, ...] | None:
    """Spans between header and terminator, which the template alone can have written: no row may hold their tokens.

    None unless each holds exactly its answer, so that answers the template changes or calls it adds go another way.
    """
    if template.delimiters is None:
        return None
    header, terminator = template.delimiters
    spans: list[Span] = []
    place = 0
    for answer in _answers(row):
        start = text.find(header, place) + len(header)
        end = text.find(terminator, start)
        if start < len(header) or end < 0 or text[start:end].strip() != answer.content.strip():
            return None
        place = end + len(terminator)
        spans.append((start, place))
    return tuple(spans) if text.find(header, place) < 0 else None


# --- by a second rendering, marked ------------------------------------------------------------------------


def _marked_by_us(row: Conversation, template: Template, text: str) -> tuple[Span, ...] | None:
    """Spans from a second rendering with marks in each answer; None unless it proves equal."""
    needed = sum(map(_marks_in, _answers(row)))
    pairs = _PAIRS[:needed]
    if _MARKS.search(text) or len(pairs) < needed:
        return None
    unused = iter(pairs)
    has_calls = any(called(message) for message in row.messages)
    marked = template.chat_text([_mark(turn, unused, bar=has_calls) for turn in row.messages], tools=row.tools)
    if _MARKS.sub("", marked) != text:
        return None
    places = [(match.start() - index, match[0]) for index, match in enumerate(_MARKS.finditer(marked))]
    found = _first_pairs(places)
    return _around_marks(found, places, row, template, text) if found.keys() == set(pairs) else None


def _first_pairs(places: Sequence[tuple[int, str]]) -> dict[str, Span]:
    """Where each pair of marks stands first; nothing if a mark has no partner."""
    marks = [(place, mark) for place, mark in places if mark != BAR]
    if not _IN_PAIRS.fullmatch("".join(mark for _, mark in marks)):
        return {}
    found: dict[str, Span] = {}
    for (start, _), (_, pair), (end, _) in zip(marks[::3], marks[1::3], marks[2::3], strict=True):
        found.setdefault(pair, (start, end))
    return found


def _mark(message: Message, unused: Iterator[str], *, bar: bool) -> Message:
    """Marks around the visible part of an answer and the names it calls; a bar inside any other message."""
    if message.role == "assistant":
        return _mark_answer(message, unused)
    body = message.content.strip()
    middle = message.content.find(body) + (len(body) + 1) // 2
    marked = message.content[:middle] + BAR + message.content[middle:]
    return replace(message, content=marked) if bar and body else message


def _mark_answer(message: Message, unused: Iterator[str]) -> Message:
    body, calls = _visible(message), message.extra.get("tool_calls")
    if calls:
        marked_calls = [_mark_call(call, next(unused)) for call in calls]
        message = replace(message, extra={**message.extra, "tool_calls": marked_calls})
    if calls and not body:
        return message
    thinking, tag, answer = message.content.rpartition(_THOUGHT)
    start = answer.find(body)
    marked = answer[:start] + OPEN + next(unused) + body + CLOSE + answer[start + len(body) :]
    return replace(message, content=thinking + tag + marked)


def _mark_call(call: Any, pair: str) -> Any:
    return {**call, "function": {**call["function"], "name": OPEN + pair + call["function"]["name"] + CLOSE}}


def _marks_in(answer: Message) -> int:
    """How many pairs of marks `_mark` puts into an answer."""
    calls = len(called(answer))
    return calls + bool(_visible(answer) or not calls)


def _around_marks(
    found: Mapping[str, Span], places: Sequence[tuple[int, str]], row: Conversation, template: Template, text: str
) -> tuple[Span, ...] | None:
    """The answers' spans, each around its own marks; None if the beginning or the end of one is not certain."""
    pairs = iter(_PAIRS)
    spans: list[Span] = []
    for index, answer in enumerate(row.messages):
        if answer.role != "assistant":
            continue
        own = [found[pair] for pair in islice(pairs, _marks_in(answer))]
        first, last = min(start for start, _ in own), max(end for _, end in own)
        after = spans[-1][1] if spans else 0
        if first < after:
            return None
        asked = max([after, *(place for place, mark in places if mark == BAR and place < first)])
        begun = _begun(text, first, answer, template, after=asked)
        start = _behind_header(text, begun, template, after=asked)
        if start is None:
            start = _behind_prompt(row, index, template, text, after=after, limit=first)
        if called(answer):
            limit = min((place for place, mark in places if place > last and mark != CLOSE), default=len(text))
            end = _closed_behind_calls(text, last, limit, template)
            if end is None:
                end = _closed_as_last(row, index, template, text, last, limit)
        else:
            start, end = first if start is None else start, _closed(text, last, template)
        if start is None or end is None or any(mark == BAR and start < place < end for place, mark in places):
            return None
        spans.append((start, end))
    return tuple(spans)


def _behind_header(text: str, start: int, template: Template, *, after: int) -> int | None:
    """Where the model takes over: behind the answer's header, so that what the template puts between is learned."""
    places = ((text.rfind(header, after, start), header) for header in template.headers)
    return next((place + len(header) for place, header in places if place >= 0), None)


def _begun(text: str, start: int, answer: Message, template: Template, *, after: int) -> int:
    """Where the answer's thinking begins, if it stands behind a header of its own (gpt-oss), or else `start`."""
    thought = str(answer.extra.get("reasoning_content") or "").strip()
    place = text.rfind(thought, after, start) if thought else -1
    # Only a header that no row can hold is certain to be the template's.
    headers = filter(template.control_tokens.search, template.headers)
    return place if place >= 0 and any(text.find(header, after, place) >= 0 for header in headers) else start


def _behind_prompt(
    row: Conversation, index: int, template: Template, text: str, *, after: int, limit: int
) -> int | None:
    """Where the prompt of the answer at `index` ends, for one that no header opens; None if it is not the text's.

    Where only what stands before differs (Mistral tells system and tools in the last turn), its last turn tells.
    """
    with suppress(RowError):
        prompt = template.chat_text(row.messages[:index], tools=row.tools, open_answer=True)
        if text.startswith(prompt) and len(prompt) <= limit:
            return len(prompt)
        asked = row.messages[index - 1].content.strip()
        turn = prompt[prompt.rindex(asked) :] if asked and asked in prompt else ""
        place = text.rfind(turn, after, limit) if turn else -1
        behind = place + len(turn)
        if place >= 0 and (template.control_tokens.search(turn) or not text[behind:limit].strip()):
            return behind
    return None


def _closed(text: str, end: int, template: Template) -> int:
    """The answer's end with its blanks and its terminator."""
    if template.closings and text[:end].endswith(template.closings):
        return end
    body = len(text) - len(text[end:].lstrip())
    ends = (
        place + len(closing)
        for closing in template.closings
        for place in (end, body, body - len(closing) + len(closing.lstrip()))
        if place >= end and text.startswith(closing, place)
    )
    return next(ends, end)


def _closed_behind_calls(text: str, last: int, limit: int, template: Template) -> int | None:
    """The end of the first terminator behind the calls; None if the next message begins before there is one."""
    places = ((text.find(closing, last, limit), closing) for closing in template.closings)
    return min((place + len(closing) for place, closing in places if place >= 0), default=None)


def _closed_as_last(
    row: Conversation, index: int, template: Template, text: str, last: int, limit: int
) -> int | None:
    """Where the row would end with this answer, for calls that close otherwise than words do (gpt-oss, Gemma 4)."""
    with suppress(RowError):
        upto = template.chat_text(row.messages[: index + 1], tools=row.tools).rstrip()
        if text.startswith(upto) and last <= len(upto) <= limit:
            return len(upto)
    return None


# --- by the template's own marks, and turn by turn --------------------------------------------------------


def _marked_by_template(row: Conversation, template: Template, text: str) -> tuple[Span, ...] | None:
    """Spans from the template's own {% generation %} marks, less a header and blanks behind the terminator."""
    if not _GENERATION.search(template.chat or ""):
        return None
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, spans = render_jinja_template(
            [[message.for_template() for message in row.messages]],
            tools=list(row.tools) or None,
            chat_template=template.chat,
            return_assistant_tokens_mask=True,
            **template.tokenizer.special_tokens_map,
        )
    except Exception as error:
        # The template takes the row otherwise: arguments as text, say.
        raise RowError("template-refused", f"the chat template refuses this row: {error}") from error
    return tuple(_trimmed(span, text, template) for span in spans[0]) if rendered[0] == text else None


def _trimmed(span: Span, text: str, template: Template) -> Span:
    start, end = span
    header = next((header for header in template.headers if text.startswith(header, start)), "")
    body = text[start:end].rstrip()
    if template.closings and body.endswith(template.closings):
        return start + len(header), start + len(body)
    return start + len(header), _closed(text, end, template)


def _by_prefix(row: Conversation, template: Template, text: str) -> tuple[Span, ...] | None:
    """Spans from rendering the row turn by turn, for templates that treat a marked text otherwise."""
    spans = []
    for index, message in enumerate(row.messages):
        if message.role != "assistant":
            continue
        before = template.chat_text(row.messages[:index], tools=row.tools, open_answer=True)
        upto = template.chat_text(row.messages[: index + 1], tools=row.tools)
        closing = upto.rfind(template.terminator, len(before))
        end = closing + len(template.terminator) if closing >= 0 else len(upto.rstrip())
        if not (text.startswith(before) and text.startswith(upto[:end])):
            return None
        spans.append((len(before), end))
    return tuple(spans)
