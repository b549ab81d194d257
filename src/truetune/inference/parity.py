"""Is this the model that was trained? Its recorded prompts asked again: the same greedy answers, token by token."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from truetune.errors import CheckpointError
from truetune.model.fixtures import FILE, Fixture, Fixtures, read_file
from truetune.model.greedy import answer_logits

__all__ = [
    "FILE",
    "Fixture",
    "Fixtures",
    "Parity",
    "as_json",
    "read_fixtures",
    "replay",
    "rounding",
    "rounding_at",
    "told",
    "told_answers",
]


@dataclass(frozen=True, slots=True)
class Parity:
    """What a replay found.

    `equal` prompts have their recorded answer. Of the others, `ties` are those where both models held the two answers
    for equally good, but for rounding. `max_abs_logit_difference` is against another model, where one is compared.
    """

    prompts: int
    equal: int
    ties: int
    max_abs_logit_difference: float | None
    first_difference: str | None

    @property
    def is_same(self) -> bool:
        """True if no prompt has another answer than rounding explains."""
        return self.equal + self.ties == self.prompts


def read_fixtures(folder: Path) -> Fixtures | None:
    """What was recorded with a trained model; None where nothing was. CheckpointError if the file is damaged.

    Of a run's directory, the rows' prompts as well as ours; of the folder with the weights, which may be passed on,
    ours alone.
    """
    places = (folder / "adapter", folder / "model", folder)
    found = [fixtures for place in places if (fixtures := read_file(place / FILE)) is not None]
    if not found:
        return None
    if any(each.dtype != found[0].dtype for each in found):
        raise CheckpointError(f"{folder}: the files {FILE} there were recorded of two models")
    return Fixtures(tuple(fixture for each in found for fixture in each.fixtures), found[0].dtype)


def replay(model: Any, fixtures: Fixtures, *, against: Any = None) -> Parity:
    """Asks a model (of transformers or PEFT, on any device) the recorded prompts: one forward pass each.

    The recorded answer is put behind its prompt, and each of its tokens must be the likeliest at its place.
    `against` is a second model, whose logits are compared at the same places in float32.
    """
    found = [_asked(model, each, fixtures.dtype, against) for each in fixtures.fixtures]
    differences = [each.difference for each in found if each.difference is not None]
    return Parity(
        prompts=len(found),
        equal=sum(each.told is None for each in found),
        ties=sum(each.told is not None and each.is_tie for each in found),
        max_abs_logit_difference=max(differences, default=None),
        first_difference=next((each.told for each in sorted(found, key=lambda one: one.is_tie) if each.told), None),
    )


def as_json(parity: Parity) -> dict[str, Any]:
    """As commands print it."""
    return {
        "prompts": parity.prompts,
        "equal": parity.equal,
        "ties": parity.ties,
        "max_abs_logit_difference": parity.max_abs_logit_difference,
    }


class Counted(Protocol):
    """What a check counted: see Parity."""

    @property
    def prompts(self) -> int: ...
    @property
    def equal(self) -> int: ...
    @property
    def ties(self) -> int: ...


def told_answers(found: Counted, *, where: str = "") -> str:
    """How many answers are the same, for people: `where` says in which program."""
    ties = f", {found.ties} by a tie" if found.ties else ""
    return f"{found.equal + found.ties} of {found.prompts} answers are the same{where}{ties}"


def told(parity: Parity, *, logits_in: str | None = None) -> str:
    """A check in a line, for people; `logits_in` is the dtype that logits were compared in, where they were."""
    off = parity.max_abs_logit_difference
    dtype = f", in {logits_in}" if logits_in else ""
    farthest = "" if off is None else f"; logits off by {off:.2g} at most{dtype}"
    return f"{told_answers(parity)}{farthest}"


@dataclass(frozen=True, slots=True)
class _Answered:
    """`told` is the first token that differs, in words; None where none does."""

    told: str | None
    is_tie: bool
    difference: float | None


def _asked(model: Any, fixture: Fixture, dtype: str, against: Any) -> _Answered:
    import torch

    if (told := _unknown(model, fixture)) is not None:
        return _Answered(told, is_tie=False, difference=None)
    places = (fixture.prompt_ids, fixture.answer_ids[:-1])
    logits = answer_logits(model, *places)
    difference = None
    if against is not None:
        difference = float((logits - answer_logits(against, *places)).abs().max())
    recorded = torch.tensor(fixture.answer_ids)
    found = logits.argmax(dim=-1)
    other = (found != recorded).nonzero().flatten().tolist()
    if not other:
        return _Answered(None, is_tie=False, difference=difference)
    bound = rounding(logits, dtype, str(model.dtype).removeprefix("torch."))
    lost = logits.max(dim=-1).values - logits[torch.arange(len(recorded)), recorded]
    is_tie = all(fixture.margins[place] <= bound and float(lost[place]) <= bound for place in other)
    told = (
        f"token {other[0] + 1} of the answer to {_short(fixture.text)!r} is {int(found[other[0]])} now and was "
        f"{fixture.answer_ids[other[0]]}, which led by {fixture.margins[other[0]]:.2g} and lacks "
        f"{float(lost[other[0]]):.2g} now"
    )
    return _Answered(told, is_tie, difference)


def _unknown(model: Any, fixture: Fixture) -> str | None:
    """In words, a token that the model does not have at all."""
    vocabulary, largest = model.config.get_text_config().vocab_size, max(fixture.prompt_ids + fixture.answer_ids)
    if largest < vocabulary:
        return None
    return f"token {largest} of {_short(fixture.text)!r} is none of the model's {vocabulary:,}"


def rounding(logits: Any, *dtypes: str) -> float:
    """By how much two logits may move against each other where nothing but rounding differs: `rounding_at`."""
    return rounding_at(float(logits.abs().max()), *dtypes)


def rounding_at(largest: float, *dtypes: str) -> float:
    """The same of logits of which `largest` is the largest, computed in these of torch's dtypes.

    A few units in the last place of the coarser dtype, at the size of the largest logit, as in `model/probe.py`. Of
    the 8 units that a single logit has there, half: what moves all logits alike leaves leads as they are. Measured on
    a fine-tuned SmolLM2, bfloat16 against float32: single logits up to 7 units off, leads up to 2.4.
    """
    import torch

    eps: float = max(torch.finfo(getattr(torch, name)).eps for name in dtypes)
    return max(1e-4, 4 * eps) * largest


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"…{text[-limit:]}"
