"""Examples into text, with the characters that bear loss: the only place that formats a prompt."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from truetune.data.examples import Completion, Conversation, Example, Instruction, Message, Rendered, Span
from truetune.data.rules import RowError
from truetune.data.spans import locate_answers
from truetune.data.templates import ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT, PLACEHOLDER, Template
from truetune.errors import TemplateError


def render(example: Example, *, template: Template) -> Rendered:
    """The example as the model reads it, with the spans it learns. Raises RowError where none can be verified."""
    match example:
        case Completion(prompt="", completion=text):
            rendered = _render_text(text, template)
        case Completion() if template.completion_as_chat:
            return render(_as_instruction(example), template=template)
        case Completion(prompt=prompt, completion=completion):
            rendered = _render_pair(_with_bos(prompt, template), completion, template)
        case Instruction() if template.text is not None:
            rendered = _render_format(example, template)
        case Instruction():
            rendered = _render_chat(_as_conversation(example), template)
        case Conversation():
            rendered = _render_chat(example, template)
    return replace(_learn(rendered, template), notes=(*example.notes, *rendered.notes))


def render_prompt(example: Example, *, template: Template) -> str:
    """The text that `render` puts before the example's last answer: what a model is asked to go on from."""
    match example:
        case Completion() if template.completion_as_chat and example.prompt:
            return render_prompt(_as_instruction(example), template=template)
        case Completion():
            return _with_bos(example.prompt, template)
        case Instruction() if template.text is not None:
            return _format_prompt(example, template)
        case Instruction():
            return render_prompt(_as_conversation(example), template=template)
        case Conversation(messages=messages, tools=tools):
            turns = messages[:-1] if messages[-1].role == "assistant" else messages
            return _chat(template).chat_text(turns, tools=tools, open_answer=True)


def _learn(rendered: Rendered, template: Template) -> Rendered:
    """Keeps the spans that `train_on` asks for."""
    match template.train_on:
        case "assistant":
            return rendered
        case "last_turn":
            return replace(rendered, spans=rendered.spans[-1:])
        case "all":
            start = len(template.bos) if template.bos and rendered.text.startswith(template.bos) else 0
            return replace(rendered, spans=((start, len(rendered.text)),))


# --- text and prompt + completion -------------------------------------------------------------------------


def _render_text(text: str, template: Template) -> Rendered:
    """A bare text: one BOS, one EOS, everything but BOS learned."""
    whole = _with_eos(_with_bos(text, template), template)
    start = len(template.bos) if template.bos else 0
    return Rendered(whole, ((start, len(whole)),))


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
    fields = {"instruction": row.instruction, "input": row.input, "system": row.system, "output": row.output}
    _refuse_control_tokens(template, fields)
    _, _, after = _format_text(row, template).partition("{output}")
    rendered = _render_pair(_format_prompt(row, template), row.output + _fill(after, row), template)
    unused = [
        name
        for name in ("input", "system")
        if getattr(row, name) and f"{{{name}}}" not in _format_text(row, template)
    ]
    return replace(rendered, notes=tuple(f"not-rendered:{name}" for name in unused))


def _format_prompt(row: Instruction, template: Template) -> str:
    before, _, _ = _format_text(row, template).partition("{output}")
    return _with_bos(_fill(before, row), template)


def _format_text(row: Instruction, template: Template) -> str:
    if template.text != "alpaca":
        return template.text or ""
    return ALPACA_WITH_INPUT if row.input else ALPACA_WITHOUT_INPUT


def _fill(text: str, row: Instruction) -> str:
    return PLACEHOLDER.sub(lambda match: str(getattr(row, match[1])), text)


def _as_conversation(row: Instruction) -> Conversation:
    """instruction and input, joined by a blank line, asked by the user."""
    question = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    system = (Message("system", row.system),) if row.system else ()
    turns = (*system, Message("user", question), Message("assistant", row.output))
    return Conversation(turns, row.where)


def _as_instruction(row: Completion) -> Instruction:
    return Instruction(row.prompt, "", row.completion, "", row.where, row.notes)


# --- chat --------------------------------------------------------------------------------------------------


def _chat(template: Template) -> Template:
    if template.chat is None:
        raise TemplateError(
            "the rows are conversations, and the model's tokenizer has no chat template",
            hint="set data.template to a .jinja file, or use an instruct model",
        )
    return template


def _render_chat(row: Conversation, template: Template) -> Rendered:
    _refuse_control_tokens(template, _texts(row))
    text = _chat(template).chat_text(row.messages, tools=row.tools)
    spans = locate_answers(row, text, template=template)
    return Rendered(text, spans, _left_out(row, text, spans))


def _texts(row: Conversation) -> dict[str, str]:
    """All that the row brings into the template, by its place."""
    texts = {"tools": json.dumps(row.tools, ensure_ascii=False, default=str)} if row.tools else {}
    for index, message in enumerate(row.messages):
        texts[f"messages[{index}].content"] = message.content
        for name, value in message.extra.items():
            texts[f"messages[{index}].{name}"] = json.dumps(value, ensure_ascii=False, default=str)
    return texts


def _left_out(row: Conversation, text: str, spans: Sequence[Span]) -> tuple[str, ...]:
    """Notes what the template left out: thinking (of earlier turns, as a rule), a system message, the tools."""
    answers = [message for message in row.messages if message.role == "assistant"]
    starts = [0, *(end for _, end in spans)]
    lost = any(
        thought not in text[start:end]
        for answer, start, (_, end) in zip(answers, starts, spans, strict=False)
        for thought in _thoughts(answer)
    )
    unseen = [role for role in ("system", "user") if not _is_seen(role, row, text)]
    if any(name not in text for name in _tool_names(row)):
        unseen = [*unseen, "tools"]
    return (*(["dropped-by-template"] if lost else []), *(f"not-rendered:{name}" for name in unseen))


def _thoughts(answer: Message) -> list[str]:
    """What the answer thinks, in its content or in a field of its own."""
    inside = answer.content.rpartition("</think>")[0].rpartition("<think>")[2]
    apart = [answer.extra.get(name) for name in ("reasoning_content", "reasoning", "thinking")]
    return [thought.strip() for thought in (inside, *apart) if isinstance(thought, str)]


def _is_seen(role: str, row: Conversation, text: str) -> bool:
    return all(message.content.strip() in text for message in row.messages if message.role == role)


def _tool_names(row: Conversation) -> list[str]:
    functions = [tool.get("function", tool) for tool in row.tools if isinstance(tool, Mapping)]
    return [str(function["name"]) for function in functions if isinstance(function, Mapping) and "name" in function]


def _refuse_control_tokens(template: Template, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        if found := template.control_tokens.search(text):
            raise RowError(
                "control-token",
                f"holds the control token {found[0]!r}, which the tokenizer does not read as text",
                field=name,
                hint="take the token out of the text",
            )
