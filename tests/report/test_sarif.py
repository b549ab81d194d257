"""SARIF: each finding at its line, with its rule and severity, as code hosts read it."""

import json
from pathlib import Path

import pytest

from conftest import write_jsonl
from truetune.config.load import load_config
from truetune.data.examples import Location
from truetune.data.rules import Problem, Report
from truetune.pipeline.check import check_rows
from truetune.report.sarif import as_sarif

ROWS = [
    {"instruction": "Who are you?", "output": "I am {{name}}."},
    {"instruction": "What is 2 + 2?", "output": ""},
    {"instruction": "Name a large river.", "output": "The Amazon is a large river of South America."},
    {"instruction": "Name a large river.", "output": "The Amazon is a large river of South America."},
]


def report(data: Path) -> Report:
    settings = {"model.name_or_path": "none", "data.path": str(data)}
    return check_rows(load_config(None, settings=settings).config).report


def test_every_listed_finding_is_a_result_at_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = report(write_jsonl(tmp_path / "a b.jsonl", ROWS))
    (run,) = as_sarif(found)["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len(run["results"]) == len(found.problems) > 3
    for result, problem in zip(run["results"], found.problems, strict=True):
        assert result["ruleId"] == problem.code == rules[result["ruleIndex"]]["id"]
        assert result["level"] == problem.severity
        place = result["locations"][0]["physicalLocation"]
        is_whole = problem.code.startswith("TT5")
        assert ("region" in place) != is_whole
        assert is_whole or place["region"]["startLine"] == problem.where.line
        assert place["artifactLocation"]["uri"] == "a%20b.jsonl"
    by_rule = {result["ruleId"]: result for result in run["results"]}
    assert by_rule["TT101"]["level"] == "error"
    assert by_rule["TT205"]["message"]["text"].startswith("field output: holds the unfilled placeholder")
    (first,) = by_rule["TT401"]["relatedLocations"]
    assert first["physicalLocation"]["region"]["startLine"] == 3


def test_a_row_without_a_line_of_its_own_is_named_in_the_text() -> None:
    problem = Problem.found("empty-answer", "output is empty", Location("/data/a.json", 7, "record"), field="output")
    (result,) = as_sarif(Report(7, 6, (problem,)))["runs"][0]["results"]
    assert "region" not in result["locations"][0]["physicalLocation"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "file:///data/a.json"
    text, _, hint = result["message"]["text"].partition(" (")
    assert text == "record 7, field output: output is empty"
    assert hint == f"{problem.hint})"


def test_the_document_is_json_of_version_2_1_0(tmp_path: Path) -> None:
    document = json.loads(json.dumps(as_sarif(report(write_jsonl(tmp_path / "a.jsonl", ROWS)))))
    assert document["version"] == "2.1.0"
    assert document["runs"][0]["tool"]["driver"]["name"] == "truetune"
