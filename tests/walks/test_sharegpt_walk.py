"""Somebody with exports of chats in ShareGPT's form, several files of them, some of them odd."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from typed import Terminal


def chat(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": what} for who, what in turns], **more}


PLAIN = chat(("human", "How do I boil an egg?"), ("gpt", "<p>In boiling water, for <b>8 minutes</b>.</p>"))
WITH_SYSTEM = chat(
    ("system", "You are a cook."), ("human", "Rice?"), ("chatgpt", "Twelve minutes."), ("human", "Thanks")
)
GREETING = chat(("gpt", "How can I help?"), ("human", "Make tea."), ("bing", "Pour water on leaves, wait."))
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALLING = chat(
    ("human", "How is Oslo?"),
    ("function_call", json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})),
    ("observation", '{"sky": "clear"}'),
    ("gpt", "The sky is clear."),
    tools=json.dumps([TOOL]),
)
MISSPELT = chat(("human", "Hi"), ("asistant", "Hello."))
NARRATED = chat(("human", "Hi"), ("narrator", "It was dark."), ("gpt", "Hello."))
KEYLESS = {"conversations": [{"frm": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
UNANSWERED = chat(("human", "Anyone?"))


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    folder = tmp_path / "exports"
    folder.mkdir()
    listed(folder / "a.json", [PLAIN, WITH_SYSTEM, GREETING])
    listed(folder / "b.json", [CALLING])
    (folder / "README.md").write_text("# exports\n")
    return folder


def listed(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(list(rows), indent=1), encoding="utf-8")
    return path


def test_a_folder_of_exports_is_read_whole_and_what_is_odd_is_told(exports: Path, terminal: Terminal) -> None:
    told = terminal.done("check", exports)
    assert "1 file in" in told.err
    assert "README.md" in told.err
    assert f"[markup] {exports}/a.json, record 1" in told.out
    assert f"[answer-first] {exports}/a.json, record 3" in told.out
    assert f"[open-question] {exports}/a.json, record 2" in told.out
    assert "read as chat from conversations (from/value): 4 rows" in told.out
    assert "4 of 4 rows can be used" in told.out


def test_answers_of_every_assistant_are_learned_and_tools_results_are_not(
    exports: Path, tiny_base: Path, terminal: Terminal
) -> None:
    told = terminal.done("inspect", exports, "--model", tiny_base, "--rows", 4).out
    for answer in ("Twelve minutes.", "Pour water on leaves, wait.", "The sky is clear."):
        assert f"«{answer}<|im_end|>»" in told
    assert '«{"sky"' not in told


def test_turns_that_nobody_said_are_named_with_what_to_write(tmp_path: Path, terminal: Terminal) -> None:
    data = listed(tmp_path / "odd.json", [MISSPELT, NARRATED, KEYLESS, UNANSWERED, {"conversations": []}])
    told = terminal("check", data, "--json")
    assert told.status == 1
    found = {problem["where"]["line"]: problem for problem in json.loads(told.out)["problems"]}
    assert "unknown role 'asistant'" in found[1]["message"]
    assert found[1]["hint"] == "is it a misspelt assistant?"
    assert found[2]["hint"].startswith("rename it in the rows")
    assert "the turn has no role, its keys are frm, value" in found[3]["message"]
    assert found[3]["hint"] == 'is "frm" a misspelt from? correct it in the rows'
    assert found[4]["name"] == "no-answer"
    assert "an empty list" in found[5]["message"]


def test_files_that_the_shell_has_listed_are_told_to_be_given_as_one(exports: Path, terminal: Terminal) -> None:
    told = terminal.refused("check", exports / "a.json", exports / "b.json", status=2)
    assert "one file is expected" in told
    assert f"give the folder, {exports}, or a quoted pattern: '{exports}/*.json'" in told
    assert "4 of 4 rows" in terminal.done("check", f"{exports}/*.json").out


def test_a_large_array_is_read_piece_by_piece(tmp_path: Path, terminal: Terminal) -> None:
    rows = (chat(("human", f"Question {n}?"), ("gpt", f"Answer {n}: " + "word " * 60)) for n in range(6_000))
    data = listed(tmp_path / "large.json", rows)
    assert data.stat().st_size > 2_000_000
    told = terminal.done("check", data, "--select", "TT1")
    assert "6,000 of 6,000 rows can be used" in told.out
