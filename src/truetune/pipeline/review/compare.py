"""`truetune compare`: in what runs differ, how far apart their curves and scores lie, and whether that is noise."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from truetune.errors import ConfigError
from truetune.inference.bootstrap import compare, series_difference
from truetune.inference.metrics import mean
from truetune.pipeline.review.kept_figures import Evaluated, KeptRun, read_kept_run
from truetune.runs.documents import mapping
from truetune.runs.ledger import RunEntry

_ABOUT_PLACES = {"output_dir", "logging.run_name", "logging.logging_dir"}
"""Settings in which any two runs differ, and which train nothing."""
_LOSS_TIE = 1e-3
_LEAST = 8
"""Logged losses that can tell a spread."""
_TOKENS = "the tokens' fingerprint"
_VALIDATION, _TRAINING = "eval_loss", "training loss"


@dataclass(frozen=True, slots=True)
class Compared:
    """Something by its name, with its value in each run, in the runs' order; None where a run has none."""

    name: str
    values: tuple[Any, ...]

    @property
    def differs(self) -> bool:
        return any(value != self.values[0] for value in self.values)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether two runs lie further apart in a figure than noise would put them.

    `difference` is the `other` run's figure less the `one`'s, `interval` its 95 % interval where there is one.
    `exceeds_noise` is None where that is not known; `how` says how it is, or what would tell it.
    """

    figure: str
    one: str
    other: str
    difference: float
    interval: tuple[float, float] | None
    exceeds_noise: bool | None
    how: str


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Runs side by side. Of settings, data, versions and hardware only what differs; `figures` are all there are.

    `verdicts` hold the first run against each of the others. `notes` are what must be known to read all that.
    """

    runs: tuple[RunEntry, ...]
    settings: tuple[Compared, ...]
    data: tuple[Compared, ...]
    versions: tuple[Compared, ...]
    hardware: tuple[Compared, ...]
    figures: tuple[Compared, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "runs": [run.as_json() for run in self.runs]}


def compare_runs(paths: Sequence[str | Path]) -> RunComparison:
    """Compares runs by what their directories hold; nothing is loaded or computed anew.

    ConfigError for fewer than two runs, CheckpointError for a directory that holds none.
    """
    named = list(map(Path, paths))
    if len({path.absolute() for path in named}) < max(2, len(named)):
        raise ConfigError("two runs or more are compared, each named once", hint="truetune runs lists them")
    runs = [read_kept_run(path) for path in named]
    spreads = _spreads(runs)
    return RunComparison(
        runs=tuple(run.entry for run in runs),
        settings=_differing(runs, lambda run: run.settings, without=_ABOUT_PLACES),
        data=_differing(runs, _data),
        versions=_differing(runs, lambda run: mapping(run.record, "versions")),
        hardware=_differing(runs, _hardware),
        figures=tuple(_figures(runs)),
        verdicts=tuple(verdict for other in runs[1:] for verdict in _judged(runs[0], other, spreads)),
        notes=tuple(_notes(runs)),
    )


# --- in what they differ ----------------------------------------------------------------------------------


def _differing(
    runs: Sequence[KeptRun], values: Callable[[KeptRun], Mapping[str, Any]], *, without: Collection[str] = ()
) -> tuple[Compared, ...]:
    """What has not the same value in all runs."""
    found = [values(run) for run in runs]
    names = dict.fromkeys(name for each in found for name in each if name not in without)
    compared = (Compared(name, tuple(each.get(name) for each in found)) for name in names)
    return tuple(each for each in compared if each.differs)


def _data(run: KeptRun) -> dict[str, Any]:
    model, data = mapping(run.record, "model"), mapping(run.record, "data")
    return {
        "the base's revision": model.get("revision"),
        "the base's fingerprint": model.get("fingerprint"),
        _TOKENS: data.get("fingerprint"),
        "rows read": data.get("rows_read"),
        "rows kept": data.get("rows_kept"),
    }


def _hardware(run: KeptRun) -> dict[str, Any]:
    return {"device": run.record.get("device"), **mapping(run.record, "hardware")}


