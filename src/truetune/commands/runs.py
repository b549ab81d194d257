"""runs, compare, sweep: which runs there are, in what they differ, and many of them one after the other."""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truetune.commands.status import stopped_status

if TYPE_CHECKING:
    from truetune.config.schema import Config
    from truetune.pipeline.review.compare import Compared, RunComparison, Verdict
    from truetune.pipeline.review.grid import Grid
    from truetune.pipeline.review.sweep import PlannedRun, Sweep
    from truetune.runs.ledger import RunEntry

_DEFAULT = Path("runs")
_PROBLEMS = 5
"""Runs whose problem is told below the list."""


# --- runs -------------------------------------------------------------------------------------------------


def runs(options: argparse.Namespace) -> None:
    from truetune.console.output import show_json
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
        _show_runs(listed, found, list(settings))


def _named(words: Sequence[str]) -> dict[str, Any]:
    """What --where asks for, by dotted name; without it nothing of the config is imported."""
    if not words:
        return {}
    from truetune.config.load import named_settings

    return named_settings(words)


_COLUMNS = (
    "run",
    "status",
    "steps",
    "loss",
    "eval",
    "tok/s",
    "rate",
    "rank",
    "rows/step",
    "model",
    "data",
    "started",
)
_SPARE = ("rows/step", "data", "rank", "started", "rate", "tok/s", "model")


def _show_runs(listed: Sequence["RunEntry"], found: Sequence["RunEntry"], named: Sequence[str]) -> None:
    from truetune.console.output import show, show_columns

    if not found:
        show("no runs found")
        return
    columns = (*_COLUMNS, *named)
    show_columns(
        columns,
        [(*_line(entry), *(_word(entry.settings.get(name)) for name in named)) for entry in listed],
        spare=_SPARE,
    )
    problems = [f"{entry.path}: {entry.problem.splitlines()[0]}" for entry in listed if entry.problem]
    for problem in problems[:_PROBLEMS]:
        show(problem)
    if len(problems) > _PROBLEMS:
        show(f"and {len(problems) - _PROBLEMS} more with problems (--json tells all)")
    counted = ", ".join(
        f"{count:,} {status}" for status, count in Counter(each.status for each in found).most_common()
    )
    shown = f"; {len(listed):,} are shown" if len(listed) < len(found) else ""
    show(f"{len(found):,} runs: {counted}{shown}")


def _line(entry: "RunEntry") -> tuple[str, ...]:
    total = entry.total_steps
    has_all = entry.steps == total or entry.status == "finished"
    return (
        str(entry.path),
        entry.status,
        _word(entry.steps) if has_all or not total else f"{entry.steps or 0}/{total}",
        _word(entry.final_loss),
        _word(entry.eval_loss),
        _word(entry.tokens_per_second and round(entry.tokens_per_second)),
        _word(entry.settings.get("training.learning_rate")),
        "full" if entry.settings.get("adapter.method") == "full" else _word(entry.settings.get("adapter.r")),
        _word(entry.effective_batch_size),
        _tail(entry.model),
        _tail(entry.data),
        (entry.started or "-")[:16].replace("T", " "),
    )


def _tail(path: str | None) -> str:
    """A place, or a hub id, by its last name."""
    return (Path(path).name or path) if path else "-"


def _word(value: Any) -> str:
    """A value in a table: four digits of what is no whole number."""
    match value:
        case None:
            return "-"
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)


# --- compare ----------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> None:
    from truetune.console.output import show_json
    from truetune.pipeline.review.compare import compare_runs

    found = compare_runs(options.run_directories)
    if options.json:
        show_json(found.as_json())
    else:
        _show_comparison(found)


def _show_comparison(found: "RunComparison") -> None:
    from truetune.console.output import show

    labels = _labels(found.runs)
    _show_compared("settings", found.settings, labels, nothing="the same settings")
    _show_compared("data and base", found.data, labels, nothing="the same data, on the same base")
    _show_compared("versions", found.versions, labels, nothing="the same versions")
    _show_compared("hardware", found.hardware, labels, nothing="the same hardware")
    _show_compared("figures", found.figures, labels, nothing="no figures")
    _show_verdicts(found.verdicts, labels)
    for note in found.notes:
        show(f"- {note}")


def _labels(runs: Sequence["RunEntry"]) -> dict[str, str]:
    """Each run's own name where that tells them apart, else its path."""
    names = [run.path.name for run in runs]
    is_plain = len(set(names)) == len(names)
    return {str(run.path): run.path.name if is_plain else str(run.path) for run in runs}


def _show_compared(title: str, compared: Sequence["Compared"], labels: dict[str, str], *, nothing: str) -> None:
    from truetune.console.output import show, show_columns

    if not compared:
        show(f"{nothing}\n")
        return
    show_columns((title, *labels.values()), [(each.name, *map(_short, each.values)) for each in compared])
    show()


