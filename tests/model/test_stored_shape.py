"""A model's files alone say what transformers says of it; where they may not, nothing is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from truetune.model.headers import Headers, TensorInfo
from truetune.model.load import facts_of, read_config
from truetune.model.shape import configured_shape
from truetune.model.source import ModelSource
from truetune.model.stored import find_stored, find_weights, headers_of, read_json
from truetune.model.stored_shape import stored_facts, stored_shape, unpacked

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
HEADS = SIZES | {"head_dim": 16}
PHI3 = SIZES | {"pad_token_id": 0}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
NEOX = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZES),
    "llama with biases, tied": (
        "llama",
        HEADS | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama of one layer": ("llama", SIZES | {"num_hidden_layers": 1}),
    "mistral": ("mistral", HEADS),
    "qwen2": ("qwen2", SIZES),
    "qwen2 tied": ("qwen2", SIZES | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", HEADS),
    "qwen3 with heads as wide as itself": ("qwen3", HEADS | {"head_dim": 32, "attention_bias": True}),
    "gemma": ("gemma", HEADS),
    "gemma2": ("gemma2", HEADS),
    "gemma2 without a cap": ("gemma2", HEADS | {"attn_logit_softcapping": None}),
    "gemma3_text": ("gemma3_text", HEADS),
    "phi3": ("phi3", PHI3),
    "gpt2": ("gpt2", GPT2),
    "gpt2 with a width of its own": ("gpt2", GPT2 | {"n_inner": 40, "tie_word_embeddings": False}),
    "gpt_neox": ("gpt_neox", NEOX),
    "gpt_neox without biases": ("gpt_neox", NEOX | {"attention_bias": False, "tie_word_embeddings": True}),
}


def saved(folder: Path, kind: str, settings: dict[str, Any], *, dtype: str = "bfloat16") -> Path:
    """A tiny random model, as save_pretrained leaves it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **settings)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    return folder


def read(folder: Path) -> tuple[dict[str, Any], Headers]:
    stored = find_stored(str(folder))
    headers = headers_of(stored, find_weights(stored))
    assert headers is not None
    return read_json(folder / "config.json"), headers


