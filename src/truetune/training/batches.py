"""Rows as TRL's trainer reads them, and what a batch of them holds."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from truetune.data.examples import Packed, Tokenized


def dataset_of(rows: Sequence[Tokenized | Packed]) -> Dataset:
    """The rows as TRL wants them, each read when the trainer asks for it."""

    def read(places: dict[str, list[int]]) -> dict[str, list[Any]]:
        read = [_columns(rows[place]) for place in places["place"]]
        return {name: [columns[name] for columns in read] for name in read[0]}

    return Dataset.from_dict({"place": range(len(rows))}).with_transform(read)


class StreamedSequences(torch.utils.data.Dataset[dict[str, Any]]):
    """The sequences of a stream, which are asked for in order, as the data loader reads them."""

    def __init__(self, stream: Sequence[Tokenized | Packed]) -> None:
        self._stream = stream

    def __len__(self) -> int:
        return len(self._stream)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return _columns(self._stream[place])


def _columns(row: Tokenized | Packed) -> dict[str, Any]:
    if isinstance(row, Packed):
        lengths, weights = row.seq_lengths, row.weights
    else:
        lengths, weights = [len(row.input_ids)], [row.weight]
    return {"input_ids": row.input_ids, "labels": row.labels, "seq_lengths": lengths, "weights": weights}


def without_weights(inputs: dict[str, Any]) -> tuple[torch.Tensor | None, dict[str, Any]]:
    """The tokens' loss weights, if there are any, and what the model takes. Validation weighs all tokens alike."""
    return inputs.get("loss_weights"), {name: value for name, value in inputs.items() if name != "loss_weights"}


def real_tokens(inputs: dict[str, Any]) -> torch.Tensor:
    """The batch's tokens without padding, on its device."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    return torch.full((), ids.numel(), device=ids.device) if mask is None else mask.sum()
