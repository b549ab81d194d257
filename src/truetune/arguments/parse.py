"""The command line's words as options: which command, and which of its words are a file and which are settings."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from truetune.arguments import asking, data, evaluation, launching, report, runs, serving, setup, trained, training
from truetune.arguments.guesses import is_config, is_data, several_files, unknown_command, unknown_options
from truetune.arguments.options import Parser

_ROOMS = (training, runs, launching, asking, evaluation, report, trained, serving, data, setup)
"""In the order of `truetune --help`."""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command's name and its options; exits with status 2 for what is not right."""
    parser = command_parser()
    _require_command(parser, arguments)
    options, rest = parser.parse_known_args(arguments)
    options.given = list(arguments)
    unknown = [word for word in rest if word.startswith("-") or not hasattr(options, "words")]
    if unknown:
        _refuse_unknown(options, unknown)
    if hasattr(options, "words"):
        _sort_words(options, rest)
    return options


def _require_command(parser: Parser, arguments: Sequence[str]) -> None:
    known = [name for action in parser._actions for name in action.choices or ()]
    first = next((word for word in arguments if not word.startswith("-")), None)
    if first is not None and first not in known:
        parser.refuse(f"there is no command {first}", unknown_command(first, known))


def _refuse_unknown(options: argparse.Namespace, unknown: Sequence[str]) -> NoReturn:
    parser: Parser = options.parser
    known = [option for action in parser._actions for option in action.option_strings]
    hint = unknown_options(
        options.given, unknown, command=options.command, known=known, takes_settings=hasattr(options, "words")
    )
    parser.refuse(f"unknown argument{'s'[: len(unknown) > 1]} {', '.join(unknown)}", hint)


def _sort_words(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Tells the config file (or DATA) from key=value settings; argparse stops at the first option between them."""
    words = [*options.words, *rest]
    if getattr(options, "resume", None) and _is_word(options.resume):
        words.append(options.resume)
        options.resume = "newest"
    options.settings = [word for word in words if "=" in word and not Path(word).exists()]
    names = [word for word in words if word not in options.settings]
    if len(names) > 1:
        options.parser.refuse(f"one file is expected, got {', '.join(names)}", several_files(names))
    options.config = None
    for name in names:
        _take_file(options, name)


def _take_file(options: argparse.Namespace, name: str) -> None:
    """The config, or the data: of a file of rows nobody means a config."""
    parser: Parser = options.parser
    match options.takes:
        case "settings":
            hint = f"of your own rows: truetune train --model M --data {name}"
            parser.refuse(f"no file is taken here: {name}", hint)
        case "data" if not is_config(name):
            is_rows = True
        case _:
            is_rows = is_data(name)
    if not is_rows:
        options.config = name
    elif options.data not in (None, name):
        given = [options.data, name]
        parser.refuse(f"data is given twice: {name}, and --data {options.data}", several_files(given))
    else:
        options.data = name


def _is_word(value: str) -> bool:
    """True of what stands behind an option whose value may be left out, and is none."""
    return "=" in value or is_config(value) or is_data(value)


def command_parser() -> Parser:
    """The parser of every command; the manual's reference is written from it."""
    parser = Parser(
        prog="truetune",
        description="Fine-tune language models on your own data, and be told the truth about it.",
        epilog=_START,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for room in _ROOMS:
        room.add_commands(commands)
    return parser


_START = """Start with:
  truetune demo
  truetune check rows.jsonl
  truetune train --model demo --data rows.jsonl

`truetune COMMAND --help` has examples of each."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Python 3.11 takes commands to begin two columns before they do, and breaks the line of the longest one."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += 2


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        # argparse's `exit` would say it on standard error.
        parser._print_message(f"truetune {version('truetune')}\n", sys.stdout)
        parser.exit()