def transformers_config(folder: Path) -> Any:
    return read_config(ModelSource("tiny", str(folder)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Headers]:
    return read(saved(tmp_path_factory.mktemp("llama"), "llama", SIZES))


def with_tensors(headers: Headers, *more: tuple[str, tuple[int, ...]]) -> Headers:
    return Headers((*headers.tensors, *(TensorInfo(name, shape, "F32", 0) for name, shape in more)))


@pytest.mark.parametrize("name", KINDS)
def test_shape_and_facts_are_those_that_transformers_makes(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, *KINDS[name])
    config, headers = read(folder)
    theirs = transformers_config(folder)
    assert stored_shape(config, headers) == configured_shape(theirs)
    assert stored_facts(config) == facts_of(theirs)


LEFT_OUT = {
    "llama": ("num_key_value_heads", "head_dim", "tie_word_embeddings", "attention_bias", "mlp_bias", "dtype"),
    "gemma2": ("attn_logit_softcapping", "tie_word_embeddings", "attention_bias"),
    "gpt2": ("n_inner", "tie_word_embeddings", "add_cross_attention"),
    "gpt_neox": ("attention_bias", "tie_word_embeddings"),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_settings_that_a_configuration_leaves_out_are_transformers_own(kind: str, tmp_path: Path) -> None:
    _, settings = KINDS[kind]
    folder = saved(tmp_path, kind, settings | ({"num_key_value_heads": 4} if kind == "llama" else {}))
    config, headers = read(folder)
    config = {name: value for name, value in config.items() if name not in LEFT_OUT[kind]}
    (folder / "config.json").write_text(json.dumps(config))
    theirs = transformers_config(folder)
    shape = stored_shape(config, headers)
    assert shape is not None
    assert shape == configured_shape(theirs)
    assert stored_facts(config) == facts_of(theirs)


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [("qwen3", "head_dim"), ("mistral", "num_key_value_heads"), ("llama", "hidden_size"), ("phi3", "model_type")],
)
def test_a_size_that_must_be_guessed_is_not(kind: str, left_out: str, tmp_path: Path) -> None:
    plain = {"num_key_value_heads": 4, "head_dim": 8, "pad_token_id": 0}
    config, headers = read(saved(tmp_path, kind, SIZES | plain))
    assert stored_shape(config, headers) is not None
    del config[left_out]
    assert stored_shape(config, headers) is None


def test_the_former_name_of_the_dtype_is_read(llama: tuple[dict[str, Any], Headers]) -> None:
    config = {name: value for name, value in llama[0].items() if name != "dtype"}
    assert stored_facts(config).dtype == "float32"
    assert stored_facts(config | {"torch_dtype": "float16"}).dtype == "float16"


def test_buffers_and_a_second_copy_of_tied_embeddings_are_no_parameters(tmp_path: Path) -> None:
    config, headers = read(saved(tmp_path, *KINDS["gpt2"]))
    more = (
        ("transformer.h.0.attn.bias", (1, 1, 64, 64)),
        ("transformer.h.0.attn.masked_bias", ()),
        ("lm_head.weight", (96, 32)),
    )
    plain = stored_shape(config, headers)
    assert plain is not None
    assert stored_shape(config, with_tensors(headers, *more)) == plain


def test_tensors_of_the_base_model_alone_are_known_again(tmp_path: Path) -> None:
    config, headers = read(saved(tmp_path, *KINDS["gpt2"]))
    bare = tuple(
        TensorInfo(each.name.removeprefix("transformer."), each.shape, each.dtype, each.bytes)
        for each in headers.tensors
    )
    assert stored_shape(config, Headers(bare)) == stored_shape(config, headers) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "falcon"},
        {"quantization_config": {"quant_method": "gptq"}},
        {"auto_map": {"AutoModelForCausalLM": "modeling.Own"}},
        {"text_config": {"hidden_size": 32}},
        {"num_experts_per_tok": 2},
        {"hidden_size": 64},
        {"hidden_size": "32"},
        {"num_hidden_layers": 2},
        {"num_hidden_layers": 4},
        {"attention_bias": True},
        {"tie_word_embeddings": True, "vocab_size": 97},
    ],
    ids=str,
)
def test_nothing_is_said_of_a_configuration_that_may_make_another_model(
    changes: dict[str, Any], llama: tuple[dict[str, Any], Headers]
) -> None:
    config, headers = llama
    assert stored_shape(config, headers) is not None
    assert stored_shape(config | changes, headers) is None


def test_nothing_is_said_of_tensors_too_many_too_few_or_packed(llama: tuple[dict[str, Any], Headers]) -> None:
    config, headers = llama
    packed = (TensorInfo(headers.tensors[0].name, headers.tensors[0].shape, "U8", 0), *headers.tensors[1:])
    assert stored_shape(config, with_tensors(headers, ("score.weight", (2, 32)))) is None
    assert stored_shape(config, Headers(headers.tensors[1:])) is None
    assert stored_shape(config, Headers(packed)) is None


def test_the_demo_is_known_by_its_header_as_by_what_it_is_converted_into() -> None:
    from truetune.model.stored import configuration

    stored = find_stored("demo")
    headers = headers_of(stored, find_weights(stored))
    assert headers is not None
    known = unpacked(headers)
    assert known is not None
    config, tensors = known
    theirs = configuration(stored, headers)
    assert stored_shape(config, tensors) == configured_shape(theirs)
    assert stored_facts(config) == facts_of(theirs)


def test_a_gguf_file_of_another_architecture_is_left_to_transformers() -> None:
    assert unpacked(Headers((), {"general.architecture": "qwen2"})) is None
    assert unpacked(Headers((), {"general.architecture": "llama", "general.name": "mistral"})) is None
