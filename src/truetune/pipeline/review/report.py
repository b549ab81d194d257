"""`truetune report`: all that a run's directory tells, as one page to look at and to pass on."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from truetune.errors import CheckpointError, ConfigError
from truetune.figures import byte_size, duration, figure, short_count
from truetune.files import named_refusals, write_text
from truetune.lint.private import without_secrets
from truetune.listener import Listener, LogListener
from truetune.pipeline.review.evaluations import judged
from truetune.pipeline.review.planned import planned_figures
from truetune.pipeline.review.rows import data_facts, samples
from truetune.report.curves import DRAWN, Chart, Summary, axes, charts, number
from truetune.report.run_page import Figure, Pairs, RunPage, Setting, render_run_page, tone_of
from truetune.runs.columns import logged_columns
from truetune.runs.directory import RunDirectory
from truetune.runs.documents import json_object, mapping, mappings, text, text_file, texts
from truetune.runs.ledger import RunEntry, read_run

_WORSE = 1.01
"""From so much above the best validation loss on, the last one is told to be worse."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """The page that was written. `missing` tells, by section, why one is empty or not complete."""

    path: Path
    bytes: int
    status: str
    charts: tuple[str, ...]
    missing: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """As `truetune report --json` prints it."""
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "status": self.status,
            "charts": list(self.charts),
            "missing": dict(self.missing),
        }


def write_report(
    path: str | Path, output: str | Path | None = None, *, listener: Listener | None = None
) -> RunReport:
    """Writes a run's page to `output`, or into its directory. Loads no model; the run may be going on, or be dead.

    What is missing or damaged is told in the page. CheckpointError for a folder that holds no run at all, ConfigError
    or DataError for an output that cannot be written.
    """
    run, listener = RunDirectory(Path(path)), listener or LogListener()
    if not (run.record.is_file() or run.metrics.is_file()):
        raise CheckpointError(f"{run.path} holds no run: run.json is missing", hint="give the directory of a run")
    target = Path(output) if output else run.report
    if target.is_dir():
        raise ConfigError(f"{target} is a folder", hint=f"name a file: --output {target / run.report.name}")
    page = run_page(run)
    html = render_run_page(page)
    with named_refusals(target):
        write_text(target, html)
    for section, reason in page.missing.items():
        listener.say(f"{section}: {reason}")
    names = tuple(chart.name for chart in page.charts)
    return RunReport(target, len(html.encode()), page.status, names, page.missing)


def run_page(run: RunDirectory) -> RunPage:
    """What the page of a run shows, as far as its directory tells."""
    recorded, logged = json_object(run.path, run.record), logged_columns(run.path, run.metrics, names=DRAWN)
    reported, config = json_object(run.path, run.data_report), text_file(run.path, run.config)
    record: dict[str, Any] = recorded.value
    entry, drawn = read_run(run.path), charts(logged.value)
    evaluation = judged(run)
    shown, no_samples = samples(run, record)
    losses = _summaries(drawn)
    missing = {
        "curves": _sentence(logged.problem) or ("" if drawn else "No step has been logged yet."),
        "answers": "" if evaluation else f"Not evaluated yet: truetune eval {run.path} asks tuned model and base.",
        "worst": "" if evaluation and evaluation.worst else "truetune eval tells them.",
        "samples": no_samples,
        "data": _sentence(reported.problem),
        "plan": _of_plan(record),
        "settings": "" if record.get("settings") else "run.json tells no reasons.",
        "environment": _sentence(recorded.problem),
    }
    return RunPage(
        name=run.path.absolute().name,
        status=entry.status,
        tone=tone_of(entry.status, while_running="plain"),
        verdict=without_secrets(_verdict(entry, record, run)),
        notes=tuple(_notes(losses)),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=metadata.version("truetune"),
        figures=tuple(_figures(entry, record, losses)),
        charts=drawn,
        axes=axes(logged.value),
        judged=evaluation,
        samples=shown,
        data=data_facts(reported.value, record) if reported.value else None,
        planned=tuple(planned_figures(record, run)),
        memory=_memory(record),
        settings=tuple(map(_setting, mappings(record, "settings"))),
        config=without_secrets(config.value),
        environment=tuple(_environment(record)),
        command=without_secrets(shlex.join(_command(record))),
        missing={name: reason for name, reason in missing.items() if reason},
    )


def _sentence(problem: str | None) -> str:
    return f"{problem}." if problem else ""


# --- how it went ------------------------------------------------------------------------------------------


def _summaries(drawn: tuple[Chart, ...]) -> dict[str, Summary]:
    """The losses in figures: training, validation."""
    return {each.name: each for chart in drawn if chart.is_main for each in chart.summaries}


def _verdict(entry: RunEntry, record: Mapping[str, Any], run: RunDirectory) -> str:
    done = f"{_whole(entry.steps)} of {_whole(entry.total_steps)} steps"
    again = f"truetune train {run.config} --resume goes on from its newest checkpoint."
    match entry.status:
        case "finished":
            seconds = number(entry.seconds)
            took = "" if math.isnan(seconds) else f" in {duration(seconds)}"
            return f"Trained {done}{took}."
        case "running":
            return f"Still training: {done} were logged when this page was written."
        case "stopped":
            by = f" by {text(record, 'stopped_by')}" if record.get("stopped_by") else ""
            return f"Stopped{by} after {done}. {again}"
        case "failed":
            return f"Failed after {done}: {entry.problem or 'no reason is recorded'}"
        case "dead":
            return f"Ended without a word after {done}: no process works at it any more. {again}"
        case _:
            return f"{entry.problem or 'run.json cannot be read'}"


def _whole(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _notes(losses: Mapping[str, Summary]) -> Iterator[str]:
    """What the losses say, and what they cannot."""
    training, validation = losses.get("training"), losses.get("validation")
    if validation and validation.points > 1:
        yield f"Validation loss went from {validation.first:.4g} to {validation.last:.4g}."
        if validation.last > _WORSE * validation.least:
            above = f"the last is {validation.last / validation.least - 1:.0%} above that"
            yield f"It was lowest at step {validation.least_at:,} ({validation.least:.4g}); {above}."
    elif training and not validation:
        yield "No row was held out: the training loss alone does not tell how the model does on rows it has not seen."
    for each in losses.values():
        if each.not_numbers:
            yield f"Of the {each.name} loss, {each.not_numbers:,} logged values are no numbers."


def _figures(entry: RunEntry, record: Mapping[str, Any], losses: Mapping[str, Summary]) -> Iterator[Figure]:
    for name in ("validation", "training"):
        if (loss := losses.get(name)) is not None:
            before = f"at step {loss.first_at:,}" if loss.first_at else "before training"
            yield Figure(f"{name.capitalize()} loss", f"{loss.last:.4g}", f"{loss.first:.4g} {before}")
    if entry.steps is not None:
        yield Figure("Steps", f"{entry.steps:,}", f"of {_whole(entry.total_steps)}")
    learned, read = number(record.get("supervised_tokens")), number(record.get("tokens"))
    if not math.isnan(learned):
        yield Figure(
            "Learned tokens", short_count(learned), "" if math.isnan(read) else f"of {short_count(read)} read"
        )
    for name, value, told, about in (
        ("Tokens a second", entry.tokens_per_second, figure, ""),
        ("Time", entry.seconds, duration, ""),
        ("Peak memory", entry.peak_memory_bytes, byte_size, f"on {text(record, 'device')}"),
    ):
        if not math.isnan(known := number(value)):
            yield Figure(name, told(known), about)


# --- plan and settings ------------------------------------------------------------------------------------


def _of_plan(record: Mapping[str, Any]) -> str:
    if not record.get("planned"):
        return "run.json holds no plan."
    if record.get("resumed_from"):
        return f"The run was resumed from {text(record, 'resumed_from')}: time is that of what came after."
    return "" if "seconds" in record else "The run has not come to its end: what it took is not known yet."


def _memory(record: Mapping[str, Any]) -> Pairs:
    parts = mapping(record, "planned", "memory", "parts")
    return tuple((name, byte_size(size)) for name in parts if (size := number(parts[name])) > 0)


def _setting(document: Mapping[str, Any]) -> Setting:
    return Setting(*(text(document, name) for name in ("name", "value", "reason", "evidence")))


# --- environment ------------------------------------------------------------------------------------------

_RUN = ("started", "ended", "resumed_from", "backend", "device", "precision", "num_processes", "effective_batch_size")


def _environment(record: Mapping[str, Any]) -> Iterator[tuple[str, Pairs]]:
    groups = {
        "Run": {name: record.get(name) for name in _RUN},
        "Model": mapping(record, "model"),
        "Machine": mapping(record, "hardware"),
        "Versions": mapping(record, "versions"),
    }
    for title, group in groups.items():
        if known := tuple((name.replace("_", " "), value) for name, value in texts(group) if value):
            yield title, known


def _command(record: Mapping[str, Any]) -> list[str]:
    words = record.get("command")
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
