"""What the commands take that look at the rows: check, prepare, inspect."""

from typing import Any

from truetune.arguments.options import Parser, add_command, add_settings, positive


def add_commands(commands: Any) -> None:
    """Adds them, in this order."""
    _add_check(add_command(commands, "check", "everything that would ruin the run, before it costs anything"))
    _add_prepare(add_command(commands, "prepare", "tokens ready for training, kept on disk"))
    _add_inspect(add_command(commands, "inspect", "what the model reads and what it learns, row by row"))


def _add_check(parser: Parser) -> None:
    add_settings(parser, takes="data", metavar="DATA | RUN.yaml | key=value")
    parser.add_argument("--json", action="store_true", help="print rows, problems and counts as JSON")
    parser.add_argument("--sarif", metavar="FILE", help="write the findings as SARIF, for code hosts")
    parser.add_argument(
        "--score",
        nargs="?",
        const=1000,
        type=positive,
        metavar="ROWS",
        help="with a model: its loss on so many rows (1000), the most and the least surprising told",
    )
    parser.add_argument(
        "--html", metavar="FILE", help="write a page that shows the data, its findings and their rows"
    )
    parser.add_argument(
        "--fix", metavar="OUT", help="write a cleaned copy (.jsonl, .json, .csv, .parquet), and its changes"
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="what --fix fills the placeholder {{NAME}} with",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --fix")
    parser.add_argument("--explain", metavar="CODE", help="the page of a rule (TT101, or its name); all: every rule")
    parser.add_argument("--select", metavar="CODES", help="rules to hold the data against: TT1,TT205,secret")
    parser.add_argument("--ignore", metavar="CODES", help="rules to leave out")
    parser.add_argument(
        "--fail-on", choices=("error", "warning", "note", "never"), help="exit with 1 at such findings (error)"
    )


def _add_prepare(parser: Parser) -> None:
    add_settings(parser, takes="data", metavar="DATA | RUN.yaml | key=value")
    parser.add_argument("--json", action="store_true", help="print the report and where the rows lie as JSON")


def _add_inspect(parser: Parser) -> None:
    add_settings(parser, takes="data", metavar="DATA | RUN.yaml | key=value")
    parser.add_argument("--rows", type=positive, default=3, help="how many rows to show (default: 3)")
    parser.add_argument("--json", action="store_true", help="print rows, tokens and labels as JSON")
