"""Rendered text into token ids and labels, whose supervised tokens are exactly the spans' characters."""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

from truetune.data.examples import IGNORED, Rendered, Span, Tokenized
from truetune.data.rules import RowError
from truetune.data.templates import Delimiters, Template
from truetune.errors import BackendError

# Two blanks, or one that is no line break, at the end of a prompt.
_LOOSE_BLANKS = re.compile(r"(\s\s|[^\S\n])\Z")
_NEAR = 24  # Characters; what stands further away has no influence on how blanks are taken.
_ANCHORS = ("\n", "x", "(")

Overlong = Literal["drop", "cut_at_turn", "truncate", "error"]


def tokenize(rows: Sequence[Rendered], *, template: Template) -> list[Tokenized | RowError]:
    """Tokens and labels of each row, or the reason why its labels cannot be exact.

    The text carries its own BOS and stop token, so nothing is added. A prompt's tokens are those of the prompt
    alone, as at inference: where a token would straddle the start of an answer, the text is split there.
    """
    tokenizer, delimiters = template.tokenizer, template.delimiter_ids
    if delimiters is None:
        return _by_offsets(rows, tokenizer)
    found = list(map(partial(_by_delimiters, delimiters), rows, _encode_fast([row.text for row in rows], tokenizer)))
    rest = [row for row, labelled in zip(rows, found, strict=True) if labelled is None]
    others = iter(_by_offsets(rest, tokenizer))
    return [next(others) if labelled is None else labelled for labelled in found]


def tokenize_prompt(prompt: Rendered, *, tokenizer: Any) -> list[int]:
    """The ids of a prompt, which `render_prompt` has made."""
    if prompt.breaks:
        return _encode_pieces(prompt.text, prompt.breaks, tokenizer)[0]
    (encoding,) = _encode([prompt.text], tokenizer=tokenizer)
    ids: list[int] = encoding.ids
    return ids


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
    kept = replace(row, input_ids=row.input_ids[:cut], labels=row.labels[:cut])
    return kept if kept.supervised else None


def _encode(texts: list[str], *, tokenizer: Any) -> list[Any]:
    """The tokenizers library's encodings, made on all cores without Python's lock. BackendError without offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise BackendError(
            f"{type(tokenizer).__name__} reports no character offsets, so labels cannot be verified",
            hint="use a model with a fast tokenizer (a tokenizer.json)",
        )
    encodings: list[Any] = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return encodings


def _encode_fast(texts: list[str], tokenizer: Any) -> Iterator[list[int]]:
    """The ids alone: offsets cost a tenth of the time."""
    return (each.ids for each in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False))


def _by_delimiters(delimiters: Delimiters, row: Rendered, ids: list[int]) -> Tokenized | RowError | None:
    """Tokens and labels by the ids of header and terminator; None where these do not show each span's place.

    As many headers among the ids as in the text are the same ones, so the span behind a text's second header is
    behind the second among the ids.
    """
    header, terminator = delimiters.header, delimiters.terminator
    if row.breaks or row.prompts:
        return None
    starts = list(_behind(delimiters.header_ids, ids))
    if len(starts) != row.text.count(header):
        return None
    ranges = []
    for start, end in row.spans:
        if not row.text.endswith(header, 0, start) or row.text.find(terminator, start) + len(terminator) != end:
            return None
        first = starts[row.text.count(header, 0, start) - 1]
        ranges.append((first, ids.index(delimiters.terminator_id, first) + 1))
    return _labelled(ids, ranges)


def _behind(header: list[int], ids: list[int]) -> Iterator[int]:
    """The places behind each header among the ids."""
    place = 0
    with suppress(ValueError):  # What list.index raises where there is none left.
        while True:
            place = ids.index(header[0], place) + 1
            if ids[place : place + len(header) - 1] == header[1:]:
                yield place + len(header) - 1


def _by_offsets(rows: Sequence[Rendered], tokenizer: Any) -> list[Tokenized | RowError]:
    encodings = _encode([row.text for row in rows], tokenizer=tokenizer)
    return [_label(row, encoding, tokenizer=tokenizer) for row, encoding in zip(rows, encodings, strict=True)]


def _label(row: Rendered, encoding: Any, *, tokenizer: Any) -> Tokenized | RowError:
    """Tokens and labels of a row from its text's encoding."""
    ranges = _token_ranges(row, encoding, tokenizer)
    if ranges is not None:
        return _labelled(encoding.ids, ranges)
    ids, offsets = encoding.ids, encoding.offsets
    splits = _splits(row, encoding, offsets, tokenizer)
    if splits:
        try:
            ids, offsets = _encode_pieces(row.text, splits, tokenizer)
        except RowError as error:
            return error
    starts = [start for start, _ in offsets]
    tokens = (index for span in _reached(row, offsets) for index in _tokens_of(span, starts, offsets, row.text))
    return _labelled(ids, [(index, index + 1) for index in tokens])


