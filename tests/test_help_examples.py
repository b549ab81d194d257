"""--help ends with lines that can be typed."""

import shlex

import pytest

from manual.commands import commands
from truetune.arguments.examples import EXAMPLES
from truetune.arguments.parse import parse_arguments
from truetune.config.load import load_config

PARSERS = commands()


def test_every_command_has_examples_and_no_other_has() -> None:
    assert list(EXAMPLES) == list(PARSERS)
    assert {command: len(lines) for command, lines in EXAMPLES.items() if not 2 <= len(lines) <= 4} == {}


@pytest.mark.parametrize("command", PARSERS)
def test_help_ends_with_the_examples_of_its_command(command: str) -> None:
    shown = PARSERS[command].format_help()
    assert shown.endswith("\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES[command])]) + "\n")


@pytest.mark.parametrize(("command", "line"), [(name, line) for name, lines in EXAMPLES.items() for line in lines])
def test_an_example_is_a_command_line_with_settings_that_exist(command: str, line: str) -> None:
    program, *words = shlex.split(line)
    options = parse_arguments(words)
    assert (program, options.command) == ("truetune", command)
    settings = getattr(options, "settings", [])
    for each in settings if command == "sweep" else ():
        name, _, values = each.partition("=")
        for value in values.split(","):
            load_config(overrides=[f"{name}={value}"], defaults={"model.name_or_path": "demo"})
    if command != "sweep":
        load_config(overrides=settings, defaults={"model.name_or_path": "demo"})
