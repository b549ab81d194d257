"""A LoRA adapter as one .gguf file, which llama.cpp puts over the GGUF of its base."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.errors import BackendError, first_line
from truetune.inference.gguf import GgufModel, heads_of, interleaved
from truetune.listener import Listener

_WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_OWN = ".base_layer.weight"
_MERGE = "merge it (truetune merge), or export --to gguf, which merges it first"
_REFUSED: Mapping[str, str] = {
    "lora_magnitude_vector": "llama.cpp has no place for DoRA's magnitudes",
    "lora_embedding_": "llama.cpp would put a LoRA on tied embeddings into the output layer too",
    "trainable_tokens": "llama.cpp has no place for single tokens that were trained",
    "bias": "llama.cpp has no place for biases in an adapter",
}
"""Why a tensor, by what is in its name, cannot be one of a GGUF adapter's."""


@dataclass(frozen=True, slots=True)
class NamedBase:
    """A base by the name that others know it by, never a path; `url` is its page, `note` what else is to be known."""

    name: str
    revision: str | None = None
    url: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class GgufAdapter:
    """PEFT's folder of an adapter, the model that it stands on, and what its GGUF is to say about both."""

    folder: Path
    base: GgufModel
    name: str
    base_name: NamedBase | None = None


def require_convertible(adapter: GgufAdapter) -> None:
    """BackendError, with the reason, for what llama.cpp cannot put over a base. Reads names, no weights."""
    settings, names = _settings(adapter.folder), _tensor_names(adapter)
    kind = str(getattr(settings.peft_type, "value", settings.peft_type))
    if kind != "LORA":
        raise BackendError(
            f"the adapter in {adapter.folder} is of the kind {kind}: llama.cpp knows LoRA", hint=_MERGE
        )
    if getattr(settings, "alora_invocation_tokens", None):
        raise BackendError("truetune writes no GGUF of an adapter that tokens switch on (aLoRA)", hint=_MERGE)
    for name in names:
        if not _FACTOR.fullmatch(name):
            raise BackendError(f"{_reason(name)} ({name})", hint=_MERGE)
    for path in _paths(names):
        _place(adapter.base, path)


def write_gguf_adapter(adapter: GgufAdapter, path: Path, *, listener: Listener) -> int:
    """Writes the file, in float32; returns its size in bytes. BackendError for what has no counterpart there.

    The layout is that of llama.cpp's convert_lora_to_gguf.py: for a tensor `t` of the base `t.lora_a` of shape (rank,
    in) and `t.lora_b` of (out, rank). llama.cpp scales every pair by adapter.lora.alpha / rank: whatever PEFT scales
    by besides (rsLoRA, alpha_pattern) is in `t.lora_b`.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter

    require_convertible(adapter)
    settings = _settings(adapter.folder)
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[MODEL_ARCH[adapter.base.architecture.name]])
    try:
        _write_facts(writer, adapter, alpha=_alpha(settings))
        pairs = list(_pairs(adapter, settings))
        for done, pair in enumerate(pairs, start=1):
            writer.add_tensor(f"{pair.name}.lora_a", pair.down)
            writer.add_tensor(f"{pair.name}.lora_b", pair.up)
            listener.progress("writing the adapter's GGUF", done, len(pairs))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return path.stat().st_size


def _write_facts(writer: Any, adapter: GgufAdapter, *, alpha: float) -> None:
    from gguf import GGUFType, Keys, LlamaFileType

    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(adapter.name)
    writer.add_file_type(int(LlamaFileType.ALL_F32))
    writer.add_quantization_version(2)
    base = adapter.base_name
    if base is None:
        return
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base.name)
    if base.revision:
        writer.add_base_model_version(0, base.revision)
    if base.url:
        writer.add_base_model_repo_url(0, base.url)
    if base.note:
        writer.add_base_model_description(0, base.note)


# --- factors ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pair:
    """The factors on the base's tensor `name`: `down` of (rank, in), `up` of (out, rank), in float32."""

    name: str
    down: Any
    up: Any


def _pairs(adapter: GgufAdapter, settings: Any) -> Iterator[_Pair]:
    import numpy as np
    from safetensors import safe_open

    alpha = _alpha(settings)
    with safe_open(adapter.folder / _WEIGHTS, framework="pt") as opened:
        for path in _paths(opened.keys()):
            down, up = (_factor(opened, path, which) for which in "AB")
            rank = down.shape[0]
            heads = heads_of(adapter.base, f"{path}.weight")
            up = up * np.float32(_scaling(settings, path, rank) * rank / alpha)
            up = interleaved(up, heads) if heads else up
            yield _Pair(_place(adapter.base, path), down, np.ascontiguousarray(up))


def _factor(opened: Any, path: str, which: str) -> Any:
    import numpy as np

    name = f"base_model.model.{path}.lora_{which}.weight"
    values = np.ascontiguousarray(opened.get_tensor(name).float().numpy())
    if not np.isfinite(values).all():
        raise BackendError(f"{name} holds numbers that are not finite: the adapter is damaged")
    return values


def _alpha(settings: Any) -> float:
    """The file's alpha. llama.cpp takes a 0 for no scaling at all."""
    return float(settings.lora_alpha) or 1.0


def _scaling(settings: Any, path: str, rank: int) -> float:
    """What PEFT multiplies a layer's update by."""
    from peft.utils.other import get_pattern_key

    alphas = settings.alpha_pattern or {}
    alpha = alphas.get(get_pattern_key(alphas.keys(), path), settings.lora_alpha)
    return float(alpha / (math.sqrt(rank) if settings.use_rslora else rank))


def _place(base: GgufModel, path: str) -> str:
    """The base's tensor that a layer's weight is in a GGUF. BackendError where it is none there."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH[base.architecture.name], base.layers)
    name = names.get_name(f"{path}.weight", try_suffixes=(".weight",))
    if name is None:
        raise BackendError(f"the GGUF of a {base.architecture.name} has no place for {path}", hint=_MERGE)
    if name == "output.weight" and base.config.tie_word_embeddings:
        raise BackendError(
            "the base's output layer is its embeddings, and a GGUF holds these once: no adapter can be put over it",
            hint=_MERGE,
        )
    return str(name)


def _paths(names: Sequence[str]) -> list[str]:
    """The base's layers that have factors, in the file's order."""
    return list(dict.fromkeys(found[1] for name in names if (found := _FACTOR.fullmatch(name))))


def _reason(name: str) -> str:
    told = next((why for part, why in _REFUSED.items() if part in name), None)
    return told or "llama.cpp has no place for modules that were trained whole, new tokens' embeddings among them"


def _settings(folder: Path) -> Any:
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BackendError(f"the settings of the adapter in {folder} cannot be read: {first_line(error)}") from error


def _tensor_names(adapter: GgufAdapter) -> list[str]:
    """What is trained of an adapter. PEFT puts the embeddings' own weights beside a LoRA on the output layer."""
    from safetensors import SafetensorError, safe_open

    folder, rows = adapter.folder, adapter.base.config.vocab_size
    try:
        with safe_open(folder / _WEIGHTS, framework="pt") as opened:
            sizes = {name: opened.get_slice(name).get_shape()[0] for name in opened.keys()}  # noqa: SIM118
        return [name for name, size in sizes.items() if not (name.endswith(_OWN) and size == rows)]
    except (OSError, SafetensorError) as error:
        raise BackendError(
            f"the adapter in {folder} cannot be read: {error}", hint=f"its weights must lie in {_WEIGHTS}"
        ) from error
