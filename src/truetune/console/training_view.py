"""A training as a terminal shows it: one calm view of where it stands, in 80 columns."""

import math
from collections.abc import Sequence

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from truetune.console.output import duration, gigabytes
from truetune.listener import StepEvent

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 48
"""Columns of the curve."""
_INDENT = " " * len("training ")


class LossCurve:
    """A run's losses in less than a hundred numbers, however long it is: neighbours are averaged as they get many."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._each = 1
        self._sum, self._count = 0.0, 0

    def add(self, loss: float) -> None:
        """The next step's loss; one that is no number leaves no mark."""
        if not math.isfinite(loss):
            return
        self._sum, self._count = self._sum + loss, self._count + 1
        if self._count == self._each:
            self._means.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
        if len(self._means) == 2 * _WIDTH:
            self._means, self._each = _halved(self._means), 2 * self._each

    def drawn(self) -> str:
        """The curve in at most `_WIDTH` characters, the lowest loss at the bottom."""
        points = _halved(self._means) if len(self._means) > _WIDTH else self._means
        if not points:
            return ""
        low, high = min(points), max(points)
        scale = (len(_BLOCKS) - 1) / ((high - low) or 1.0)
        return "".join(_BLOCKS[round((point - low) * scale)] for point in points)


def _halved(values: Sequence[float]) -> list[float]:
    pairs = (values[place : place + 2] for place in range(0, len(values), 2))
    return [sum(pair) / len(pair) for pair in pairs]


class TrainingView:
    """The newest step, and the losses so far."""

    def __init__(self) -> None:
        self._curve = LossCurve()
        self._event: StepEvent | None = None

    def take(self, event: StepEvent) -> None:
        self._event = event
        self._curve.add(event.loss)

    def __rich__(self) -> Group:
        if self._event is None:
            return Group()
        event = self._event
        bar = Table.grid(padding=(0, 1))
        bar.add_row("training", ProgressBar(total=event.total_steps, completed=event.step, width=30), _where(event))
        loss = Text.assemble("loss     ", (f"{event.loss:.4f}", "bold"), "  ", (self._curve.drawn(), "cyan"))
        lines = [Text(_INDENT + " · ".join(facts), style="dim") for facts in (_pace(event), _marks(event)) if facts]
        return Group(bar, loss, *lines)


def _where(event: StepEvent) -> str:
    left = f", {duration(event.seconds_left)} left" if math.isfinite(event.seconds_left) else ""
    return f"{event.step:,} of {event.total_steps:,}{left}"


def _pace(event: StepEvent) -> list[str]:
    facts = [f"{event.tokens_per_second:,.0f} tokens/s"] if math.isfinite(event.tokens_per_second) else []
    if event.learning_rate is not None:
        facts.append(f"rate {event.learning_rate:.1e}")
    if event.memory_bytes is not None:
        facts.append(gigabytes(event.memory_bytes))
    return facts


def _marks(event: StepEvent) -> list[str]:
    facts = []
    if event.eval_loss is not None:
        facts.append(f"validation {event.eval_loss:.4f} at step {event.eval_step:,}")
    if event.next_checkpoint is not None:
        facts.append(f"next checkpoint at {event.next_checkpoint:,}")
    return facts
