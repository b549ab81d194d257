"""A training whose learning rate rises from step to step: what a range test asks of the trainer."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class RisingRate(TrainerCallback):
    """Gives each optimizer step its rate, keeps the losses, and ends the training once `is_over` says so of them.

    `losses[n]` was measured before the step at `rates[n]`: it is what the steps at the rates before it made.
    A training `is_broken` while loss or gradient norm is no number: should the engine give up then, that is why.
    """

    def __init__(self, rates: Sequence[float], *, is_over: Callable[[Sequence[float]], bool]) -> None:
        self.losses: list[float] = []
        self.is_broken = False
        self._rates = rates
        self._is_over = is_over

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """The scheduler sets its own rates after every step; this comes after it. Groups keep their ratio (LoRA+)."""
        rate = self._rates[min(state.global_step, len(self._rates) - 1)]
        for group in optimizer.param_groups:
            group["lr"] = rate * (group["initial_lr"] / args.learning_rate)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> TrainerControl:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.is_broken = not all(map(math.isfinite, (self.losses[-1], float(logs.get("grad_norm", 0.0)))))
            control.should_training_stop |= self._is_over(self.losses)
        return control
