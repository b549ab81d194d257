"""report: a run as one page to look at, or all of them as pages that live."""

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from truetune.pipeline.review.live.security import Access


def report(options: argparse.Namespace) -> None:
    _require_fitting(options)
    if options.serve:
        _serve(options)
    else:
        _write(options)


def _require_fitting(options: argparse.Namespace) -> None:
    """ConfigError for words that do not go together."""
    from truetune.errors import ConfigError

    if options.serve and options.output:
        raise ConfigError("--serve writes no page", hint="leave --output out, or --serve")
    if not options.serve and (options.port is not None or options.host or options.key):
        raise ConfigError("--host, --port and --key are of --serve", hint="add --serve")
    if not options.serve and len(options.runs) != 1:
        raise ConfigError("the report is one run's: name it", hint="--serve shows all runs of a folder, and several")


def _write(options: argparse.Namespace) -> None:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show, show_json
    from truetune.figures import byte_size
    from truetune.pipeline.review.report import write_report

    with closing(ConsoleListener()) as listener:
        written = write_report(options.runs[0], options.output, listener=listener)
    if options.json:
        show_json(written.as_json())
    else:
        show(f"report: {written.path} ({byte_size(written.bytes)}, one file, nothing beside it)")


def _serve(options: argparse.Namespace) -> None:
    """Until Ctrl-C, which is how it is meant to end."""
    from truetune.console.listener import ConsoleListener
    from truetune.pipeline.review.live.server import serve_live

    with closing(ConsoleListener()) as listener:

        def ready(access: "Access") -> None:
            _tell(access, is_json=options.json)
            if access.is_open:
                listener.say(
                    f"other machines reach it by this one's name: the address with that for {access.shown_host}"
                )
            listener.say("Ctrl-C ends it")

        try:
            serve_live(
                [Path(each) for each in options.runs] or [Path("runs")],
                host=options.host or "127.0.0.1",
                port=options.port,
                is_keyed=options.key,
                ready=ready,
            )
        except KeyboardInterrupt:
            return


def _tell(access: "Access", *, is_json: bool) -> None:
    from truetune.console.output import show, show_json

    if is_json:
        show_json({"url": access.url})
    else:
        show(access.url)
    sys.stdout.flush()  # Whoever reads it in a pipe waits for it, and the command goes on.
