"""What an adapter stands on: its training's prompt format, its base, and whether that was quantised under it."""

import json
from pathlib import Path

from truetune.config.load import load_config
from truetune.errors import BackendError
from truetune.inference.prompt_format import FILE as PROMPT_FORMAT
from truetune.inference.prompt_format import PromptFormat, read_prompt_format
from truetune.model.source import ModelSource, resolve_model
from truetune.runs.checkpoints import MANIFEST, read_manifest
from truetune.runs.trained import run_of


def known_format(adapter: Path) -> PromptFormat | None:
    """The training's format, kept beside the adapter, or by the run of a checkpoint; None where neither has one."""
    run = run_of(adapter)
    for folder in (adapter, *((run.adapter,) if run else ())):
        if (folder / PROMPT_FORMAT).is_file():
            return read_prompt_format(folder)
    return None


def base_of(adapter: Path, known: PromptFormat | None, *, named: str | None) -> ModelSource:
    """The base of an adapter: as named now, else as it was recorded. BackendError where it is not there any more."""
    if named:
        return resolve_model(named)
    name, revision = (known.base_model, known.revision) if known else _recorded_base(adapter)
    try:
        return resolve_model(name, revision=revision)
    except BackendError as error:
        hint = "the adapter was trained on it; where it is elsewhere now, name it with --base (base_model= in Python)"
        raise BackendError(error.message, hint=hint) from error


def _recorded_base(adapter: Path) -> tuple[str, str | None]:
    """The base by the config of a checkpoint's run, else by PEFT's own settings."""
    if (run := run_of(adapter)) and run.config.is_file():
        model = load_config(run.config).config.model
        return model.name_or_path, model.revision
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return str(settings.get("base_model_name_or_path") or ""), settings.get("revision")


def was_trained_quantised(adapter: Path) -> bool:
    """True if the weights were quantised under the adapter, as manifest, base or config tell."""
    if (adapter / MANIFEST).is_file() and read_manifest(adapter).get("logits", {}).get("is_quantized"):
        return True
    run = run_of(adapter)
    if run is None or not run.config.is_file():
        return False
    model = load_config(run.config).config.model
    return model.load_in_4bit or model.load_in_8bit
