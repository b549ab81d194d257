"""The reference of the commands, from what the command line itself is parsed by."""

import argparse
from collections.abc import Iterator

from manual.contents import Page
from truetune.arguments.examples import EXAMPLES
from truetune.arguments.parse import command_parser

HEAD = """# Commands

Every command with all that it takes, as `truetune COMMAND --help` tells it.

- DATA is a file, a folder, a glob or a hub id, as [data and formats](../data.md) has them. M is a hub id, a folder,
  a `.gguf` file, or `demo`. RUN is a run's directory, `RUN@STEP` one of its checkpoints.
- Settings are written `key=value`; they win over the config file. [Configuration](config.md) has all of them. A
  name that is unique needs no section: `learning_rate=1e-4`. Values are YAML.
- With `--json` there is one JSON document on standard output and nothing else; words go to standard error.
- Every command takes `--traceback`, which shows where in the code an error arose.

| exit status | |
|---|---|
| 0 | done |
| 1 | the data, the run or the model is not right, or a threshold was missed |
| 2 | the command or the configuration is not right |
| 128 and a signal's number | stopped on request (130 by Ctrl-C, 143 by SIGTERM), and can go on |
"""

GUIDES = {
    "demo": "index",
    "train": "training",
    "plan": "planning",
    "find-lr": "training",
    "verify": "runs",
    "runs": "runs",
    "compare": "runs",
    "sweep": "runs",
    "launch": "scaling",
    "generate": "inference",
    "chat": "inference",
    "eval": "evaluating",
    "report": "report",
    "merge": "inference",
    "export": "exporting",
    "serve": "serving",
    "check": "checking",
    "prepare": "data",
    "inspect": "data",
    "init": "training",
    "import": "import",
    "schema": "training",
    "models": "models",
    "doctor": "engines",
    "completion": "installation",
}
"""The page that explains a command with examples."""


def page() -> str:
    """All commands, in the order of `truetune --help`."""
    return "\n".join([HEAD, *(_command(name, parser) for name, parser in commands().items())])


def commands() -> dict[str, argparse.ArgumentParser]:
    """Each command's own parser, by name."""
    subparsers = (each for each in command_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(next(subparsers).choices)


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    examples = [f"    {line}" for line in EXAMPLES[name]]
    lines = [f"## truetune {name}", "", parser.description or "", "", *examples, "", *_groups(parser)]
    page = Page("", f"{GUIDES[name]}.md", "") if name in GUIDES else None
    return "\n".join([*lines, *([f"More: [{page.title}](../{page.path})", ""] if page else [])])


def _groups(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The arguments, a line each; those of a group of its own under its title."""
    for number, group in enumerate(parser._action_groups):
        lines = [_argument(action) for action in group._group_actions if _is_told(action)]
        if lines and number > 1:  # argparse's own first two are positional arguments and options.
            yield from ("", f"{_capital(group.title or '')}:", "")
        yield from lines
    yield ""


def _is_told(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)


def _argument(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings)
    words = " ".join(filter(None, (name, _value(action))))
    told = "; ".join(filter(None, (action.help, _default(action)))).replace("<", "&lt;")
    required = " (required)" if action.required and action.option_strings else ""
    return f"- `{words}`{required}" + (f": {told}" if told else "")


def _value(action: argparse.Action) -> str:
    """What stands behind an option, or in an argument's place."""
    if action.nargs == 0:
        return ""
    if action.choices:
        value = " | ".join(map(str, action.choices))
    else:
        value = str(action.metavar or (action.dest.upper() if action.option_strings else action.dest))
    match action.nargs:
        case "?":
            return f"[{value}]"
        case "*":
            return f"[{value} …]"
        case "+":
            return f"{value} …"
        case _:
            return value


def _default(action: argparse.Action) -> str:
    """The default, where there is one to be told and the help has not done so."""
    is_told = action.nargs == 0 or "default" in (action.help or "") or not action.option_strings
    if is_told or action.default in (None, False, "", argparse.SUPPRESS) or isinstance(action.default, list):
        return ""
    return f"default: {action.default}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
