"""What a server is given: a whole model's folder, or a GGUF, made once in truetune's cache and found again there."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from truetune.data.cache import cached, code_digest, digest, file_digest
from truetune.errors import TruetuneError
from truetune.figures import byte_size
from truetune.files import write_json
from truetune.inference.converter import PROGRAM as CONVERTER
from truetune.inference.gguf import GgufModel, require_exportable
from truetune.inference.gguf_tokenizer import Vocabulary
from truetune.inference.opened import Opened
from truetune.inference.parity import FILE as PARITY
from truetune.inference.quantization import choose_quantization
from truetune.listener import Listener
from truetune.model.load import read_config
from truetune.model.source import ModelSource, cache_directory, fingerprint
from truetune.model.stored import fetched
from truetune.model.tokenizer import with_chat_template
from truetune.pipeline.delivery.adapter_base import base_of
from truetune.pipeline.delivery.export import ExportSettings, export_run
from truetune.pipeline.delivery.exported import copied
from truetune.pipeline.delivery.merge import merge_run, write_stops
from truetune.runs.checkpoints import checkpoint_step, require_as_written

_FACTS = "served.json"
_BESIDE = (PARITY, "generation_config.json")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files: of the model that `name` stands for, called `title`, over the base that is named, if one is.

    `quantize`, `llama_cpp` and `does_check` are of a GGUF: how it is stored, whose converter may write it, whether
    llama.cpp is asked as it is made.
    """

    name: str | Path
    title: str
    quantize: str = "auto"
    base_model: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    llama_cpp: str | None = None
    does_check: bool = True


@dataclass(frozen=True, slots=True)
class ServedFiles:
    """`path` is what the server loads; recorded answers and generation_config.json lie in `folder`.

    `dtype` is torch's name of how the weights are stored, or were before a GGUF was made of them; `stored` is
    llama.cpp's name of how they are in that, None of a folder.
    """

    path: Path
    folder: Path
    dtype: str
    stored: str | None = None

    @property
    def is_exact(self) -> bool:
        """False where weights were rounded to a few bits: other answers are to be expected then."""
        return self.stored is None or choose_quantization(self.stored, dtype="float32").is_exact

    @property
    def computed(self) -> str:
        """The coarsest dtype that the server computes in: llama.cpp keeps keys and values in float16."""
        return "float16" if self.stored and self.dtype == "float32" else self.dtype


def whole_files(opened: Opened, wanted: Wanted, listener: Listener) -> ServedFiles:
    """A whole model's folder as it is, or adapter and base merged. CheckpointError for files that were changed."""
    is_checkpoint = checkpoint_step(Path(opened.source.path)) >= 0
    if not opened.is_adapter and not is_checkpoint:
        return _folder(whole_folder(opened))

    def build(staged: Path) -> None:
        out = staged / wanted.title
        if opened.is_adapter:
            merge_run(wanted.name, out, base_model=wanted.base_model, device=wanted.device, listener=listener)
        else:
            _complete(opened, out)
        _write_facts(staged)

    return _folder(_kept(opened, wanted, "model", build, listener) / wanted.title)


def _complete(opened: Opened, out: Path) -> None:
    """A checkpoint's model with what a finished run's has: stop tokens, and the template that servers are to use."""
    out.mkdir()
    copied(whole_folder(opened), out)
    with_chat_template(opened.tokenizer, opened.template.servers_chat_template).save_pretrained(out)
    write_stops(out, opened.template.stop_token_ids)


def gguf_files(opened: Opened, wanted: Wanted, listener: Listener) -> ServedFiles:
    """The model as a GGUF; an adapter is merged for it, in a folder that is removed again."""
    name = f"{wanted.title}.gguf"

    def build(staged: Path) -> None:
        with tempfile.TemporaryDirectory(dir=staged.parent, prefix=".unfinished-merged-") as temporary:
            folder = _merged(wanted, Path(temporary), listener) if opened.is_adapter else whole_folder(opened)
            made = export_run(folder, staged / name, _export_settings(wanted), listener=listener)
            for each in _BESIDE:
                if (folder / each).is_file():
                    shutil.copy(folder / each, staged / each)
            _write_facts(staged, dtype=_dtype(folder), stored=made.quantization)

    kept = _kept(opened, wanted, "gguf", build, listener)
    facts = json.loads((kept / _FACTS).read_bytes())
    return ServedFiles(kept / name, kept, facts["dtype"], facts["stored"])


