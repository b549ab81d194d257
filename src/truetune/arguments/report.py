"""What `truetune report` takes: a run for a page, or runs to show as they go on."""

from typing import Any

from truetune.arguments.options import add_command, port


def add_commands(commands: Any) -> None:
    """Adds it."""
    parser = add_command(commands, "report", "a run as one page to look at: curves, answers, rows, plan, settings")
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="a run's directory; with --serve runs, or folders of them (default: runs)",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the page to write (default: RUN/report.html)")
    parser.add_argument("--json", action="store_true", help="print path, size and what is missing as JSON")
    parser.add_argument("--serve", action="store_true", help="show the runs there are, as they go on, in a browser")
    serve = parser.add_argument_group("with --serve")
    serve.add_argument("--host", help="where to listen (default: 127.0.0.1, this machine; elsewhere with a key)")
    serve.add_argument("--port", type=port, help="a port, or 0 for any (default: 8770, or any if taken)")
    serve.add_argument("--key", action="store_true", help="ask for a key on this machine, too: others may use it")
