"""What a command's RUN stands for, known before any weights load: its folder, tokenizer, prompts and base."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from truetune.data.templates import Template
from truetune.errors import BackendError, CheckpointError
from truetune.inference.prompt_format import (
    FILE,
    PromptFormat,
    base_prompt_format,
    find_prompt_format,
    recorded_base,
)
from truetune.inference.prompts import Prompts
from truetune.listener import Listener, LogListener
from truetune.model.adapter import load_trained_adapter
from truetune.model.hardware import DTYPES, resolve_device, resolve_precision
from truetune.model.load import ModelOptions, load_model, read_facts
from truetune.model.source import DEMO, ModelSource, resolve_model
from truetune.model.tokenizer import load_tokenizer
from truetune.runs.trained import run_of, weights_folder

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Opened:
    """A trained model without its weights. `base_model` is the base as named now, else the recorded one is used."""

    source: ModelSource
    is_adapter: bool
    format: PromptFormat
    tokenizer: Any
    template: Template
    base_model: str | None = None

    @property
    def prompts(self) -> Prompts:
        return Prompts(self.tokenizer, self.template, self.format)

    @property
    def context_length(self) -> int | None:
        """How many tokens the model can read, where it says so. BackendError for a base that is missing."""
        with _way_out(self.base_model):
            return read_facts(self._base() if self.is_adapter else self.source).context_length

    @property
    def has_base(self) -> bool:
        """False for a model that is its own base."""
        return self.is_adapter or bool(self.base_model) or self.format.base_model != self.source.name

    def options(self, device: Literal["auto", "cpu", "cuda", "mps"], dtype: str | None = None) -> ModelOptions:
        """In `dtype`; else in float32 if its run computed in that, or in what the device computes fastest."""
        chosen = resolve_device(device)
        precision = "fp32" if self._trained_in() == "fp32" else resolve_precision("auto", chosen)
        return ModelOptions(dtype or DTYPES[precision], chosen)

    def _trained_in(self) -> str | None:
        """What its run says it computed in, where that is at hand: rounded further it is another model."""
        run = run_of(Path(self.source.path))
        with suppress(CheckpointError):
            return run.read_record().get("precision") if run else None
        return None

    def load(self, options: ModelOptions) -> Any:
        """The model, ready to answer."""
        if self.is_adapter:
            return load_trained_adapter(self.load_base(options), Path(self.source.path))
        return load_model(self.source, options)

    def load_base(self, options: ModelOptions) -> Any:
        """The base alone, as it was before the training."""
        with _way_out(self.base_model):
            return load_model(self._base(), options)

    def _base(self) -> ModelSource:
        if self.base_model:
            return resolve_model(self.base_model)
        return resolve_model(self.format.base_model, revision=self.format.revision)


def open_trained(path: str | Path, *, base_model: str | None = None, listener: Listener | None = None) -> Opened:
    """What `path` names: a run, RUN@STEP, a folder with an adapter or a model, or a base by its name.

    Raises CheckpointError for a folder that holds no trained model. Tells of a model whose prompts are not known.
    """
    if _names_base(str(path)):
        source = resolve_model(str(path))
        return _without_format(source, source, listener or LogListener(), is_adapter=False)
    folder = weights_folder(path)
    source = ModelSource(str(folder), str(folder))
    is_adapter = (folder / "adapter_config.json").is_file()
    found = find_prompt_format(folder, base_model=base_model)
    if found is None:
        base = _foreign_base(folder, base_model) if is_adapter else source
        return _without_format(source, base, listener or LogListener(), is_adapter=is_adapter, named=base_model)
    tokenizer = load_tokenizer(source)
    return Opened(source, is_adapter, found, tokenizer, found.load(tokenizer), base_model)


def _names_base(name: str) -> bool:
    """True of what is not on this disk and is a model's name, and of a .gguf file."""
    path = Path(name)
    if name == DEMO or path.suffix == ".gguf":
        return not path.is_dir()
    # A run that is missing lies beside others, as runs/support-2 does.
    return bool(_HUB_ID.fullmatch(name)) and "@" not in name and not path.exists() and not path.parent.exists()


def _without_format(
    source: ModelSource, base: ModelSource, listener: Listener, *, is_adapter: bool, named: str | None = None
) -> Opened:
    """A model that truetune did not train is asked by its own chat template, or with plain text."""
    has_own = is_adapter and (Path(source.path) / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(source if has_own else base)
    prompts = base_prompt_format(tokenizer, base_model=base.name, revision=base.revision)
    how = "its own chat template" if prompts.row_format == "chat" else "nothing around them: it has no chat template"
    listener.say(f"{source.name} holds no {FILE}: prompts are put with {how}")
    return Opened(source, is_adapter, prompts, tokenizer, prompts.load(tokenizer), named)


def _foreign_base(adapter: Path, named: str | None) -> ModelSource:
    """The base of an adapter whose prompts are not known."""
    name, revision = (named, None) if named else recorded_base(adapter, None)
    if not name:
        raise CheckpointError(f"{adapter}/adapter_config.json names no base model", hint=_NAME_IT)
    return resolve_model(name, revision=revision)


_NAME_IT = "where the base is elsewhere now, name it with --base (base_model= in Python)"


@contextmanager
def _way_out(named: str | None) -> Iterator[None]:
    """A base that is gone, where nobody has named another one, comes with the way to do so."""
    try:
        yield
    except BackendError as error:
        if named:
            raise
        raise BackendError(error.message, hint=f"the run was trained on it; {_NAME_IT}") from error
