"""How often something happens in a run: evaluations and checkpoints, by their strategy."""

import math
from typing import Literal

Strategy = Literal["no", "steps", "epoch"]


def times(strategy: Strategy, *, every: float, total_steps: int, steps_per_epoch: int) -> int:
    """How often in so many steps, the last one always among them; `every` below 1 is a share of all steps."""
    match strategy:
        case "no":
            return 0
        case "epoch":
            return math.ceil(total_steps / steps_per_epoch)
        case "steps":
            interval = every if every >= 1 else math.ceil(total_steps * every)
            return math.ceil(total_steps / interval)
