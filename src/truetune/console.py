"""Everything a person sees: lines, tables, coloured loss spans, progress, errors. Nothing else prints."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from truetune.errors import TruetuneError
from truetune.listener import StepEvent

if TYPE_CHECKING:
    from truetune.data.rules import Problem, Report
    from truetune.pipeline.doctor.diagnosis import Diagnosis
    from truetune.pipeline.doctor.libraries import Library
    from truetune.pipeline.find_lr import RangeTest
    from truetune.pipeline.forecast import Forecast
    from truetune.pipeline.models import ModelDescription, Need
    from truetune.pipeline.outline import Outline
    from truetune.pipeline.verify import Verification
    from truetune.planning.hyperparameters import Choice
    from truetune.planning.range_test import Curve

_SECONDS_BETWEEN_LINES = 10.0


def is_first_process() -> bool:
    """False in all but one of the processes that a launcher started: they say nothing but errors."""
    return os.environ.get("RANK", "0") == "0"


def error_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def show_error(error: TruetuneError) -> None:
    """`error: …` and `hint: …`, each line of a list of problems on its own."""
    console = error_console()
    console.print(f"[bold red]error:[/] {escape(error.message)}")
    if error.hint:
        console.print(f"[bold]hint:[/] {escape(error.hint)}")


def show_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, ensure_ascii=False, default=str))


def show(text: str = "") -> None:
    if is_first_process():
        print(text)


def show_piece(text: str) -> None:
    """A piece of a text that goes on, at once."""
    if is_first_process():
        print(text, end="", flush=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title, title_justify="left", show_lines=True)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(highlight=False).print(table)


def show_pairs(pairs: Mapping[str, str]) -> None:
    """Names and values, aligned."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        print(f"{name:<{width}}  {value}")


