"""A conversation with a trained model."""

import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from truetune.data.examples import Example, Message
from truetune.errors import DataError
from truetune.files import remedy
from truetune.inference.answers import Answer
from truetune.inference.generate import Sampling, TrainedModel


class Chat:
    """Keeps the turns so far. A model trained on single prompts is asked each question by itself."""

    def __init__(
        self,
        model: TrainedModel,
        *,
        system: str = "",
        tools: Sequence[Any] = (),
        sampling: Sampling | None = None,
    ) -> None:
        self._model = model
        self._tools = tuple(tools)
        self._sampling = sampling
        self._turns: list[Message] = []
        self.system = system

    @property
    def keeps_turns(self) -> bool:
        """False for a model trained on single prompts."""
        return self._model.prompts.keeps_turns

    @property
    def context_length(self) -> int | None:
        """How many tokens the model can read."""
        return self._model.context_length

    def start_over(self) -> None:
        self._turns = []

    def undo(self) -> str | None:
        """Takes back the last question, with all that followed; returns it, or None where there is none."""
        asked = [place for place, turn in enumerate(self._turns) if turn.role == "user"]
        if not asked:
            return None
        question = self._turns[asked[-1]].content
        del self._turns[asked[-1] :]
        return question

    def answer(self, question: str) -> str:
        """The model's answer, which becomes part of the conversation."""
        return self.ask(question).text

    def ask(self, question: str, *, role: str = "user") -> Answer:
        """The answer to what the user says, or to what a tool returned (role "tool")."""
        said = _said(question, role)
        answer = self._model.chat(
            self._with_system(self._turns_with(said)), tools=self._tools, sampling=self._sampling
        )
        return self._keep(said, answer)

    def stream(self, question: str, *, role: str = "user") -> Generator[str, None, Answer]:
        """As `ask`, with the text piece by piece. What is not answered to its end does not become a turn."""
        said = _said(question, role)
        answer = yield from self._model.stream(self._example(self._turns_with(said)), sampling=self._sampling)
        return self._keep(said, answer)

    def base_answer(self) -> Answer:
        """What the base model says in place of the last answer."""
        with self._model.without_adapter() as base:
            return base.generate_batch([self._example(self._last_asked())], sampling=self._sampling)[0]

    def tokens(self) -> int:
        """How many tokens the conversation takes of the model's context."""
        asked = self._last_asked()
        return len(self._model.prompt_ids(self._example(asked))) if asked else 0

    def rows(self) -> list[dict[str, Any]]:
        """The conversation as rows of data: one, or one for each question to a model of single prompts."""
        if not self._turns:
            return []
        if self.keeps_turns:
            tools = {"tools": list(self._tools)} if self._tools else {}
            return [{"messages": [_as_openai(turn) for turn in self._with_system(self._turns)], **tools}]
        rounds = zip(self._turns[::2], self._turns[1::2], strict=True)
        question, answer = _NAMES.get(self._model.prompt_format.row_format, ("prompt", "completion"))
        system = {"system": self.system} if self.system else {}
        return [{**system, question: asked.content, answer: said.content} for asked, said in rounds]

    def save(self, path: Path) -> int:
        """Adds `rows` to a JSONL file of data; returns how many. DataError where that cannot be written."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows()]
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror or error}", hint=remedy(error)) from error
        return len(lines)

    def _keep(self, said: Message, answer: Answer) -> Answer:
        self._turns += [said, _turn_of(answer)]
        return answer

    def _turns_with(self, said: Message) -> list[Message]:
        return [*self._turns, said] if self.keeps_turns else [said]

    def _last_asked(self) -> list[Message]:
        """What the last answer was an answer to."""
        return self._turns[:-1] if self.keeps_turns else self._turns[-2:-1]

    def _with_system(self, turns: Sequence[Message]) -> list[Message]:
        return [*([Message("system", self.system)] if self.system else []), *turns]

    def _example(self, turns: Sequence[Message]) -> Example:
        return self._model.prompts.of_turns(self._with_system(turns), tools=self._tools)


def _said(text: str, role: str) -> Message:
    return Message("tool" if role == "tool" else "user", text)


_NAMES = {"instruction": ("instruction", "output"), "chat": ("instruction", "output")}
"""The fields of a question and its answer, in rows of the format that the model was trained on."""


def _turn_of(answer: Answer) -> Message:
    """The answer as a turn, its calls as calls: so the template writes them as in the rows of the training."""
    if not answer.tool_calls:
        return Message("assistant", answer.text)
    before = answer.text.partition("<tool_call>")[0].rstrip() if "<tool_call>" in answer.text else ""
    return replace(Message("assistant", before), extra={"tool_calls": list(answer.tool_calls)})


def _as_openai(turn: Message) -> dict[str, Any]:
    return {"role": turn.role, "content": turn.content, **turn.extra}
