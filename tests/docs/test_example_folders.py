"""examples/, one folder a task: configs that load, sound rows, test rows that are new, and figures that agree.

That the quickest two reach what their READMEs say is shown by test_docs.py, which runs these from top to bottom.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from commanded import printed_json
from truetune.arguments.parse import parse_arguments
from truetune.config.load import load_config
from truetune.data.examples import Completion, Conversation, Example, Instruction
from truetune.data.formats import parse_example
from truetune.data.read import read_records

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FOLDERS = sorted(config.parent for config in EXAMPLES.glob("*/run.yaml"))
PARTS = {"train.jsonl": range(150, 401), "test.jsonl": range(20, 41)}
"""The files of rows, and how many each may have."""

in_each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def test_there_is_a_folder_for_each_task() -> None:
    tasks = {"support-chat", "text-to-sql", "json-extraction", "tool-calling", "domain-completion", "style"}
    assert {folder.name for folder in FOLDERS} == tasks


@in_each_folder
def test_a_config_is_valid_and_reads_the_rows_beside_it(folder: Path) -> None:
    loaded = load_config(folder / "run.yaml")
    assert not loaded.notices
    assert loaded.config.data.path == f"examples/{folder.name}/train.jsonl"
    assert loaded.config.output_dir == f"runs/{folder.name}"
    assert loaded.config.model.name_or_path == "demo"


@pytest.mark.real  # The real model's tokenizer: no row may be too long for the config, or without a learned token.
@pytest.mark.parametrize("part", PARTS)
@in_each_folder
def test_no_row_is_left_out_or_has_an_error(
    folder: Path, part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    rows = f"data.path=examples/{folder.name}/{part}"
    report = printed_json(
        capsys, "check", f"examples/{folder.name}/run.yaml", rows, "test_size=0", "validation_path=null"
    )
    assert report["rows_kept"] == report["rows_read"]
    assert report["rows_kept"] in PARTS[part]


@in_each_folder
def test_no_test_row_asks_what_a_training_row_does(folder: Path) -> None:
    trained, tested = (set(asked(folder / part)) for part in PARTS)
    assert trained
    assert not trained & tested


def asked(rows: Path) -> Iterator[str]:
    """What each row asks last, without case and punctuation; of a bare text all of it."""
    for record in read_records(rows):
        yield " ".join(re.findall(r"\w+", _asked(parse_example(record)).casefold()))


def _asked(example: Example) -> str:
    match example:
        case Conversation(messages=messages):
            return [turn.content for turn in messages if turn.role == "user"][-1]
        case Instruction(instruction=instruction, input=given):
            return f"{instruction} {given}"
        case Completion(prompt=prompt, completion=completion):
            return prompt or completion


# --- figures ----------------------------------------------------------------------------------------------

FIGURE = re.compile(r"^\| `?(\w+)`? \| ([\d.]+) \| ([\d.]+) \|", re.M)
"""A line of what `truetune eval` prints: a figure, of the tuned model, of the base."""


@in_each_folder
def test_the_threshold_of_a_readme_lies_between_the_base_and_what_was_reached(folder: Path) -> None:
    reached = figures(folder)
    found = list(thresholds(folder))
    assert found
    for name, sign, bound in found:
        tuned, base = reached[name]
        assert sign * base < sign * bound <= sign * tuned, name


@in_each_folder
def test_the_table_of_examples_says_what_the_folder_does(folder: Path) -> None:
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in table.splitlines() if f"]({folder.name}/README.md)" in line]
    train, test = (len(list(read_records(folder / part))) for part in PARTS)
    assert f"| {train} + {test} |" in line
    reached = figures(folder)
    stated = re.findall(r"`(\w+)` ([\d.]+) → ([\d.]+)", line)
    assert stated
    for name, base, tuned in stated:
        assert (float(tuned), float(base)) == reached[name], name


def figures(folder: Path) -> dict[str, tuple[float, float]]:
    """What README says was reached: by the figure's name, the tuned model's and the base's."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return {name: (float(tuned), float(base)) for name, tuned, base in FIGURE.findall(text)}


def thresholds(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Those of README's eval commands: the figure, 1 where more is better, -1 where less is; and the number."""
    for words in commands(folder):
        options = parse_arguments(words)
        if options.command == "eval":
            for sign, given in ((1, options.fail_under), (-1, options.fail_over)):
                for bound in (each for some in given for each in some):
                    name, _, number = bound.partition("=")
                    yield name, sign, float(number)


def commands(folder: Path) -> Iterator[list[str]]:
    """The truetune commands of a folder's README, without their first word."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["truetune"]:
                yield words[1:]


@in_each_folder
def test_a_readme_checks_trains_judges_and_asks_what_stands_beside_it(folder: Path) -> None:
    config, run = f"examples/{folder.name}/run.yaml", f"runs/{folder.name}"
    first = {"check": config, "train": config, "eval": run, "generate": run}
    found = [words[:2] for words in commands(folder)]
    assert {tuple(words) for words in found} == set(first.items())
