"""Prepared once, found again until anything that shapes it changes; mixed, grouped, weighed; told as it is."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import truetune
from conftest import CHATML, arithmetic_rows, byte_tokenizer, write_jsonl
from heard import FAST, Heard
from truetune.config.load import load_config
from truetune.data.examples import IGNORED
from truetune.data.packing import pack
from truetune.pipeline import stages
from truetune.pipeline.check import check_rows
from truetune.pipeline.prepare import PreparedDataset, prepare_rows

CHAT = byte_tokenizer(chat_template=CHATML)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


def prepared(data: Any, tokenizer: Any = CHAT, listener: Any = None, **settings: Any) -> PreparedDataset:
    given = {"model.name_or_path": "none", "data.path": data if isinstance(data, list) else str(data), **settings}
    return prepare_rows(load_config(None, settings=given).config, tokenizer=tokenizer, listener=listener)


def answers(rows: Any) -> list[str]:
    return [
        CHAT.decode([label for label in row.labels if label != IGNORED]).removesuffix("<|im_end|>") for row in rows
    ]


@pytest.fixture
def read_counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often files are read."""
    counts: Counter[str] = Counter()
    real = stages.read_records

    def counted(source: Any) -> Any:
        counts["read"] += 1
        return real(source)

    monkeypatch.setattr(stages, "read_records", counted)
    return counts


# --- the cache --------------------------------------------------------------------------------------------


def test_a_second_run_reads_no_row_and_gets_the_same(tmp_path: Path, read_counts: Counter[str], cache: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [*arithmetic_rows(120), {"foo": 1}])
    first, again = prepared(data), prepared(data)
    assert read_counts["read"] == 1
    assert [list(first.train), list(first.validation)] == [list(again.train), list(again.validation)]
    assert (first.fingerprint, first.formats, first.first_learned) == (
        again.fingerprint,
        again.formats,
        again.first_learned,
    )
    assert first.report == again.report
    assert first.report.rejected == {"unknown-format": 1}
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == [first.folder.name]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["train.npy", "tokens.arrow", "prepared.json"])
def test_a_cache_that_someone_has_cleaned_in_part_is_made_again(
    tmp_path: Path, read_counts: Counter[str], name: str
) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(3))
    folder = prepared(data).folder
    assert folder is not None
    (folder / name).unlink()
    assert answers(prepared(data).train) == ["1", "3", "5"]
    assert read_counts["read"] == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 64},
        {"train_on": "last_turn"},
        {"template": "alpaca"},
        {"seed": 7},
        {"test_size": 0.2},
        {"columns": {"note": "system"}},
        {"group_by": "instruction"},
        {"thinking": "mask"},
        {"eval_strategy": "no"},
    ],
)
def test_note_token_cache_any_setting_that_shapes_the_rows_prepares_them_anew(
    tmp_path: Path, read_counts: Counter[str], settings: dict[str, Any]
) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(120))
    prepared(data)
    prepared(data, **settings)
    assert read_counts["read"] == 2


def test_note_token_cache_another_tokenizer_or_other_bytes_prepare_anew(
    tmp_path: Path, read_counts: Counter[str]
) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(3))
    old = prepared(data)
    prepared(data, byte_tokenizer(chat_template=CHATML, merges=(("A", "d"),)))
    prepared(data, byte_tokenizer(chat_template=CHATML.replace("<|im_end|>\n", "<|im_end|>")))
    write_jsonl(data, arithmetic_rows(4))
    assert len(prepared(data).train) == len(old.train) + 1 == 4
    assert read_counts["read"] == 4
    prepared(data, packing=True)
    assert read_counts["read"] == 4


def test_rows_from_python_are_prepared_without_a_trace(cache: Path) -> None:
    config = load_config(None, settings={"model.name_or_path": "none"}).config
    made = prepare_rows(config, tokenizer=CHAT, source=iter(arithmetic_rows(3)))
    assert answers(made.train) == ["1", "3", "5"]
    assert made.folder is None
    assert not cache.exists()


