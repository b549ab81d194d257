"""A model's files, in a folder, in one .gguf file or on the hub: what they are, before any weight is read."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from truetune.data.hub import no_bar
from truetune.errors import BackendError, first_line
from truetune.model.headers import Headers, Listed, joined, read_headers
from truetune.model.load import read_config
from truetune.model.reach import is_out_of_reach, why_away
from truetune.model.source import DEMO, ModelSource, demo_file, metadata_has, resolve_model
from truetune.model.tokenizer import not_here

_TIMEOUT = 10.0
_SMALL = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", ".gitattributes")
"""The files of a hub's repository that describe its model."""
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """The `sizes` of a model's files in bytes, by name, and how to read the `first` bytes of one.

    `folder` holds configuration and tokenizer; None for a .gguf file, which holds both.
    """

    name: str
    kind: Literal["folder", "gguf", "demo", "hub"]
    folder: Path | None
    sizes: Mapping[str, int]
    first: Callable[[str, int], bytes]


@dataclass(frozen=True, slots=True)
class Weights:
    """The files that the weights are loaded from, and those of an index that are `missing`."""

    form: Literal["safetensors", "gguf", "pickles", "none"]
    files: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def find_stored(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> StoredModel:
    """The files of the model that `name` stands for; of one on the hub the small ones are fetched.

    Raises BackendError for what is not there, or holds no model.
    """
    path = Path(name)
    if name == DEMO:
        return gguf_model(demo_file(), name=DEMO, kind="demo")
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BackendError(f"model file not found: {name}")
        return gguf_model(path, name=name)
    if resolve_model(name, revision=revision).is_local:
        return folder_model(path, name=name)
    return _hub_model(name, revision, more=("*.py",) if trust_remote_code else ())


def gguf_model(path: Path, *, name: str, kind: Literal["gguf", "demo"] = "gguf") -> StoredModel:
    """One .gguf file as a model."""
    return StoredModel(name, kind, None, {path.name: path.stat().st_size}, partial(_read_first, path.parent))


def folder_model(folder: Path, *, name: str, kind: Literal["folder", "hub"] = "folder") -> StoredModel:
    """A folder as a model, whatever is missing in it."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    return StoredModel(name, kind, folder, sizes, partial(_read_first, folder))


def _read_first(folder: Path, file: str, count: int) -> bytes:
    with (folder / file).open("rb") as opened:
        return opened.read(count)


def find_weights(stored: StoredModel) -> Weights:
    """The files that transformers loads: one, or those of an index, as safetensors before pickles; else GGUF."""
    if stored.folder is None:
        return Weights("gguf", tuple(stored.sizes))
    for form, name in (("safetensors", "model.safetensors"), ("pickles", "pytorch_model.bin")):
        index = f"{name}.index.json"
        if name in stored.sizes:
            return Weights(form, (name,))  # type: ignore[arg-type]
        if index in stored.sizes:
            listed = sorted({*map(str, read_json(stored.folder / index).get("weight_map", {}).values())})
            there = tuple(file for file in listed if file in stored.sizes)
            return Weights(form, there, tuple(file for file in listed if file not in stored.sizes))  # type: ignore[arg-type]
    ggufs = tuple(file for file in sorted(stored.sizes) if file.endswith(".gguf"))
    return Weights("gguf", ggufs[:1]) if ggufs else Weights("none")


def headers_of(stored: StoredModel, weights: Weights) -> Headers | None:
    """The headers of all its files; None where there are none, or pickles. BackendError if one is damaged."""
    if weights.form in ("pickles", "none") or not weights.files:
        return None
    return joined(
        [read_headers(file, partial(stored.first, file), size=stored.sizes[file]) for file in weights.files]
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file. BackendError if it is none."""
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackendError(
            f"cannot read {path}: {first_line(error)}", hint="it is damaged: fetch it again"
        ) from error
    if not isinstance(document, dict):
        raise BackendError(f"cannot read {path}: it holds no JSON object", hint="it is damaged: fetch it again")
    return document


def configuration(stored: StoredModel, headers: Headers | None, *, trust_remote_code: bool = False) -> Any:
    """transformers' configuration of the model; nothing is converted. BackendError if it cannot be had."""
    if headers is not None and "general.architecture" in headers.metadata:
        return _gguf_config(stored.name, headers)
    source = ModelSource(stored.name, str(stored.folder))
    return read_config(source, trust_remote_code=trust_remote_code)


# --- GGUF -------------------------------------------------------------------------------------------------


def _gguf_config(name: str, headers: Headers) -> Any:
    """What transformers makes of the metadata, less the lists that are as long as the vocabulary.

    Of the whole file transformers (5.24) reads each token on its own: 7 s for 49,152 of them.
    """
    if not metadata_has("gguf"):
        raise BackendError(f"reading {name} needs the gguf package", hint="run: pip install 'truetune[gguf]'")
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder:
        _write_outline(Path(folder) / "outline.gguf", headers)
        try:
            config = AutoConfig.from_pretrained(folder, gguf_file="outline.gguf")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise BackendError(
                f"transformers cannot read {name}: {first_line(error)}", hint="use the model's safetensors"
            ) from error
    if rows := headers.rows_of("token_embd.weight"):
        config.vocab_size = rows
    return config


def _write_outline(path: Path, headers: Headers) -> None:
    """A GGUF file with the metadata and the tensors' names."""
    import numpy
    from gguf import GGUFValueType, GGUFWriter

    kinds = {
        str: GGUFValueType.STRING,
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.INT64,
        float: GGUFValueType.FLOAT64,
    }
    writer = GGUFWriter(path, str(headers.metadata["general.architecture"]))
    for key, value in headers.metadata.items():
        if isinstance(value, Listed):
            writer.add_array(key, list(value.items))
        elif key != "general.architecture":
            writer.add_key_value(key, value, kinds[type(value)])
    for tensor in headers.tensors:
        writer.add_tensor(tensor.name, numpy.zeros(1, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- the hub ----------------------------------------------------------------------------------------------


def fetched(source: ModelSource) -> ModelSource:
    """The source with its files in a folder; of a model on the hub they are fetched, safetensors before pickles."""
    from huggingface_hub import snapshot_download

    if source.is_local:
        return source
    for weights in ("*.safetensors", "pytorch_model*.bin"):
        with _explained(source.name, source.revision):
            folder = snapshot_download(
                source.path,
                revision=source.revision,
                allow_patterns=[*_SMALL, weights],
                tqdm_class=no_bar(),
                local_files_only=is_out_of_reach(source),
            )
        if find_weights(folder_model(Path(folder), name=source.name)).files:
            break
    return ModelSource(source.name, str(folder), source.revision)


def _hub_model(name: str, revision: str | None, *, more: tuple[str, ...]) -> StoredModel:
    """The repository's files with their sizes; offline, those that an earlier download has left."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    with _explained(name, revision):
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=[*_SMALL, *more],
                etag_timeout=_TIMEOUT,
                tqdm_class=no_bar(),
                local_files_only=why_away() is not None,
            )
        )
        try:
            sizes = {file.path: file.size for file in get_cached_repo_tree(name, revision=folder.name)}
        except CachedRepoTreeNotFoundError:
            return folder_model(folder, name=name, kind="hub")
    remote = _Remote(name, folder, {})
    return StoredModel(name, "hub", folder, sizes, remote.first)


@dataclass(frozen=True, slots=True)
class _Remote:
    """Reads files of a hub's repository at one commit: from `folder` where they were downloaded, else by ranges."""

    name: str
    folder: Path
    held: dict[str, bytes]

    def first(self, file: str, count: int) -> bytes:
        if (self.folder / file).is_file():
            return _read_first(self.folder, file, count)
        held = self.held.get(file, b"")
        if len(held) < count:
            with _explained(self.name, None):
                held += self._fetched(file, len(held), count)
            self.held[file] = held
        return held[:count]

    def _fetched(self, file: str, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`; of a server that knows no ranges no more than these are read either."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        url = hf_hub_url(self.name, file, revision=self.folder.name)
        asked = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=asked, timeout=_TIMEOUT) as response:
            hf_raise_for_status(response)
            skipped = 0 if response.status_code == 206 else start
            read = b""
            for piece in response.iter_bytes():
                read += piece
                if len(read) >= skipped + end - start:
                    break
        return read[skipped : skipped + end - start]


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """What the hub's client raises, as a BackendError that says what to do."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise BackendError(
            f"{name} is gated: its authors must let you in", hint="ask on its page, then set HF_TOKEN to your token"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BackendError(
            f"no model {name} on the hub, or a private one", hint="check the spelling; a private one needs HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BackendError(f"{name} has no revision {revision!r}", hint="name a branch, a tag or a commit") from error
    except (errors.HTTPError, OSError, ValueError) as error:
        if why_away():
            raise not_here(name, name) from error
        raise BackendError(
            f"{name}: the hub at {constants.ENDPOINT} does not give it: {first_line(error)}",
            hint="check the connection, or name a folder or a .gguf file",
        ) from error
