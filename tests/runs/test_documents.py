"""A run's files as they are found: read as far as they can be, and never more than lies in the run."""

import os
from pathlib import Path

import pytest

from truetune.runs.documents import json_lines, json_object, mapping, mappings, text, text_file


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "3", '{"a": 1}}', "[" * 100_000, "\x00", '{"a": NaNN}'])
def test_a_damaged_object_is_told_and_empty(tmp_path: Path, content: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(content)
    found = json_object(tmp_path, file)
    assert (found.value, found.problem) == ({}, "run.json is damaged")


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    for read in (json_object, json_lines, text_file):
        assert read(tmp_path, tmp_path / "run.json").problem == "run.json is missing"


def test_damaged_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n\n[2]\n{"step": \n{"step": 3}\n{"st')
    found = json_lines(tmp_path, file)
    assert found.value == [{"step": 1}, {"step": 3}]
    assert found.problem == "3 lines of metrics.jsonl are damaged"


@pytest.mark.skipif(os.name == "nt", reason="Windows gives links to administrators only")
def test_a_link_out_of_the_run_is_not_followed(tmp_path: Path) -> None:
    run, secret = tmp_path / "run", tmp_path / "secret"
    run.mkdir()
    secret.write_text('{"key": "hidden"}')
    (run / "config.yaml").symlink_to(secret)
    (run / "own.json").write_text("{}")
    (run / "linked.json").symlink_to(run / "own.json")
    assert text_file(run, run / "config.yaml").value == ""
    assert json_object(run, run / "config.yaml").value == {}
    assert json_object(run, run / "linked.json").problem is None


def test_what_is_of_another_kind_is_not_there() -> None:
    document = {"a": {"b": [1, {"c": 2}]}, "d": "word", "e": 3, "f": None}
    assert mapping(document, "a", "b") == {}
    assert mapping(document, "d", "x") == {}
    assert mappings(mapping(document, "a"), "b") == [{"c": 2}]
    assert mappings(document, "d") == []
    assert [text(document, name) for name in "defg"] == ["word", "3", "", ""]
