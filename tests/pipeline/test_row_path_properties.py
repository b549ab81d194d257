"""No row is lost or counted twice on its way to its tokens, and what is learned is what its answers say."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import CHATML, CHATML_BOS, byte_tokenizer
from properties import ODD, WHOLE_TEXTS, examples
from truetune.config.schema import DataConfig
from truetune.data.catalog import RULES
from truetune.data.collate import collate
from truetune.data.examples import IGNORED, Location, Record
from truetune.data.packing import pack
from truetune.data.templates import load_template
from truetune.pipeline.stages import Account, Row, RowPath, in_chunks
from truetune.training.batches import _columns

TOKENIZERS = {
    "chatml": byte_tokenizer(chat_template=CHATML),
    "bos": byte_tokenizer(chat_template=CHATML_BOS, adds_bos=True),
    "alpaca": byte_tokenizer(),
}
PIECES = ["hi", " ", "\n", "<|im_end|>", "</s>", "é", "😀", "\ue0f1", "\ud800"]
TEXT = st.lists(st.sampled_from(PIECES) | WHOLE_TEXTS, max_size=3).map("".join)


def turn(role: str, text: Any) -> dict[str, Any]:
    return {"role": role, "content": text}


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row of any form, which may be empty, too long, or hold what it should not."""
    first, second, third = draw(TEXT), draw(TEXT), draw(TEXT)
    row: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"instruction": first, "output": second},
                {"instruction": first, "input": third, "output": second},
                {"prompt": first, "completion": second},
                {"text": first},
                {"messages": [turn("user", first), turn("assistant", second)]},
                {"messages": [turn("system", first), turn("user", second), turn("assistant", third)]},
                {"messages": [turn("user", f) for f in (first, second)] + [turn("assistant", third)]},
                {"messages": [turn("assistant", second), turn("user", first)]},
                {"instruction": first, "instances": [{"input": second, "output": third}, {"output": second}]},
                {"unknown": first},
            ]
        )
    )
    if draw(st.integers(0, 4)) == 0:
        row[draw(st.sampled_from(list(row)))] = draw(st.sampled_from(ODD))
    if draw(st.integers(0, 4)) == 0:
        row["weight"] = draw(st.sampled_from([0, 0.5, 2, "x", None, 1e300]))
    return row


def of_one_template(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Without conversations, and never empty, for a tokenizer that has no template: that is told once for all."""
    return found if name != "alpaca" else [{"text": "a"}, *(row for row in found if "messages" not in row)]


def taken(
    found: list[dict[str, Any]], name: str, *, most: int = 10_000, **data: Any
) -> tuple[list[Row], Account, int]:
    """What becomes of the rows, and how many they are once `instances` are apart."""
    template = load_template(TOKENIZERS[name])
    path = RowPath(DataConfig(**data), template, max_length=most)
    records = [(0, Record(row, Location("a.jsonl", line))) for line, row in enumerate(found, start=1)]
    (chunk,) = in_chunks(records, size=10_000)
    kept, account = path.take(chunk)
    return kept, account, len(chunk)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(found=st.lists(rows(), min_size=1, max_size=8), most=st.sampled_from([24, 60, 10_000]))
@examples(15)
def test_every_row_is_kept_or_refused_with_its_line_and_the_reason(
    name: str, found: list[dict[str, Any]], most: int
) -> None:
    found = of_one_template(found, name)
    kept, account, count = taken(found, name, most=most)
    report = account.report()
    assert report.rows_read == count
    assert report.rows_kept == len(kept)
    assert report.rows_rejected == sum(report.rejected.values())
    refused = [problem for problem in report.problems if problem.rule in report.rejected]
    assert len(refused) == report.rows_rejected
    for problem in refused:
        assert problem.where.path == "a.jsonl"
        assert problem.message
        assert RULES[problem.rule].severity == problem.severity
    lines = Counter(row.record.where.line for row in kept) + Counter(problem.where.line for problem in refused)
    assert lines == Counter(record.where.line for _, record in _records(found))


def _records(found: list[dict[str, Any]]) -> list[tuple[int, Record]]:
    records = [(0, Record(row, Location("a.jsonl", line))) for line, row in enumerate(found, start=1)]
    return next(in_chunks(records, size=10_000))


def bytes_of(tokens: list[int], tokenizer: Any) -> bytes:
    """The tokens as the bytes that they are, without those that are ignored."""
    special = {token: tokenizer.decode([token]).encode() for token in range(256, len(tokenizer))}
    return b"".join(special.get(token) or bytes([token]) for token in tokens if token != IGNORED)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(found=st.lists(rows(), min_size=1, max_size=6))
@examples(15)
def test_supervised_tokens_are_the_answers_and_their_stops(name: str, found: list[dict[str, Any]]) -> None:
    tokenizer = TOKENIZERS[name]
    kept, account, _ = taken(of_one_template(found, name), name)
    assert account.tokens == sum(len(row.tokens.input_ids) for row in kept)
    assert account.supervised_tokens == sum(row.tokens.supervised for row in kept)
    for row in kept:
        whole = "".join(row.rendered.learned()).encode()
        # Nothing stands before the first token of a bare text, so that it is read only.
        first = bytes_of(row.tokens.input_ids[:1], tokenizer) if row.rendered.spans[0][0] == 0 else b""
        assert first + bytes_of(row.tokens.labels, tokenizer) == whole
        assert row.tokens.labels[0] == IGNORED
        stop = row.rendered.learned()[-1].rstrip()
        assert stop.endswith(("<|im_end|>", "</s>"))


@given(found=st.lists(rows(), min_size=2, max_size=8), most=st.integers(60, 200))
@examples(15)
def test_packed_rows_are_the_batch_of_the_rows_apart(found: list[dict[str, Any]], most: int) -> None:
    kept, _, _ = taken(found, "chatml", most=60)
    if not kept:
        return
    tokens = [row.tokens for row in kept]
    packs = pack(tokens, max_length=most)
    assert sorted(place for each in packs.packs for place in each) == list(range(len(tokens)))
    for number, packed in enumerate(packs):
        together = collate([_columns(packed)])
        apart = collate([_columns(tokens[place]) for place in packs.packs[number]])
        assert together.keys() == apart.keys()
        assert all(torch.equal(together[key], apart[key]) for key in apart)


@given(found=st.lists(rows(), min_size=1, max_size=6), most=st.integers(20, 60))
@examples(15)
def test_a_cut_row_is_a_beginning_of_the_whole_one(found: list[dict[str, Any]], most: int) -> None:
    whole = {row.record.where.line: row for row in taken(found, "chatml")[0]}
    if any("instances" in row for row in found):
        return
    for overlong in ("truncate", "cut_at_turn"):
        for row in taken(found, "chatml", most=most, overlong=overlong)[0]:
            full = whole[row.record.where.line].tokens
            length = len(row.tokens.input_ids)
            assert length <= most
            assert full.input_ids[:length] == row.tokens.input_ids
            assert full.labels[:length] == row.tokens.labels
            if overlong == "cut_at_turn" and length < len(full.input_ids):
                assert row.tokens.labels[-1] in (257, 260)
