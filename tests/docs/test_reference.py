"""What is generated of the manual equals the code, and covers it."""

import json
import re
from pathlib import Path

import pytest

import truetune
from manual import commands, python_api, run_directory
from manual.contents import DOCS, pages
from manual.reference import GENERATED
from truetune.cli import COMMANDS
from truetune.config.schema import setting_names
from truetune.data.catalog import RULES


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    assert text_of(name) == GENERATED[name](), f"docs/{name} is out of date: make reference"


def test_every_command_has_a_section_with_each_of_its_options() -> None:
    sections = dict(
        re.findall(r"^## truetune (\S+)\n(.*?)(?=^## |\Z)", text_of("reference/commands.md"), re.M | re.S)
    )
    assert sections.keys() == COMMANDS.keys()
    for name, parser in commands.commands().items():
        options = {option for option in parser.format_help().split() if option.startswith("--")}
        for option in {option.strip("[],.:;)") for option in options} - {"--help", "--traceback"}:
            assert option.partition("=")[0] in sections[name], f"{name} {option}"


def test_every_command_is_explained_by_a_page_that_names_it() -> None:
    for name in COMMANDS:
        assert f"truetune {name}" in text_of(f"{commands.GUIDES[name]}.md")


def test_every_setting_rule_and_public_name_has_a_heading() -> None:
    assert headings("reference/config.md") >= set(setting_names())
    assert headings("reference/rules.md") >= {str(rule) for rule in RULES.values()}
    assert headings("reference/python.md") >= {f"truetune.{name}" for name in truetune.__all__}


def headings(name: str) -> set[str]:
    return set(re.findall(r"^### (.+)$", text_of(name), re.M))


def test_a_signature_has_every_parameter_of_the_function() -> None:
    page = text_of("reference/python.md")
    for parameter in ("resume_from_checkpoint: bool | str | Path | None = None", "**settings: Any", "*runs: Run"):
        assert parameter in page
    assert python_api._signature("load", truetune.load).startswith("load(")


def test_the_page_of_a_runs_directory_has_all_that_a_run_writes(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = truetune.train(model=str(tiny_base), data=str(rows), output_dir=folder, max_steps=2, test_size=4)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert run_directory.outcome_keys() <= record.keys() <= run_directory.RECORD.keys()
    logged = {key for line in run.metrics for key in line}
    assert logged <= run_directory.METRICS.keys()
    assert {"step", "loss", "grad_norm", "eval_loss"} <= logged
    page = text_of("reference/run-directory.md")
    for file in (path.name for path in folder.iterdir() if not path.name.startswith(".")):
        assert f"- `{file}" in page, f"{file} is not on the page"


def test_the_contents_name_every_page_once() -> None:
    named = [page.path for page in pages()]
    assert sorted(named) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_every_page_begins_with_its_title() -> None:
    for page in pages():
        assert page.text.startswith("# "), page.path
