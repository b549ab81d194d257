"""Somebody with a table of questions and answers, as spreadsheets write it."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typed import Terminal

ENGLISH = (
    "Question,Answer\n"
    'How do I reset it?,"Open Settings, then ""Security""."\n'
    'Where are my invoices?,"Under Billing.\nEach month has a PDF."\n'
    'How do I reset it?,"Open Settings, then ""Security""."\n'
    "Do you ship to Norway?,\n"
    "Total: 4 questions,\n"
)
GERMAN = (
    "Frage;Antwort\r\n"
    'Wie setze ich mein Passwort zurück?;"Öffnen Sie ""Sicherheit""."\r\n'
    'Wo sind meine Rechnungen?;"Unter Abrechnung;\r\njeder Monat hat ein PDF."\r\n'
    "Kann ich wechseln?;Ja, ab dem nächsten Monat.\r\n"
    "Liefern Sie nach Norwegen?;\r\n"
    "Gesamt;4\r\n"
)
SAVED = {
    "as it is": GERMAN.encode(),
    "as CSV UTF-8": b"\xef\xbb\xbf" + GERMAN.encode(),
    "with the separator said": b"sep=;\r\n" + GERMAN.encode(),
    "as Unicode, with tabs": GERMAN.replace(";", "\t").encode("utf-16"),
    "every value quoted": GERMAN.replace("Frage;Antwort", '"Frage";"Antwort"').encode(),
}


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def proposed(told: str) -> str:
    """The setting that a hint proposes, as a shell reads it."""
    found = re.search(r"data\.columns='[^']*'", told)
    assert found, told
    return shlex.split(found[0])[0]


def test_the_first_look_names_what_cannot_be_used(tmp_path: Path, terminal: Terminal) -> None:
    data = written(tmp_path / "faq.csv", ENGLISH)
    told = terminal("check", data)
    assert told.status == 1
    assert f"[empty-answer] {data}, record 4, field Answer" in told.out
    assert f"[empty-answer] {data}, record 5, field Answer" in told.out
    assert "[duplicate-rows]" in told.out
    assert "read as instruction from Question, Answer: 3 rows" in told.out
    assert "3 of 5 rows can be used" in told.out


@pytest.mark.parametrize("saved", SAVED)
def test_however_it_was_saved_the_columns_are_found_once_they_are_named(
    saved: str, tmp_path: Path, terminal: Terminal
) -> None:
    data = written(tmp_path / "fragen.csv", SAVED[saved])
    told = terminal("check", data)
    assert told.status == 1
    assert told.out.count("fields are Frage, Antwort") == 2
    assert "and 3 more" in told.out
    setting = proposed(told.out)
    assert setting == "data.columns={Frage: instruction, Antwort: output}"
    told = terminal("check", data, setting)
    assert "read as instruction from Frage, Antwort: 4 rows" in told.out
    assert "4 of 5 rows can be used" in told.out


def test_a_table_in_windows_letters_is_refused_with_a_command_that_mends_it(
    tmp_path: Path, tiny_base: Path, terminal: Terminal
) -> None:
    data = written(tmp_path / "meine fragen.csv", GERMAN.encode("cp1252"))
    told = terminal.refused("check", data, status=1)
    assert f"{data}, line 2: not valid UTF-8 (byte 0xfc)" in told
    command = told.partition("or, if Windows wrote it, ")[2].splitlines()[0]
    subprocess.run(command, shell=True, check=True)
    columns = "data.columns={Frage: instruction, Antwort: output}"
    assert "zurück?" in terminal.done("inspect", mended(command), "--model", tiny_base, columns).out


def mended(command: str) -> str:
    return shlex.split(command)[-1]


def test_a_workbook_is_refused_with_the_way_to_save_it(tmp_path: Path, terminal: Terminal) -> None:
    workbook = b"PK\x03\x04\x14\x00\x06\x00\x08\x00\xff\xfe"
    for name, words in (("faq.xlsx", "files ending in .xlsx"), ("faq.csv", "this is an Excel file")):
        told = terminal.refused("check", written(tmp_path / name, workbook), status=1)
        assert words in told
        assert "CSV UTF-8" in told


@pytest.mark.parametrize(
    ("row", "message", "remedy"),
    [
        ("Where?,Here, or there\n", "record 1 (ends on line 2): 3 values under 2 columns", "in double quotes"),
        ("Total 1\n", "record 1 (ends on line 2): 1 value under 2 columns", "take it out if it is no row"),
    ],
)
def test_a_row_of_another_width_is_named_with_what_it_may_be(
    row: str, message: str, remedy: str, tmp_path: Path, terminal: Terminal
) -> None:
    told = terminal.refused("check", written(tmp_path / "faq.csv", f"Question,Answer\n{row}"), status=1)
    assert message in told
    assert remedy in told


def test_empty_columns_behind_the_others_are_passed_over_and_what_stands_in_one_is_named(
    tmp_path: Path, terminal: Terminal
) -> None:
    data = written(tmp_path / "faq.csv", "Question,Answer,,\nWhat?,A shop.,,\nWhen?,Always.,,\n")
    assert "2 of 2 rows can be used" in terminal.done("check", data).out
    written(data, "Question,Answer,,\nWhat?,A shop.,,see John\n")
    told = terminal.refused("check", data, status=1)
    assert "record 1: 'see John' stands in column 4, which has no name" in told


def test_it_trains_and_answers_with_the_setting_that_check_proposed(
    tmp_path: Path, tiny_base: Path, terminal: Terminal
) -> None:
    data, run = written(tmp_path / "fragen.csv", GERMAN), tmp_path / "run"
    setting = proposed(terminal("check", data).out)
    words = ("--model", tiny_base, "--output-dir", run, setting, "max_steps=2")
    told = terminal.done("train", *words, data)
    assert "1 of 5 rows left out: empty-answer" in told.err
    assert f"truetune chat {run}" in told.out
    terminal.done("generate", run, "--prompt", "Wo sind meine Rechnungen?", "--max-new-tokens", "4")
