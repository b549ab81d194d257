"""A model's shape and facts from its files alone: config.json gives the sizes, and each stored tensor must be theirs.

transformers' own code, which shape.py and load.py ask, takes seconds to import. Whatever is not certain here is left
to it: other architectures, packed weights, a tensor too many or too few.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from types import SimpleNamespace
from typing import Any

from truetune.model.headers import Headers, Listed, TensorInfo
from truetune.model.load import ModelFacts
from truetune.model.shape import Layer, ModelShape, shape_with

Shapes = dict[str, tuple[int, ...]]

_Q, _K, _V, _O = (f"self_attn.{name}_proj" for name in "qkvo")
_GATE, _UP, _DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))


@dataclass(frozen=True, slots=True)
class _Family:
    """How transformers builds one kind of model. Sizes go by the names that `_sizes` gives them.

    `matrices` are a layer's linear ones, in the order of its modules: name, rows, columns. Of `biased`, those named
    have a bias where the configuration has the setting; those of no setting always have. `needed` are settings that
    are not guessed where the configuration leaves them out, `defaults` what transformers then takes.
    """

    matrices: tuple[tuple[str, str, str], ...]
    norms: Mapping[str, str]
    base: str = "model"
    layer: str = "layers"
    embeddings: Mapping[str, str] = field(default_factory=lambda: {"embed_tokens": "vocabulary"})
    last_norm: str = "norm"
    head: str = "lm_head"
    biased: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    norms_have_bias: bool = False
    needed: tuple[str, ...] = ("intermediate_size", "num_key_value_heads")
    renamed: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


_ATTENTION = ((_Q, "queries", "hidden"), (_K, "keys", "hidden"), (_V, "keys", "hidden"), (_O, "hidden", "queries"))
_MLP = ((_GATE, "inner", "hidden"), (_UP, "inner", "hidden"), (_DOWN, "hidden", "inner"))
_NORMS = {"input_layernorm": "hidden", "post_attention_layernorm": "hidden"}
_MORE_NORMS = _NORMS | {"pre_feedforward_layernorm": "hidden", "post_feedforward_layernorm": "hidden"}
_HEAD_NORMS = {"self_attn.q_norm": "head", "self_attn.k_norm": "head"}
_OF_ATTENTION = {"attention_bias": (_Q, _K, _V, _O)}
_SIZED_HEADS = ("intermediate_size", "num_key_value_heads", "head_dim")

_MISTRAL = _Family(_ATTENTION + _MLP, _NORMS)
_LLAMA = replace(_MISTRAL, biased=_OF_ATTENTION | {"mlp_bias": (_GATE, _UP, _DOWN)}, needed=("intermediate_size",))
_GEMMA = replace(_MISTRAL, biased=_OF_ATTENTION, needed=_SIZED_HEADS, defaults={"tie_word_embeddings": True})

_FAMILIES: Mapping[str, _Family] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": replace(_MISTRAL, biased={"": (_Q, _K, _V)}),
    "qwen3": replace(_MISTRAL, norms=_NORMS | _HEAD_NORMS, biased=_OF_ATTENTION, needed=_SIZED_HEADS),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, norms=_MORE_NORMS, defaults={**_GEMMA.defaults, "attn_logit_softcapping": 50.0}),
    "gemma3_text": replace(_GEMMA, norms=_MORE_NORMS | _HEAD_NORMS),
    "phi3": replace(
        _MISTRAL,
        matrices=(
            (_O, "hidden", "queries"),
            ("self_attn.qkv_proj", "fused", "hidden"),
            ("mlp.gate_up_proj", "twice_inner", "hidden"),
            (_DOWN, "hidden", "inner"),
        ),
        needed=("intermediate_size",),
    ),
    "gpt2": _Family(
        matrices=(
            ("attn.c_attn", "hidden", "thrice_hidden"),
            ("attn.c_proj", "hidden", "hidden"),
            ("mlp.c_fc", "hidden", "inner"),
            ("mlp.c_proj", "inner", "hidden"),
        ),
        norms={"ln_1": "hidden", "ln_2": "hidden"},
        base="transformer",
        layer="h",
        embeddings={"wte": "vocabulary", "wpe": "positions"},
        last_norm="ln_f",
        biased={"": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
        norms_have_bias=True,
        needed=(),
        renamed={
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_positions": "max_position_embeddings",
        },
        defaults={"tie_word_embeddings": True},
    ),
    "gpt_neox": _Family(
        matrices=(
            ("attention.query_key_value", "thrice_hidden", "hidden"),
            ("attention.dense", "hidden", "hidden"),
            ("mlp.dense_h_to_4h", "inner", "hidden"),
            ("mlp.dense_4h_to_h", "hidden", "inner"),
        ),
        norms=_NORMS,
        base="gpt_neox",
        embeddings={"embed_in": "vocabulary"},
        last_norm="final_layer_norm",
        head="embed_out",
        biased={
            "": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
            "attention_bias": ("attention.query_key_value", "attention.dense"),
        },
        norms_have_bias=True,
        needed=("intermediate_size",),
        defaults={"attention_bias": True},
    ),
}

_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings")
_UNKNOWN = {
    "quantization_config",
    "auto_map",
    "text_config",
    "add_cross_attention",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
}
"""Settings that make another model of a known kind."""
_PLAIN = {"F64", "F32", "F16", "BF16"}
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""What older files hold beside weights: masks, and the frequencies of positions."""


