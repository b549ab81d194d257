"""What of a folder of weights may be passed on: which files, and their settings without this machine's paths."""

import json
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from truetune.errors import CheckpointError
from truetune.inference.card import BaseFacts, Kind
from truetune.inference.hub import CARD, Content
from truetune.inference.prompt_format import FILE as PROMPT_FORMAT
from truetune.model.fixtures import FILE as PARITY
from truetune.model.source import DEMO
from truetune.pipeline.trained_records import Records, local_paths

_WEIGHTS: Mapping[Kind, tuple[str, ...]] = {
    "adapter": ("adapter_model*.safetensors", "adapter_model.safetensors.index.json"),
    "model": ("model*.safetensors", "model.safetensors.index.json"),
    "merged": ("model*.safetensors", "model.safetensors.index.json"),
    "gguf": ("*.gguf",),
    "gguf-adapter": ("*.gguf",),
}
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)
_SETTINGS = ("adapter_config.json", "config.json", "generation_config.json", PROMPT_FORMAT, PARITY, "Modelfile")
_PAPERS = (CARD, "LICENSE*", "NOTICE*")
_READ_FOR_PATHS = (*_SETTINGS, "tokenizer_config.json", "special_tokens_map.json", CARD)
"""Small files in which a path of this machine is looked for; a vocabulary may hold anything."""


def kind_of(folder: Path) -> Kind:
    """What a folder holds, by its files."""
    if any(folder.glob("*.gguf")):
        return "gguf"
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    return "model"


def passed_on(folder: Path, kind: Kind) -> dict[str, Path]:
    """The files that may be passed on, by name: a list of what may, so that nothing unforeseen does."""
    patterns = (*_WEIGHTS[kind], *_TOKENIZER, *_SETTINGS, *_PAPERS)
    if "gguf" in kind:
        patterns = (*_WEIGHTS[kind], "Modelfile", *_PAPERS)
    found = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink())
    return {path.name: path for path in found if any(fnmatch(path.name, pattern) for pattern in patterns)}


def is_weights(name: str, kind: Kind) -> bool:
    """True for a file of weights (or the index of several), by its name."""
    return any(fnmatch(name, pattern) for pattern in _WEIGHTS[kind])


# --- what is in them --------------------------------------------------------------------------------------


def _peft_settings(settings: dict[str, Any], base: BaseFacts | None) -> dict[str, Any]:
    if base is None:
        return settings
    name = base.hub_id or base.name
    return {**settings, "base_model_name_or_path": name, "revision": base.revision}


def _prompt_settings(settings: dict[str, Any], base: BaseFacts | None) -> dict[str, Any]:
    if base is None:
        return settings
    # The demo model is known to truetune by this name, with the weights that were trained over.
    name = base.name if base.name == DEMO else base.hub_id or base.name
    return {**settings, "base_model": name, "revision": base.revision}


def _model_settings(settings: dict[str, Any], _: BaseFacts | None) -> dict[str, Any]:
    home = _home()
    return {
        name: value
        for name, value in settings.items()
        if name not in _OF_THIS_MACHINE and not (home and isinstance(value, str) and value.startswith(home))
    }


_OF_THIS_MACHINE = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
"""What transformers writes about where a model or a tokenizer was loaded from."""


_REWRITTEN = {
    "adapter_config.json": _peft_settings,
    PROMPT_FORMAT: _prompt_settings,
    "config.json": _model_settings,
    "tokenizer_config.json": _model_settings,
}


def rewritten(files: Mapping[str, Content], base: BaseFacts | None) -> dict[str, Content]:
    """The files, their settings without this machine, and with the base by the name that others know it by."""
    changed = {
        name: as_json_bytes(rewrite(_settings_in(name, files[name]), base))
        for name, rewrite in _REWRITTEN.items()
        if name in files
    }
    return {**files, **changed}


def _settings_in(name: str, content: Content) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(text_of(content))
    except ValueError as error:
        raise CheckpointError(f"{name} is damaged: {error}", hint="take it from a backup, or train again") from error
    return found


def text_of(content: Content) -> str:
    """A file's text, as far as it is some."""
    return (content if isinstance(content, bytes) else content.read_bytes()).decode("utf-8", errors="replace")


def as_json_bytes(document: Any) -> bytes:
    """The document as a JSON file holds it."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def require_no_path(files: Mapping[str, Content], records: Records) -> None:
    """CheckpointError for a file that names a place of this machine."""
    places = list(_places(records))
    for name in (name for name in files if any(fnmatch(name, pattern) for pattern in _READ_FOR_PATHS)):
        text = text_of(files[name])
        told = next((place for place in places if place in text or json.dumps(place)[1:-1] in text), None)
        if told is not None:
            raise CheckpointError(
                f"{name} names a place of this machine ({told}), and is not sent with it",
                hint="take it out of the file",
            )


def _places(records: Records) -> Iterator[str]:
    """Where the run, its base and its data lie, as whole paths, and the user's home."""
    named = [records.folder, records.trained, *([records.run.path] if records.run else [])]
    for path in [*named, *map(Path, local_paths(records))]:
        if path.is_absolute() or path.exists():
            yield str(path.absolute())
    if home := _home():
        yield home


def _home() -> str | None:
    """How a path in the user's home begins; None where that is the root."""
    home = Path.home()
    return f"{home}{os.sep}" if len(home.parts) > 1 else None