def _notes(runs: Sequence[KeptRun]) -> Iterator[str]:
    for run in runs:
        entry = run.entry
        if entry.status != "finished":
            yield f"{entry.path} is {entry.status}, after step {entry.steps or 0} of {entry.total_steps or '?'}"
    if len({run.entry.data_fingerprint for run in runs}) > 1:
        yield (
            "the runs did not learn the same tokens (rows, template, lengths or split differ): "
            "their losses are not of the same rows"
        )
    for one, other in combinations(runs, 2):
        match _changed(one, other):
            case []:
                yield f"{one.entry.path} and {other.entry.path} have the same settings, and the same seed"
            case ["training.seed"]:
                yield f"{one.entry.path} and {other.entry.path} differ in nothing but the seed: {_SEEDS}"


def _changed(one: KeptRun, other: KeptRun) -> list[str]:
    """The names of what makes one run another than the other; of data that is split by a seed, its size."""
    changed = [each.name for each in _differing((one, other), lambda run: run.settings, without=_ABOUT_PLACES)]
    split = [_TOKENS] if changed == ["training.seed"] else []
    return changed + [each.name for each in _differing((one, other), _data, without=split)]


# --- curves and scores ------------------------------------------------------------------------------------


def _figures(runs: Sequence[KeptRun]) -> Iterator[Compared]:
    """Each figure that any of the runs has."""
    for name, values in (*_counts(runs), *_of_curves(runs), *_costs(runs), *_scores(runs)):
        if any(value is not None for value in values):
            yield Compared(name, tuple(values))


_Named = Iterator[tuple[str, Sequence[Any]]]


def _counts(runs: Sequence[KeptRun]) -> _Named:
    yield "steps", [run.entry.steps for run in runs]
    yield "tokens", [run.record.get("tokens") for run in runs]


def _of_curves(runs: Sequence[KeptRun]) -> _Named:
    yield "loss, last", [run.entry.final_loss for run in runs]
    yield "loss, mean of the last quarter", [_mean(run) for run in runs]
    if (step := _last_in_all([set(run.curve.steps.tolist()) for run in runs])) is not None:
        yield f"loss at step {step:,}", [run.curve.at_step(step) for run in runs]
    if all(len(run.curve.tokens) for run in runs):
        tokens = min(int(run.curve.tokens[-1]) for run in runs)
        yield f"loss at {tokens:,} tokens", [run.curve.at_tokens(tokens) for run in runs]
    yield "eval_loss, lowest", [min(run.curve.evaluated.get(_VALIDATION, {}).values(), default=None) for run in runs]
    for name in dict.fromkeys(name for run in runs for name in run.curve.evaluated):
        found = [run.curve.evaluated.get(name, {}) for run in runs]
        yield f"{name}, last", [each[max(each)] if each else None for each in found]
        if (step := _last_in_all([set(each) for each in found])) is not None:
            yield f"{name} at step {step:,}", [each[step] for each in found]


def _last_in_all(steps: Sequence[set[int]]) -> int | None:
    return max(set.intersection(*steps), default=None)


def _mean(run: KeptRun) -> float | None:
    tail = run.curve.tail
    return float(tail.mean()) if len(tail) else None


def _costs(runs: Sequence[KeptRun]) -> _Named:
    yield "tokens a second", [run.entry.tokens_per_second for run in runs]
    yield "seconds", [run.entry.seconds for run in runs]
    yield "peak memory, bytes", [run.entry.peak_memory_bytes for run in runs]


def _scores(runs: Sequence[KeptRun]) -> _Named:
    for name in dict.fromkeys(name for run in runs for name in run.evaluations):
        found = [run.evaluations.get(name) for run in runs]
        for figure in dict.fromkeys(figure for each in found if each for figure in each.figures):
            yield f"{name}: {figure}", [each.figures.get(figure) if each else None for each in found]


# --- noise ------------------------------------------------------------------------------------------------

_SEEDS = "what lies between them is what noise looks like"


def _judged(one: KeptRun, other: KeptRun, spreads: Mapping[str, float]) -> Iterator[Verdict]:
    """What there is to say of two runs, beside what other seeds of the same settings came to."""
    is_noise = _changed(one, other) == ["training.seed"]
    for verdict in _measured(one, other):
        if is_noise:
            yield replace(verdict, exceeds_noise=False, how=f"they differ in nothing but the seed: {_SEEDS}")
        else:
            yield _beside(verdict, spreads.get(verdict.figure))


