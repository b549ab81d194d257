"""Examples into text, with the characters that bear loss: the only place that formats a prompt."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from truetune.data.adapt import apply_template
from truetune.data.control_tokens import with_breaks, without_breaks
from truetune.data.examples import Completion, Conversation, Example, Instruction, Message, Note, Rendered, Span
from truetune.data.format_texts import filled, format_text
from truetune.data.rules import RowError
from truetune.data.spans import locate_answers
from truetune.data.templates import Template
from truetune.data.values import HALF_A_PAIR, is_whole
from truetune.errors import TemplateError


def render(example: Example, *, template: Template) -> Rendered:
    """The example as the model reads it, with the spans it learns. Raises RowError where none can be verified."""
    safe = with_breaks(example, template, policy=template.control)
    rendered = _learn(_whole(safe, template), template)
    _require_readable(rendered.text)
    if safe is not example:
        rendered = without_breaks(rendered)
    return replace(rendered, notes=(*example.notes, *rendered.notes)) if example.notes else rendered


def render_prompt(example: Example, *, template: Template) -> Rendered:
    """What `render` puts before the example's last answer: the text a model is asked to go on from, without spans.

    Whatever the example says is read as text here, also what looks like a control token.
    """
    safe = with_breaks(example, template, policy="as_text")
    asked = Rendered(_asked(safe, template), ())
    _require_readable(asked.text)
    return asked if safe is example else without_breaks(asked)


def examples_per_turn(example: Example) -> Iterator[Example]:
    """A conversation as one example for each learned answer, with all that was said before it and nothing after."""
    if not isinstance(example, Conversation):
        yield example
        return
    ends = [index for index, turn in enumerate(example.messages) if turn.role == "assistant" and turn.is_learned]
    for end in ends:
        before = tuple(replace(turn, is_learned=False) for turn in example.messages[:end])
        yield replace(example, messages=(*before, example.messages[end]))


def _require_readable(text: str) -> None:
    """A template's own text may spell what no row may hold."""
    if not is_whole(text):
        told = f"the template makes a text of it that holds {HALF_A_PAIR}"
        raise RowError("template-refused", told, hint="mend data.template, or name another one")


def _whole(example: Example, template: Template) -> Rendered:
    match example:
        case Completion(prompt="", system="", completion=text):
            return _render_text(text, template)
        case Completion() if template.completion_as_chat or example.system:
            return _whole(_as_instruction(example), template)
        case Completion(prompt=prompt, completion=completion):
            return _render_pair(_with_bos(prompt, template), completion, template)
        case Instruction() if template.text is not None:
            return _render_format(example, template)
        case Instruction():
            return _render_chat(_as_conversation(example), template)
        case Conversation():
            return _render_chat(example, template)


def _asked(example: Example, template: Template) -> str:
    match example:
        case Completion() if example.prompt and (template.completion_as_chat or example.system):
            return _asked(_as_instruction(example), template)
        case Completion():
            return _with_bos(example.prompt, template)
        case Instruction() if template.text is not None:
            return _format_prompt(example, template)
        case Instruction():
            return _asked(_as_conversation(example), template)
        case Conversation(messages=messages, tools=tools):
            turns = messages[:-1] if messages[-1].role == "assistant" else messages
            if turns != messages and turns and turns[-1].role == "assistant":  # The template may have one of both.
                turns = apply_template(messages, template=_chat(template), tools=tools)[0][:-1]
            _, text, _ = apply_template(turns, template=_chat(template), tools=tools, open_answer=True)
            return text


def _learn(rendered: Rendered, template: Template) -> Rendered:
    """Keeps the spans that `train_on` asks for, without thinking if that is masked."""
    match template.train_on:
        case "assistant":
            spans = rendered.spans
        case "last_turn":
            spans = rendered.spans[-1:]
        case "all":
            start = len(template.bos) if template.bos and rendered.text.startswith(template.bos) else 0
            spans = ((start, len(rendered.text)),)
    if template.thinking == "mask" and template.train_on != "all":
        behind = tuple(_behind_thinking(rendered.text, span, template) for span in spans)
        if behind != spans:
            return replace(rendered, spans=behind, prompts=tuple(start for start, _ in spans))
    return rendered if spans == rendered.spans else replace(rendered, spans=spans)