def stored_shape(config: Mapping[str, Any], headers: Headers) -> ModelShape | None:
    """What `configured_shape` makes of this config.json, if the files hold its tensors and no others; else None."""
    family = _FAMILIES.get(str(config.get("model_type")))
    if family is None or any(config.get(name) for name in _UNKNOWN):
        return None
    settings = _settings(config, family)
    if not all(_is_size(settings.get(name)) for name in (*_NEEDED, *family.needed)):
        return None
    draft = _draft(settings, family)
    expected = _tensors(settings, family, draft)
    if _found(headers, family, is_tied=bool(settings.get("tie_word_embeddings"))) != expected:
        return None
    return replace(draft, parameters=sum(map(prod, expected.values())))


def stored_facts(config: Mapping[str, Any]) -> ModelFacts:
    """What `facts_of` says of this config.json, of which `stored_shape` has made a shape."""
    model_type = str(config["model_type"])
    settings = _settings(config, _FAMILIES[model_type])
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return ModelFacts(model_type, settings["max_position_embeddings"], "none", dtype)


def _settings(config: Mapping[str, Any], family: _Family) -> dict[str, Any]:
    """The configuration's settings under the usual names, with transformers' defaults."""
    return {**family.defaults, **{family.renamed.get(name, name): value for name, value in config.items()}}


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _draft(settings: Mapping[str, Any], family: _Family) -> ModelShape:
    """The shape, but for the parameters, which are counted in the end."""
    config = SimpleNamespace(**settings)
    plain = shape_with(config, parameters=0, linear=(), norms=0, norms_heads=False, is_gated=False)
    sizes = _sizes(plain, settings)
    of_layer = tuple(
        Layer(name.rpartition(".")[2], sizes[columns], sizes[rows]) for name, rows, columns in family.matrices
    )
    whole = sum(sizes[size] == plain.hidden for size in family.norms.values())
    return shape_with(
        config,
        parameters=0,
        linear=of_layer * plain.layers,
        norms=whole * plain.layers + 1,
        norms_heads=any(name.endswith(("q_norm", "k_norm")) for name in family.norms),
        is_gated={_GATE, _UP, _DOWN} <= {name for name, _, _ in family.matrices},
    )


def _sizes(shape: ModelShape, settings: Mapping[str, Any]) -> dict[str, int]:
    queries, keys = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    return {
        "hidden": shape.hidden,
        "thrice_hidden": 3 * shape.hidden,
        "inner": shape.intermediate,
        "twice_inner": 2 * shape.intermediate,
        "queries": queries,
        "keys": keys,
        "fused": queries + 2 * keys,
        "head": shape.head_size,
        "vocabulary": shape.vocabulary,
        "positions": settings["max_position_embeddings"],
    }


