"""Which rows a run's model is known again by."""

from pathlib import Path

import pytest

from conftest import CHATML, byte_tokenizer
from truetune.data.examples import IGNORED, Tokenized
from truetune.data.store import RowWriter, StoredRow, StoredRows, row_batch
from truetune.data.templates import load_template
from truetune.pipeline.fixed_prompts import own_prompts, row_prompts

TOKENIZER = byte_tokenizer(chat_template=CHATML)


def row(prompt: int, answer: int, first: int = 97) -> Tokenized:
    ids = [first, *[98] * (prompt - 1), *[99] * answer]
    return Tokenized(ids, [*[IGNORED] * prompt, *ids[prompt:]])


def lengths(folder: Path, rows: list[Tokenized], **options: int) -> list[int]:
    writer = RowWriter(folder)
    writer.write(row_batch([StoredRow(each, n, n, 0, n) for n, each in enumerate(rows)]))
    writer.close()
    return [len(each.prompt_ids) for each in row_prompts(StoredRows.open(folder), TOKENIZER, **options)]


def test_rows_are_spread_by_length_from_the_shortest_to_the_longest(tmp_path: Path) -> None:
    assert lengths(tmp_path, [row(size, 3) for size in (50, 10, 30, 70, 20, 60, 40)]) == [10, 30, 50, 70]


def test_long_rows_are_left_out_where_there_are_others(tmp_path: Path) -> None:
    assert lengths(tmp_path, [row(900, 3), row(20, 3), row(10, 800)]) == [20]


def test_where_all_rows_are_long_the_shortest_is_asked_unless_it_is_too_long(tmp_path: Path) -> None:
    assert lengths(tmp_path, [row(900, 3), row(700, 3)]) == [700]
    assert lengths(tmp_path, [row(3000, 3)]) == []


def test_a_prompt_is_asked_once(tmp_path: Path) -> None:
    assert lengths(tmp_path, [row(20, answer) for answer in (1, 2, 3, 4)]) == [20]


def test_of_a_row_that_is_learned_from_its_start_the_first_tokens_are_the_prompt(tmp_path: Path) -> None:
    assert lengths(tmp_path, [row(1, 30), row(1, 3, first=65)]) == [3, 8]


def test_prompts_leave_room_for_an_answer(tmp_path: Path) -> None:
    assert lengths(tmp_path, [row(20, 3), row(30, 3)], context_length=45) == [20]


@pytest.mark.parametrize("row_format", ["chat", "instruction", "completion", "text"])
def test_two_prompts_of_ours_are_there_in_every_format(row_format: str) -> None:
    prompts = own_prompts(load_template(TOKENIZER, template="auto"), row_format)  # type: ignore[arg-type]
    assert len(prompts) == 2
    assert all((each.messages is None) == (row_format in ("completion", "text")) for each in prompts)
    assert all(TOKENIZER.decode(each.prompt_ids) == each.text for each in prompts)
