"""What a model said: where its answer ends, and how it reads."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from truetune.data.templates import Template

StopReason = Literal["stop", "length", "context"]


@dataclass(frozen=True, slots=True)
class Answer:
    """`prompt_ids` is what the model read, `answer_ids` what it said, up to and including what ended it.

    `stop_reason` is "stop", or "length" where it ran out of tokens, or "context" where the model can read no more.
    `text` is without the stop; `tool_calls` are the calls in it, in OpenAI's form, where tools were offered.
    """

    prompt_ids: tuple[int, ...]
    text: str
    stop_reason: StopReason
    answer_ids: tuple[int, ...] = ()
    tool_calls: tuple[Mapping[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "prompt_ids": self.prompt_ids,
            "text": self.text,
            "stop_reason": self.stop_reason,
            "prompt_tokens": len(self.prompt_ids),
            "answer_tokens": len(self.answer_ids),
        }
        return {**document, "tool_calls": self.tool_calls} if self.tool_calls else document


@dataclass(frozen=True, slots=True)
class Stops:
    """What ends an answer: ids, and texts that are no single token."""

    tokenizer: Any
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]

    def end(self, ids: Sequence[int]) -> int | None:
        """How many of the ids are the answer, the stop included; None where nothing has ended it."""
        by_id = next((place for place, token in enumerate(ids, start=1) if token in self.token_ids), None)
        kept = ids if by_id is None else ids[: by_id - 1]
        if not any(stop in self._raw(kept) for stop in self.texts):
            return by_id
        # The fewest ids that spell a whole stop.
        return bisect_left(
            range(len(kept)), True, lo=1, key=lambda end: any(stop in self._raw(kept[:end]) for stop in self.texts)
        )

    def text(self, ids: Sequence[int]) -> str:
        """The answer that ids up to their end spell, without the stop."""
        kept = ids[:-1] if ids and ids[-1] in self.token_ids else ids
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        if not any(stop in self._raw(kept) for stop in self.texts):
            return text
        if not any(stop in text for stop in self.texts):
            text = self._raw(kept)  # A stop with special tokens in it.
        return text[: min(place for stop in self.texts if (place := text.find(stop)) >= 0)]

    def settled(self, text: str) -> str:
        """The part of an unfinished answer's text that no later token takes back."""
        text = text.rstrip("\ufffd")  # A letter whose last bytes are still to come.
        open_ = (size for stop in self.texts for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return text[: len(text) - max(open_, default=0)]

    def _raw(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


def stops_of(template: Template, also: Sequence[str] = ()) -> Stops:
    """Training's stops, and the texts asked for; those that are one special token are known by their id."""
    tokenizer = template.tokenizer
    control = {text: tokenizer.convert_tokens_to_ids(text) for text in also if _is_control(text, template)}
    terminator = template.terminator.strip()
    spelled = [terminator] if terminator and not template.terminator_is_token else []
    return Stops(
        tokenizer,
        tuple(dict.fromkeys((*template.stop_token_ids, *control.values()))),
        tuple(dict.fromkeys((*spelled, *(text for text in also if text not in control)))),
    )


def _is_control(text: str, template: Template) -> bool:
    return template.control_tokens.fullmatch(text) is not None