# --- mixes ------------------------------------------------------------------------------------------------


def test_files_are_mixed_by_weight_and_validation_rows_are_never_repeated(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [{"instruction": f"a{n}", "output": f"one{n}"} for n in range(300)])
    two = write_jsonl(tmp_path / "two.jsonl", [{"instruction": f"b{n}", "output": f"two{n}"} for n in range(300)])
    made = prepared([{"path": str(one), "weight": 2.0}, {"path": str(two), "weight": 0.5}])
    trained, held_out = Counter(answers(made.train)), Counter(answers(made.validation))
    assert {count for answer, count in trained.items() if answer.startswith("one")} == {2}
    assert {count for answer, count in trained.items() if answer.startswith("two")} == {1}
    assert 100 < sum(answer.startswith("two") for answer in trained) < 170
    assert set(held_out.values()) == {1}
    assert not set(trained) & set(held_out)
    again = prepared([{"path": str(one), "weight": 2.0}, {"path": str(two), "weight": 0.5}])
    assert answers(again.train) == answers(made.train)


def test_a_finding_names_the_file_of_a_mix(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", arithmetic_rows(2))
    two = write_jsonl(tmp_path / "two.jsonl", [{"text": 5}, {"foo": 1}])
    report = prepared([str(one), str(two)]).report
    assert str(report.first("unknown-format").where) == f"{two}, line 2"
    assert str(report.first("number-as-text").where) == f"{two}, line 1"


# --- the split --------------------------------------------------------------------------------------------


def test_note_validation_rows_are_never_training_rows(tmp_path: Path) -> None:
    rows = [{"instruction": f"  a{n % 50} ", "output": "x"} for n in range(100)]
    rows += [{"instruction": f"a{n}", "output": "x", "id": n} for n in range(50)]
    strip = CHATML.replace("m['content'] }}", "m['content'] | trim }}")
    made = prepared(write_jsonl(tmp_path / "a.jsonl", rows), byte_tokenizer(chat_template=strip), test_size=0.3)
    train, held_out = ({tuple(row.input_ids) for row in side} for side in (made.train, made.validation))
    assert held_out
    assert not train & held_out
    problem = made.report.first("duplicate-rows")
    assert (problem.rows, problem.where.line) == (100, 51)


def test_rows_of_a_group_share_a_side_with_what_equals_them_and_rows_without_one_are_told(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"instruction": f"a{n}", "output": "x", "user": n % 20} for n in range(200)]
    rows += [{"instruction": "a0", "output": "x", "user": 99}, {"instruction": "b99", "output": "x", "user": 99}]
    rows += [{"instruction": "c", "output": "x"}]
    made = prepared(write_jsonl(tmp_path / "a.jsonl", rows), test_size=0.3, group_by="user")
    sides: dict[Any, set[str]] = {}
    for side, kept in (("train", made.train), ("validation", made.validation)):
        for place in kept.places.tolist():
            user = rows[place].get("user")
            sides.setdefault(0 if user == 99 else user, set()).add(side)
    assert len(sides) == 21
    assert all(len(side) == 1 for side in sides.values())
    assert {"train"} in sides.values()
    assert {"validation"} in sides.values()
    assert str(made.report.first("absent-group").where).endswith("line 203")


def test_validation_rows_of_a_file_of_their_own_that_are_training_rows_too_are_told(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(5))
    held_out = write_jsonl(tmp_path / "b.jsonl", [{"instruction": "New", "output": "1"}, *arithmetic_rows(2)])
    made = prepared(data, validation_path=str(held_out))
    assert (len(made.train), len(made.validation)) == (5, 3)
    problem = made.report.first("leaked-rows")
    assert (problem.rows, str(problem.where)) == (2, f"{held_out}, line 2")


def test_rows_from_python_are_validated_on_the_file_that_is_named(tmp_path: Path) -> None:
    held_out = write_jsonl(tmp_path / "b.jsonl", [{"instruction": "New", "output": "held out"}])
    settings = {"model.name_or_path": "none", "data.validation_path": str(held_out)}
    made = prepare_rows(load_config(None, settings=settings).config, tokenizer=CHAT, source=arithmetic_rows(120))
    assert (len(made.train), answers(made.validation)) == (120, ["held out"])


