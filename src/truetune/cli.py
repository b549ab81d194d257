"""The command line: finds the command, and exits with its status. The only place that exits."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import NoReturn

from truetune.arguments.parse import parse_arguments
from truetune.commands.status import stopped_status
from truetune.environment import set_environment
from truetune.errors import OtherProcessError, TruetuneError


def entry() -> NoReturn:
    """The `truetune` command: runs it and exits with its status."""
    set_environment()
    if isinstance(sys.stdout, TextIOWrapper):
        # A file's name, or a row, may hold what no encoding has: its escape is told, which in JSON means the same.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit status: 0 done, 1 data or run, 2 command or config, 128 + n for signal n."""
    options = parse_arguments(arguments)
    room, name = COMMANDS[options.command]
    try:
        return int(getattr(import_module(f"truetune.commands.{room}"), name)(options) or 0)
    except TruetuneError as error:
        if options.traceback:
            raise
        from truetune.console.output import show_error

        if not isinstance(error, OtherProcessError):
            show_error(error)
        return error.exit_status
    except KeyboardInterrupt:
        from truetune.console.output import show_interrupted

        show_interrupted()
        return stopped_status("SIGINT")
    except BrokenPipeError:
        # The reader of our output has gone; nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


COMMANDS: Mapping[str, tuple[str, str]] = {
    "demo": ("training", "demo"),
    "train": ("training", "train"),
    "plan": ("training", "plan"),
    "find-lr": ("training", "find_lr"),
    "verify": ("training", "verify"),
    "runs": ("runs", "runs"),
    "compare": ("runs", "compare"),
    "sweep": ("runs", "sweep"),
    "launch": ("launching", "launch"),
    "generate": ("asking", "generate"),
    "chat": ("asking", "chat"),
    "eval": ("evaluation", "evaluate"),
    "report": ("report", "report"),
    "merge": ("trained", "merge"),
    "export": ("trained", "export"),
    "serve": ("serving", "serve"),
    "check": ("data", "check"),
    "prepare": ("data", "prepare"),
    "inspect": ("data", "inspect"),
    "init": ("setup", "init"),
    "import": ("setup", "import_"),
    "schema": ("setup", "schema"),
    "models": ("setup", "models"),
    "doctor": ("setup", "doctor"),
    "completion": ("completion", "completion"),
}
"""Each command's module and function, imported when it is called."""


if __name__ == "__main__":
    entry()