def _labelled(ids: list[int], ranges: Sequence[Span]) -> Tokenized | RowError:
    """The ids with those in the ranges of places as labels, the first one never."""
    labels = [IGNORED] * len(ids)
    for start, end in ranges:
        labels[start:end] = ids[start:end]
    labels[:1] = [IGNORED]
    if labels.count(IGNORED) == len(labels):
        return RowError("empty-mask", "no supervised token: nothing in this row would be learned")
    return Tokenized(ids, labels)


def _token_ranges(row: Rendered, encoding: Any, tokenizer: Any) -> list[Span] | None:
    """Each span's tokens, where tokens begin at its two ends and nothing has to be split; None elsewhere.

    The common case, without the list of all offsets, which takes longer than the tokens themselves.
    """
    if row.breaks or row.prompts:
        return None
    ranges = []
    for start, end in row.spans:
        first = encoding.char_to_token(start)
        last = len(encoding) if end == len(row.text) else encoding.char_to_token(end)
        if first is None or last is None or encoding.token_to_chars(first)[0] != start:
            return None
        if end != len(row.text) and encoding.token_to_chars(last)[0] != end:
            return None
        if _takes_blanks_otherwise(row.text, start, encoding, tokenizer):
            return None
        ranges.append((first, last))
    return ranges


def _splits(row: Rendered, encoding: Any, offsets: Sequence[Span], tokenizer: Any) -> list[int]:
    """The places where the text has to be tokenized apart, to have the prompts' own tokens and exact ends."""
    starts = {
        start
        for start in row.prompts or [start for start, _ in row.spans]
        if _reach(offsets, start) > start or _takes_blanks_otherwise(row.text, start, encoding, tokenizer)
    }
    ends = {end for _, end in row.spans if row.text[end : _reach(offsets, end)].strip()}
    return sorted((starts | ends | set(row.breaks)) - {0, len(row.text)})


def _takes_blanks_otherwise(text: str, place: int, encoding: Any, tokenizer: Any) -> bool:
    """True if blanks before `place` would be other tokens with nothing behind them.

    GPT-2's pattern, which SmolLM and many others have, takes two line breaks as one token at the end of a text and
    as two before a word; trimmed offsets hide a leading blank.
    """
    if not _LOOSE_BLANKS.search(text, max(0, place - 2), place):
        return False
    near = text[max(0, place - _NEAR) : place]
    blanks = len(near) - len(near.rstrip())
    alone = _closing_blanks(near, blanks, tokenizer)
    first, last = encoding.char_to_token(place - blanks), encoding.char_to_token(place)
    if alone is None or first is None or last is None or encoding.token_to_chars(first)[0] != place - blanks:
        return True
    return bool(alone != encoding.ids[first:last])


def _closing_blanks(near: str, blanks: int, tokenizer: Any) -> list[int] | None:
    """The tokens of the blanks that the text ends with; None if none begins where they begin."""
    (alone,) = _encode([near], tokenizer=tokenizer)
    first = alone.char_to_token(len(near) - blanks)
    if blanks == len(near) or first is None or alone.token_to_chars(first)[0] != len(near) - blanks:
        return None
    ids: list[int] = alone.ids[first:]
    return ids


def _reached(row: Rendered, offsets: Sequence[Span]) -> Iterator[Span]:
    """The row's spans; behind masked thinking they begin with the token that the answer begins in."""
    for start, end in row.spans:
        before = bisect_left(offsets, (start, 0)) - 1
        is_inside = row.prompts and before >= 0 and offsets[before][1] > start
        yield (offsets[before][0] if is_inside else start), end


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
    (encoding,) = _encode([text], tokenizer=tokenizer)
    return encoding.ids, encoding.offsets


def _encode_continuation(text: str, tokenizer: Any) -> tuple[list[int], list[Span]]:
    """The tokens of a text that goes on another: without the blank some tokenizers (Llama 2's) put in front.

    They are taken from behind an anchor whose own tokens do not change. RowError where every anchor's do.
    """
    for anchor in _ANCHORS:
        alone, joined = _encode([anchor, anchor + text], tokenizer=tokenizer)
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