def show_pieces(title: str, pieces: Sequence[tuple[str, bool]]) -> None:
    """A row's text, learned pieces in green on a terminal and between « » elsewhere."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(title)}[/]")
    text = Text()
    for piece, is_learned in pieces:
        match is_learned, console.is_terminal:
            case True, True:
                text.append(piece, style="bold green")
            case True, False:
                text.append(f"«{piece}»")
            case _:
                text.append(piece, style="dim")
    console.print(text)
    console.print()


_MARKS = {"error": "[bold red]error[/]", "warning": "[yellow]warning[/]", "note": "[cyan]note[/]"}
_SHOWN = {"error": 10, "warning": 3, "note": 1}
"""Findings of one rule that are shown."""


def show_report(report: "Report") -> None:
    """The findings, the worst and the commonest first, with place, reason and remedy; of many the first few."""
    console = Console(highlight=False, soft_wrap=True)

    def rank(problem: "Problem") -> tuple[int, int, str]:
        return list(_MARKS).index(problem.severity), -report.rows_of(problem.rule), problem.rule

    for name, problems in groupby(sorted(report.problems, key=rank), key=lambda problem: problem.rule):
        found = list(problems)
        shown = _SHOWN[found[0].severity]
        for problem in found[:shown]:
            console.print(f"{_MARKS[problem.severity]} {escape(f'{problem.code} [{name}] {problem}')}")
        if len(found) > 1 and (more := report.rows_of(name) - shown) > 0:
            console.print(f"      and {more:,} more")
        if found[0].hint:
            console.print(f"      hint: {escape(found[0].hint)}")
    _show_guidelines(console, report.stats.get("guidelines", ()))
    _show_scores(console, report.stats.get("score"))
    for form, count in report.stats["read_from"].items():
        console.print(f"read as {escape(form)}: {count:,} rows")
    for name in ("tokens", "supervised_tokens", "longest_row_tokens", "max_length"):
        if name in report.stats:
            console.print(f"{name}: {report.stats[name]:,}")
    console.print(f"{report.rows_kept:,} of {report.rows_read:,} rows can be used")


def _show_guidelines(console: Console, guidelines: Sequence[Mapping[str, Any]]) -> None:
    for each in guidelines:
        mark = "" if each["is_within"] else "  [yellow]outside[/]"
        console.print(f"{each['name']}: {escape(each['measures'])} {each['value']:,.4g} ({each['range']}){mark}")


def _show_scores(console: Console, score: Mapping[str, Any] | None) -> None:
    if not score:
        return
    losses = f"mean loss {score['mean_loss']:.3f}, median {score['median_loss']:.3f} nats a learned token"
    console.print(f"scored: {score['rows_scored']:,} of {score['rows']:,} rows, {losses}")
    for end in ("most", "least"):
        rows = [f"{each['where']['line']} ({each['loss']:.2f})" for each in score[f"{end}_surprising"][:5]]
        console.print(f"{end} surprising: {score[f'{end}_surprising'][0]['where']['unit']} {', '.join(rows)}")


def show_pages(pages: Iterable[str]) -> None:
    """Markdown, laid out on a terminal and as it stands elsewhere."""
    from rich.markdown import Markdown

    console = Console(highlight=False)
    for page in pages:
        console.print(Markdown(page) if console.is_terminal else escape(page), soft_wrap=not console.is_terminal)


def show_range_test(found: "RangeTest") -> None:
    """The curve, drawn on a terminal and a line a rate elsewhere, then what it says and its limits."""
    console, curve = Console(highlight=False, soft_wrap=True), found.curve
    if console.is_terminal and len(curve.usable) > 1:
        console.print(escape("\n".join(curve_lines(curve, marked=found.suggestion))))
    else:
        console.print("learning_rate  loss  smoothed_loss")
        for point in curve.points:
            console.print(f"{point.learning_rate:.2e}  {point.loss:.4f}  {point.smoothed_loss:.4f}")
    if curve.diverged_at is not None:
        console.print(f"ended at {curve.diverged_at:.1e}: the loss was lost")
    console.print("held fixed: " + escape(", ".join(f"{name} {value}" for name, value in found.held.items())))
    for note in found.notes:
        console.print(f"- {escape(note)}")
    said = "no suggestion" if found.suggestion is None else f"suggested: {found.suggestion:g}"
    console.print(f"[bold]{said}[/] ({escape(found.reading.reason)})")
    if found.setting:
        console.print(f"use it: {escape(found.setting)}")


def show_forecast(found: "Forecast") -> None:
    """Steps and tokens, memory by part, time, disk, and each setting that is not the user's own with its reason."""
    plan, console = found.plan, Console(highlight=False, soft_wrap=True)
    steps, counts = plan.steps, found.counts
    console.print(
        f"{steps.total_steps:,} steps, {steps.steps_per_epoch:,} an epoch of {steps.micro_batches:,} batches a "
        f"process; the first {steps.warmup_steps:,} warm up; "
        f"{plan.amount.evaluations:,} evaluations, {plan.amount.checkpoints:,} checkpoints"
    )
    size = plan.config.training.per_device_train_batch_size
    console.print(
        f"{steps.effective_batch_size} sequences a step = {size} per device x {steps.gradient_accumulation_steps} "
        f"accumulated x {found.processes} processes"
    )
    packed = "packed sequences" if plan.is_packed else "rows"
    console.print(
        f"{len(plan.sequences):,} {packed}; {counts['tokens']:,} tokens with validation, "
        f"{counts['supervised_tokens']:,} learned"
    )
    _show_memory(console, found, by="measured" if found.probed else "about")
    if found.duration:
        about = "by the probe" if found.duration.source == "probe" else "a rough estimate; --probe measures it"
        cost = "" if found.cost is None else f", for {_price(found.cost)} at the price given"
        console.print(f"time: {_about(found.duration.total)}{cost} ({about})")
    console.print(f"disk: at most {_gigabytes(plan.disk_bytes)} of checkpoints and weights")
    _show_warnings(console, plan.warnings)
    _show_settings(console, plan.settings)


def show_outline(found: "Outline") -> None:
    """Memory by part and what hangs on the machine; the rest needs rows."""
    console = Console(highlight=False, soft_wrap=True)
    size = found.config.training.per_device_train_batch_size
    console.print(f"without rows: {size} at a time, each as long as it may be, {found.length:,} tokens")
    _show_memory(console, found, by="about")
    console.print(f"disk: {_gigabytes(found.checkpoint_bytes)} a checkpoint, with the weights at the end")
    _show_warnings(console, found.warnings)
    _show_settings(console, found.choices)
    console.print("steps, tokens and time need rows: --data DATA")


def _show_memory(console: Console, found: "Forecast | Outline", *, by: str) -> None:
    memory = found.as_json()["memory"]
    free = "" if found.free_memory is None else f", {_gigabytes(found.free_memory)} free"
    mark = "  [bold red]does not fit[/]" if found.fits is False else ""
    console.print(f"peak memory on {found.device}: {by} {_gigabytes(memory['peak_bytes'])}{free}{mark}")
    for name, size in memory["parts"].items():
        if size:
            console.print(f"      {name:<14} {_gigabytes(size)}")
    if found.changes is None:
        console.print("no change of settings makes it fit: take a smaller model, or a machine with more memory")
    for change in found.changes or ():
        words = " ".join(f"{name}={json.dumps(value)}" for name, value in change.settings.items())
        console.print(escape(f"to fit: {words} saves {_gigabytes(change.saves)}; costs: {change.costs}"))


