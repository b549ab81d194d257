"""Forecasts and tests of learning rates: what a run will take, and where its rate may lie."""

import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from truetune.figures import byte_size, duration

if TYPE_CHECKING:
    from truetune.pipeline.find_lr import RangeTest
    from truetune.pipeline.forecast import Forecast
    from truetune.pipeline.outline import Outline
    from truetune.planning.hyperparameters import Choice
    from truetune.planning.range_test import Curve


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
        console.print(f"time: {duration(found.duration.total)}{cost} ({about})")
    console.print(f"disk: at most {byte_size(plan.disk_bytes)} of checkpoints and weights")
    _show_warnings(console, plan.warnings)
    _show_settings(console, plan.settings)


def show_outline(found: "Outline") -> None:
    """Memory by part and what hangs on the machine; the rest needs rows."""
    console = Console(highlight=False, soft_wrap=True)
    size = found.config.training.per_device_train_batch_size
    console.print(f"without rows: {size} at a time, each as long as it may be, {found.length:,} tokens")
    _show_memory(console, found, by="about")
    console.print(f"disk: {byte_size(found.checkpoint_bytes)} a checkpoint, with the weights at the end")
    _show_warnings(console, found.warnings)
    _show_settings(console, found.choices)
    console.print("steps, tokens and time need rows: --data DATA")


def _show_memory(console: Console, found: "Forecast | Outline", *, by: str) -> None:
    memory = found.as_json()["memory"]
    free = "" if found.free_memory is None else f", {byte_size(found.free_memory)} free"
    mark = "  [bold red]does not fit[/]" if found.fits is False else ""
    console.print(f"peak memory on {found.device}: {by} {byte_size(memory['peak_bytes'])}{free}{mark}")
    for name, size in memory["parts"].items():
        if size:
            console.print(f"      {name:<14} {byte_size(size)}")
    if found.changes is None:
        console.print("no change of settings makes it fit: take a smaller model, or a machine with more memory")
    for change in found.changes or ():
        words = " ".join(f"{name}={json.dumps(value)}" for name, value in change.settings.items())
        console.print(escape(f"to fit: {words} saves {byte_size(change.saves)}; costs: {change.costs}"))


def _show_warnings(console: Console, warnings: Iterable[str]) -> None:
    for warning in warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")


def _show_settings(console: Console, settings: Iterable["Choice"]) -> None:
    for number, choice in enumerate(settings):
        if not number:
            console.print("settings:")
        console.print(escape(f"  {choice.name}: {choice.value} ({choice.reason})"))


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


def _price(cost: float) -> str:
    return f"{cost:,.2f}" if cost >= 0.01 else "less than 0.01"
