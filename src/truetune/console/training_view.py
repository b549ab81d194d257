"""A training as a terminal shows it: one calm view of where it stands, in 80 columns, or in fewer."""

import math
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from truetune.figures import byte_size, duration
from truetune.listener import StepEvent

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 48
"""Columns of the curve."""
_BAR, _SHORTEST_BAR = 30, 6
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

    def drawn(self, *, width: int = _WIDTH) -> str:
        """The curve in at most `width` characters, the lowest loss at the bottom."""
        points: Sequence[float] = self._means
        while len(points) > max(1, width):
            points = _halved(points)
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

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        if self._event is None:
            return
        event, room = self._event, options.max_width - len(_INDENT)
        lines = Table.grid(padding=(0, 1))
        lines.add_row("training", _progress(event, room))
        figure = f"{event.loss:.4f}"
        curve = self._curve.drawn(width=min(_WIDTH, room - len(figure) - 2))
        lines.add_row("loss", Text.assemble((figure, "bold"), "  ", (curve, "cyan")))
        for facts in (_pace(event), _marks(event)):
            if facts:
                lines.add_row("", Text(" · ".join(facts), style="dim"))
        yield lines


def _progress(event: StepEvent, room: int) -> RenderableType:
    """How far the training is, with a bar where there is room for one."""
    where = _where(event)
    bar = min(_BAR, room - len(where) - 1)
    if bar < _SHORTEST_BAR:
        return Text(where)
    row = Table.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=event.total_steps, completed=event.step, width=bar), where)
    return row


def _where(event: StepEvent) -> str:
    is_known = event.seconds_left and math.isfinite(event.seconds_left)
    left = f", {duration(event.seconds_left)} left" if is_known else ""
    return f"{event.step:,} of {event.total_steps:,}{left}"


def _pace(event: StepEvent) -> list[str]:
    facts = [f"{event.tokens_per_second:,.0f} tokens/s"] if math.isfinite(event.tokens_per_second) else []
    if event.learning_rate is not None:
        facts.append(f"rate {event.learning_rate:.1e}")
    if event.memory_bytes is not None:
        facts.append(byte_size(event.memory_bytes))
    return facts


def _marks(event: StepEvent) -> list[str]:
    facts = []
    if event.eval_loss is not None:
        facts.append(f"validation {event.eval_loss:.4f} at step {event.eval_step:,}")
    if event.next_checkpoint is not None:
        facts.append(f"next checkpoint at {event.next_checkpoint:,}")
    return facts
