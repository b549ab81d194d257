"""A batch in slices, computed one after the other: memory then hangs on the slice, and the gradient on neither.

The loss is a sum over the supervised tokens of a whole step, so any cut between samples gives the same gradient.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from truetune.model.portions import TOKENS as TOKENS

Batch = dict[str, torch.Tensor]


def slices(batch: Batch, tokens: int | None) -> list[Batch]:
    """The batch cut between samples into slices of about so many tokens; whole if None or not much more than that.

    `batch` holds tensors of (rows, tokens): padded rows, or one row of samples end to end whose `position_ids`
    restart. Slices of padded rows are padded to their own longest.
    """
    ids = batch["input_ids"]
    count = round(ids.numel() / tokens) if tokens else 1
    if count <= 1:  # Reading where samples end would wait for a GPU.
        return [batch]
    if len(ids) == 1:
        edges = pairwise(_cuts(_sample_lengths(batch), count))
        return [{name: each[:, first:last] for name, each in batch.items()} for first, last in edges]
    edges = pairwise(_cuts([1] * len(ids), count))
    return [_without_padding({name: each[first:last] for name, each in batch.items()}) for first, last in edges]


def largest(batches: Sequence[Batch], tokens: int | None) -> int:
    """The tokens of the largest slice."""
    return max(int(piece["input_ids"].numel()) for batch in batches for piece in slices(batch, tokens))


def _sample_lengths(batch: Batch) -> list[int]:
    """Of the samples in a batch of one row; positions that never restart are one sample."""
    length = batch["input_ids"].shape[1]
    if "position_ids" not in batch:
        return [length]
    restarts = (batch["position_ids"][0, 1:] == 0).nonzero()[:, 0] + 1
    return [last - first for first, last in pairwise([0, *restarts.tolist(), length])]


def _cuts(lengths: Sequence[int], count: int) -> list[int]:
    """Where to cut into about `count` even parts, without cutting one of the lengths: 0, …, their sum."""
    edges = list(accumulate(lengths, initial=0))
    even = (edges[-1] * part / count for part in range(1, count))
    inside = (min(edges, key=lambda edge: abs(edge - place)) for place in even)
    return sorted({0, *inside, edges[-1]})


def _without_padding(batch: Batch) -> Batch:
    """Padded rows without the columns that hold nothing but padding."""
    longest = int(batch["attention_mask"].sum(1).max())
    return {name: each[:, :longest] for name, each in batch.items()}
