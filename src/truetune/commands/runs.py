"""runs, compare, sweep: which runs there are, in what they differ, and many of them one after the other."""

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truetune.commands.status import stopped_status

if TYPE_CHECKING:
    from truetune.config.schema import Config
    from truetune.pipeline.review.grid import Grid
    from truetune.pipeline.review.sweep import PlannedRun

_DEFAULT = Path("runs")


def runs(options: argparse.Namespace) -> None:
    from truetune.console.output import show_json
    from truetune.console.runs import show_runs
    from truetune.runs.ledger import Wanted, find_runs, in_order

    settings = _named(options.where)
    statuses = [name.strip() for name in options.status.split(",")] if options.status else []
    wanted = Wanted(statuses, options.model, options.data, settings)
    folders = options.folders or ([_DEFAULT] if _DEFAULT.is_dir() else [])
    found = [entry for entry in find_runs(folders, settings=list(settings)) if wanted.matches(entry)]
    listed = in_order(found, options.sort, reverse=options.reverse)[: options.limit]
    if options.json:
        show_json({"runs": [entry.as_json() for entry in listed], "found": len(found)})
    else:
        show_runs(listed, found, named=list(settings))


def _named(words: Sequence[str]) -> dict[str, Any]:
    """What --where asks for, by dotted name; without it nothing of the config is imported."""
    if not words:
        return {}
    from truetune.config.load import named_settings

    return named_settings(words)


def compare(options: argparse.Namespace) -> None:
    from truetune.console.output import show_json
    from truetune.console.runs import show_comparison
    from truetune.pipeline.review.compare import compare_runs

    found = compare_runs(options.run_directories)
    if options.json:
        show_json(found.as_json())
    else:
        show_comparison(found)


def sweep(options: argparse.Namespace) -> int:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show_json
    from truetune.console.runs import show_sweep
    from truetune.pipeline.review.grid import read_grid

    with closing(ConsoleListener()) as listener:
        once = _Once(listener)
        grid = read_grid(options.settings, lambda words: _load(options, words, once))
        # Only now: what a sweep needs imports torch, which no wrong config has to wait for.
        from truetune.pipeline.review.sweep import plan_sweep, run_sweep, sweep_directory

        folder = Path(options.output_dir) if options.output_dir else sweep_directory(grid)
        if options.dry_run:
            return _tell_plan(grid, folder, list(plan_sweep(grid, folder, listener=listener)), as_json=options.json)
        listener.say(f"{len(grid.points)} runs in {folder}: {', '.join(grid.values)}")
        found = run_sweep(grid, folder, retry=options.retry, listener=listener)
    if options.json:
        show_json(found.as_json())
    else:
        show_sweep(found)
    return stopped_status(found.stopped_by) or (0 if found.is_complete else 1)


class _Once:
    """A listener that says each line once, however many runs it is true of."""

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self._said: set[str] = set()

    def say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._listener.say(message)


def _load(options: argparse.Namespace, words: Sequence[str], listener: Any) -> "Config":
    from truetune.commands.settings import load

    return load(argparse.Namespace(**{**vars(options), "settings": list(words), "output_dir": None}), listener)


def _tell_plan(grid: "Grid", folder: Path, planned: Sequence["PlannedRun"], *, as_json: bool) -> int:
    from dataclasses import asdict

    from truetune.console.output import show_json
    from truetune.console.runs import show_sweep_plan

    seconds, disk_bytes = sum(run.seconds or 0.0 for run in planned), sum(run.disk_bytes or 0 for run in planned)
    if as_json:
        document = {"path": str(folder), "grid": dict(grid.values), "runs": list(map(asdict, planned))}
        show_json({**document, "seconds": seconds, "disk_bytes": disk_bytes})
    else:
        show_sweep_plan(planned, folder, seconds=seconds, disk_bytes=disk_bytes)
    return 1 if any(run.problem or run.fits is False for run in planned) else 0