def whole_folder(opened: Opened) -> Path:
    """A whole model's folder. CheckpointError if its files are not those that were written."""
    folder = Path(fetched(opened.source).path)
    require_as_written(folder)
    return folder


def is_exportable(opened: Opened, base_model: str | None) -> bool:
    """True if truetune writes a GGUF of it, as its configuration and tokenizer tell."""
    try:
        config = read_config(_base(opened, base_model))
        size = max(config.vocab_size, len(opened.tokenizer))
        vocabulary = Vocabulary(opened.tokenizer, size)
        require_exportable(GgufModel(Path(opened.source.path), config, vocabulary, "", (), False, None))
    except (TruetuneError, AttributeError):
        return False
    return True


def _export_settings(wanted: Wanted) -> ExportSettings:
    has_converter = wanted.llama_cpp and (Path(wanted.llama_cpp) / CONVERTER).is_file()
    return ExportSettings(
        to="gguf",
        quantize=wanted.quantize,
        check="try" if wanted.does_check else "skip",
        llama_cpp=wanted.llama_cpp if has_converter else None,
        device=wanted.device,
    )


def _merged(wanted: Wanted, parent: Path, listener: Listener) -> Path:
    """What is quantised is merged in float32: its rounding then is the only one."""
    return merge_run(
        wanted.name,
        parent / wanted.title,
        base_model=wanted.base_model,
        dtype="auto" if wanted.quantize == "auto" else "float32",
        device=wanted.device,
        listener=listener,
    ).path


def _folder(path: Path) -> ServedFiles:
    return ServedFiles(path, path, _dtype(path))


def _dtype(folder: Path) -> str:
    return str(read_config(ModelSource(str(folder), str(folder))).dtype or "float32").removeprefix("torch.")


# --- the cache --------------------------------------------------------------------------------------------


def _kept(opened: Opened, wanted: Wanted, kind: str, build: Callable[[Path], None], listener: Listener) -> Path:
    """The folder in the cache that was made of these weights in this way; made now, if it is not there as a whole."""
    base = fetched(_base(opened, wanted.base_model)) if opened.is_adapter else None
    parts = {
        "kind": kind,
        "title": wanted.title,
        "quantize": wanted.quantize,
        "code": code_digest("truetune.inference", "truetune.model", "truetune.pipeline"),
        "weights": _fingerprint(Path(fetched(opened.source).path)),
        "base": base and [base.name, base.revision, fingerprint(base)],
    }
    folder = cached(
        cache_directory() / "served",
        digest(parts),
        build,
        is_whole=_is_whole,
        on_wait=lambda: listener.say("another process is making the files to serve: waiting for it"),
    )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    listener.say(f"kept for the next time: {folder} ({byte_size(size)})")
    return folder


def _base(opened: Opened, base_model: str | None) -> ModelSource:
    if not opened.is_adapter:
        return opened.source
    return base_of(Path(opened.source.path), opened.format, named=base_model)


def _fingerprint(folder: Path) -> list[Any]:
    """What tells a folder of weights from any other: its weights' fingerprint, and its small files as they are."""
    small = (path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".jinja") and path.is_file())
    adapter = folder / "adapter_model.safetensors"
    weights = file_digest(adapter) if adapter.is_file() else fingerprint(ModelSource(str(folder), str(folder)))
    return [weights, {path.name: file_digest(path) for path in small}]


def _write_facts(staged: Path, **facts: Any) -> None:
    files = {path.relative_to(staged).as_posix(): path.stat().st_size for path in staged.rglob("*") if path.is_file()}
    write_json(staged / _FACTS, {**facts, "files": files})


def _is_whole(folder: Path) -> bool:
    """True if every file is there in its size: whoever cleans the cache may have taken some."""
    try:
        files = json.loads((folder / _FACTS).read_bytes())["files"]
    except (OSError, ValueError, KeyError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())
