"""What the commands take that look at several runs, or make them: runs, compare, sweep."""

from typing import Any

from truetune.arguments.options import Parser, add_command, add_settings, positive


def add_commands(commands: Any) -> None:
    """Adds them, in this order."""
    _add_runs(add_command(commands, "runs", "the runs there are: status, model, data, settings, losses, speed"))
    _add_compare(
        add_command(commands, "compare", "in what runs differ, and whether their figures do by more than noise")
    )
    _add_sweep(add_command(commands, "sweep", "a run for each way to choose the settings, one after the other"))


def _add_runs(parser: Parser) -> None:
    parser.add_argument(
        "folders", nargs="*", metavar="FOLDER", help="where to look, runs among others (default: runs)"
    )
    parser.add_argument(
        "--sort",
        choices=("started", "loss", "eval_loss", "steps", "speed", "seconds", "memory", "name"),
        default="started",
        help="the newest (the default), the lowest loss, the most steps, the fastest … first",
    )
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--status", help="with commas: running, finished, stopped, failed, dead, unreadable")
    parser.add_argument("--model", metavar="WORD", help="runs whose model has this in its name")
    parser.add_argument("--data", metavar="WORD", help="runs whose data has this in its name")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="key=value",
        help="runs with this setting: r=8; may be repeated",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="show so many")
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def _add_compare(parser: Parser) -> None:
    parser.add_argument("run_directories", nargs="+", metavar="RUN", help="runs' directories, two or more")
    parser.add_argument("--json", action="store_true", help="print all that is compared as JSON")


def _add_sweep(parser: Parser) -> None:
    add_settings(parser, takes="config", metavar="RUN.yaml | key=value,value")
    parser.add_argument("--output-dir", help="the sweep's folder (default: runs/<data>-sweep-<n>)")
    parser.add_argument("--retry", action="store_true", help="try runs again that failed before")
    parser.add_argument(
        "--dry-run", action="store_true", help="tell steps, time, memory and disk of all, train nothing"
    )
    parser.add_argument("--json", action="store_true", help="print the runs, the best first, as JSON")
