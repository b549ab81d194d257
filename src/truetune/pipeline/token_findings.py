"""What the tokens of prepared rows show: starts, stops, unknown ones, and how few are learned."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from truetune.data.examples import IGNORED, Location
from truetune.data.rules import Problem
from truetune.data.store import StoredRows, TokenArrays
from truetune.data.templates import Template
from truetune.pipeline.stages import Account

Where = Callable[[int], Location]
Flags = NDArray[np.bool_]

_FEW_LEARNED = 0.02
"""The share of learned tokens below which nearly all of a step is spent on prompts."""


def token_findings(stored: StoredRows, *, account: Account, template: Template, where: Where) -> Iterator[Problem]:
    """The findings of prepared rows' tokens, each the first row's and counted."""
    flags = [_flags(arrays, template) for arrays in stored.token_arrays()]
    found = {name: np.concatenate([each[name] for each in flags]) for name in flags[0]} if flags else {}
    for name, message in _MESSAGES.items():
        if name in found and found[name].any():
            rows = np.flatnonzero(found[name])
            count = f"in {len(rows):,} row{'s' if len(rows) > 1 else ''}"
            told = f"{message.format(bos=template.bos)}: {count}"
            yield Problem.found(name, told, where(int(rows[0])), rows=len(rows))
    if account.formats["chat"] and template.terminator_is_token and template.stop_token_ids[0] != _eos(template):
        names = f"{template.terminator!r}, and the tokenizer's eos is {template.tokenizer.eos_token!r}"
        message = f"answers end with {names}: whatever serves the model must stop at the first"
        yield Problem.found("other-terminator", message, where(0), rows=account.formats["chat"])
    if account.tokens and account.supervised_tokens / account.tokens < _FEW_LEARNED:
        share = f"{account.supervised_tokens / account.tokens:.1%} of all tokens are learned"
        yield Problem.found("few-learned", share, where(0), rows=account.rows_kept)


_MESSAGES = {
    "no-bos": "the row does not begin with {bos!r}, as the tokenizer's texts do",
    "two-bos": "the row begins with {bos!r} twice",
    "unknown-tokens": "the tokenizer does not know parts of the text",
    "stop-not-learned": "the row's last answer does not end with a stop token that is learned",
}


def _flags(rows: TokenArrays, template: Template) -> dict[str, Flags]:
    """Of each row whether it has the finding."""
    tokenizer = template.tokenizer
    starts, ends = rows.offsets[:-1], rows.offsets[1:]
    found: dict[str, Flags] = {}
    if template.terminator_is_token or not template.chat:
        found["stop-not-learned"] = _without_stop(rows, template.stop_token_ids)
    first = rows.input_ids[starts]
    if template.bos:
        bos = tokenizer.convert_tokens_to_ids(template.bos)
        second = rows.input_ids[np.minimum(starts + 1, ends - 1)]
        found["no-bos"] = first != bos
        found["two-bos"] = (first == bos) & (second == bos) & (ends - starts > 1)
    unknown = tokenizer.unk_token_id
    # GPT-2's unknown token is its end of text, since it knows all bytes.
    if unknown is not None and unknown not in (
        *template.stop_token_ids,
        tokenizer.bos_token_id,
        tokenizer.pad_token_id,
    ):
        found["unknown-tokens"] = np.add.reduceat(rows.input_ids == unknown, starts) > 0
    return found


def _eos(template: Template) -> int | None:
    eos: int | None = template.tokenizer.eos_token_id
    return eos


def _without_stop(rows: TokenArrays, stops: Sequence[int]) -> Flags:
    """Rows whose last learned token is none that stops."""
    places = np.where(rows.labels != IGNORED, np.arange(len(rows.labels)), -1)
    last = np.maximum.reduceat(places, rows.offsets[:-1])
    return ~np.isin(rows.input_ids[last], stops)
