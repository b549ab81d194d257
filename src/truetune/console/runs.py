"""Runs as a person sees them: which there are, in what they differ, and what a grid of them came to."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truetune.console.output import show, show_columns
from truetune.figures import byte_size, duration

if TYPE_CHECKING:
    from truetune.pipeline.review.compare import Compared, RunComparison, Verdict
    from truetune.pipeline.review.sweep import PlannedRun, Sweep
    from truetune.runs.ledger import RunEntry

_PROBLEMS = 5
"""Runs whose problem is told below the list."""
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


# --- the list ---------------------------------------------------------------------------------------------


def show_runs(listed: Sequence["RunEntry"], found: Sequence["RunEntry"], *, named: Sequence[str] = ()) -> None:
    """The `listed` ones of those that were `found`, with the settings `named` as columns of their own."""
    if not found:
        show("no runs found")
        return
    rows = [(*_line(entry), *(_word(entry.settings.get(name)) for name in named)) for entry in listed]
    show_columns((*_COLUMNS, *named), rows, spare=_SPARE)
    _show_problems([f"{entry.path}: {entry.problem.splitlines()[0]}" for entry in listed if entry.problem])
    counted = Counter(entry.status for entry in found).most_common()
    statuses = ", ".join(f"{count:,} {status}" for status, count in counted)
    shown = f"; {len(listed):,} are shown" if len(listed) < len(found) else ""
    show(f"{_runs(len(found))}: {statuses}{shown}")


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


def _show_problems(problems: Sequence[str]) -> None:
    for problem in problems[:_PROBLEMS]:
        show(problem)
    if len(problems) > _PROBLEMS:
        show(f"and {len(problems) - _PROBLEMS} more with problems (--json tells all)")


def _runs(count: int) -> str:
    return f"{count:,} run{'' if count == 1 else 's'}"


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


# --- side by side -----------------------------------------------------------------------------------------


def show_comparison(found: "RunComparison") -> None:
    """What differs between runs, table by table, and how sure the differences of their figures are."""
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


def _show_compared(title: str, compared: Sequence["Compared"], labels: Mapping[str, str], *, nothing: str) -> None:
    if not compared:
        show(f"{nothing}\n")
        return
    show_columns((title, *labels.values()), [(each.name, *map(_short, each.values)) for each in compared])
    show()


def _short(value: Any) -> str:
    """A value of any length, cut."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _word(value)
    return text if len(text) <= 24 else f"{text[:20]}…"


def _show_verdicts(verdicts: Sequence["Verdict"], labels: Mapping[str, str]) -> None:
    if not verdicts:
        return
    first = labels[verdicts[0].one]
    lines = [_verdict(each, labels[each.other]) for each in verdicts]
    show_columns((f"less {first}", "difference", "95 %", "more than noise"), lines)
    for how in dict.fromkeys(f"{each.figure}: {each.how}" for each in verdicts):
        show(f"- {how}")


def _verdict(verdict: "Verdict", other: str) -> tuple[str, str, str, str]:
    between = "" if verdict.interval is None else "{:+.4f} to {:+.4f}".format(*verdict.interval)
    is_more = {True: "yes", False: "no", None: "not known"}[verdict.exceeds_noise]
    return f"{other}: {verdict.figure}", f"{verdict.difference:+.4f}", between, is_more


# --- a grid -----------------------------------------------------------------------------------------------


def show_sweep(found: "Sweep") -> None:
    """The runs of a grid, the best first, and whether that can be said."""
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


def show_sweep_plan(planned: Sequence["PlannedRun"], folder: Path, *, seconds: float, disk_bytes: int) -> None:
    """What each run of a grid will take, and all of those to come together."""
    show_columns(("run", "status", "steps", "time", "memory", "disk"), list(map(_planned, planned)))
    for run in planned:
        if run.problem:
            show(f"{run.name}: {run.problem}")
    total = f"about {duration(seconds)} and {byte_size(disk_bytes)}"
    show(f"{_runs(len(planned))} in {folder}: {total} for those to come")


def _planned(run: "PlannedRun") -> tuple[str, ...]:
    too_much = " (too much)" if run.fits is False else ""
    memory = "-" if run.peak_bytes is None else f"{byte_size(run.peak_bytes)}{too_much}"
    disk = "-" if run.disk_bytes is None else byte_size(run.disk_bytes)
    time = "-" if run.seconds is None else duration(run.seconds)
    return run.name, run.status, _word(run.total_steps), time, memory, disk