def _behind_thinking(text: str, span: Span, template: Template) -> Span:
    """The span without the block of thinking that it begins with, or that its header has opened.

    Thinking may also be all that stands before a second header (gpt-oss), which no row can have written.
    """
    start, end = span
    for header in filter(template.control_tokens.search, template.headers):
        if (place := text.rfind(header, start, end)) >= 0:
            return place + len(header), end
    tag = text.find("</think>", start, end)
    opens = text[start:end].lstrip().startswith("<think>") or text[:start].rstrip().endswith("<think>")
    if tag < 0 or not opens:
        return span
    body = text[tag + len("</think>") : end]
    return end - len(body.lstrip()), end


# --- text and prompt + completion -------------------------------------------------------------------------


def _render_text(text: str, template: Template) -> Rendered:
    """A bare text: one BOS, one EOS, everything but BOS learned, or what stands behind the marker."""
    whole = _with_eos(_with_bos(text, template), template)
    start = len(template.bos) if template.bos else 0
    if template.response_marker:
        start = _behind_marker(whole, template.response_marker)
    return Rendered(whole, ((start, len(whole)),))


def _behind_marker(text: str, marker: str) -> int:
    place = text.find(marker)
    if place < 0:
        raise RowError(
            "no-marker",
            f"data.response_marker {marker!r} is not in the text, so its answer cannot be told",
            field="text",
            hint="take the row out, or correct the marker",
        )
    return place + len(marker)


def _render_pair(prompt: str, completion: str, template: Template) -> Rendered:
    whole = _with_eos(prompt + completion, template)
    return Rendered(whole, ((len(prompt), len(whole)),))


def _with_bos(text: str, template: Template) -> str:
    """The text with exactly one BOS in front, if the tokenizer puts one there."""
    written = text.lstrip()
    return written if template.bos and written.startswith(template.bos) else template.bos + text


def _with_eos(text: str, template: Template) -> str:
    eos = template.tokenizer.eos_token
    if not eos:
        raise TemplateError(
            "the tokenizer has no eos token, so a model trained on these rows would never stop",
            hint="use a base model whose tokenizer has one, or chat rows with a template that closes its turns",
        )
    written = text.rstrip()
    return written if written.endswith(eos) else text + eos


# --- instruction ------------------------------------------------------------------------------------------


def _render_format(row: Instruction, template: Template) -> Rendered:
    _, _, after = _format_text(row, template).partition("{output}")
    rendered = _render_pair(_format_prompt(row, template), row.output + filled(after, row), template)
    unused = [
        name
        for name in ("input", "system", "history")
        if getattr(row, name) and f"{{{name}}}" not in _format_text(row, template)
    ]
    return replace(rendered, notes=tuple(Note("not-rendered", name) for name in unused))


def _format_prompt(row: Instruction, template: Template) -> str:
    before, _, _ = _format_text(row, template).partition("{output}")
    return _with_bos(filled(before, row), template)


def _format_text(row: Instruction, template: Template) -> str:
    return format_text(template.text or "", has_input=bool(row.input))


def _as_conversation(row: Instruction) -> Conversation:
    """The history, then instruction and input, joined by a blank line, asked by the user."""
    question = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    system = (Message("system", row.system),) if row.system else ()
    rounds = (turn for asked, said in row.history for turn in (Message("user", asked), Message("assistant", said)))
    return Conversation((*system, *rounds, Message("user", question), Message("assistant", row.output)), row.where)


def _as_instruction(row: Completion) -> Instruction:
    return Instruction(row.prompt, "", row.completion, row.system, row.where)


# --- chat --------------------------------------------------------------------------------------------------


