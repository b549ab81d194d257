"""`truetune check --fix`: the copy, the list of changes, and what is refused."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import truetune
import warm
from heard import Heard
from truetune.data.read import read_records
from truetune.errors import ConfigError

ROWS = [
    {"id": 1, "instruction": "Who are you?", "output": " I am {{name}} of {{firm}}.\n"},
    {"id": 2, "instruction": "Where is it?", "output": "In the CafÃ©."},
    {"id": 3, "instruction": "Where is it?", "output": "In the Café. "},
    {"id": 4, "instruction": "Nothing?", "output": " \n"},
    {"id": 5, "instruction": "All well?", "output": "All well.", "weight": 1.50, "extra": {"b": 1, "a": None}},
    {"id": 6, "messages": [{"role": "Human", "content": "Hi"}, {"role": "gpt", "content": "Hello."}]},
]


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows_of(path: Path) -> list[Mapping[str, Any]]:
    return [record.fields for record in read_records(path)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "rows.jsonl")


def cli(*words: Any) -> subprocess.CompletedProcess[str]:
    command = warm.truetune("check", *words)
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_the_command_writes_the_copy_the_changes_and_one_json_document(data: Path, tmp_path: Path) -> None:
    before, out = data.read_bytes(), tmp_path / "clean.jsonl"
    done = cli(data, "--fix", out, "--set", "name=Ada = L.", "--set", "none=x", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "path": str(out),
        "changes_path": f"{out}.changes.jsonl",
        "rows_read": 6,
        "rows_written": 4,
        "changes": {"edge-blanks": 1, "encoding-damage": 1, "placeholder": 1, "unknown-role": 2},
        "left_out": {"duplicate-rows": 1, "empty-answer": 1},
        "placeholders_left": {"firm": 1},
    }
    assert "no placeholder {{none}}" in done.stderr
    assert data.read_bytes() == before
    assert [row["id"] for row in lines(out)] == [1, 2, 5, 6]
    assert lines(out)[0]["output"] == "I am Ada = L. of {{firm}}."
    assert [turn["role"] for turn in lines(out)[3]["messages"]] == ["user", "assistant"]
    assert lines(out)[2] == ROWS[4]


def test_the_summary_names_the_rules(data: Path, tmp_path: Path) -> None:
    done = cli(data, "--fix", tmp_path / "clean.csv")
    assert done.returncode == 0, done.stderr
    for line in ("changed: 1 × TT203 encoding-damage", "left out: 1 × TT401 duplicate-rows", "4 of 6 rows written"):
        assert line in done.stdout
    assert "placeholder left: 1 × {{name}}" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "Ada"], "--set Ada: a name and its value are expected"),
        (["--set", "=Ada"], "a name and its value are expected"),
    ],
)
def test_a_value_needs_a_name(data: Path, tmp_path: Path, words: list[str], message: str) -> None:
    done = cli(data, "--fix", tmp_path / "clean.jsonl", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "clean.jsonl").exists()


def test_set_needs_fix(data: Path) -> None:
    done = cli(data, "--set", "name=Ada")
    assert done.returncode == 2
    assert "--fix OUT" in done.stderr


def test_each_change_is_listed_with_its_place(data: Path, tmp_path: Path) -> None:
    fixed = truetune.fix(data, tmp_path / "clean.jsonl")
    changes = {(each["where"]["line"], each["code"], each.get("field")): each for each in lines(fixed.changes_path)}
    assert changes[2, "TT203", "output"] == {
        "where": {"path": str(data), "line": 2, "unit": "line"},
        "code": "TT203",
        "name": "encoding-damage",
        "field": "output",
        "before": "In the CafÃ©.",
        "after": "In the Café.",
    }
    assert changes[6, "TT105", "messages[0].role"]["before"] == "Human"
    assert changes[3, "TT401", None]["action"] == "left out"
    assert changes[4, "TT101", None]["reason"] == "output: output is empty"
    assert len(changes) == 6


def test_a_long_text_is_shown_around_its_change(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": "a" * 500 + " CafÃ© " + "b" * 500}]
    fixed = truetune.fix(rows, tmp_path / "clean.jsonl")
    (change,) = lines(fixed.changes_path)
    assert "Ã©" in change["before"]
    assert "é" in change["after"]
    assert len(change["before"]) <= 202


@pytest.mark.parametrize("name", ["clean.jsonl", "clean.json", "clean.csv", "clean.parquet", "clean.jsonl.gz"])
def test_a_fixed_file_has_nothing_to_fix_and_no_findings_of_what_was_mended(
    data: Path, tmp_path: Path, name: str
) -> None:
    values = {"name": "Ada"}
    first = truetune.fix(data, tmp_path / name, values=values)
    again = truetune.fix(first.path, tmp_path / f"again-{name}", values=values)
    assert first.changes
    assert (again.changes, again.left_out, again.rows_written) == ({}, {}, first.rows_written)
    assert rows_of(again.path) == rows_of(first.path)
    if not name.endswith(".parquet"):  # Its types come from the rows, and nested nulls are not read back.
        assert again.path.read_bytes() == first.path.read_bytes()
    found = {problem.code for problem in truetune.check(str(first.path)).problems}
    assert not found & {"TT101", "TT203", "TT211", "TT401"}


def test_only_what_is_selected_is_mended(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "rows.jsonl", [*ROWS, ROWS[4]])
    fixed = truetune.fix(data, tmp_path / "clean.jsonl", select=["TT203"], values={"name": "Ada"})
    assert fixed.changes == {"encoding-damage": 1}
    assert (fixed.rows_written, fixed.left_out, fixed.placeholders_left) == (7, {}, {})
    assert lines(fixed.path) == [*ROWS[:1], {**ROWS[1], "output": "In the Café."}, *ROWS[2:], ROWS[4]]


def test_a_value_that_no_held_rule_fills_is_told(data: Path, tmp_path: Path) -> None:
    heard = Heard()
    truetune.fix(data, tmp_path / "clean.jsonl", ignore=["TT205"], values={"name": "Ada"}, listener=heard)
    assert any("TT205 is not among the rules" in said for said in heard.lines)


def test_lines_that_the_sidecar_names_are_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.ttignore").write_text("1 TT205,TT211 # meant\n4 TT101\n", encoding="utf-8")
    fixed = truetune.fix(data, tmp_path / "clean.jsonl", values={"name": "Ada"})
    assert lines(fixed.path)[0] == ROWS[0]
    assert fixed.left_out == {"duplicate-rows": 1}
    assert ROWS[3]["id"] in [row["id"] for row in lines(fixed.path)]


def test_rows_that_check_calls_duplicates_are_those_left_out(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n % 7}", "output": f"a{n % 3}", "id": n} for n in range(100)]
    found = truetune.check(rows).rows_of("duplicate-rows")
    assert truetune.fix(rows, tmp_path / "clean.jsonl").left_out == {"duplicate-rows": found}
    assert found == 79


def test_a_row_that_mending_makes_usable_is_kept(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": "{{answer}}"}, {"instruction": "\ufeff", "output": "a"}]
    fixed = truetune.fix(rows, tmp_path / "clean.jsonl", values={"answer": "42"})
    assert [row["output"] for row in lines(fixed.path)] == ["42"]
    assert fixed.left_out == {"empty-prompt": 1}


def test_several_files_become_one(tmp_path: Path) -> None:
    folder = tmp_path / "several"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    (folder / "b.csv").write_text("text\ntwo\nthree\n", encoding="utf-8")
    fixed = truetune.fix(folder, tmp_path / "clean.jsonl")
    assert [row["text"] for row in lines(fixed.path)] == ["one", "two", "three"]


def test_processes_write_the_same_as_one(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n % 900}", "output": f" CafÃ© {n % 900}"} for n in range(1200)]
    data = write_lines(tmp_path / "rows.jsonl", rows)
    one = truetune.fix(data, tmp_path / "one.jsonl", num_proc=1)
    two = truetune.fix(data, tmp_path / "two.jsonl", num_proc=2)
    assert one.rows_written == 900
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.changes_path.read_bytes() == two.changes_path.read_bytes()


@pytest.mark.parametrize("kind", ["same", "symlink", "hard link", "changes"])
def test_the_data_is_never_written_over(data: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "other.jsonl"
    match kind:
        case "same":
            out = data
        case "symlink":
            out.symlink_to(data)
        case "hard link":
            os.link(data, out)
        case "changes":
            data = data.rename(tmp_path / "other.jsonl.changes.jsonl")
    before = data.read_bytes()
    with pytest.raises(ConfigError, match="one of the files that are read"):
        truetune.fix(data, out, overwrite=True)
    assert data.read_bytes() == before


def test_a_file_that_is_there_is_replaced_only_if_asked(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.jsonl"
    out.write_text("old")
    with pytest.raises(ConfigError, match="already exists") as refused:
        truetune.fix(data, out)
    assert "--overwrite" in str(refused.value.hint)
    assert out.read_text() == "old"
    truetune.fix(data, out, overwrite=True)
    assert len(lines(out)) == 4


def test_an_unknown_suffix_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are not written"):
        truetune.fix(data, tmp_path / "clean.txt")


def test_a_value_with_a_placeholder_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a placeholder itself"):
        truetune.fix(data, tmp_path / "clean.jsonl", values={"name": "{{name}}"})


def test_broken_data_leaves_nothing_behind(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(truetune.DataError, match="line 2"):
        truetune.fix(data, tmp_path / "clean.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_copy_in_the_folder_that_is_read_is_told(tmp_path: Path) -> None:
    heard, data = Heard(), tmp_path / "in"
    data.mkdir()
    write_lines(data / "a.jsonl")
    truetune.fix(data, data / "clean.jsonl", listener=heard)
    assert any("reads the copy, too" in said for said in heard.lines)


def test_a_table_with_nested_fields_is_read_as_the_rows_were(data: Path, tmp_path: Path) -> None:
    fixed = truetune.fix(data, tmp_path / "clean.csv")
    read = rows_of(fixed.path)
    assert json.loads(str(read[3]["messages"]))[0] == {"role": "user", "content": "Hi"}
    assert json.loads(str(read[2]["extra"])) == {"b": 1, "a": None}
    assert truetune.check(str(fixed.path)).rows_kept == 4
