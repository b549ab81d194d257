"""The texts of an example, each with its place and whether it is an answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from truetune.data.examples import Completion, Conversation, Example, Instruction

Kind = Literal["system", "prompt", "answer", "result", "text"]


@dataclass(frozen=True, slots=True)
class Part:
    """A text of a row. `kind`: of the system, of the user, of the assistant, a tool's result, a bare text."""

    kind: Kind
    field: str
    text: str

    @property
    def is_answer(self) -> bool:
        return self.kind in ("answer", "text")


Parts = Sequence[Part]

Finding = tuple[Part, str]
"""A part and what was found in it."""

_KINDS: dict[str, Kind] = {"system": "system", "user": "prompt", "assistant": "answer", "tool": "result"}


def parts_of(example: Example) -> tuple[Part, ...]:
    """The texts of the example in their order, none of them empty."""
    return tuple(part for part in _parts(example) if part.text)


def _parts(example: Example) -> Iterator[Part]:
    match example:
        case Conversation(messages=messages):
            for place, message in enumerate(messages):
                yield Part(_KINDS[message.role], f"messages[{place}].content", message.content)
        case Instruction():
            yield Part("system", "system", example.system)
            for place, (question, answer) in enumerate(example.history):
                yield Part("prompt", f"history[{place}][0]", question)
                yield Part("answer", f"history[{place}][1]", answer)
            yield Part("prompt", "instruction", example.instruction)
            yield Part("prompt", "input", example.input)
            yield Part("answer", "output", example.output)
        case Completion(prompt=""):
            yield Part("text", "text", example.completion)
        case Completion():
            yield Part("system", "system", example.system)
            yield Part("prompt", "prompt", example.prompt)
            yield Part("answer", "completion", example.completion)


def prompt_and_answer(parts: tuple[Part, ...]) -> tuple[str, str]:
    """All that stands before the last answer, and the last answer; a bare text is all answer."""
    last = max((place for place, part in enumerate(parts) if part.is_answer), default=None)
    if last is None:
        return "\n".join(part.text for part in parts), ""
    return "\n".join(part.text for part in parts[:last]), parts[last].text


def spoken(parts: tuple[Part, ...]) -> str:
    """What makes the row unlike others: all but system texts, which many rows share."""
    return "\n".join(part.text for part in parts if part.kind != "system")
