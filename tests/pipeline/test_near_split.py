"""Rows that are nearly equal stand on one side of the split, and what tokens show is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import CHATML, CHATML_BOS, byte_tokenizer, write_jsonl
from truetune.config.load import load_config
from truetune.data.near import SIMILAR
from truetune.pipeline.prepare import PreparedDataset, prepare_rows

CHAT = byte_tokenizer(chat_template=CHATML)
OPENINGS = ("Please explain to a new colleague", "Kindly explain to a new colleague", "Explain to a new colleague")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))


def prepared(data: Path, tokenizer: Any = CHAT, **settings: Any) -> PreparedDataset:
    given = {"model.name_or_path": "none", "data.path": str(data), "data.test_size": 0.2, **settings}
    return prepare_rows(load_config(None, settings=given).config, tokenizer=tokenizer)


def thrice(count: int) -> list[dict[str, Any]]:
    """`count` questions, each asked in three near ways, far apart in the file."""
    matters = [f"part {number} of machine {number * 7 % 100}" for number in range(count)]
    answer = "it lifts the {0}, turns the {0} and sets the {0} down again beside all the other things of that kind"
    return [
        {"instruction": f"{opening} what {matter} does", "output": answer.format(matter)}
        for opening in OPENINGS
        for matter in matters
    ]


def sides(found: PreparedDataset, count: int) -> list[set[str]]:
    """On which sides of the split the three forms of each question stand."""
    stood: list[set[str]] = [set() for _ in range(count)]
    for name, rows in (("train", found.train), ("validation", found.validation)):
        for place in rows.places.tolist():
            stood[(found.train.column("line")[place] - 1) % count].add(name)
    return stood


def test_near_duplicates_stand_on_one_side_of_the_split(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", thrice(60))
    near, exact = prepared(data), prepared(data, **{"data.leakage": "exact"})
    assert max(map(len, sides(near, 60))) == 1
    assert max(map(len, sides(exact, 60))) == 2
    assert 0.1 < len(near.validation) / 180 < 0.3
    assert len(near.train) + len(near.validation) == 180


def test_rows_that_are_appended_move_no_others(tmp_path: Path) -> None:
    before = prepared(write_jsonl(tmp_path / "a.jsonl", thrice(60)))
    more = [*thrice(60), *({"instruction": f"Count {n}", "output": f"{n} and one more"} for n in range(100, 140))]
    after = prepared(write_jsonl(tmp_path / "b.jsonl", more))
    assert set(before.validation.places.tolist()) == {
        place for place in after.validation.places.tolist() if place < 180
    }


def test_near_duplicates_that_are_appended_move_no_earlier_row(tmp_path: Path) -> None:
    rows = thrice(60)
    before = prepared(write_jsonl(tmp_path / "a.jsonl", rows[:60]))
    after = prepared(write_jsonl(tmp_path / "b.jsonl", rows))
    held_out = after.validation.places.tolist()
    assert len(held_out) > len(before.validation)
    assert set(before.validation.places.tolist()) == {place for place in held_out if place < 60}


def test_rows_of_one_form_are_split_one_by_one_and_this_is_told(tmp_path: Path) -> None:
    form = "Look at the picture of the old house by the river and say in one word what you think of the colour {0}"
    rows = [{"instruction": form.format(f"c{n}"), "output": "good" if n % 2 else "bad"} for n in range(200)]
    rows += thrice(20)
    found = prepared(write_jsonl(tmp_path / "a.jsonl", rows))
    problem = found.report.first("one-form")
    assert (problem.rows, problem.where.line) == (200, 1)
    assert 0.1 < len(found.validation) / 260 < 0.3
    lines = found.train.column("line")[found.validation.places] - 201
    _, together = np.unique(lines[lines >= 0] % 20, return_counts=True)
    assert set(together.tolist()) == {3}
    assert "one-form" not in told(write_jsonl(tmp_path / "b.jsonl", thrice(60)))


def test_groups_and_near_duplicates_are_kept_together_at_once(tmp_path: Path) -> None:
    rows = [{**row, "user": number % 30} for number, row in enumerate(thrice(60))]
    found = prepared(write_jsonl(tmp_path / "a.jsonl", rows), **{"data.group_by": "user"})
    assert max(map(len, sides(found, 60))) == 1
    assert max(map(len, sides(found, 30))) == 1


def test_validation_rows_that_are_nearly_training_rows_are_counted(tmp_path: Path) -> None:
    rows = thrice(40)
    data = write_jsonl(tmp_path / "a.jsonl", rows[:80])
    held = write_jsonl(tmp_path / "b.jsonl", [*rows[80:90], {"instruction": "Name a colour", "output": "Red"}])
    settings = {"data.validation_path": str(held), "data.test_size": None}
    problem = prepared(data, **settings).report.first("near-leaked")
    assert (problem.rows, problem.where.path, problem.where.line) == (10, str(held), 1)
    told = {each.rule for each in prepared(data, **settings, **{"data.leakage": "exact"}).report.problems}
    assert not told & {"near-leaked", "leaked-rows"}


def test_rows_are_near_by_what_they_say_and_not_by_the_prompt_around_it(tmp_path: Path) -> None:
    system = " ".join(f"Rule {number}: be helpful, brief and kind." for number in range(40))
    rows = [
        {"system": system, "instruction": f"Add {n} and {n * 3 % 17}", "output": str(n + n * 3 % 17)}
        for n in range(60)
    ]
    found = prepared(write_jsonl(tmp_path / "a.jsonl", rows))
    assert SIMILAR < 1
    assert 0 < len(found.validation) < 30


# --- what tokens show -------------------------------------------------------------------------------------


def told(data: Path, tokenizer: Any = CHAT, **settings: Any) -> dict[str, Any]:
    return {problem.rule: problem for problem in prepared(data, tokenizer, **settings).report.problems}


def chats(*answers: str) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": answer}]}
        for n, answer in enumerate(answers)
    ]


def test_a_terminator_that_is_not_the_eos_is_told(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", chats("yo", "hey"))
    found = told(data)["other-terminator"]
    assert "'<|im_end|>'" in found.message
    assert "'</s>'" in found.message
    assert "other-terminator" not in told(data, byte_tokenizer(chat_template=CHATML.replace("<|im_end|>", "</s>")))


def test_one_bos_is_right_and_none_and_two_are_told(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", chats("yo", "hey", "well"))
    one = told(data, byte_tokenizer(adds_bos=True, chat_template=CHATML_BOS))
    assert not one.keys() & {"no-bos", "two-bos"}
    none = told(data, byte_tokenizer(adds_bos=True, chat_template=CHATML))
    assert (none["no-bos"].rows, "two-bos" in none) == (3, False)
    two = told(data, byte_tokenizer(adds_bos=True, chat_template="{{ bos_token }}" + CHATML_BOS))
    assert (two["two-bos"].rows, "no-bos" in two) == (3, False)


def test_answers_that_are_cut_are_counted_and_end_with_no_stop_token(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", chats("yo", "long " * 40, "hey"))
    settings = {"data.max_length": 64, "data.overlong": "truncate"}
    found = told(data, **settings)
    assert (found["answer-cut"].rows, found["answer-cut"].where.line) == (1, 2)
    assert (found["stop-not-learned"].rows, found["stop-not-learned"].where.line) == (1, 2)
    assert not told(data).keys() & {"answer-cut", "stop-not-learned"}


def test_few_learned_tokens_are_told_with_their_share(tmp_path: Path) -> None:
    long = [{"instruction": "word " * 200, "output": "a"}, {"instruction": "term " * 200, "output": "b"}]
    assert "0.2% of all tokens" in told(write_jsonl(tmp_path / "a.jsonl", long))["few-learned"].message
    short = [{"instruction": "word", "output": "a"}, {"instruction": "term", "output": "b"}]
    assert "few-learned" not in told(write_jsonl(tmp_path / "b.jsonl", short))


def test_tokens_that_the_tokenizer_does_not_know_are_told_by_row(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "a", "b", "c"]
    words = Tokenizer(WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    rows = [{"text": "a b c"}, {"text": "a zebra"}, {"text": "c a"}]
    found = told(write_jsonl(tmp_path / "a.jsonl", rows), tokenizer, **{"data.test_size": 0})["unknown-tokens"]
    assert (found.rows, found.where.line) == (1, 2)


def test_arrays_of_tokens_are_those_of_the_rows(tmp_path: Path) -> None:
    stored = prepared(write_jsonl(tmp_path / "a.jsonl", thrice(20))).train
    arrays = list(stored.token_arrays())
    every = stored.select(np.arange(60))
    assert [ids for each in arrays for ids in each.input_ids.tolist()] == [i for row in every for i in row.input_ids]
    assert [len(row.input_ids) for row in every] == [n for each in arrays for n in np.diff(each.offsets).tolist()]
