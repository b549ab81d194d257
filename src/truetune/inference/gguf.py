"""A model's folder as one .gguf file, tensor by tensor: what llama.cpp and Ollama load."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from truetune.errors import BackendError
from truetune.inference.gguf_tokenizer import Vocabulary, write_vocabulary
from truetune.inference.quantization import Quantization, packer
from truetune.listener import Listener

_NO_WAY = (
    "llama.cpp's convert_hf_to_gguf.py may know it: name llama.cpp's folder with --llama-cpp, or merge the run "
    "and convert that folder"
)


@dataclass(frozen=True, slots=True)
class _Architecture:
    """`name` as gguf's MODEL_ARCH has it; `interleaves` the rows of q and k, for llama.cpp's way to rotate them.

    `norm_offset` is what the model adds to a norm's weights; `activation` is all that llama.cpp computes there.
    """

    name: str
    activation: str = "silu"
    interleaves: bool = False
    norm_offset: float = 0.0


_ARCHITECTURES: Mapping[str, _Architecture] = {
    "LlamaForCausalLM": _Architecture("LLAMA", interleaves=True),
    "MistralForCausalLM": _Architecture("LLAMA", interleaves=True),
    "Qwen2ForCausalLM": _Architecture("QWEN2"),
    "Qwen3ForCausalLM": _Architecture("QWEN3"),
    "GemmaForCausalLM": _Architecture("GEMMA", "gelu_pytorch_tanh", norm_offset=1.0),
    "Gemma2ForCausalLM": _Architecture("GEMMA2", "gelu_pytorch_tanh", norm_offset=1.0),
    "Gemma3ForCausalLM": _Architecture("GEMMA3", "gelu_pytorch_tanh", norm_offset=1.0),
}


@dataclass(frozen=True)
class GgufModel:
    """A model's folder with what its GGUF is to say beyond config.json; `name` is shown by what loads it."""

    folder: Path
    config: Any
    vocabulary: Vocabulary
    name: str
    stop_token_ids: tuple[int, ...]
    adds_bos: bool
    chat_template: str | None
    context_length: int | None = None

    @cached_property
    def architecture(self) -> _Architecture:
        """BackendError for one that is not known."""
        name = (self.config.architectures or ["?"])[0]
        if name not in _ARCHITECTURES:
            known = ", ".join(each.removesuffix("ForCausalLM") for each in _ARCHITECTURES)
            raise BackendError(f"truetune writes no GGUF of {name} (it does of {known})", hint=_NO_WAY)
        return _ARCHITECTURES[name]

    @cached_property
    def layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @cached_property
    def head_dim(self) -> int:
        config = self.config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    @cached_property
    def rope(self) -> Mapping[str, Any]:
        """The rotation of the full attention's layers: rope_theta, rope_type and what belongs to that."""
        found = dict(self.config.rope_parameters or {})
        return dict(found.get("full_attention", found))


def require_exportable(model: GgufModel) -> None:
    """BackendError, before anything is written, for what llama.cpp would compute otherwise than the model does."""
    config, architecture = model.config, model.architecture
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation not in (architecture.activation, "swish" if architecture.activation == "silu" else None):
        raise BackendError(f"llama.cpp computes {architecture.activation} here, and this model {activation}")
    if getattr(config, "use_sliding_window", False):
        raise BackendError("llama.cpp has no sliding window for this architecture, and this model has", hint=_NO_WAY)
    if model.rope.get("rope_type", "default") not in ("default", "linear", "llama3", "yarn"):
        raise BackendError(f"truetune cannot write this model's rope ({model.rope['rope_type']})", hint=_NO_WAY)
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None and scalar != model.head_dim:
        raise BackendError(f"query_pre_attn_scalar is {scalar}, and llama.cpp takes {model.head_dim}", hint=_NO_WAY)
    assert model.vocabulary.tokens
    assert model.vocabulary.model != "gpt2" or model.vocabulary.cut


def write_gguf(model: GgufModel, path: Path, *, quantization: Quantization, listener: Listener) -> int:
    """Writes the file; returns its size in bytes. One tensor is in memory at a time.

    Raises BackendError for an architecture, a tokenizer or a tensor that has no counterpart there.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter

    require_exportable(model)
    tensors = list(_tensors(model, quantization))
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[MODEL_ARCH[model.architecture.name]])
    try:
        _write_facts(writer, model, quantization)
        for tensor in tensors:
            writer.add_tensor_info(tensor.name, *tensor.layout)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        pack = packer(quantization)
        for done, tensor in enumerate(tensors, start=1):
            writer.write_tensor_data(_packed(tensor, pack))
            listener.progress("writing the GGUF", done, len(tensors))
    finally:
        writer.close()
    return path.stat().st_size


# --- tensors ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of the file: its name and shape there, how it is stored, and where its numbers come from."""

    name: str
    shape: tuple[int, ...]
    stored: str
    source: str
    file: Path | None
    heads: int = 0
    offset: float = 0.0
    made: Any = field(default=None, repr=False)

    @property
    def layout(self) -> tuple[Any, ...]:
        """What GGUFWriter.add_tensor_info takes: shape, dtype, size in bytes, ggml's type."""
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import quant_shape_to_byte_shape

        kind = GGMLQuantizationType[self.stored]
        if self.stored in ("F32", "F16"):
            dtype = np.dtype(np.float32 if self.stored == "F32" else np.float16)
            return self.shape, dtype, math.prod(self.shape) * dtype.itemsize, kind
        packed = quant_shape_to_byte_shape(self.shape, kind)
        return packed, np.dtype(np.uint8), math.prod(packed), kind

    def values(self) -> Any:
        """The numbers in float32, as llama.cpp wants them."""
        from safetensors import safe_open

        if self.made is not None:
            return self.made
        with safe_open(self.file, framework="pt") as opened:
            values = opened.get_tensor(self.source).float().numpy()
        return interleaved(values, self.heads) if self.heads else values + self.offset if self.offset else values