def _beside(verdict: Verdict, spread: float | None) -> Verdict:
    """The verdict where runs that differ in the seed alone lie as far apart as `spread`."""
    if spread is None:
        return verdict
    exceeds = abs(verdict.difference) > spread and verdict.exceeds_noise is not False
    how = f"runs that differ in nothing but the seed lie up to {spread:.4g} apart"
    known = "" if verdict.exceeds_noise is None else f"{verdict.how}; "
    return replace(verdict, exceeds_noise=exceeds, how=known + how)


def _spreads(runs: Sequence[KeptRun]) -> dict[str, float]:
    """How far apart runs lie that differ in the seed alone, at most, by figure."""
    spreads: dict[str, float] = {}
    for one, other in combinations(runs, 2):
        if _changed(one, other) == ["training.seed"]:
            for verdict in _measured(one, other):
                spreads[verdict.figure] = max(spreads.get(verdict.figure, 0.0), abs(verdict.difference))
    return spreads


def _measured(one: KeptRun, other: KeptRun) -> Iterator[Verdict]:
    """Each figure that both runs have, by what the two of them tell."""
    rows = [
        verdict for name in one.evaluations if name in other.evaluations for verdict in _by_rows(name, one, other)
    ]
    yield from rows
    if not any(verdict.figure == f"validation: {_VALIDATION}" for verdict in rows):
        yield from _by_validation(one, other)
    yield from _by_tails(one, other)


def _by_rows(name: str, one: KeptRun, other: KeptRun) -> Iterator[Verdict]:
    """Of an evaluation that both runs have, each figure that is a mean over rows: the same rows, drawn again."""
    mine, others = one.evaluations[name], other.evaluations[name]
    pairs = {_VALIDATION: mine.losses_beside(others), **_answers(mine, others)}
    for figure, (first, second) in pairs.items():
        if len(first) < 2:
            continue
        is_loss = figure == _VALIDATION
        found = compare(second, first, mean, higher_is_better=not is_loss, tie=_LOSS_TIE if is_loss else 1e-9)
        how = f"{len(first):,} rows that both runs were evaluated on, drawn again"
        yield Verdict(f"{name}: {figure}", *_names(one, other), found.difference, found.interval, found.is_sure, how)


def _answers(mine: Evaluated, others: Evaluated) -> dict[str, tuple[Any, Any]]:
    shared = [name for name in mine.means_of_rows() if name in others.means_of_rows()]
    return {name: mine.scores_beside(others, name) for name in shared}


def _by_validation(one: KeptRun, other: KeptRun) -> Iterator[Verdict]:
    """The validation losses of the trainings themselves, which tell nothing of single rows."""
    first, second = one.entry.eval_loss, other.entry.eval_loss
    if first is None or second is None:
        return
    if one.entry.data_fingerprint == other.entry.data_fingerprint:
        how = "not known: train a run again with another seed, or truetune eval both, which keeps each row's loss"
    else:
        how = "not known: the validation rows are not the same ones; truetune eval both on one file"
    yield Verdict(_VALIDATION, *_names(one, other), second - first, None, None, how)


def _by_tails(one: KeptRun, other: KeptRun) -> Iterator[Verdict]:
    """The last quarter of the logged training losses."""
    first, second = one.curve.tail, other.curve.tail
    if not len(first) or not len(second):
        return
    names, difference = _names(one, other), float(second.mean() - first.mean())
    if min(len(first), len(second)) < _LEAST:
        how = f"not known: {min(len(first), len(second))} logged losses are too few (logging.logging_steps)"
        yield Verdict(_TRAINING, *names, difference, None, None, how)
        return
    is_paired = _same_batches(one, other)
    difference, interval = series_difference(second, first, is_paired=is_paired)
    batches = "step by step, on the same batches" if is_paired else "each by itself"
    how = f"the spread of the last logged losses, {batches}; other seeds may lie further apart"
    yield Verdict(_TRAINING, *names, difference, interval, not interval[0] <= 0.0 <= interval[1], how)


def _same_batches(one: KeptRun, other: KeptRun) -> bool:
    """True if both runs read the same rows in each of the logged steps."""
    alike = all(one.settings.get(name) == other.settings.get(name) for name in ("training.seed", "data.packing"))
    alike = alike and one.entry.effective_batch_size == other.entry.effective_batch_size
    steps = one.curve.tail_steps.tolist() == other.curve.tail_steps.tolist()
    return alike and steps and not _differing((one, other), _data)


def _names(one: KeptRun, other: KeptRun) -> tuple[str, str]:
    return str(one.entry.path), str(other.entry.path)
