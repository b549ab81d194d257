"""Prompts with the trained model's greedy answers: recorded when it is saved, asked again of what is made of it."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from truetune.errors import CheckpointError
from truetune.model.greedy import drafts, greedy_answer

FILE = "parity.json"
MAX_NEW_TOKENS = 16
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class FixedPrompt:
    """A prompt as training puts it: its ids and their text, special tokens and all.

    `messages` is the conversation that a chat template makes this text of, as servers take it, where there is one.
    """

    prompt_ids: tuple[int, ...]
    text: str
    messages: tuple[dict[str, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class Fixture:
    """A prompt, and the trained model's greedy answer up to and including the stop token, if that comes in time.

    `margins` are by how many logits each token of the answer led the second-likeliest.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    margins: tuple[float, ...]
    text: str
    messages: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class Fixtures:
    """What was recorded of one model; `dtype` is torch's name of its weights' then."""

    fixtures: tuple[Fixture, ...]
    dtype: str

    def as_document(self) -> dict[str, Any]:
        """As parity.json holds them."""
        return {"format": _FORMAT, "dtype": self.dtype, "fixtures": [asdict(each) for each in self.fixtures]}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Fixtures":
        """KeyError, TypeError or ValueError where the document is none of ours."""
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']}, where this version of truetune reads {_FORMAT}")
        return cls(tuple(_fixture(**each) for each in document["fixtures"]), str(document["dtype"]))

    def split(self, count: int) -> "tuple[Fixtures, Fixtures]":
        """The first `count` of them, and the rest."""
        return Fixtures(self.fixtures[:count], self.dtype), Fixtures(self.fixtures[count:], self.dtype)


def record(
    model: Any, prompts: Sequence[FixedPrompt], *, stop_token_ids: Collection[int], has_drafts: bool = True
) -> Fixtures:
    """The model's greedy answers to the prompts, of at most 16 tokens. ValueError for logits that are no numbers.

    `has_drafts` is False for a model whose `generate` is not to be called: it takes a pass for every token then.
    """
    limits: dict[str, Any] = {"stop_token_ids": stop_token_ids, "max_new_tokens": MAX_NEW_TOKENS}
    ids = [each.prompt_ids for each in prompts]
    drafted: list[Any] = drafts(model, ids, **limits) if ids and has_drafts else [None] * len(ids)
    answers = [greedy_answer(model, each, draft=draft, **limits) for each, draft in zip(ids, drafted, strict=True)]
    if not all(math.isfinite(margin) for answer in answers for margin in answer.margins):
        raise ValueError("its logits are not finite")
    fixtures = tuple(
        Fixture(prompt.prompt_ids, answer.answer_ids, answer.margins, prompt.text, prompt.messages)
        for prompt, answer in zip(prompts, answers, strict=True)
    )
    return Fixtures(fixtures, str(model.dtype).removeprefix("torch."))


def read_file(path: Path) -> Fixtures | None:
    """The fixtures in a file, None where it is missing. CheckpointError if it is damaged."""
    try:
        return Fixtures.from_document(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged: {error}",
            hint="without it the weights can be used, and not be checked by it",
        ) from error


def _fixture(
    *, prompt_ids: list[int], answer_ids: list[int], margins: list[float], text: str, messages: list[Any] | None
) -> Fixture:
    if len(answer_ids) != len(margins) or not answer_ids or not prompt_ids:
        raise ValueError("an answer without its margins")
    return Fixture(
        tuple(prompt_ids), tuple(answer_ids), tuple(margins), text, None if messages is None else tuple(messages)
    )
