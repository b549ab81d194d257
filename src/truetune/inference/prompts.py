"""What is asked, as the model's training rows were: from words, turns or a row of data to the prompt's ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from truetune.data.examples import Completion, Conversation, Example, Instruction, Location, Message, Record
from truetune.data.formats import parse_example
from truetune.data.render import render_prompt
from truetune.data.rules import RowError
from truetune.data.templates import Template
from truetune.data.tokenize import tokenize_prompt
from truetune.data.values import read_text
from truetune.errors import DataError
from truetune.inference.prompt_format import PromptFormat

ASKED = Location("prompt", 1, "row")
_OPEN = "…"
"""Stands for the answer that a row does not have, and is not rendered."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """How one model is asked."""

    tokenizer: Any
    template: Template
    format: PromptFormat

    def ids(self, example: Example) -> list[int]:
        """The ids the model is asked to go on from: those that training put before the answer."""
        return tokenize_prompt(render_prompt(example, template=self.template), tokenizer=self.tokenizer)

    def of_words(self, prompt: str, *, input: str = "", system: str = "", where: Location = ASKED) -> Example:
        """The prompt as a row of the format the model was trained on, its answer still open."""
        match self.format.row_format:
            case "instruction":
                return Instruction(prompt, input, "", system, where)
            case "chat":
                opening = (Message("system", system),) if system else ()
                return Conversation((*opening, Message("user", f"{prompt}\n\n{input}" if input else prompt)), where)
            case _:
                return Completion(f"{prompt}\n\n{input}" if input else prompt, "", where, system)

    def of_turns(self, turns: Sequence[Message], *, tools: Sequence[Any] = (), where: Location = ASKED) -> Example:
        """The conversation; a single question as `of_words` where the model was trained on single prompts.

        Raises DataError for several turns where the tokenizer has no chat template to put them in.
        """
        if not self.keeps_turns and not tools:
            match [(turn.role, turn.content) for turn in turns]:
                case [("user", question)]:
                    return self.of_words(question, where=where)
                case [("system", system), ("user", question)]:
                    return self.of_words(question, system=system, where=where)
        if self.template.chat is None:
            raise DataError(
                f"{where}: the model was trained on single prompts and has no chat template, so it cannot be asked a "
                "conversation",
                hint="ask one question at a time (prompt), or train on conversations",
            )
        return Conversation(tuple(turns), where, tuple(tools))

    @property
    def keeps_turns(self) -> bool:
        """False for a model trained on single prompts: earlier turns have no place in them."""
        return self.format.row_format in ("chat", "instruction") and self.template.text is None

    def of_row(
        self,
        record: Record,
        *,
        columns: Mapping[str, str] | None = None,
        system: str = "",
        response_marker: str | None = None,
    ) -> Example:
        """A row of any format that is trained on, with its answer or without; the answer is left out.

        {"prompt": …} may stand alone, with `system` and `input`; `text` is gone on from, or up to its
        `response_marker`. `columns` renames fields first; `system` is for rows that have none. Raises RowError.
        """
        fields = record.fields
        if _is_bare(fields):
            text, own = read_text(fields["prompt"], "prompt"), read_text(fields.get("system") or "", "system")
            if not text.strip():
                raise RowError("empty-prompt", "prompt is empty", field="prompt")
            given = read_text(fields.get("input") or "", "input")
            return self.of_words(text, input=given, system=own or system, where=record.where)
        return self._opened(_with_system(_parsed(record, columns or {}), system), response_marker)

    def _opened(self, example: Example, response_marker: str | None) -> Example:
        match example:
            case Completion(prompt="", completion=text):
                head, marker, _ = text.partition(response_marker) if response_marker else (text, "", "")
                return replace(example, prompt=head + marker, completion="")
            case Conversation(messages=turns, tools=tools) if not self.keeps_turns and turns:
                asked = turns[:-1] if turns[-1].role == "assistant" else turns
                return self.of_turns(asked, tools=tools, where=example.where)
            case _:
                return example


def _is_bare(fields: Mapping[str, Any]) -> bool:
    """True of a prompt with nothing beside it that could be an answer, or turns."""
    return isinstance(fields.get("prompt"), str) and not (
        {"completion", "messages", "conversations", "text"} & fields.keys()
    )


def _parsed(record: Record, columns: Mapping[str, str]) -> Example:
    """The row as training reads it; with an answer put in where it has none."""
    try:
        return parse_example(record, columns=columns)
    except RowError as error:
        if error.rule not in ("no-answer", "empty-answer"):
            raise
        refusal = error
    for fields in _answered(record.fields):
        try:
            return parse_example(replace(record, fields=fields), columns=columns)
        except RowError:
            continue
    raise refusal


def _answered(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row with an answer, in each form that it may have one."""
    turns = [name for name in ("messages", "conversations", "prompt") if isinstance(fields.get(name), list)]
    closing = {"role": "assistant", "content": _OPEN}
    with_turn = [{**fields, name: [*fields[name], closing]} for name in turns[:1] if name != "prompt"]
    return [*with_turn, {**fields, "completion": _OPEN}, {**fields, "output": _OPEN}]


def _with_system(example: Example, system: str) -> Example:
    match example:
        case _ if not system:
            return example
        case Conversation(messages=turns) if turns[0].role != "system":
            return replace(example, messages=(Message("system", system), *turns))
        case Instruction(system="") | Completion(system=""):
            return replace(example, system=system)
        case _:
            return example