def _show_warnings(console: Console, warnings: Iterable[str]) -> None:
    for warning in warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")


def _show_settings(console: Console, settings: Iterable["Choice"]) -> None:
    for number, choice in enumerate(settings):
        if not number:
            console.print("settings:")
        console.print(escape(f"  {choice.name}: {choice.value} ({choice.reason})"))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"


def show_models(models: Sequence["ModelDescription"]) -> None:
    """A table on a terminal, a line with tabs for each model elsewhere; then what is wrong with which."""
    columns = ("model", "parameters", "on disk", "context", "template", "stored", "lora", "qlora", "full")
    rows = [_model_row(model) for model in models]
    console = Console(highlight=False)
    if console.is_terminal:
        table = Table(Column(columns[0], overflow="fold"), *columns[1:], box=None)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    else:
        for row in (columns, *rows):
            show("\t".join(row))
    for model in models:
        if model.problem:
            console.print(f"{escape(model.name)}: [yellow]{escape(model.problem)}[/]", soft_wrap=True)
    show(f"{len(models)} models. Memory: the peak {_HOW}; no: more than is free")


def _model_row(model: "ModelDescription") -> tuple[str, ...]:
    template = {True: "yes", False: "no", None: "-"}[model.template]
    context = f"{model.context_length:,}" if model.context_length else "-"
    size = _gigabytes(model.bytes) if model.bytes else "-"
    needs = ("-" if need is None else _need(need, no=" no") for need in model.needs.values())
    return (model.name, _millions(model.parameters), size, context, template, model.dtype or "-", *needs)


def _need(need: "Need", *, yes: str = "", no: str) -> str:
    return _gigabytes(need.peak_bytes) + {True: yes, False: no, None: ""}[need.fits]


_HOW = "at batch 1, rows of 2,048 tokens (or the context), rank 16"


def _millions(count: int | None) -> str:
    if count is None:
        return "-"
    if count < 1e6:
        return f"{count:,}"
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.3g}M"


def show_model(model: "ModelDescription") -> None:
    """One model's facts, what training it takes here, and what is unusual with what that means."""
    facts = ("parameters", "on disk", "context", "chat template", "stored as")
    show_pairs(
        {
            "model": model.name,
            **dict(zip(facts, _model_row(model)[1:6], strict=True)),
            **{name: _long_need(need) for name, need in model.needs.items()},
        }
    )
    if model.problem:
        show(f"problem: {model.problem}")
    show("unusual:" if model.unusual else "nothing unusual")
    for oddity in model.unusual:
        show(f"- {oddity.what}\n      {oddity.meaning}")


def _long_need(need: "Need | None") -> str:
    if need is None:
        return "not known, or not possible"
    how = ", with gradient checkpointing" if need.gradient_checkpointing else ""
    return f"{_need(need, yes=', fits', no=', does not fit')}{how}, {_HOW}"


def show_doctor(found: "Diagnosis") -> None:
    """Machine, libraries, extras, hub and environment under headings, then what is wrong and what to do."""
    _show_section("Machine", found.machine)
    _show_section("Libraries", {each.name: _judgement(each) for each in found.libraries})
    absent = {each.name: f"not installed; to {each.gives}: {each.install}" for each in found.extras}
    _show_section("Extras", {each.name: each.installed or absent[each.name] for each in found.extras})
    _show_section("Hub", found.hub.in_words())
    _show_section("Environment", found.environment or {"nothing": "no variable that changes runs is set"})
    _show_heading("Problems")
    console = Console(highlight=False, soft_wrap=True)
    for each in found.problems:
        mark = "[bold red]problem[/]" if each.severity == "problem" else "[cyan]note[/]"
        console.print(f"{mark}: {escape(each.what)}")
        console.print(f"      why: {escape(each.why)}")
        console.print(f"      do:  {escape(each.remedy)}")
    if found.is_well:
        show("no problems found" + (", notes only" if found.problems else ""))


def _judgement(library: "Library") -> str:
    tested = "" if library.verdict == "tested" else f" (tested: {library.tested or 'none'})"
    return f"{library.installed or 'none'}: {library.verdict}{tested}; allowed {library.allowed or 'any'}"


def _show_section(title: str, pairs: Mapping[str, str]) -> None:
    _show_heading(title)
    show_pairs(pairs)
    show()


def _show_heading(title: str) -> None:
    Console(highlight=False).print(f"[bold]{title}[/]")


