"""A model on its way out: its prompts, stops and template, and what its own choices are worth."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from truetune.errors import CheckpointError
from truetune.inference.gguf import GgufModel
from truetune.inference.gguf_tokenizer import Vocabulary
from truetune.inference.ollama import PROMPT_ALONE, go_template
from truetune.inference.parity import Fixture, Fixtures, replay, rounding
from truetune.inference.prompt_format import find_prompt_format
from truetune.inference.quantization import Quantization
from truetune.listener import Listener
from truetune.model.adapter import load_trained_adapter
from truetune.model.fixtures import FixedPrompt, record
from truetune.model.greedy import answer_logits
from truetune.model.load import ModelOptions, load_model, read_config
from truetune.model.source import ModelSource
from truetune.model.tokenizer import load_tokenizer
from truetune.pipeline.fixed_prompts import own_prompts

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class WholeModel:
    """A whole model's folder, with what its training knew about prompts and stops.

    With an `adapter` the folder is its base, and tokenizer, prompts and answers are the adapter's.
    """

    def __init__(self, folder: Path, title: str, *, adapter: Path | None = None) -> None:
        self.folder, self.title, self.adapter = folder, title, adapter
        self.config = read_config(ModelSource(str(folder), str(folder)))
        self.tokenizer = _tokenizer(adapter or folder, folder)
        self.format = find_prompt_format(adapter or folder, base_model=str(folder) if adapter else None)
        self.template = self.format.load(self.tokenizer) if self.format else None

    @property
    def dtype(self) -> str:
        return str(self.config.dtype or "float32").removeprefix("torch.")

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        if self.template:
            return self.template.stop_token_ids
        return () if self.tokenizer.eos_token_id is None else (self.tokenizer.eos_token_id,)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """What ends an answer, as text; a terminator that is no single token can only be found so."""
        texts = [str(self.tokenizer.convert_ids_to_tokens(token)) for token in self.stop_token_ids]
        if self.template and self.template.terminator.strip() and not self.template.terminator_is_token:
            texts.append(self.template.terminator.strip())
        return tuple(dict.fromkeys(texts))

    @property
    def bos(self) -> str:
        ids = self.tokenizer("a")["input_ids"]
        is_added = self.tokenizer.bos_token_id is not None and ids[0] == self.tokenizer.bos_token_id
        return str(self.tokenizer.bos_token) if is_added else ""

    @cached_property
    def adds_bos(self) -> bool:
        """Do training's prompts begin with BOS? Then llama.cpp puts it there, also before bare texts."""
        if not self.bos:
            return False
        if not self.tokenizer.chat_template:
            return True
        asked = renderer(self.tokenizer)([{"role": "user", "content": "x"}])
        return asked is None or asked.startswith(self.bos)

    @cached_property
    def exported(self) -> GgufModel:
        config = self.config
        window = config.sliding_window if config.model_type == "mistral" else None
        return GgufModel(
            self.folder,
            config,
            Vocabulary(self.tokenizer, config.vocab_size),
            self.title,
            self.stop_token_ids,
            self.adds_bos,
            self.tokenizer.chat_template,
            min(window or config.max_position_embeddings, config.max_position_embeddings),
        )

    def tell_context(self, listener: Listener) -> None:
        """Warns where the GGUF is told a shorter context than the model has."""
        if self.exported.context_length != self.config.max_position_embeddings:
            listener.warn(
                f"llama.cpp has no sliding window for this architecture: its context is told to be "
                f"{self.exported.context_length:,} tokens, up to which it makes no difference"
            )

    @cached_property
    def loaded(self) -> Any:
        model = load_model(ModelSource(str(self.folder), str(self.folder)), ModelOptions("float32", "cpu"))
        return load_trained_adapter(model, self.adapter) if self.adapter else model

    def prompts(self) -> list[FixedPrompt]:
        if self.template and self.format and (ours := own_prompts(self.template, self.format.row_format)):
            return ours
        texts = ("The capital of France is", "Once upon a time there was", "def main():\n    return")
        return [FixedPrompt(tuple(self.tokenizer(text)["input_ids"]), self.bos + text) for text in texts]

    def conversations(self, fixtures: Sequence[Fixture]) -> tuple[tuple[Any, str, int], ...]:
        """The recorded conversations as the saved template makes prompts of them today."""
        render = renderer(self.tokenizer)
        found = [(each.messages, render(each.messages), len(each.prompt_ids)) for each in fixtures if each.messages]
        return tuple((messages, text, count) for messages, text, count in found if text is not None)

    def go_template(self) -> str:
        if not self.tokenizer.chat_template:
            return PROMPT_ALONE
        return go_template(renderer(self.tokenizer), bos=self.bos if self.adds_bos else "")


def _tokenizer(*folders: Path) -> Any:
    """The tokenizer of the first folder that has one."""
    holder = next((each for each in folders if (each / "tokenizer_config.json").is_file()), folders[-1])
    return load_tokenizer(ModelSource(str(holder), str(holder)))


def answered(model: WholeModel) -> Fixtures:
    """What the model answers now to a few prompts. CheckpointError for logits that are no numbers."""
    try:
        return record(model.loaded, model.prompts(), stop_token_ids=model.stop_token_ids)
    except ValueError as error:
        raise CheckpointError(f"{model.adapter or model.folder} is no sound model: {error}") from error


class Judge:
    """Whether llama.cpp's choices are as good as the recorded ones, but for rounding, by the folder's model in fp32.

    It is loaded only when asked. What was recorded in bf16 may be decided by bf16's rounding: then the folder's model
    must give the recorded answer, as far as that rounding goes, and llama.cpp the one of the folder's model.
    """

    def __init__(self, model: WholeModel, quantization: Quantization, dtype: str) -> None:
        self.model, self.quantization, self.dtype = model, quantization, dtype

    def __call__(self, fixture: Fixture, tokens: Sequence[int]) -> bool:
        if not self.quantization.is_exact:
            return False
        if not replay(self.model.loaded, Fixtures((fixture,), self.dtype)).is_same:
            return False
        logits = answer_logits(self.model.loaded, fixture.prompt_ids, fixture.answer_ids[:-1])
        bound = rounding(logits, _DTYPES[self.quantization.most])
        return all(float(row.max() - row[token]) <= bound for row, token in zip(logits, tokens, strict=True))


def renderer(tokenizer: Any) -> Any:
    """The prompt that the saved chat template makes of messages; None where it refuses them."""
    from jinja2 import TemplateError as Refusal

    def render(messages: Any) -> str | None:
        try:
            text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except (Refusal, TypeError):
            return None
        return text

    return render
