"""Answers from a trained model, with the prompts and the stops of its training."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from truetune.data.calls import read_tools
from truetune.data.examples import Conversation, Example, Message
from truetune.data.templates import Template
from truetune.data.turns import read_turns
from truetune.errors import CheckpointError, DataError
from truetune.inference.answers import Answer, StopReason, Stops, stops_of
from truetune.inference.batch import BatchSize, choose_batch_size, sorted_windows
from truetune.inference.opened import Opened, open_trained
from truetune.inference.prompt_format import PromptFormat
from truetune.inference.prompts import Prompts
from truetune.inference.sampling import Sampling, chosen
from truetune.inference.tool_calls import called_tools
from truetune.listener import Listener
from truetune.model.tokenizer import pad_token_id

if TYPE_CHECKING:
    from truetune.inference.decoding import Decoder, Row

__all__ = ["Answer", "Sampling", "TrainedModel", "load_trained"]

_FEW = 8
"""So many prompts are answered in one batch without a thought for memory."""


class TrainedModel:
    """A model with its tokenizer and prompt format. `model` and `tokenizer` are transformers' own.

    `context_length` is how many tokens it can read, where that is known; `load_base` loads the base that it was
    trained from.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        template: Template,
        prompt_format: PromptFormat,
        *,
        context_length: int | None = None,
        load_base: Callable[[], Any] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.prompt_format = prompt_format
        self.context_length = context_length
        self.prompts = Prompts(tokenizer, template, prompt_format)
        self._load_base = load_base

    def generate(
        self, prompt: str, *, input: str = "", system: str = "", sampling: Sampling | None = None, **settings: Any
    ) -> Answer:
        """The answer to `prompt`, put to the model as its training rows were; `settings` are Sampling's names.

        model.generate("hi", max_new_tokens=64, temperature=0.7, seed=1)
        """
        example = self.as_example(prompt, input=input, system=system)
        return self.generate_batch([example], sampling=chosen(sampling, settings))[0]

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        tools: Sequence[Any] = (),
        sampling: Sampling | None = None,
        **settings: Any,
    ) -> Answer:
        """The answer to a conversation that ends with the user's turn, or with what a tool answered.

        `messages` are spelled as training rows may be: [{"role": "user", "content": "hi"}].
        """
        example = self.prompts.of_turns(_turns(messages), tools=read_tools(tools, "tools"))
        return self.generate_batch([example], sampling=chosen(sampling, settings))[0]

    def stream(
        self,
        prompt: str | Example,
        *,
        input: str = "",
        system: str = "",
        sampling: Sampling | None = None,
        **settings: Any,
    ) -> Generator[str, None, Answer]:
        """The answer's text, piece by piece as it is said; the whole Answer is what the generator returns.

        for piece in model.stream("hi"): print(piece, end="", flush=True)
        """
        from truetune.inference.streaming import pieces

        example = self.as_example(prompt, input=input, system=system) if isinstance(prompt, str) else prompt
        sampling = chosen(sampling, settings)
        row = self._row(0, example, sampling)
        stops = stops_of(self.template, sampling.stop)
        yield from pieces(self._decoder(sampling, stops), row)
        return self._answer(example, row, sampling, stops)

    def generate_batch(
        self, examples: Sequence[Example], *, sampling: Sampling | None = None, batch_size: BatchSize = "auto"
    ) -> list[Answer]:
        """One answer for each example, in their order, generated `batch_size` at a time (padded on the left).

        Greedy answers are those of each prompt alone, but for rounding. Raises DataError for a prompt that is longer
        than the model can read.
        """
        sampling = sampling or Sampling()
        stops = stops_of(self.template, sampling.stop)
        rows = [self._row(number, example, sampling) for number, example in enumerate(examples)]
        decoder = self._decoder(sampling, stops)
        if len(rows) <= _FEW and batch_size == "auto":
            decoder.together(rows)
        else:
            longest = max(len(row.prompt) + row.limit for row in rows)
            size = choose_batch_size(batch_size, self.model, longest=longest).size
            for _ in decoder.finished(sorted_windows(rows, size), batch_size=size):
                pass
        return [self._answer(example, row, sampling, stops) for example, row in zip(examples, rows, strict=True)]

    def answers(
        self, examples: Iterable[tuple[int, Example]], *, sampling: Sampling | None = None, batch_size: int
    ) -> Iterator[tuple[int, Answer]]:
        """Each numbered example's number and answer as soon as that is known, in no order.

        Examples are drawn from the iterable some batches ahead, so that prompts of like length are answered together.
        """
        sampling = sampling or Sampling()
        stops = stops_of(self.template, sampling.stop)
        asked: dict[int, Example] = {}

        def rows() -> Iterator["Row"]:
            for number, example in examples:
                asked[number] = example
                yield self._row(number, example, sampling)

        decoder = self._decoder(sampling, stops)
        for row in decoder.finished(sorted_windows(rows(), batch_size), batch_size=batch_size):
            yield row.number, self._answer(asked.pop(row.number), row, sampling, stops)

    def as_example(self, prompt: str, *, input: str = "", system: str = "") -> Example:
        """The prompt as a row of the format the model was trained on, its answer still open."""
        return self.prompts.of_words(prompt, input=input, system=system)

    def prompt_ids(self, example: Example) -> list[int]:
        """The ids the model is asked to go on from: those that training put before the answer."""
        return self.prompts.ids(example)

    @contextmanager
    def without_adapter(self) -> Iterator["TrainedModel"]:
        """The model as it was before its training, asked in the same way: with its adapter off, or loaded anew.

        Raises CheckpointError where the base is not known.
        """
        if _can_be_turned_off(self.model):
            with self.model.disable_adapter():
                yield self
        elif self._load_base is not None:
            yield self._with(self._load_base())
        else:
            raise CheckpointError("the base of this model is not known", hint="name it with --base (base_model=)")

    def _with(self, model: Any) -> "TrainedModel":
        length = self.context_length
        return TrainedModel(model, self.tokenizer, self.template, self.prompt_format, context_length=length)

    def _decoder(self, sampling: Sampling, stops: Stops) -> "Decoder":
        import torch

        from truetune.inference.decoding import Decoder

        seed = sampling.seed
        if seed is None:
            seed = 0 if sampling.is_greedy else int(torch.randint(2**62, ()))
        return Decoder(self.model, stops, sampling, pad_token_id(self.tokenizer), seed)

    def _row(self, number: int, example: Example, sampling: Sampling) -> "Row":
        from truetune.inference.decoding import Row

        prompt = self.prompt_ids(example)
        room = room_behind(prompt, self.context_length)
        return Row(number, prompt, sampling.max_new_tokens if room is None else min(room, sampling.max_new_tokens))

    def _answer(self, example: Example, row: "Row", sampling: Sampling, stops: Stops) -> Answer:
        reason: StopReason = "stop"
        if not row.has_ended:
            reason = "length" if len(row.ids) >= sampling.max_new_tokens else "context"
        text = stops.text(row.ids)
        calls = called_tools(text) if isinstance(example, Conversation) and example.tools else ()
        return Answer(tuple(row.prompt), text, reason, tuple(row.ids), calls)


