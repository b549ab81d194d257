"""Rendered text into token ids and labels, whose supervised tokens are exactly the spans' characters."""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal

from truetune.data.examples import IGNORED, Rendered, Span, Tokenized
from truetune.data.rules import RowError
from truetune.errors import BackendError

# Two blanks, or one that is no line break, at the end of a prompt.
_LOOSE_BLANKS = re.compile(r"(\s\s|[^\S\n])\Z")
_NEAR = 24  # Characters; what stands further away has no influence on how blanks are taken.
_ANCHORS = ("\n", "x", "(")

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
    splits = _splits(row, offsets, tokenizer)
    if splits:
        try:
            ids, offsets = _encode_pieces(row.text, splits, tokenizer)
        except RowError as error:
            return error
    labels = [IGNORED] * len(ids)
    starts = [start for start, _ in offsets]
    for span in row.spans:
        for index in _tokens_of(span, starts, offsets, row.text):
            labels[index] = ids[index]
    labels[:1] = [IGNORED]
    tokenized = Tokenized(ids, labels)
    if not tokenized.supervised:
        return RowError("empty-mask", "no supervised token: nothing in this row would be learned")
    return tokenized


def _splits(row: Rendered, offsets: Sequence[Span], tokenizer: Any) -> list[int]:
    """The places where the text has to be tokenized apart, to have the prompts' own tokens and exact ends."""
    starts = {start for start, _ in row.spans if _depends_on_answer(row.text, start, offsets, tokenizer)}
    ends = {end for _, end in row.spans if row.text[end : _reach(offsets, end)].strip()}
    return sorted((starts | ends) - {0, len(row.text)})


def _depends_on_answer(text: str, place: int, offsets: Sequence[Span], tokenizer: Any) -> bool:
    """True if the tokens before `place` would be others with nothing behind it.

    That is so for a token on both sides. And for blanks: GPT-2's pattern, which SmolLM and many others have, takes
    two line breaks as one token at the end of a text and as two before a word; trimmed offsets hide a leading blank.
    """
    if _reach(offsets, place) > place:
        return True
    if not _LOOSE_BLANKS.search(text, max(0, place - 2), place):
        return False
    near = text[max(0, place - _NEAR) : place]
    alone, joined = _encode([near, near + text[place : place + _NEAR]], tokenizer)
    return near.isspace() or bool(joined.ids[: len(alone.ids)] != alone.ids)


def _reach(offsets: Sequence[Span], place: int) -> int:
    """Where the token ends that holds characters on both sides of `place`, or `place` if there is none."""
    before = bisect_left(offsets, (place, 0)) - 1
    return max(place, offsets[before][1]) if before >= 0 else place


def _encode_pieces(text: str, splits: Sequence[int], tokenizer: Any) -> tuple[list[int], list[Span]]:
    """The ids and offsets of the text's pieces, end to end."""
    ids: list[int] = []
    offsets: list[Span] = []
    for start, end in pairwise([0, *splits, len(text)]):
        more, spans = _encode_piece(text[start:end], tokenizer, is_first=start == 0)
        ids += more
        # Trimmed offsets put a token of blanks at its end, which is where the next piece begins.
        offsets += [(min(left + start, end - 1), right + start) for left, right in spans]
    return ids, offsets


def _encode_piece(text: str, tokenizer: Any, *, is_first: bool) -> tuple[list[int], list[Span]]:
    if not is_first:
        return _encode_continuation(text, tokenizer)
    (encoding,) = _encode([text], tokenizer)
    return encoding.ids, encoding.offsets


def _encode_continuation(text: str, tokenizer: Any) -> tuple[list[int], list[Span]]:
    """The tokens of a text that goes on another: without the blank some tokenizers (Llama 2's) put in front.

    They are taken from behind an anchor whose own tokens do not change. RowError where every anchor's do.
    """
    for anchor in _ANCHORS:
        alone, joined = _encode([anchor, anchor + text], tokenizer)
        count, length = len(alone.ids), len(anchor)
        if joined.ids[:count] == alone.ids and joined.offsets[count - 1][1] <= length:
            return joined.ids[count:], [(start - length, end - length) for start, end in joined.offsets[count:]]
    raise RowError("unverifiable-mask", "a token reaches from the prompt into the answer and cannot be split")


def _tokens_of(span: Span, starts: Sequence[int], offsets: Sequence[Span], text: str) -> Iterator[int]:
    """The tokens that begin in the span. The last may reach over blanks behind it, which special tokens swallow."""
    start, end = span
    for index in range(bisect_left(starts, start), bisect_left(starts, end)):
        reach = offsets[index][1]
        if reach <= end or text[end:reach].isspace():
            yield index


def _answer_ends(labels: Sequence[int]) -> Iterator[int]:
    """The places behind each stretch of supervised tokens."""
    for index, (here, after) in enumerate(pairwise([*labels, IGNORED]), start=1):
        if here != IGNORED and after == IGNORED:
            yield index