def interleaved(values: Any, heads: int) -> Any:
    """Rows of q or k put so that the two halves of a head's rotation stand side by side: (a b | c d) to (a c b d)."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _packed(tensor: _Tensor, pack: Any) -> Any:
    import numpy as np

    values = np.ascontiguousarray(tensor.values(), dtype=np.float32)
    if not np.isfinite(values).all():
        raise BackendError(f"{tensor.source} holds numbers that are not finite: the model is damaged")
    with np.errstate(over="ignore"):
        packed = pack(values, tensor.stored)
    if tensor.stored == "F16" and not np.isfinite(packed).all():
        raise BackendError(f"{tensor.source} holds numbers too large for f16", hint="export it as bf16, f32 or q8_0")
    return packed


def _tensors(model: GgufModel, quantization: Quantization) -> Iterator[_Tensor]:
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH[model.architecture.name], model.layers)
    found = dict(_stored_tensors(model.folder))
    is_tied = "lm_head.weight" not in found or bool(model.config.tie_word_embeddings)
    for source, (file, shape) in found.items():
        if source.endswith("rotary_emb.inv_freq") or (is_tied and source == "lm_head.weight"):
            continue
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise BackendError(f"the GGUF of a {model.architecture.name} has no place for {source}", hint=_NO_WAY)
        stored = quantization.stored(name, shape, layers=model.layers, is_tied=is_tied)
        offset = model.architecture.norm_offset if source.endswith("norm.weight") else 0.0
        yield _Tensor(name, shape, stored, source, file, heads_of(model, source), offset)
    if model.rope.get("rope_type") == "llama3":
        made = _rope_factors(model)
        yield _Tensor("rope_freqs.weight", made.shape, "F32", "rope_freqs", None, made=made)


def heads_of(model: GgufModel, source: str) -> int:
    """The heads whose rows llama.cpp wants side by side, of the weight or bias of that name; 0 where it does not."""
    if not model.architecture.interleaves:
        return 0
    if re.search(r"\.q_proj\.(weight|bias)$", source):
        return int(model.config.num_attention_heads)
    if re.search(r"\.k_proj\.(weight|bias)$", source):
        return int(model.config.num_key_value_heads)
    return 0


def _stored_tensors(folder: Path) -> Iterator[tuple[str, tuple[Path, tuple[int, ...]]]]:
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BackendError(f"{folder} holds no safetensors", hint="save the model again with save_pretrained")
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                yield name, (file, tuple(opened.get_slice(name).get_shape()))


def _rope_factors(model: GgufModel) -> Any:
    """By what Llama 3.1 divides each frequency: long waves by `factor`, short ones by 1, between them smoothly."""
    import numpy as np

    rope = model.rope
    places = np.arange(0, model.head_dim, 2, dtype=np.float32) / model.head_dim
    waves = 2 * np.pi * np.float32(rope["rope_theta"]) ** places
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] / waves
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - share) / rope["factor"] + share)).astype(np.float32)


# --- what the file says -----------------------------------------------------------------------------------


def _write_facts(writer: Any, model: GgufModel, quantization: Quantization) -> None:
    config = model.config
    writer.add_type("model")
    writer.add_name(model.name)
    writer.add_file_type(quantization.file_type)
    writer.add_quantization_version(2)
    writer.add_vocab_size(model.vocabulary.size)
    writer.add_block_count(model.layers)
    writer.add_context_length(model.context_length or config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_rope(writer, model)
    _write_gemma(writer, model)
    write_vocabulary(
        writer,
        model.vocabulary,
        stop_token_ids=model.stop_token_ids,
        adds_bos=model.adds_bos,
        chat_template=model.chat_template,
    )


def _write_rope(writer: Any, model: GgufModel) -> None:
    from gguf import RopeScalingType

    rope = model.rope
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    match rope.get("rope_type", "default"):
        case "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        case "yarn":
            writer.add_rope_scaling_type(RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _write_gemma(writer: Any, model: GgufModel) -> None:
    config = model.config
    if not model.architecture.name.startswith("GEMMA") or model.architecture.name == "GEMMA":
        return
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if config.attn_logit_softcapping:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
