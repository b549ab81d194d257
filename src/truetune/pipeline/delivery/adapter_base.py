"""What an adapter stands on: its base, and whether that was quantised under it."""

from pathlib import Path

from truetune.config.load import load_config
from truetune.errors import BackendError
from truetune.inference.prompt_format import PromptFormat, recorded_base
from truetune.model.source import ModelSource, resolve_model
from truetune.runs.checkpoints import MANIFEST, read_manifest
from truetune.runs.trained import run_of


def base_of(adapter: Path, known: PromptFormat | None, *, named: str | None) -> ModelSource:
    """The base of an adapter: as named now, else as it was recorded. BackendError where it is not there any more."""
    if named:
        return resolve_model(named)
    name, revision = recorded_base(adapter, known)
    try:
        return resolve_model(name, revision=revision)
    except BackendError as error:
        hint = "the adapter was trained on it; where it is elsewhere now, name it with --base (base_model= in Python)"
        raise BackendError(error.message, hint=hint) from error


def was_trained_quantised(adapter: Path) -> bool:
    """True if the weights were quantised under the adapter, as manifest, base or config tell."""
    if (adapter / MANIFEST).is_file() and read_manifest(adapter).get("logits", {}).get("is_quantized"):
        return True
    run = run_of(adapter)
    if run is None or not run.config.is_file():
        return False
    model = load_config(run.config).config.model
    return model.load_in_4bit or model.load_in_8bit
