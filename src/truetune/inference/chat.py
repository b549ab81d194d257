"""A conversation with a trained model."""

from truetune.data.examples import Message
from truetune.inference.generate import Sampling, TrainedModel


class Chat:
    """Keeps the turns so far. A model trained on single prompts is asked each question by itself."""

    def __init__(self, model: TrainedModel, *, system: str = "", sampling: Sampling | None = None) -> None:
        self._model = model
        self._system = system
        self._sampling = sampling
        self._turns: list[Message] = []

    def start_over(self) -> None:
        self._turns = []

    def answer(self, question: str) -> str:
        """The model's answer, which becomes part of the conversation."""
        if not self._keeps_turns:
            return self._model.generate(question, system=self._system, sampling=self._sampling).text
        opening = [Message("system", self._system)] if self._system else []
        turns = [*self._turns, Message("user", question)]
        text = self._model.chat([*opening, *turns], sampling=self._sampling).text
        self._turns = [*turns, Message("assistant", text)]
        return text

    @property
    def _keeps_turns(self) -> bool:
        return self._model.prompt_format.row_format in ("chat", "instruction") and self._model.template.text is None
