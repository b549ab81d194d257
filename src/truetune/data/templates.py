"""How rows become text for one tokenizer: the template a setting names, and what follows from it."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from truetune.data.examples import Message
from truetune.data.format_texts import as_chat_template
from truetune.data.prefixes import common_length
from truetune.data.rules import RowError
from truetune.errors import ConfigError, TemplateError

TrainOn = Literal["assistant", "last_turn", "all"]
Thinking = Literal["keep", "empty", "mask"]
ControlTokens = Literal["reject", "as_text"]

# Private-use characters that mark places in a message: no template treats them as blank, no row may hold them.
OPEN, CLOSE, BAR = "\ue0f0", "\ue0f1", "\ue0f2"
# Stands inside a word that looks like a control token, until the text is rendered.
BREAK = "\ue0f3"
_NO_THINKING, _THINKING = (f"{{%- set enable_thinking = {value} -%}}" for value in ("false", "true"))
# How control tokens are spelled that a tokenizer does not call special: DeepSeek's <｜User｜>, Qwen's <|fim_prefix|>.
_BARRED = re.compile(r"<([|｜]).+\1>")
_TAG = r"</?\w[^<>\s]*>"
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True, slots=True)
class Delimiters:
    """What an answer stands between, with the ids: a terminator is one token, a header begins with one."""

    header: str
    terminator: str
    header_ids: list[int]
    terminator_id: int


@dataclass(frozen=True)
class Template:
    """How examples become text for one tokenizer; training and inference share one value.

    `chat` is a Jinja chat template, `text` a format text with {instruction}, {input}, {output}; where `text` is
    None, instruction rows go through `chat`. `completion_as_chat` sends prompt + completion rows the same way.
    `adapts_roles` lets a row be changed for a template that refuses it. `response_marker` is what the answer stands
    behind in a bare text.
    """

    tokenizer: Any
    chat: str | None
    text: str | None
    train_on: TrainOn = "assistant"
    completion_as_chat: bool = False
    adapts_roles: bool = True
    thinking: Thinking = "keep"
    control: ControlTokens = "reject"
    response_marker: str | None = None

    @cached_property
    def bos(self) -> str:
        """The BOS token's text if the tokenizer puts one before a text by itself, else nothing."""
        bos_id = self.tokenizer.bos_token_id
        ids = self.tokenizer("a")["input_ids"]
        return str(self.tokenizer.bos_token) if bos_id is not None and ids[0] == bos_id else ""

    @cached_property
    def opening(self) -> str:
        """What the template ends a prompt with, for the model to go on; nothing if it cannot be told."""
        user = [Message("user", "x" + BAR)]
        try:
            closed, opened = self._probed(user), self._probed(user, open_answer=True)
        except RowError:
            return ""
        return opened[len(closed) :] if opened.startswith(closed) else ""

    @cached_property
    def headers(self) -> tuple[str, ...]:
        """What opens an answer, the longest first: `opening`, or the part of it in rows.

        Rows have another end of it where the prompt opens (or skips) a block of thinking and the answer does not.
        """
        prompt = self.opening
        if not prompt:
            return ()
        behind = self._probed([Message("user", "x" + BAR)]).rpartition(BAR)[2]
        openings = [before.rpartition(BAR)[2].removeprefix(behind) for before in self._probe.split(OPEN)[:-1]]
        shared = [self._shared(prompt, opening) for opening in openings]
        found = {prompt, prompt.partition("<think>")[0], *shared} - {""}
        return tuple(sorted(found, key=len, reverse=True))

    @cached_property
    def closings(self) -> tuple[str, ...]:
        """What may close an answer: the terminator, and what stands for it where more turns follow."""
        if not self.terminator:
            return ()
        between = self._probe.partition(CLOSE)[2].partition(BAR)[0]
        early = self.terminator if between.startswith(self.terminator) else self._control_tokens_at(between, most=1)
        if not self.control_tokens.search(between[len(early) :]):
            early = ""  # It opens the next turn and closes nothing.
        shared = self._shared(between, self._probe.rpartition(CLOSE)[2]).rstrip()
        return tuple(dict.fromkeys(filter(None, (self.terminator, early or shared))))

    @cached_property
    def _probe(self) -> str:
        """Two rounds of talk with the places marked, or nothing if the template refuses them."""
        turns = [Message("user", "x" + BAR), Message("assistant", OPEN + "y" + CLOSE)]
        try:
            return self._probed(turns * 2)
        except RowError:
            return ""

    def _probed(self, messages: Sequence[Message], *, open_answer: bool = False) -> str:
        """The messages in the template, with a tool where it refuses to go without."""
        with suppress(RowError):
            return self.chat_text(messages, open_answer=open_answer)
        return self.chat_text(messages, tools=[_PROBE_TOOL], open_answer=open_answer)

    def _shared(self, left: str, right: str) -> str:
        """The beginning that both have, without a piece of a token or tag: `<think>` and `</think>` share nothing."""
        length = common_length(left, right)
        whole = re.compile(f"{self.control_tokens.pattern}|{_TAG}")
        inside = (match.start() for match in whole.finditer(left) if match.start() < length < match.end())
        return left[: next(inside, length)]

    @cached_property
    def servers_chat_template(self) -> str | None:
        """The chat template to save with the model, so that any server prompts it as training did."""
        if self.text is None:
            return self.chat
        return as_chat_template(self.text, bos=self.bos, eos=str(self.tokenizer.eos_token or ""))

    @cached_property
    def terminator(self) -> str:
        """The text that closes an answer: the special tokens right behind it, or else all that follows it."""
        if self.chat is None:
            return str(self.tokenizer.eos_token or "")
        try:
            marked = self._probed([Message("user", "x"), Message("assistant", "y" + CLOSE)])
        except RowError:
            return ""
        tail = marked.partition(CLOSE)[2]
        closing = self._control_tokens_at(tail)
        eos = self.tokenizer.eos_token
        if eos and eos in closing:
            return closing[: closing.index(eos) + len(eos)]
        if tail[len(closing) :].strip() or self._opens_always(tail):  # Then only the first token closes.
            closing = self._control_tokens_at(tail, most=1)
        return closing or tail.rstrip()

    def _opens_always(self, tail: str) -> bool:
        """True if the next answer is opened behind an answer's first token, as it is in a prompt."""
        behind = tail[len(self._control_tokens_at(tail, most=1)) :].strip()
        with suppress(RowError):
            return bool(behind) and self._probed([Message("user", "x")], open_answer=True).rstrip().endswith(behind)
        return False

    def _control_tokens_at(self, text: str, *, most: int = 9) -> str:
        """The special tokens that the text begins with, and the blanks before them; nothing if there are none."""
        tokens = re.match(rf"\s*(?:{self.control_tokens.pattern}){{1,{most}}}", text)
        return tokens[0] if tokens else ""

    @cached_property
    def terminator_is_token(self) -> bool:
        """False for a terminator spelled in ordinary tokens, which has to be found in the text."""
        return bool(self.terminator) and not self.control_tokens.sub("", self.terminator).strip()

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end an answer: the template's terminators, where they are special tokens, and EOS."""
        closing = self.control_tokens.findall(self.terminator) if self.terminator_is_token else []
        closing += self.control_tokens.findall(self._call_stop)
        ids = (*map(self.tokenizer.convert_tokens_to_ids, closing), self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(token for token in ids if token is not None))

    @cached_property
    def _call_stop(self) -> str:
        """The control token that ends a call (gpt-oss has one for that), if it isn't how prompts end."""
        if not self.tells_calls:
            return ""
        found = re.search(rf"(?:{self.control_tokens.pattern})\Z", self._call.rstrip())
        prompt = self._probed([Message("user", "x")], open_answer=True).rstrip()
        return found[0] if found and not prompt.endswith(found[0]) else ""

    @cached_property
    def delimiters(self) -> tuple[str, str] | None:
        """The one header and the one terminator, if control tokens stand in both: no row may hold those itself."""
        if len(self.headers) != 1 or not self.terminator_is_token or len(self.closings) != 1:
            return None
        return (self.headers[0], self.terminator) if self.control_tokens.search(self.headers[0]) else None

    @cached_property
    def delimiter_ids(self) -> Delimiters | None:
        """The delimiters with their ids, where these show the answers' places among the ids of a row.

        That takes byte-level tokens, which spell a text without a gap, and control tokens that swallow no blanks:
        then no token begins inside a header of these ids and ends behind it.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if self.delimiters is None or backend is None or type(backend.decoder).__name__ != "ByteLevel":
            return None
        header, terminator = (backend.encode(text, add_special_tokens=False).ids for text in self.delimiters)
        control = [self.tokenizer.added_tokens_decoder.get(token) for token in (header[0], *terminator)]
        if len(terminator) > 1 or any(token is None or token.lstrip or token.rstrip for token in control):
            return None
        return Delimiters(*self.delimiters, header, terminator[0])

    @property
    def prints_date(self) -> bool:
        """True if the text hangs on the day it is made."""
        return self.text is None and "strftime_now" in (self.chat or "")

    @cached_property
    def tells_tools(self) -> bool:
        """True if the template has a place for the definitions of tools."""
        try:
            return "probe" in self.chat_text([Message("user", "x")], tools=[_PROBE_TOOL])
        except RowError:
            return False

    @property
    def tells_calls(self) -> bool:
        """True if the template has a place for the calls of tools."""
        return "called" in self._call

    @cached_property
    def _call(self) -> str:
        """A question and the call of a tool, or nothing if the template refuses them."""
        call = {"id": "call00000", "type": "function", "function": {"name": "called", "arguments": {}}}
        with suppress(RowError):
            if self.chat is not None:
                return self._probed([Message("user", "x"), Message("assistant", "", {"tool_calls": [call]})])
        return ""

    @cached_property
    def control_tokens(self) -> re.Pattern[str]:
        """Matches the tokens in a text that no words are made of: special ones, and others spelled like them."""
        added = self.tokenizer.added_tokens_decoder.values()
        barred = {token.content for token in added if token.special or _BARRED.fullmatch(token.content)}
        tokens = barred | set(self.tokenizer.all_special_tokens)
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")

    def chat_text(self, messages: Sequence[Message], *, tools: Sequence[Any] = (), open_answer: bool = False) -> str:
        """The messages in the chat template, with the answer opened if asked. RowError if it refuses them."""
        try:
            return self._applied(messages, tools, open_answer)
        except RowError:
            if not any(message.extra.get("tool_calls") for message in messages):
                raise
            # Some templates (DeepSeek's) join a call's arguments to other text, so they take them as text only.
            with suppress(RowError):
                return self._applied([_with_text_arguments(message) for message in messages], tools, open_answer)
            raise

    @cached_property
    def _compiled(self) -> Any:
        """The chat template as transformers compiles it; None where a version compiles it otherwise.

        Turns of text alone go to it directly: the copies and checks of apply_chat_template take longer than most
        templates. A test holds both to the same text.
        """
        from transformers.utils import chat_template_utils

        compile_template = getattr(chat_template_utils, "_compile_jinja_template", None)
        return compile_template(self.chat) if compile_template else None

    @cached_property
    def _special_tokens(self) -> dict[str, Any]:
        return dict(self.tokenizer.special_tokens_map)

    def _applied(self, messages: Sequence[Message], tools: Sequence[Any], open_answer: bool) -> str:
        from jinja2 import TemplateSyntaxError

        turns = [message.for_template() for message in messages]
        is_plain = turns and not tools and not any(message.extra for message in messages)
        try:
            if is_plain and self._compiled is not None:
                return str(
                    self._compiled.render(
                        messages=turns,
                        tools=None,
                        documents=None,
                        add_generation_prompt=open_answer,
                        **self._special_tokens,
                    )
                )
            return str(
                self.tokenizer.apply_chat_template(
                    turns,
                    tools=list(tools) or None,
                    chat_template=self.chat,
                    tokenize=False,
                    add_generation_prompt=open_answer,
                )
            )
        except TemplateSyntaxError as error:
            raise TemplateError(f"the chat template is broken, line {error.lineno}: {error.message}") from error
        except Exception as error:
            raise RowError("template-refused", f"the chat template refuses this row: {error}") from error


def _with_text_arguments(message: Message) -> Message:
    calls = message.extra.get("tool_calls")
    if not calls:
        return message
    functions = [
        {**call["function"], "arguments": json.dumps(call["function"].get("arguments"), ensure_ascii=False)}
        for call in calls
    ]
    spelled = [{**call, "function": function} for call, function in zip(calls, functions, strict=True)]
    return replace(message, extra={**message.extra, "tool_calls": spelled})


def load_template(tokenizer: Any, *, template: str = "auto", thinking: Thinking = "keep", **options: Any) -> Template:
    """The template that `template` names, for this tokenizer; `options` are the other fields of a Template.

    auto: the tokenizer's chat template, and the Alpaca prompts for instruction rows where it has none; model: the
    tokenizer's chat template; alpaca; a .jinja file; or a format text with {instruction}, {input} and {output}.
    """
    chat, text, as_chat = _named(tokenizer, template)
    if thinking == "empty":
        chat = _without_thinking(tokenizer, chat)
    return Template(tokenizer, chat, text, completion_as_chat=as_chat, thinking=thinking, **options)


def _named(tokenizer: Any, template: str) -> tuple[str | None, str | None, bool]:
    """The chat template, the format text, and whether prompt + completion rows go through them."""
    own = _own_chat_template(tokenizer)
    match template:
        case "auto":
            return own, None if own else "alpaca", False
        case "model" if own is None:
            raise TemplateError(
                "the model's tokenizer has no chat template", hint="set data.template to a .jinja file"
            )
        case "model":
            return own, None, True
        case "alpaca":
            return own, "alpaca", True
        case str() if template.endswith(".jinja"):
            return _read_jinja(template), None, True
        case str() if "{instruction}" in template and "{output}" in template:
            return own, template, True
    raise ConfigError(
        f"data.template: {template!r} is no template",
        hint="use auto, model, alpaca, a file ending in .jinja, or a text with {instruction} and {output}",
    )


def _without_thinking(tokenizer: Any, chat: str | None) -> str:
    """The chat template that opens each answer behind an empty block of thinking.

    The setting stands in the template itself, so that whoever prompts with it does the same.
    """
    quiet = _NO_THINKING + (chat or "")
    own, silent, loud = (Template(tokenizer, text, None).opening for text in (chat, quiet, _THINKING + (chat or "")))
    if chat is None or (own == silent == loud and not own.rstrip().endswith("</think>")):
        raise TemplateError(
            "data.thinking: empty needs a chat template that knows enable_thinking, and the model's does not",
            hint="set data.thinking to keep, or to mask, which learns no thinking",
        )
    return quiet


def _own_chat_template(tokenizer: Any) -> str | None:
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def _read_jinja(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not valid UTF-8"
        raise TemplateError(f"data.template: cannot read {path}: {reason}") from error
