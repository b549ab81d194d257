"""What a run's user is told, and the settings that make a run short."""

from typing import Any

FAST = {"precision": "fp32", "learning_rate": 1e-3, "logging_steps": 1, "r": 4}


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stages: list[tuple[str, int, int | None]] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    def warn(self, message: str) -> None:
        self.lines.append(f"warning: {message}")

    def progress(self, stage: str, done: int, total: int | None) -> None:
        self.lines.append(f"{stage}: {done} of {total}")
        self.stages.append((stage, done, total))

    def step(self, event: Any) -> None:
        self.lines.append(f"step {event.step} of {event.total_steps}")

    def text(self) -> str:
        return "\n".join(self.lines)
