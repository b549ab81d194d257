"""How a trained model is to be prompted: stored beside its weights, so that answers get training's prompts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from truetune.data.templates import Template, load_template
from truetune.errors import CheckpointError

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