def _tensors(settings: Mapping[str, Any], family: _Family, shape: ModelShape) -> Shapes:
    """Every parameter of the model that transformers makes, by its name within the base model."""
    sizes = _sizes(shape, settings)
    of_layer = dict(_of_layer(settings, family, sizes))
    tensors: Shapes = {
        f"{family.layer}.{number}.{name}": each for number in range(shape.layers) for name, each in of_layer.items()
    }
    for name, rows in family.embeddings.items():
        tensors[f"{name}.weight"] = (sizes[rows], shape.hidden)
    tensors |= _norm(family, family.last_norm, shape.hidden)
    if not settings.get("tie_word_embeddings"):
        tensors[f"{family.head}.weight"] = (shape.vocabulary, shape.hidden)
    return tensors


def _of_layer(
    settings: Mapping[str, Any], family: _Family, sizes: Mapping[str, int]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    biased = {
        name for setting, names in family.biased.items() if not setting or settings.get(setting) for name in names
    }
    for name, rows, columns in family.matrices:
        yield f"{name}.weight", (sizes[rows], sizes[columns])
        if name in biased:
            # transformers' Conv1D (GPT-2) stores its matrix the other way round.
            yield f"{name}.bias", (sizes[columns if family.layer == "h" else rows],)
    for name, size in family.norms.items():
        yield from _norm(family, name, sizes[size]).items()


def _norm(family: _Family, name: str, size: int) -> Shapes:
    return {f"{name}.{part}": (size,) for part in (("weight", "bias") if family.norms_have_bias else ("weight",))}


def _found(headers: Headers, family: _Family, *, is_tied: bool) -> Shapes | None:
    """The stored parameters, by name within the base model; None if any is packed."""
    left_out = f"{family.head}.weight" if is_tied else None
    stored = [each for each in headers.tensors if each.name != left_out and not each.name.endswith(_BUFFERS)]
    if not all(each.dtype in _PLAIN for each in stored):
        return None
    return {each.name.removeprefix(f"{family.base}."): each.shape for each in stored}


# --- GGUF -------------------------------------------------------------------------------------------------

_GGUF_SETTINGS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "rope.dimension_count": "head_dim",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
_GGUF_NAMES = {
    "attn_q": _Q,
    "attn_k": _K,
    "attn_v": _V,
    "attn_output": _O,
    "ffn_gate": _GATE,
    "ffn_up": _UP,
    "ffn_down": _DOWN,
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
}
_GGUF_BUFFER = "rope_freqs.weight"


def unpacked(headers: Headers) -> tuple[dict[str, Any], Headers] | None:
    """The config.json and the tensors of the folder that a Llama's GGUF file is converted into; None for others."""
    metadata = headers.metadata
    # transformers (5.24) makes Mistral's model of a file with this name.
    if metadata.get("general.architecture") != "llama" or metadata.get("general.name") == "mistral":
        return None
    config = {ours: metadata[f"llama.{name}"] for name, ours in _GGUF_SETTINGS.items() if f"llama.{name}" in metadata}
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Listed):
        config.setdefault("vocab_size", tokens.count)
    is_tied = all(tensor.name != "output.weight" for tensor in headers.tensors)
    config |= {"model_type": "llama", "dtype": "float32", "tie_word_embeddings": is_tied}
    tensors = (
        TensorInfo(_unpacked_name(each.name), each.shape, "F32", 4 * each.parameters)
        for each in headers.tensors
        if each.name != _GGUF_BUFFER
    )
    return config, Headers(tuple(tensors))


def _unpacked_name(name: str) -> str:
    """`blk.0.attn_q.weight` is `layers.0.self_attn.q_proj.weight`; what is not known keeps its name."""
    place, _, kind = name.rpartition(".")
    block, _, part = place.rpartition(".")
    known = _GGUF_NAMES.get(part, part)
    return ".".join(filter(None, (block.replace("blk.", "layers.", 1), known, kind)))