def show_verification(found: "Verification") -> None:
    """Each part of a run with what is wrong with it."""
    for part in found.parts:
        facts = ", ".join(
            f"{name} {value:.3g}" for name, value in part.facts.items() if isinstance(value, int | float)
        )
        show(f"{part.name}: {'; '.join(part.problems) or 'as it was written'}{facts and f' ({facts})'}")
    show(f"{found.path}: {'sound' if found.is_sound else 'not sound'}")


_PLOT_COLUMNS, _PLOT_LINES = 64, 12


def curve_lines(curve: "Curve", *, marked: float | None) -> list[str]:
    """The smoothed loss over the logarithm of the rate, in lines of text; `marked` is a rate to point at.

    What lies far above the first loss is drawn at the upper edge, where it would else flatten all the rest.
    """
    points = curve.usable
    low, high = math.log(points[0].learning_rate), math.log(points[-1].learning_rate)
    bottom = min(point.smoothed_loss for point in points)
    top = min(max(point.smoothed_loss for point in points), 1.5 * points[0].smoothed_loss)

    def column(rate: float) -> int:
        return round((math.log(rate) - low) / (high - low) * (_PLOT_COLUMNS - 1))

    def line(loss: float) -> int:
        return round((top - min(loss, top)) / ((top - bottom) or 1.0) * (_PLOT_LINES - 1))

    dots = {(line(point.smoothed_loss), column(point.learning_rate)) for point in points}
    labels = {0: f"{top:.2f}", _PLOT_LINES - 1: f"{bottom:.2f}"}
    drawn = ["smoothed loss by learning rate"]
    for row in range(_PLOT_LINES):
        dotted = "".join("●" if (row, place) in dots else " " for place in range(_PLOT_COLUMNS))
        drawn.append(f"{labels.get(row, ''):>7} │{dotted}".rstrip())
    first, last = f"{points[0].learning_rate:.0e}", f"{points[-1].learning_rate:.0e}"
    drawn += [" " * 8 + "└" + "─" * _PLOT_COLUMNS, " " * 9 + first + last.rjust(_PLOT_COLUMNS - len(first))]
    if marked is not None and 0 <= column(marked) < _PLOT_COLUMNS:
        drawn.append(" " * (9 + column(marked)) + f"↑ {marked:g}")
    return drawn


class ConsoleListener:
    """Shows a run on stderr: bars on a terminal, plain lines at least ten seconds apart elsewhere."""

    def __init__(self) -> None:
        self._console = error_console()
        self._console.quiet = not is_first_process()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0
        self._since: dict[str, float] = {}

    def say(self, message: str) -> None:
        self._console.print(escape(message))

    def warn(self, message: str) -> None:
        self._console.print(f"[yellow]warning:[/] {escape(message)}")

    def progress(self, stage: str, done: int, total: int | None) -> None:
        is_over = done == total
        seconds = time.monotonic() - self._since.setdefault(stage, time.monotonic())
        rate = f"{done / seconds:,.0f}/s" if seconds > 0.5 else ""
        if is_over:
            del self._since[stage]
        if self._console.is_terminal:
            self._show_bar(stage, done, total, rate, is_over=is_over)
        elif self._is_time() and not is_over:
            self._console.print(f"{stage}: {done:,}{f' of {total:,}' if total else ''} {rate}".rstrip())

    def step(self, event: StepEvent) -> None:
        detail = f"loss {event.loss:.4f}"
        if math.isfinite(event.tokens_per_second):
            detail += f"  {event.tokens_per_second:,.0f} tokens/s  {_duration(event.seconds_left)} left"
        is_over = event.step >= event.total_steps
        if self._console.is_terminal:
            self._show_bar("training", event.step, event.total_steps, detail, is_over=is_over)
        elif is_over or self._is_time():
            self._console.print(f"step {event.step} of {event.total_steps}: {detail}")

    def close(self) -> None:
        """Takes unfinished bars off the screen."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}

    def _show_bar(self, stage: str, done: int, total: int | None, detail: str, *, is_over: bool) -> None:
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
            )
            self._bars = Progress(*columns, console=self._console)
            self._bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, detail=detail)
        self._bars.update(self._tasks[stage], completed=done, total=total, detail=detail)
        if is_over:
            if stage != "training":
                self._bars.remove_task(self._tasks[stage])
            del self._tasks[stage]
            if not self._tasks:
                self.close()

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True


def ask(prompt: str) -> str | None:
    """A line from the user, None at the end of input; the prompt is shown only on a terminal."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        return input(prompt)
    except EOFError:
        return None


def _about(seconds: float) -> str:
    return _duration(seconds) if seconds >= 1 else "less than a second"


def _price(cost: float) -> str:
    return f"{cost:,.2f}" if cost >= 0.01 else "less than 0.01"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
