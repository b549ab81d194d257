"""How a trained model is to be prompted: stored beside its weights, so that answers get training's prompts."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from truetune.config.load import load_config
from truetune.data.templates import Template, load_template
from truetune.errors import CheckpointError, TruetuneError
from truetune.model.source import resolve_model
from truetune.model.tokenizer import load_tokenizer
from truetune.runs.directory import RunDirectory
from truetune.runs.trained import run_of

FILE = "truetune.json"
RowFormat = Literal["chat", "instruction", "completion", "text"]


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """`row_format` is what most training rows were; `template` is what load_template takes; `base_model` as named.

    `adapt_roles` says whether prompts that the template refuses are changed for it, as rows were.
    """

    row_format: RowFormat
    template: str
    base_model: str
    revision: str | None
    adapt_roles: bool = True

    def load(self, tokenizer: Any) -> Template:
        """The template of the training, for the tokenizer saved beside the weights."""
        template = load_template(tokenizer, template=self.template, adapts_roles=self.adapt_roles)
        # Rows trained as plain text are asked as plain text, whatever the template could do with them.
        return replace(template, completion_as_chat=self.row_format in ("chat", "instruction"))


def prompt_format(
    template: Template, formats: Mapping[str, int], *, base_model: str, revision: str | None
) -> PromptFormat:
    """The format of a run whose rows had these formats. The tokenizer saved beside it carries the chat template."""
    row_format: Any = max(formats, key=lambda name: formats[name])
    if row_format == "completion" and template.completion_as_chat:
        row_format = "instruction"
    name = template.text or ("model" if template.chat else "auto")
    return PromptFormat(row_format, name, base_model, revision, template.adapts_roles)


def read_prompt_format(folder: Path) -> PromptFormat:
    """Raises CheckpointError if `folder` does not hold one."""
    try:
        return PromptFormat(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder} holds no trained model: {FILE} is missing or damaged",
            hint="give the directory of a finished run",
        ) from error


def find_prompt_format(folder: Path, *, base_model: str | None = None) -> PromptFormat | None:
    """The format beside these weights, or that of the run they are a checkpoint of; None for foreign weights.

    `base_model` is where the base is now, whose tokenizer tells the format of a run that has not finished.
    """
    if (folder / FILE).exists():
        return read_prompt_format(folder)
    run = run_of(folder)
    if run is None:
        return None
    saved = next((each for each in (run.adapter, run.model) if (each / FILE).exists()), None)
    return _format_of(run, base_model) if saved is None else read_prompt_format(saved)


def recorded_base(folder: Path, known: PromptFormat | None) -> tuple[str, str | None]:
    """The name of an adapter's base, which may be a path, and its revision; an empty name where nothing tells it.

    By the training's format, else by the config of its run, else by PEFT's own settings.
    """
    if known is not None:
        return known.base_model, known.revision
    run = run_of(folder)
    with suppress(TruetuneError):
        if run is not None and run.config.is_file():
            model = load_config(run.config).config.model
            return model.name_or_path, model.revision
    with suppress(OSError, ValueError):
        settings = json.loads((folder / "adapter_config.json").read_bytes())
        return str(settings.get("base_model_name_or_path") or ""), settings.get("revision")
    return "", None


def base_prompt_format(tokenizer: Any, *, base_model: str, revision: str | None) -> PromptFormat:
    """How a model is asked of which it is not known: by its chat template, or as a text to go on from."""
    if tokenizer.chat_template:
        return PromptFormat("chat", "model", base_model, revision)
    return PromptFormat("text", "auto", base_model, revision)


def _format_of(run: RunDirectory, base_model: str | None) -> PromptFormat | None:
    """The format of a run that has not finished, from its config and its rows' count; None without them."""
    if not (run.config.is_file() and run.data_report.is_file()):
        return None
    config = load_config(run.config).config
    model, data = config.model, config.data
    formats = json.loads(run.data_report.read_bytes())["stats"]["formats"]
    source = resolve_model(base_model) if base_model else resolve_model(model.name_or_path, revision=model.revision)
    tokenizer = load_tokenizer(source)
    template = load_template(tokenizer, template=data.template, thinking=data.thinking, adapts_roles=data.adapt_roles)
    return prompt_format(template, formats, base_model=model.name_or_path, revision=model.revision)
