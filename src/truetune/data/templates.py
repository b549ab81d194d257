"""Examples into text, with the characters that bear loss: the only place that formats a prompt.

Chat templates are rendered by transformers. Where a template has no generation marks, the answers are located by
rendering the row a second time with invisible marks around each answer: when the marked text without its marks is
the plain text, character for character, the marks' places are the answers' places. Anything else is refused.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from truetune.data.examples import Completion, Conversation, Example, Instruction, Message, Rendered, Span
from truetune.data.rules import RowError
from truetune.errors import ConfigError, TemplateError

TrainOn = Literal["assistant", "last_turn", "all"]

_RESPONSE = "\n\n### Response:\n"
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}" + _RESPONSE + "{output}"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}" + _RESPONSE + "{output}"
)

# Private-use characters: no text holds them (checked), no template treats them as blank.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_MARKS = str.maketrans("", "", _OPEN + _CLOSE)
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PLACEHOLDER = re.compile(r"\{(instruction|input|output|system)\}")


@dataclass(frozen=True)
class Template:
    """How examples become text for one tokenizer; training and inference share one value.

    `chat` is a Jinja chat template, `text` a format text with {instruction}, {input}, {output}; where `text` is
    None, instruction rows go through `chat`. `completion_as_chat` sends prompt + completion rows the same way.
    """

    tokenizer: Any
    chat: str | None
    text: str | None
    train_on: TrainOn
    completion_as_chat: bool = False

    @cached_property
    def bos(self) -> str:
        """The BOS token's text if the tokenizer puts one before a text by itself, else nothing."""
        bos_id = self.tokenizer.bos_token_id
        ids = self.tokenizer("a")["input_ids"]
        return str(self.tokenizer.bos_token) if bos_id is not None and ids[0] == bos_id else ""

    @cached_property
    def header(self) -> str:
        """What the chat template adds to open an answer, or nothing where it adds nothing by itself."""
        user = [Message("user", "x")]
        try:
            closed, opened = self.chat_text(user), self.chat_text(user, open_answer=True)
        except RowError:
            return ""
        return opened[len(closed) :] if opened.startswith(closed) else ""

    @cached_property
    def servers_chat_template(self) -> str | None:
        """The chat template to save with the model, so that any server prompts it as training did.

        A format text becomes one: the user's message stands for {instruction}, {input} and {system} are empty.
        """
        if self.text is None:
            return self.chat
        text = ALPACA_WITHOUT_INPUT if self.text == "alpaca" else self.text
        before, _, after = text.partition("{output}")
        question = _PLACEHOLDER.sub(
            lambda match: "\x00" if match[1] == "instruction" else "", self.bos + before
        ).split("\x00")
        asked = " ~ message['content'] ~ ".join(map(json.dumps, question))
        closing = json.dumps(_PLACEHOLDER.sub("", after) + str(self.tokenizer.eos_token or ""))
        return (
            "{% for message in messages %}{% if message['role'] == 'user' %}{{ " + asked + " }}"
            "{% elif message['role'] == 'assistant' %}{{ message['content'] ~ " + closing + " }}"
            "{% endif %}{% endfor %}"
        )

    @cached_property
    def terminator(self) -> str:
        """The text that closes an answer: up to the first special token after it, else all that follows it."""
        if self.chat is None:
            return str(self.tokenizer.eos_token or "")
        try:
            marked = self.chat_text([Message("user", "x"), Message("assistant", "y" + _CLOSE)])
        except RowError:
            return ""
        tail = marked.partition(_CLOSE)[2]
        special = self.control_tokens.search(tail)
        if special and not tail[: special.start()].strip():
            return tail[: special.end()]
        return tail.rstrip()

    @cached_property
    def terminator_is_token(self) -> bool:
        """False for a terminator spelled in several tokens, which has to be found in the text."""
        return bool(self.control_tokens.fullmatch(self.terminator.strip()))

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: the template's terminator, where it is one token, and EOS."""
        closing = self.terminator.strip()
        ids = (
            self.tokenizer.convert_tokens_to_ids(closing) if self.terminator_is_token else None,
            self.tokenizer.eos_token_id,
        )
        return tuple(dict.fromkeys(token for token in ids if token is not None))

    @cached_property
    def control_tokens(self) -> re.Pattern[str]:
        """Matches the tokenizer's special tokens in a text."""
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = {token.content for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")

    def chat_text(self, messages: Sequence[Message], *, tools: Sequence[Any] = (), open_answer: bool = False) -> str:
        """The messages in the chat template, with the answer opened if asked. RowError if it refuses them."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [message.for_template() for message in messages],
                    tools=list(tools) or None,
                    chat_template=self.chat,
                    tokenize=False,
                    add_generation_prompt=open_answer,
                )
            )
        except Exception as error:
            raise RowError("template-refused", f"the chat template refuses this row: {error}") from error


def load_template(tokenizer: Any, *, template: str = "auto", train_on: TrainOn = "assistant") -> Template:
    """The template that `template` names, for this tokenizer.

    auto: the tokenizer's chat template, and the Alpaca prompts for instruction rows where it has none; model: the
    tokenizer's chat template; alpaca; a .jinja file; or a format text with {instruction}, {input} and {output}.
    """
    own = _own_chat_template(tokenizer)
    match template:
        case "auto":
            return Template(tokenizer, own, None if own else "alpaca", train_on)
        case "model" if own is None:
            raise TemplateError(
                "the model's tokenizer has no chat template", hint="set data.template to a .jinja file"
            )
        case "model":
            return Template(tokenizer, own, None, train_on, completion_as_chat=True)
        case "alpaca":
            return Template(tokenizer, own, "alpaca", train_on, completion_as_chat=True)
        case str() if template.endswith(".jinja"):
            return Template(tokenizer, _read_jinja(template), None, train_on, completion_as_chat=True)
        case str() if "{output}" in template:
            return Template(tokenizer, own, template, train_on, completion_as_chat=True)
    raise ConfigError(
        f"data.template: {template!r} is no template",
        hint="use auto, model, alpaca, a file ending in .jinja, or a text with {instruction} and {output}",
    )


def _own_chat_template(tokenizer: Any) -> str | None:
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def _read_jinja(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TemplateError(f"data.template: cannot read {path}: {error.strerror}") from error


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
    return text if text.startswith(template.bos) else template.bos + text


def _with_eos(text: str, template: Template) -> str:
    eos = template.tokenizer.eos_token
    if not eos:
        raise TemplateError(
            "the tokenizer has no eos token, so a model trained on these rows would never stop",
            hint="use a base model whose tokenizer has one, or chat rows with a template that closes its turns",
        )
    return text if text.rstrip().endswith(eos) else text + eos


# --- instruction ------------------------------------------------------------------------------------------


def _render_format(row: Instruction, template: Template) -> Rendered:
    _refuse_control_tokens(template, instruction=row.instruction, input=row.input, output=row.output)
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
    return _PLACEHOLDER.sub(lambda match: str(getattr(row, match[1])), text)


def _as_conversation(row: Instruction) -> Conversation:
    """instruction and input, joined by a blank line, asked by the user."""
    question = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    system = (Message("system", row.system),) if row.system else ()
    turns = (*system, Message("user", question), Message("assistant", row.output))
    return Conversation(turns, row.where)


def _as_instruction(row: Completion) -> Instruction:
    return Instruction(row.prompt, "", row.completion, "", row.where, row.notes)


# --- chat -------------------------------------------------------------------------------------------------


def _chat(template: Template) -> Template:
    if template.chat is None:
        raise TemplateError(
            "the rows are conversations, and the model's tokenizer has no chat template",
            hint="set data.template to a .jinja file, or use an instruct model",
        )
    return template


def _render_chat(row: Conversation, template: Template) -> Rendered:
    named = {f"messages[{index}].content": message.content for index, message in enumerate(row.messages)}
    _refuse_control_tokens(template, **named)
    text = _chat(template).chat_text(row.messages, tools=row.tools)
    spans = (
        _marked_by_template(row, template, text)
        or _marked_by_us(row, template, text)
        or _by_prefix(row, template, text)
    )
    if spans is None:
        raise RowError("unverifiable-mask", "the answers cannot be located in the text that the template makes")
    return Rendered(text, spans, _dropped(row, text))


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
    if _OPEN in text or _CLOSE in text or not all(_is_plain(message) for message in row.messages):
        return None
    marked = template.chat_text([_mark(message) for message in row.messages], tools=row.tools)
    places = [
        (match.start() - index, match[0]) for index, match in enumerate(re.finditer(f"[{_OPEN}{_CLOSE}]", marked))
    ]
    order = "".join(mark for _, mark in places)
    if marked.translate(_MARKS) != text or order != (_OPEN + _CLOSE) * _answers(row):
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
    marked = answer[:start] + _OPEN + body + _CLOSE + answer[start + len(body) :]
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
        if not (text.startswith(before) and text.startswith(upto[:end]) and end > len(before)):
            return None
        spans.append((len(before), end))
    return tuple(spans)


def _answers(row: Conversation) -> int:
    return sum(message.role == "assistant" for message in row.messages)


def _dropped(row: Conversation, text: str) -> tuple[str, ...]:
    """Notes answers whose text the template did not keep (thinking of earlier turns, as a rule)."""
    lost = any(message.role == "assistant" and message.content.strip() not in text for message in row.messages)
    return ("dropped-by-template",) if lost else ()


def _refuse_control_tokens(template: Template, **texts: str) -> None:
    for name, text in texts.items():
        if found := template.control_tokens.search(text):
            raise RowError(
                "control-token",
                f"holds the control token {found[0]!r}, which would end or open a turn",
                field=name,
                hint="take the token out of the text",
            )
