"""Answers from a trained model, with the prompts and the stops of its training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from truetune.data.examples import Completion, Conversation, Example, Instruction, Location, Message
from truetune.data.render import render_prompt
from truetune.data.templates import Template
from truetune.data.tokenize import tokenize_prompt
from truetune.errors import BackendError, CheckpointError
from truetune.inference.prompt_format import PromptFormat, read_prompt_format
from truetune.model.adapter import load_trained_adapter
from truetune.model.hardware import DTYPES, resolve_device, resolve_precision
from truetune.model.load import ModelOptions, load_model
from truetune.model.source import ModelSource, resolve_model
from truetune.model.tokenizer import load_tokenizer, pad_token_id

_ASKED = Location("prompt", 1, "row")


@dataclass(frozen=True, slots=True)
class Answer:
    """`prompt_ids` is what the model read; `stop_reason` is "stop", or "length" where it ran out of tokens."""

    prompt_ids: tuple[int, ...]
    text: str
    stop_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """`temperature` 0 is greedy: the same answer every time."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0


class TrainedModel:
    """A model with its tokenizer and prompt format. `model` and `tokenizer` are transformers' own."""

    def __init__(self, model: Any, tokenizer: Any, template: Template, prompt_format: PromptFormat) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.prompt_format = prompt_format

    def generate(self, prompt: str, *, input: str = "", system: str = "", sampling: Sampling | None = None) -> Answer:
        """The answer to `prompt`, put to the model as its training rows were."""
        return self.generate_batch([self.as_example(prompt, input=input, system=system)], sampling=sampling)[0]

    def chat(self, messages: Sequence[Message], *, sampling: Sampling | None = None) -> Answer:
        """The answer to a conversation that ends with the user's turn."""
        return self.generate_batch([Conversation(tuple(messages), _ASKED)], sampling=sampling)[0]

    def as_example(self, prompt: str, *, input: str = "", system: str = "") -> Example:
        """The prompt as a row of the format the model was trained on, its answer still open."""
        match self.prompt_format.row_format:
            case "instruction":
                return Instruction(prompt, input, "", system, _ASKED)
            case "chat":
                opening = (Message("system", system),) if system else ()
                return Conversation((*opening, Message("user", f"{prompt}\n\n{input}" if input else prompt)), _ASKED)
            case _:
                return Completion(prompt, "", _ASKED)

    def generate_batch(self, examples: Sequence[Example], *, sampling: Sampling | None = None) -> list[Answer]:
        """One answer for each example, generated together (padded on the left)."""
        import torch

        sampling = sampling or Sampling()
        prompts = [self.prompt_ids(example) for example in examples]
        width = max(map(len, prompts))
        pad = pad_token_id(self.tokenizer)
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        stops = self.template.stop_token_ids
        with torch.inference_mode():
            generated = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=sampling.max_new_tokens,
                pad_token_id=pad,
                eos_token_id=list(stops) or None,
                **self._stop_strings(),
                **_decoding(sampling),
            )
        return [self._answer(prompt, row[width:].tolist()) for prompt, row in zip(prompts, generated, strict=True)]

    def prompt_ids(self, example: Example) -> list[int]:
        """The ids the model is asked to go on from: those that training put before the answer."""
        return tokenize_prompt(render_prompt(example, template=self.template), tokenizer=self.tokenizer)

    def _stop_strings(self) -> dict[str, Any]:
        """A terminator that is no single token has to be found in the text."""
        terminator = self.template.terminator.strip()
        if not terminator or self.template.terminator_is_token:
            return {}
        return {"stop_strings": [terminator], "tokenizer": self.tokenizer}

    def _answer(self, prompt: list[int], ids: list[int]) -> Answer:
        stops = set(self.template.stop_token_ids)
        end = next((index for index, token in enumerate(ids) if token in stops), None)
        text: str = self.tokenizer.decode(ids if end is None else ids[:end], skip_special_tokens=True)
        terminator = self.template.terminator.strip()
        if end is None and not self.template.terminator_is_token and terminator and terminator in text:
            text, end = text.partition(terminator)[0], len(ids)
        return Answer(tuple(prompt), text, "length" if end is None else "stop")


def load_trained(
    path: str | Path,
    *,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    dtype: str | None = None,
) -> TrainedModel:
    """The trained model of a run's directory, or of the adapter or model folder in it.

    `base_model` names the base where the recorded one is no longer there; `dtype` is torch's name of the weights'
    (float32), by default what the device computes fastest. Raises CheckpointError for a folder that
    holds no trained model, BackendError for a base that is missing.
    """
    folder = _weights_folder(Path(path))
    stored = read_prompt_format(folder)
    is_adapter = (folder / "adapter_config.json").is_file()
    tokenizer = load_tokenizer(ModelSource(str(folder), str(folder)))
    chosen = resolve_device(device)
    options = ModelOptions(dtype or DTYPES[resolve_precision("auto", chosen)], chosen)
    if is_adapter:
        model = load_trained_adapter(_base(base_model, stored, options), folder)
    else:
        model = load_model(ModelSource(str(folder), str(folder)), options)
    return TrainedModel(model, tokenizer, stored.load(tokenizer), stored)


def _base(base_model: str | None, stored: PromptFormat, options: ModelOptions) -> Any:
    """The base model named now, or the recorded one, with a way out where that is gone."""
    if base_model:
        return load_model(resolve_model(base_model), options)
    try:
        return load_model(resolve_model(stored.base_model, revision=stored.revision), options)
    except BackendError as error:
        hint = "the run was trained on it; where it is elsewhere now, name it with --base (base_model= in Python)"
        raise BackendError(error.message, hint=hint) from error


def _weights_folder(path: Path) -> Path:
    for folder in (path, path / "adapter", path / "model"):
        if (folder / "adapter_config.json").is_file() or (folder / "config.json").is_file():
            return folder
    if not path.is_dir():
        raise CheckpointError(f"run not found: {path}", hint="give the directory of a finished run")
    raise CheckpointError(f"{path} holds no trained model", hint="the run may not have finished: see its run.json")


def _decoding(sampling: Sampling) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
