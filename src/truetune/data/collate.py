"""Rows into the tensors of one batch: the first torch on the path of a row."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from truetune.data.examples import IGNORED


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The rows end to end, nothing padded: input_ids, labels and position_ids, each of shape (1, tokens).

    Positions restart at every sample, which is what keeps attention inside it, so no attention mask is given. A
    sample's first token is no target of the sample before it. Where samples have weights, `loss_weights` gives each
    token's, in the same shape.
    """
    ids = [token for row in rows for token in row["input_ids"]]
    labels = [label for row in rows for label in row["labels"]]
    lengths = [length for row in rows for length in row["seq_lengths"]]
    positions = [position for length in lengths for position in range(length)]
    for start in accumulate(lengths[:-1], initial=0):
        labels[start] = IGNORED
    weights = [weight for row in rows for weight, length in _samples(row) for _ in range(length)]
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
        **({} if all(weight == 1.0 for weight in weights) else {"loss_weights": torch.tensor([weights])}),
    }


def collate_padded(rows: Sequence[Mapping[str, Any]], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """The rows side by side, padded on the right to the longest: input_ids, labels, attention_mask (rows, tokens).

    For models that cannot keep concatenated samples apart. Padding is masked by place, never by id.
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([[*row[name], *[filler] * (longest - len(row[name]))] for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    weights = [(row.get("weights") or [1.0]) * longest for row in rows]
    return {
        "input_ids": padded("input_ids", pad_token_id),
        "labels": padded("labels", IGNORED),
        "attention_mask": torch.tensor(mask),
        **({} if all(each[0] == 1.0 for each in weights) else {"loss_weights": torch.tensor(weights)}),
    }


def _samples(row: Mapping[str, Any]) -> Iterator[tuple[float, int]]:
    """The weight and the tokens of each sample."""
    lengths = row["seq_lengths"]
    return zip(row.get("weights") or [1.0] * len(lengths), lengths, strict=True)