# --- weights, turns, findings -----------------------------------------------------------------------------


def test_a_row_s_weight_and_a_message_s_weight_are_kept_apart(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "weight": 1},
    ]
    made = prepared(write_jsonl(tmp_path / "a.jsonl", [{"messages": turns, "weight": 0.25}, {"text": "x"}]))
    assert answers(made.train)[0] == "d"
    assert [row.weight for row in made.train] == [0.25, 1.0]
    assert sorted(pack(made.train, max_length=100)[0].weights) == [0.25, 1.0]


def test_a_row_of_each_turn_is_counted_as_such(tmp_path: Path) -> None:
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 3, "abcdef", strict=True)]
    made = prepared(write_jsonl(tmp_path / "a.jsonl", [{"messages": turns}]), one_example_per_turn=True)
    assert answers(made.train) == ["b", "d", "f"]
    assert (made.report.rows_read, made.report.rows_kept) == (3, 3)


def test_g12_what_the_template_removed_is_counted_in_turns_and_rows_and_strict_data_refuses_it(
    tmp_path: Path,
) -> None:
    from conftest import THINKING
    from traced import chat

    row = chat("u:1+1", "a:<think>\nadd\n</think>\n\n2", "u:2+2", "a:<think>\nsum\n</think>\n\n4")
    data = write_jsonl(tmp_path / "a.jsonl", [chat("u:hi", "a:yo"), row])
    tokenizer = byte_tokenizer(chat_template=THINKING)
    problem = prepared(data, tokenizer).report.first("removed-by-template")
    assert "removed by the template: 1 turn in 1 row" in problem.message
    assert problem.where.line == 2
    with pytest.raises(truetune.DataError, match=r"line 2.*removed by the template"):
        prepared(data, tokenizer, strict=True)


def test_g10_folded_and_merged_rows_are_counted(tmp_path: Path) -> None:
    from conftest import STRICT
    from traced import chat

    rows = [chat("s:Be brief.", "u:hi", "a:yo"), chat("u:hi", "u:hi", "a:yo"), chat("u:hi", "a:yo")]
    report = prepared(write_jsonl(tmp_path / "a.jsonl", rows), byte_tokenizer(chat_template=STRICT)).report
    assert "folded" in report.first("system-folded").message
    assert report.first("system-folded").message.endswith("in 1 row")
    assert "merged" in report.first("turns-merged").message
    assert report.first("turns-merged").message.endswith("1 turn in 1 row")
    assert report.rows_kept == 3


def test_a_template_that_prints_the_date_is_told(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(2))
    dated = byte_tokenizer(chat_template="{{ strftime_now('%Y-%m-%d') }}" + CHATML)
    assert prepared(data, dated).report.first("dated-template").severity == "warning"
    assert not prepared(data).report.problems


def test_many_rows_of_one_fault_are_counted_and_the_first_hundred_listed(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [*arithmetic_rows(2), *[{"foo": n} for n in range(250)]])
    report = prepared(data).report
    assert report.rejected == {"unknown-format": 250}
    assert (report.rows_rejected, len(report.problems)) == (250, 100)


def test_the_rate_and_the_count_of_rows_are_heard(tmp_path: Path) -> None:
    heard = Heard()
    prepared(write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(1_100)), listener=heard)
    counts = [(done, total) for stage, done, total in heard.stages if stage == "preparing rows"]
    assert counts[-1] == (1_100, 1_100)
    assert len(counts) >= 3


# --- check ------------------------------------------------------------------------------------------------


def checked(data: Path, **settings: Any) -> Any:
    given = {"model.name_or_path": "none", "data.path": str(data), **settings}
    return check_rows(load_config(None, settings=given).config).report


