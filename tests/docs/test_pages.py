"""What the manual's pages claim beside their commands: configs, names of other tools, settings, messages."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from manual.contents import DOCS, ROOT
from truetune.arguments.parse import parse_arguments
from truetune.config.load import load_config
from truetune.config.schema import SECTIONS, setting_names
from truetune.errors import ConfigError
from truetune.migrate.importer import import_file

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
YAML_BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.M | re.S)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def parsed(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def configs() -> Iterator[tuple[str, str]]:
    """Each config that a page shows; workflows of code hosts are none."""
    for page in PAGES:
        for number, block in enumerate(YAML_BLOCK.findall(text_of(page)), start=1):
            if "jobs:" not in block:
                yield f"{name_of(page)} {number}", block


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in configs()])
def test_every_config_that_a_page_shows_is_valid(text: str, tmp_path: Path) -> None:
    document = parsed(text)
    assert document.keys() <= {*SECTIONS, "output_dir", "deploy"}
    file = tmp_path / "run.yaml"
    missing = "" if "model" in document else "model: {name_or_path: demo}\n"
    file.write_text(missing + text, encoding="utf-8")
    assert not load_config(file).notices


# --- other tools ------------------------------------------------------------------------------------------

NEEDED = {
    "trl": {"model_name_or_path": "m", "dataset_name": "d.jsonl", "use_peft": True},
    "axolotl": {"base_model": "m", "datasets": [{"path": "d.jsonl", "type": "alpaca"}], "adapter": "lora"},
    "llamafactory": {"model_name_or_path": "m", "stage": "sft", "finetuning_type": "lora"},
    "unsloth": {"model_name": "m", "local_dataset": "d.jsonl"},
}
"""What makes a config of a tool one of its own."""
TITLES = {"trl": "TRL", "axolotl": "Axolotl", "llamafactory": "LLaMA-Factory", "unsloth": "Unsloth"}
ROW = re.compile(r"^\| `([a-z_0-9]+: [^`]+)` \| `([a-z_0-9.]+: [^`]+)` \|$", re.M)


def names_of_tools() -> Iterator[tuple[str, str, str]]:
    page = text_of(DOCS / "coming-from.md")
    for tool, title in TITLES.items():
        section = page.partition(f"## From {title}\n")[2].partition("\n## ")[0]
        yield from ((tool, theirs, ours) for theirs, ours in ROW.findall(section))


def test_each_tool_has_its_table() -> None:
    assert {tool for tool, _, _ in names_of_tools()} == TITLES.keys()
    assert len([*names_of_tools()]) == len(re.findall(r"^\| `[a-z_0-9]+: ", text_of(DOCS / "coming-from.md"), re.M))


@pytest.mark.parametrize(("tool", "theirs", "ours"), list(names_of_tools()))
def test_the_key_of_another_tool_is_translated_as_the_page_says(
    tool: str, theirs: str, ours: str, tmp_path: Path
) -> None:
    file = tmp_path / "theirs.yaml"
    YAML().dump({**NEEDED[tool], **parsed(theirs)}, file)
    ((name, value),) = parsed(ours).items()
    found = import_file(file, tool=tool).translation.settings
    assert found.get(name) == value


def test_what_the_page_says_is_refused_is() -> None:
    refused = re.findall(r"^\| `(\w+)` \| refused", text_of(DOCS / "coming-from.md"), re.M)
    assert refused == ["learning_rate_multiplier", "batch_size"]
    for name in refused:
        with pytest.raises(ConfigError, match=name):
            load_config(settings={name: 2}, defaults={"model.name_or_path": "demo"})


# --- names and messages -----------------------------------------------------------------------------------

SETTING = re.compile(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_0-9]+)(?::[^`]*)?`")
NOT_SETTINGS = {
    *("data.csv", "data.html", "data.items", "data.json", "data.jsonl", "data.md", "data.yml"),
    *("model.generate", "model.gguf", "training.md", "check.md"),
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    known = {*setting_names()} | NOT_SETTINGS
    assert not {name for name in SETTING.findall(text_of(page)) if name not in known}


def test_every_message_that_is_explained_is_one_that_the_code_says() -> None:
    table = text_of(DOCS / "troubleshooting.md").partition("## Messages")[2]
    rows = re.findall(r"^\| (`.+?) \| ", table, re.M)
    source = "\n".join(text_of(file) for file in (ROOT / "src").rglob("*.py"))
    words = [words for row in rows for words in re.findall(r"`([^`]+)`", row)]
    assert len(rows) > 15
    assert not [each for each in words if each not in source]


# --- commands ---------------------------------------------------------------------------------------------


def command_lines() -> Iterator[tuple[str, str]]:
    """Each truetune command in a block of a page, run or only shown; `…` stands for what is left out."""
    for page in PAGES:
        blocks = [each for each in MarkdownIt().parse(text_of(page)) if each.type in ("fence", "code_block")]
        for line in (line.removeprefix("$ ") for each in blocks for line in each.content.splitlines()):
            if line.startswith("truetune ") and "…" not in line:
                yield name_of(page), line


@pytest.mark.parametrize(("page", "line"), sorted(set(command_lines())), ids=str)
def test_every_command_that_a_page_shows_can_be_given_so(page: str, line: str) -> None:
    _, *words = shlex.split(line, comments=True)
    options = parse_arguments(words)
    assert options.command == words[0]
    if options.command != "sweep":  # Its values have commas.
        load_config(overrides=getattr(options, "settings", []), defaults={"model.name_or_path": "demo"})
