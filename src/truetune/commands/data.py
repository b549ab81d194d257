"""check, inspect, prepare: what is in the rows, and what the model will read of them."""

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from truetune.commands.settings import load
from truetune.errors import ConfigError

if TYPE_CHECKING:
    from truetune.config.schema import Config
    from truetune.data.rules import Report
    from truetune.pipeline.check import Checked


def check(options: argparse.Namespace) -> int:
    from truetune.config.schema import NO_MODEL
    from truetune.console.findings import show_report
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show_json
    from truetune.pipeline.check import check_rows

    if options.explain:
        return _explain(options.explain)
    if options.fix:
        if others := [f"--{name}" for name in ("sarif", "html", "score") if getattr(options, name)]:
            message = f"--fix does not go with {', '.join(others)}"
            raise ConfigError(message, hint="mend the rows first, then check OUT")
        return _fix(options)
    if options.set or options.overwrite:
        raise ConfigError("--set and --overwrite are for --fix", hint="add --fix OUT, the file to write")
    with closing(ConsoleListener()) as listener:
        config = load(options, listener, model=NO_MODEL)
        checked = check_rows(config, score=options.score, listener=listener)
        if options.html:
            _write_html(checked, config, Path(options.html))
    report = checked.report
    if options.json:
        show_json(report.as_json())
    else:
        show_report(report)
    if options.sarif:
        _write_sarif(report, Path(options.sarif))
    return 1 if report.fails(config.check.fail_on) else 0


def _fix(options: argparse.Namespace) -> int:
    from truetune.config.schema import NO_MODEL
    from truetune.console.findings import show_fixed
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show_json
    from truetune.pipeline.fix import fix_rows

    values = dict(map(_value, options.set))
    with closing(ConsoleListener()) as listener:
        config = load(options, listener, model=NO_MODEL)
        fixed = fix_rows(config, options.fix, values=values, overwrite=options.overwrite, listener=listener)
    if options.json:
        show_json(fixed.as_json())
    else:
        show_fixed(fixed)
    return 0


def _value(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise ConfigError(f"--set {text}: a name and its value are expected", hint="write --set name=Ada")
    return name.strip(), value


def _explain(code: str) -> int:
    from truetune.console.findings import show_pages
    from truetune.console.output import show
    from truetune.lint.explain import index, page
    from truetune.lint.selection import rules_of

    if code == "all":
        for code, name, severity, summary in index():
            show(f"{code}  {name:<20} {severity:<8} {summary}")
    else:
        show_pages(map(page, rules_of(code)))
    return 0


def _write_html(checked: "Checked", config: "Config", path: Path) -> None:
    from truetune.pipeline.data_report import write_data_report

    write_data_report(checked, config, path=path)


def _write_sarif(report: "Report", path: Path) -> None:
    from truetune.files import named_refusals, write_json
    from truetune.report.sarif import as_sarif

    with named_refusals(path):
        write_json(path, as_sarif(report))


def inspect(options: argparse.Namespace) -> None:
    from truetune.console.findings import show_inspected
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show_json
    from truetune.pipeline.inspect import inspect_rows

    listener = ConsoleListener()
    found = inspect_rows(load(options, listener), limit=options.rows)
    if options.json:
        show_json(found.as_json())
    else:
        show_inspected(found)


def prepare(options: argparse.Namespace) -> None:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show, show_json
    from truetune.pipeline.check import prepare, tell_prepared

    with closing(ConsoleListener()) as listener:
        prepared = prepare(load(options, listener), listener=listener)
    if options.json:
        show_json({**prepared.report.as_json(), "path": str(prepared.folder), "fingerprint": prepared.fingerprint})
        return
    tell_prepared(prepared, listener)
    show(f"prepared: {prepared.folder}")
