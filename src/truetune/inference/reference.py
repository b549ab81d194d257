"""What a model made of a trained one is held against: base and adapter's answers, and their logits."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from truetune.errors import CheckpointError
from truetune.inference.parity import Parity, replay
from truetune.model.fixtures import FixedPrompt, Fixtures, record
from truetune.model.greedy import answer_logits

_FP32_LIMIT = 1e-4
"""Of a logit, or of 1 where it is smaller: how far fp32 weights may take it that were rounded once more."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The answers to hold a model against, and for each the float32 logits of (its tokens, vocabulary)."""

    fixtures: Fixtures
    logits: tuple[Any, ...]


def reference_of(model: Any, fixtures: Fixtures) -> Reference:
    """What `model` gives at the places of the recorded answers; the model itself is not needed any more then."""
    logits = tuple(answer_logits(model, each.prompt_ids, each.answer_ids[:-1]) for each in fixtures.fixtures)
    return Reference(fixtures, logits)


def asked_again(model: Any, fixtures: Fixtures, *, stop_token_ids: Collection[int]) -> Fixtures:
    """The model's own answers to the prompts of recorded ones."""
    prompts = [FixedPrompt(each.prompt_ids, each.text, each.messages) for each in fixtures.fixtures]
    return record(model, prompts, stop_token_ids=stop_token_ids)


def compare(model: Any, reference: Reference, *, in_dtype: str, is_exact: bool) -> Parity:
    """Holds a model against the reference: its answers as it computes now, its logits computed in `in_dtype`.

    The model is left in that dtype. Raises CheckpointError for an answer that rounding does not explain, and, if
    `is_exact`, for a logit that is off by more than 1e-4 of it.
    """
    import torch

    found = replay(model, reference.fixtures)
    if not found.is_same:
        raise CheckpointError(
            f"the merged model answers otherwise than base and adapter: {found.first_difference}",
            hint="nothing was written; --dtype float32 rounds least",
        )
    distances = list(_distances(model.to(getattr(torch, in_dtype)), reference))
    farthest = max((distance for distance, _ in distances), default=None)
    if is_exact and not all(share <= _FP32_LIMIT for _, share in distances):  # Also where one is no number.
        raise CheckpointError(
            f"the merged model's logits are off those of base and adapter by {farthest:.2g}",
            hint="nothing was written: please report this model and its adapter",
        )
    return replace(found, max_abs_logit_difference=farthest)


def _distances(model: Any, reference: Reference) -> Sequence[tuple[float, float]]:
    """For each answer how far a logit is off at most, as it is and as a share of it, or of 1."""
    return [
        _distance(answer_logits(model, each.prompt_ids, each.answer_ids[:-1]), expected)
        for each, expected in zip(reference.fixtures.fixtures, reference.logits, strict=True)
    ]


def _distance(found: Any, expected: Any) -> tuple[float, float]:
    off = (found - expected).abs()
    return float(off.max()), float((off / expected.abs().clamp(min=1)).max())
