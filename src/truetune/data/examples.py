"""The values a row becomes on its way from a file to the model's tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

IGNORED = -100
"""The label of a token that bears no loss (torch's `cross_entropy` default)."""

Span = tuple[int, int]
"""Start and end (exclusive) of a stretch of characters."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a row stands: a physical 1-based line, or the 1-based number of a record or Python row."""

    path: str
    line: int
    unit: Literal["line", "record", "row"] = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.line}"


@dataclass(frozen=True, slots=True)
class Record:
    """One row as its file has it."""

    fields: Mapping[str, Any]
    where: Location


@dataclass(frozen=True, slots=True)
class Note:
    """Something to tell of a row that is used; catalog.RULES says what each means. `count` is in turns."""

    rule: str
    field: str | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `extra` holds what only the chat template reads: tool_calls, reasoning_content, name …

    `is_learned` is False for an answer that the data asks to leave out of the loss.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    is_learned: bool = True

    def for_template(self) -> dict[str, Any]:
        """The turn as chat templates read it; its thinking under each of the names that they use."""
        thinking = self.extra.get("reasoning_content")
        named = {"reasoning": thinking, "thinking": thinking} if thinking else {}
        return {"role": self.role, "content": self.content, **named, **self.extra}


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row of the chat format."""

    messages: tuple[Message, ...]
    where: Location
    tools: tuple[Any, ...] = ()
    weight: float = 1.0
    form: str = field(default="chat", compare=False)
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Instruction:
    """A row of the instruction (Alpaca) format; `input` and `system` are empty where the row has none.

    `history` holds earlier rounds, each a question and its answer.
    """

    instruction: str
    input: str
    output: str
    system: str
    where: Location
    history: tuple[tuple[str, str], ...] = ()
    weight: float = 1.0
    form: str = field(default="instruction", compare=False)
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A row of the completion format: a bare text has an empty prompt and is learned whole."""

    prompt: str
    completion: str
    where: Location
    system: str = ""
    weight: float = 1.0
    form: str = field(default="completion", compare=False)
    notes: tuple[Note, ...] = ()


Example = Conversation | Instruction | Completion
"""A parsed row. `weight` scales its loss, `form` says from which fields it was read: "chat from messages"."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text the model reads and the stretches of it that bear loss, in order and apart.

    `breaks` are the places inside words that only look like control tokens: no token may reach over one.
    `prompts` are the places where the model takes over, unless it does so where the spans begin: behind them stands
    thinking that bears no loss.
    """

    text: str
    spans: tuple[Span, ...]
    notes: tuple[Note, ...] = ()
    breaks: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()

    def learned(self) -> tuple[str, ...]:
        """The learned stretches of the text."""
        return tuple(self.text[start:end] for start, end in self.spans)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Token ids and labels, equally long; a label is its token's id or IGNORED; labels[0] is IGNORED.

    `weight` scales the loss of all its tokens.
    """

    input_ids: list[int]
    labels: list[int]
    weight: float = 1.0

    @property
    def supervised(self) -> int:
        """The number of tokens that bear loss."""
        return len(self.labels) - self.labels.count(IGNORED)


@dataclass(frozen=True, slots=True)
class Packed:
    """Several samples end to end; `seq_lengths` gives each one's tokens and sums to len(input_ids).

    `weights` scale the samples' losses; without them all count alike.
    """

    input_ids: list[int]
    labels: list[int]
    seq_lengths: list[int]
    weights: list[float] = field(default_factory=list)
