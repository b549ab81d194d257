"""Rendered text into token ids and labels, whose supervised tokens are exactly the spans' characters."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

from truetune.data.examples import IGNORED, Rendered, Span, Tokenized
from truetune.data.rules import RowError
from truetune.errors import BackendError

Overlong = Literal["drop", "cut_at_turn", "truncate", "error"]


def tokenize(rows: Sequence[Rendered], *, tokenizer: Any) -> list[Tokenized | RowError]:
    """Tokens and labels of each row, or the reason why its labels cannot be exact.

    The text carries its own BOS and stop token, so nothing is added. A prompt's tokens are those of the prompt
    alone, as at inference: where a token would straddle the start of an answer, the text is split there.
    """
    encodings = _encode([row.text for row in rows], tokenizer)
    return [_label(row, encoding, tokenizer) for row, encoding in zip(rows, encodings, strict=True)]


def fit(row: Tokenized, *, max_length: int, overlong: Overlong) -> Tokenized | None:
    """The row within `max_length` tokens, or None for a row to leave out.

    `truncate` keeps the first tokens and adds no stop token; `cut_at_turn` ends at the last answer that fits.
    """
    if len(row.input_ids) <= max_length:
        return row
    match overlong:
        case "truncate":
            cut = max_length
        case "cut_at_turn":
            cut = max((end for end in _answer_ends(row.labels) if end <= max_length), default=0)
        case _:
            return None
    kept = Tokenized(row.input_ids[:cut], row.labels[:cut])
    return kept if kept.supervised else None


def _encode(texts: list[str], tokenizer: Any) -> list[Any]:
    if not getattr(tokenizer, "is_fast", False):
        raise BackendError(
            f"{type(tokenizer).__name__} reports no character offsets, so labels cannot be verified",
            hint="use a model with a fast tokenizer (a tokenizer.json)",
        )
    encodings: list[Any] = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return encodings


def _label(row: Rendered, encoding: Any, tokenizer: Any) -> Tokenized | RowError:
    ids, offsets = encoding.ids, encoding.offsets
    splits = [place for place, _ in row.spans if _straddles(offsets, place)]
    if splits:
        pieces = [row.text[start:end] for start, end in pairwise([0, *splits, len(row.text)])]
        ids, offsets = _encode_pieces(pieces, tokenizer)
        if tokenizer.decode(ids) != tokenizer.decode(encoding.ids):
            return RowError(
                "unverifiable-mask", "a token reaches from the prompt into the answer and cannot be split"
            )
    labels = [IGNORED] * len(ids)
    starts = [start for start, _ in offsets]
    for span in row.spans:
        for index in _tokens_of(span, starts, offsets):
            labels[index] = ids[index]
    labels[:1] = [IGNORED]
    tokenized = Tokenized(ids, labels)
    if not tokenized.supervised:
        return RowError("empty-mask", "no supervised token: nothing in this row would be learned")
    return tokenized


def _encode_pieces(pieces: list[str], tokenizer: Any) -> tuple[list[int], list[Span]]:
    """The pieces' ids and offsets, end to end."""
    ids: list[int] = []
    offsets: list[Span] = []
    place = 0
    for piece, encoding in zip(pieces, _encode(pieces, tokenizer), strict=True):
        ids += encoding.ids
        offsets += [(start + place, end + place) for start, end in encoding.offsets]
        place += len(piece)
    return ids, offsets


def _straddles(offsets: Sequence[Span], place: int) -> bool:
    """True if one token holds characters on both sides of `place`."""
    before = bisect_left(offsets, (place, 0)) - 1
    return before >= 0 and offsets[before][1] > place


def _tokens_of(span: Span, starts: Sequence[int], offsets: Sequence[Span]) -> Iterator[int]:
    start, end = span
    for index in range(bisect_left(starts, start), bisect_left(starts, end)):
        if offsets[index][1] <= end:
            yield index


def _answer_ends(labels: Sequence[int]) -> Iterator[int]:
    """The places behind each stretch of supervised tokens."""
    for index, (here, after) in enumerate(pairwise([*labels, IGNORED]), start=1):
        if here != IGNORED and after == IGNORED:
            yield index
