"""What several commands take alike: the parser itself, settings, a model's device, and kinds of numbers."""

import argparse
from typing import Any, NoReturn

from truetune.arguments import examples
from truetune.arguments.guesses import newest_run


class Parser(argparse.ArgumentParser):
    """argparse with our form of an error, and a hint of what is meant."""

    def error(self, message: str) -> NoReturn:
        self.refuse(message, self._remedy(message))

    def refuse(self, message: str, hint: str | None = None) -> NoReturn:
        """Exits with status 2; without a hint, the help is one."""
        self.exit(2, f"error: {message}\nhint: {hint or f'{self.prog} --help shows what it takes'}\n")

    def _remedy(self, message: str) -> str | None:
        """Of a command without its run: how it is given, and which there is."""
        if not message.startswith("the following arguments are required: RUN"):
            return None
        newest = newest_run()
        where = "a run's directory, the newest here" if newest else "a run's directory"
        return f"give {where}: {self.prog} {newest or 'runs/NAME'}"


def add_command(commands: Any, name: str, help: str) -> Parser:
    """The parser of a command, with what every command takes."""
    parser: Parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=examples.told(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.set_defaults(command=name, parser=parser)
    return parser


def add_settings(parser: Parser, *, takes: str, metavar: str) -> None:
    """A config file or DATA (which of them, `takes` says) with key=value settings, a model and data."""
    add_words(parser, takes=takes, metavar=metavar)
    parser.add_argument("--model", help="a hub id, a folder, a .gguf file, or demo")
    parser.add_argument("--data", help="a file, a folder, a glob or a hub id")


def add_words(parser: Parser, *, takes: str, metavar: str) -> None:
    """Words that are a file or settings."""
    parser.add_argument("words", nargs="*", metavar=metavar, help="settings win over the file, flags over neither")
    parser.set_defaults(takes=takes)


def add_device(parser: Parser, *, help: str = "to load the model on") -> None:
    """Where a model is loaded."""
    told = f"{help} (auto, the default: a GPU where there is one)"
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help=told)


def positive(text: str) -> int:
    """1, 2, 3 …"""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number (got {text!r})")
    return number


def count(text: str) -> int:
    """0, 1, 2 …"""
    return 0 if text == "0" else positive(text)


def positive_or_auto(text: str) -> Any:
    """1, 2, 3 …, or auto."""
    return text if text == "auto" else positive(text)


def port(text: str) -> int:
    """A port's number; 0 stands for any."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535 (got {text!r})")
    return int(text)