def _chat(template: Template) -> Template:
    if template.chat is None:
        raise TemplateError(
            "the rows are conversations, and the model's tokenizer has no chat template",
            hint="set data.template to a .jinja file, or use an instruct model",
        )
    return template


def _render_chat(row: Conversation, template: Template) -> Rendered:
    turns, text, changes = apply_template(row.messages, template=_chat(template), tools=row.tools)
    taken = row if turns is row.messages else replace(row, messages=turns)
    spans = locate_answers(taken, text, template=template)
    if template.thinking == "empty":
        text, spans = _behind_opening(taken, text, spans, template)
    answers = [turn for turn in turns if turn.role == "assistant"]
    learned = tuple(span for span, answer in zip(spans, answers, strict=True) if answer.is_learned)
    notes = (*_left_out(taken, text, spans, template), *_unlike_prompt(taken, text, spans, template))
    return Rendered(text, learned, (*changes, *notes))


def _behind_opening(
    row: Conversation, text: str, spans: tuple[Span, ...], template: Template
) -> tuple[str, tuple[Span, ...]]:
    """The text with the prompt of inference before its last answer, where the template writes rows otherwise."""
    start, end = spans[-1]
    if text[:start].endswith(template.opening) or row.messages[-1].role != "assistant" or _thoughts(row.messages[-1]):
        return text, spans
    prompt = _asked(row, template)
    return prompt + text[start:], (*spans[:-1], (len(prompt), len(prompt) + end - start))


def _unlike_prompt(row: Conversation, text: str, spans: Sequence[Span], template: Template) -> tuple[Note, ...]:
    """Notes a row whose last learned answer does not stand behind the prompt of inference.

    What opens the answer tells it, but for one behind another answer, or opened in more than one way (by DeepSeek).
    """
    answers = (index for index, turn in enumerate(row.messages) if turn.role == "assistant")
    learned = [(index, span) for index, span in zip(answers, spans, strict=True) if row.messages[index].is_learned]
    index, (start, end) = learned[-1]
    follows = index > 0 and row.messages[index - 1].role == "assistant"
    header = next((header for header in template.headers if text[:start].endswith(header)), "")
    if header and not follows and text.startswith(template.opening, start - len(header), end):
        return ()
    with suppress(RowError):
        prompt = _asked(replace(row, messages=row.messages[: index + 1]), template)
        if text.startswith(prompt) and start <= len(prompt) < end:
            return ()
    return (Note("unlike-prompt"),)


def _left_out(row: Conversation, text: str, spans: Sequence[Span], template: Template) -> tuple[Note, ...]:
    """Notes what the template left out: thinking (of earlier turns, as a rule), a system message, the tools."""
    notes = [Note("not-rendered", role) for role in ("system", "user") if not _is_seen(role, row, text)]
    if row.tools and (not template.tells_tools or any(name not in text for name in _tool_names(row))):
        notes.append(Note("not-rendered", "tools"))
    answers = [message for message in row.messages if message.role == "assistant"]
    starts = [0, *(end for _, end in spans)]
    lost = sum(
        any(thought not in text[start:end] for thought in _thoughts(answer))
        for answer, start, (_, end) in zip(answers, starts, spans, strict=False)
    )
    return (*notes, Note("removed-by-template", count=lost)) if lost else tuple(notes)


def _thoughts(answer: Message) -> list[str]:
    """What the answer thinks, in its content or in a field of its own."""
    inside = answer.content.rpartition("</think>")[0].rpartition("<think>")[2].strip()
    apart = str(answer.extra.get("reasoning_content") or "").strip()
    return [thought for thought in (inside, apart) if thought]


def _is_seen(role: str, row: Conversation, text: str) -> bool:
    return all(message.content.strip() in text for message in row.messages if message.role == role)


def _tool_names(row: Conversation) -> list[str]:
    functions = [tool.get("function", tool) for tool in row.tools if isinstance(tool, Mapping)]
    return [str(function["name"]) for function in functions if isinstance(function, Mapping) and "name" in function]