def test_check_finds_what_training_would_refuse_and_raises_nothing(tmp_path: Path, tiny_base: Path) -> None:
    rows = [{"foo": 1}, {"instruction": "a", "output": ""}, {"instruction": "a", "output": "b" * 100}]
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    settings = {"invalid_rows": "error", "overlong": "error", "strict": True, "max_length": 32}
    report = checked(data, **settings, **{"model.name_or_path": str(tiny_base)})
    assert report.rejected == {"unknown-format": 1, "empty-answer": 1, "overlong": 1}
    assert sorted(problem.where.line for problem in report.problems if problem.severity == "error") == [1, 2, 3]
    assert report.rows_kept == 0


def test_check_with_a_model_tells_each_finding_once_and_heeds_the_sidecar(tmp_path: Path, tiny_base: Path) -> None:
    form = "Look at the picture of the old house by the river and say in one word what you think of its colour {0}"
    rows = [{"instruction": form.format(f"c{n}"), "output": "good" if n % 2 else "bad"} for n in range(150)]
    rows += [rows[0], {"instruction": "a", "output": ""}, {"instruction": "b", "output": ""}]
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.ttignore").write_text("152 TT101")
    report = checked(data, **{"model.name_or_path": str(tiny_base)})
    lines = {problem.rule: problem.where.line for problem in report.problems if problem.rule != "near-duplicates"}
    assert {"one-form": 1, "duplicate-rows": 151, "empty-answer": 153}.items() <= lines.items()
    assert [problem.rule for problem in report.problems].count("duplicate-rows") == 1
    assert (report.rejected, report.rows_of("empty-answer")) == ({"empty-answer": 2}, 1)


def test_from_python_rows_and_lists_of_files_are_checked_alike(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "a.jsonl", [*arithmetic_rows(2), {"foo": 1}])
    for data in (one, [one], [*arithmetic_rows(2), {"foo": 1}]):
        report = truetune.check(data)
        assert (report.rows_kept, report.rejected) == (2, {"unknown-format": 1})
    shaped = truetune.check([{"foo": "a"}], formatting=lambda row: {"text": row["foo"]})
    assert shaped.stats["read_from"] == {"text from text": 1}


def test_check_without_a_model_tells_what_the_rows_alone_can(tmp_path: Path) -> None:
    rows = [*arithmetic_rows(3), arithmetic_rows(1)[0], {"foo": 1}, {"messages": "hello"}, {"text": "a"}]
    report = checked(write_jsonl(tmp_path / "a.jsonl", rows))
    assert report.rejected == {"unknown-format": 1, "broken-json": 1}
    assert (report.rows_read, report.rows_kept) == (7, 5)
    assert report.first("duplicate-rows").where.line == 4
    assert "text" in report.first("mixed-formats").message
    assert report.stats["formats"] == {"instruction": 4, "text": 1}


def test_a_field_that_only_some_rows_have_makes_no_other_format(tmp_path: Path) -> None:
    asked = {"instruction": "Add", "input": "1 2", "output": "3"}
    one = write_jsonl(tmp_path / "one.jsonl", [*arithmetic_rows(3), asked])
    two = write_jsonl(tmp_path / "two.jsonl", [*arithmetic_rows(3), {"question": "Add 1 2", "answer": "3"}])
    assert not [problem for problem in prepared(str(one)).report.problems if problem.rule == "mixed-formats"]
    assert "question, answer (1 rows)" in prepared(str(two)).report.first("mixed-formats").message


def test_a_run_s_report_is_that_of_check_without_what_only_the_linter_finds(tmp_path: Path, tiny_base: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [*arithmetic_rows(20), {"foo": 1}])
    run = truetune.train(model=str(tiny_base), data=data, output_dir=tmp_path / "run", max_steps=1, **FAST)
    written = json.loads((run.directory / "data-report.json").read_text())
    report = checked(data, **{"model.name_or_path": str(tiny_base)})
    linted = [problem for problem in report.as_json()["problems"] if problem["name"] == "quantity"]
    assert [*written["problems"], *linted] == report.as_json()["problems"]
    assert len(linted) == 1