def _turns(messages: Sequence[Message | Mapping[str, Any]]) -> Sequence[Message]:
    """The turns, read as those of rows are where they are no Messages yet."""
    ready = [each for each in messages if isinstance(each, Message)]
    return ready if len(ready) == len(messages) else read_turns(messages, "messages", [])


def room_behind(prompt: Sequence[int], context_length: int | None) -> int | None:
    """How many tokens the model can say behind a prompt; None where that is not known. DataError if none."""
    if not prompt:
        raise DataError("the prompt has no token", hint="give the model something to go on from")
    if context_length is None or len(prompt) < context_length:
        return context_length and context_length - len(prompt)
    raise DataError(
        f"the prompt has {len(prompt):,} tokens and the model reads {context_length:,}, its answer among them",
        hint="shorten it, or leave out earlier turns",
    )


def _can_be_turned_off(model: Any) -> bool:
    """True for an adapter beside untouched weights: biases that were trained stay when PEFT disables it."""
    configs = getattr(model, "peft_config", {}).values()
    return bool(configs) and all(getattr(config, "bias", "none") == "none" for config in configs)


def load_trained(
    path: str | Path,
    *,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    dtype: str | None = None,
    listener: Listener | None = None,
) -> TrainedModel:
    """The trained model of a run's directory, RUN@STEP, an adapter's or model's folder, or a base model by its name.

    `base_model` names the base where the recorded one is no longer there; `dtype` is torch's name of the weights'
    (float32), by default what the device computes fastest, or float32 where a run computed in that. Raises
    CheckpointError for a folder that holds no trained model, BackendError for a base that is missing.
    """
    return load_opened(open_trained(path, base_model=base_model, listener=listener), device=device, dtype=dtype)


def load_opened(
    opened: Opened, *, device: Literal["auto", "cpu", "cuda", "mps"] = "auto", dtype: str | None = None
) -> TrainedModel:
    """Loads the weights of what `open_trained` has found."""
    options = opened.options(device, dtype)
    return TrainedModel(
        opened.load(options),
        opened.tokenizer,
        opened.template,
        opened.format,
        context_length=opened.context_length,
        load_base=(lambda: opened.load_base(options)) if opened.has_base else None,
    )
