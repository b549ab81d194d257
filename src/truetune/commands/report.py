"""report: a run as one page to look at."""

import argparse
from contextlib import closing


def report(options: argparse.Namespace) -> None:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show, show_json
    from truetune.pipeline.review.report import write_report

    with closing(ConsoleListener()) as listener:
        written = write_report(options.run_directory, options.output, listener=listener)
    if options.json:
        show_json(written.as_json())
    else:
        show(f"report: {written.path} ({written.bytes / 1e3:,.0f} kB, one file, nothing beside it)")
