"""How far a stream of rows was read, in each checkpoint."""

from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class Stream(Protocol):
    """What tells, of the end of a step, where in its rows the run is."""

    def position_at(self, step: int) -> dict[str, Any]:
        """From where a run goes on behind that step, as JSON carries it."""

    def epoch_at(self, step: int) -> float:
        """How often, and how far, the rows were read by then."""

    def is_broken_behind(self, step: int) -> bool:
        """True if the rows of the next step are known to be missing."""


class StreamPosition(TrainerCallback, ExportableState):
    """Keeps the position in `trainer_state.json`, and tells epochs that Trainer cannot count.

    The last step before rows that cannot be had is saved: the run ends with an error there.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._step = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._step = state.global_step
        state.epoch = self._stream.epoch_at(self._step)
        control.should_save |= self._stream.is_broken_behind(self._step)
        return control

    def state(self) -> dict[str, Any]:
        """As Trainer keeps what callbacks know."""
        return {"args": {}, "attributes": self._stream.position_at(self._step)}
