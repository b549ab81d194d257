"""Samples packed end to end into sequences of at most `max_length` tokens; none is cut, none is lost."""

from collections.abc import Sequence

from truetune.data.examples import Packed, Tokenized
from truetune.errors import DataError


def pack(rows: Sequence[Tokenized], *, max_length: int) -> list[Packed]:
    """The rows in as few sequences as best-fit-decreasing finds (TRL's `pack_dataset`, strategy "bfd").

    Example: rows of 25, 25 and 30 tokens with max_length=64 give sequences of 25 + 30 and 25.
    """
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    too_long = sum(len(row.input_ids) > max_length for row in rows)
    if too_long:
        raise DataError(f"{too_long} rows are longer than the {max_length} tokens they should be packed into")
    columns = {"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]}
    packed = pack_dataset(Dataset.from_dict(columns), max_length, "bfd")
    return [Packed(row["input_ids"], row["labels"], row["seq_lengths"]) for row in packed]