def _short(value: Any) -> str:
    """A value of any length, cut."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _word(value)
    return text if len(text) <= 24 else f"{text[:20]}…"


def _show_verdicts(verdicts: Sequence["Verdict"], labels: dict[str, str]) -> None:
    from truetune.console.output import show, show_columns

    if not verdicts:
        return
    lines = []
    for each in verdicts:
        between = "" if each.interval is None else f"{each.interval[0]:+.4f} to {each.interval[1]:+.4f}"
        lines.append((f"{labels[each.other]}: {each.figure}", f"{each.difference:+.4f}", between, _told(each)))
    first = labels[verdicts[0].one]
    show_columns((f"less {first}", "difference", "95 %", "more than noise"), lines)
    for how in dict.fromkeys(f"{each.figure}: {each.how}" for each in verdicts):
        show(f"- {how}")


def _told(verdict: "Verdict") -> str:
    return {True: "yes", False: "no", None: "not known"}[verdict.exceeds_noise]


# --- sweep ------------------------------------------------------------------------------------------------


def sweep(options: argparse.Namespace) -> int:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show_json
    from truetune.pipeline.review.grid import read_grid

    with closing(ConsoleListener()) as listener:
        once = _Once(listener)
        grid = read_grid(options.settings, lambda words: _load(options, words, once))
        # Only now: what a sweep needs imports torch, which no wrong config has to wait for.
        from truetune.pipeline.review.sweep import plan_sweep, run_sweep, sweep_directory

        folder = Path(options.output_dir) if options.output_dir else sweep_directory(grid)
        if options.dry_run:
            return _show_plan(grid, folder, plan_sweep(grid, folder, listener=listener), as_json=options.json)
        listener.say(f"{len(grid.points)} runs in {folder}: {', '.join(grid.values)}")
        found = run_sweep(grid, folder, retry=options.retry, listener=listener)
    if options.json:
        show_json(found.as_json())
    else:
        _show_sweep(found)
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


def _show_sweep(found: "Sweep") -> None:
    from truetune.console.output import show, show_columns

    names = list(found.grid)
    rows = [
        (
            run.name,
            *(_word(run.settings.get(name)) for name in names),
            run.status,
            _word(run.entry and run.entry.steps),
            _word(run.entry and run.entry.final_loss),
            _word(run.entry and run.entry.eval_loss),
            "best" if run is found.best else "",
        )
        for run in found.runs
    ]
    leaves = [name.rpartition(".")[2] for name in names]
    show_columns(("run", *leaves, "status", "steps", "loss", "eval", ""), rows, spare=leaves)
    for run in found.runs:
        if run.problem:
            show(f"{run.name}: {run.problem}")
    for line in _conclusion(found):
        show(line)


def _conclusion(found: "Sweep") -> Iterator[str]:
    """Which run is the best, and whether that can be said."""
    best = found.best
    if best is None:
        yield f"no run has finished; go on with the same command, its runs are in {found.path}"
        return
    by = "validation loss" if found.ranked_by == "eval_loss" else "training loss, for want of validation rows"
    yield f"best: {best.path} (by {by})"
    sure = [verdict for verdict in found.verdicts if verdict.exceeds_noise]
    if found.verdicts and not sure:
        second = found.runs[1].path
        yield f"{second.name} is no worse as far as is known: {found.verdicts[0].how}"
        yield f"more: truetune compare {best.path} {second}; a sweep of seed=1,2,3 shows what noise looks like"


def _show_plan(grid: "Grid", folder: Path, planned: Iterable["PlannedRun"], *, as_json: bool) -> int:
    from dataclasses import asdict

    from truetune.console.output import show, show_columns, show_json

    found = list(planned)
    seconds = sum(run.seconds or 0.0 for run in found)
    disk = sum(run.disk_bytes or 0 for run in found)
    if as_json:
        runs_ = [asdict(run) for run in found]
        show_json(
            {"path": str(folder), "grid": dict(grid.values), "runs": runs_, "seconds": seconds, "disk_bytes": disk}
        )
    else:
        show_columns(("run", "status", "steps", "seconds", "memory", "disk"), [_planned_line(run) for run in found])
        for run in found:
            if run.problem:
                show(f"{run.name}: {run.problem}")
        show(f"{len(found)} runs in {folder}: about {seconds:,.0f} s and {disk / 1e9:,.2f} GB for those to come")
    return 1 if any(run.problem or run.fits is False for run in found) else 0


def _planned_line(run: "PlannedRun") -> tuple[str, ...]:
    memory = (
        "-"
        if run.peak_bytes is None
        else f"{run.peak_bytes / 1e9:,.2f} GB{'' if run.fits is not False else ' (too much)'}"
    )
    disk = "-" if run.disk_bytes is None else f"{run.disk_bytes / 1e9:,.2f} GB"
    seconds = "-" if run.seconds is None else f"{run.seconds:,.0f}"
    return run.name, run.status, _word(run.total_steps), seconds, memory, disk
