"""Samples that stand end to end are to each other as if they were alone: in logits, gradients, windows and memory."""

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import pytest
import torch
import transformers
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    create_causal_mask,
    create_chunked_causal_mask,
    create_sliding_window_causal_mask,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from conftest import tiny_model
from tiny_runs import Largest
from truetune.model import packed_attention, sample_attention
from truetune.model.attention import fit_attention, isolates_samples
from truetune.model.load import ModelOptions, Quantization, load_model
from truetune.model.packed_attention import NAME, attend, bounds, register
from truetune.model.source import resolve_model

LENGTHS = (7, 1, 12, 5)
WINDOW = 4

_SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SMALL |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512}
_MODEL = {**_SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
_WIDE = {**_MODEL, "head_dim": 16}
_EXPERTS = {**_MODEL, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"]
_GPT = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}

PACKABLE: dict[str, dict[str, Any]] = {
    "Llama": _MODEL,
    "Llama, heads wider than hidden / heads": _WIDE,
    "Llama, no shared keys": {**_MODEL, "num_key_value_heads": 4},
    "Qwen2": _MODEL,
    "Qwen3": _WIDE,
    "Gemma2": {**_WIDE, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 24},
    "Gemma3": {
        **_WIDE,
        "sliding_window": WINDOW,
        "layer_types": _LOCAL_AND_GLOBAL,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "Mistral": {**_MODEL, "sliding_window": WINDOW},
    "Phi3": {**_MODEL, "sliding_window": None},
    "SmolLM3": {**_MODEL, "no_rope_layers": [1, 0]},
    "GPT2": {**_GPT, "n_positions": 512},
    "GPTNeoX": {**_SMALL, "intermediate_size": 48},
    "Cohere": _MODEL,
    "Granite": {**_MODEL, "attention_multiplier": 0.3, "logits_scaling": 4.0},
    "Mixtral": _EXPERTS,
    "Qwen3Moe": {**_EXPERTS, "moe_intermediate_size": 16, "head_dim": 16},
    "Llama4": {
        **_EXPERTS,
        "head_dim": 16,
        "attention_chunk_size": WINDOW,
        "intermediate_size_mlp": 48,
        "no_rope_layers": [1, 0],
    },
}
"""Tiny configurations; the first word of a name is the architecture."""

OTHERS: dict[str, dict[str, Any]] = {
    "Falcon": {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "Bloom": {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Mamba": {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2},
    "OPT": {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "Lfm2": {**_MODEL, "layer_types": ["conv", "full_attention"]},
    "Doge": _MODEL,
    "GptOss": {
        **_EXPERTS,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": _LOCAL_AND_GLOBAL,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
"""Models that are not for us: no attention of transformers' interface, none at all, with sinks, or own masks."""

# Newer transformers only.
if hasattr(transformers, "GraniteSwaConfig"):
    OTHERS["GraniteSwa"] = {**_MODEL, "sliding_window": WINDOW, "layer_types": _LOCAL_AND_GLOBAL}
if hasattr(transformers, "MiniMaxM3VLTextConfig"):
    OTHERS["MiniMaxM3VL"] = {
        **_EXPERTS,
        "head_dim": 16,
        "rotary_dim": 8,
        "dense_intermediate_size": 48,
        "shared_intermediate_size": 16,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_block_size": 32,
        "index_topk_blocks": 1,
        "layer_types": ["full_attention", "minimax_m3_sparse"],
    }

if hasattr(transformers, "Gemma4TextConfig"):
    PACKABLE["Gemma4"] = {
        **{name: value for name, value in _MODEL.items() if name != "max_position_embeddings"},
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "layer_types": 2 * _LOCAL_AND_GLOBAL,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 97,
        "hidden_size_per_layer_input": 8,
    }


UNPACKED = [
    name for name in ("Llama", "Qwen3", "Gemma2", "Gemma3", "Gemma4", "Mistral", "GPT2", "Llama4") if name in PACKABLE
]
"""Models that are tried on padded rows and with a cache too."""


def hardly_trained(name: str, **changes: Any) -> Any:
    """A tiny model in evaluation mode, as it is initialised: its attention is all but even."""
    torch.manual_seed(0)
    kind = name.split(",")[0]
    config_name = f"{kind}Text" if hasattr(transformers, f"{kind}TextConfig") else kind
    config = getattr(transformers, f"{config_name}Config")(**{**{**PACKABLE, **OTHERS}[name], **changes})
    return getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).eval()


def model_of(name: str, **changes: Any) -> Any:
    """The same with weights so large that its attention is far from even."""
    model = hardly_trained(name, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
    return model


def packed_model(name: str, **changes: Any) -> Any:
    """The same model, with the attention of packs."""
    register()
    model = model_of(name, **changes)
    model.set_attn_implementation(NAME)
    return model


def samples(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 1) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [torch.randint(3, 97, (1, length)) for length in lengths]


def end_to_end(rows: list[torch.Tensor]) -> dict[str, Any]:
    """Inputs as the engine's collator gives them: positions restart, no mask."""
    places = [torch.arange(row.shape[1]) for row in rows]
    return {"input_ids": torch.cat(rows, dim=1), "position_ids": torch.cat(places)[None], "use_cache": False}


def score(logits: torch.Tensor) -> torch.Tensor:
    """A number that every logit moves, each by its own weight."""
    return (logits * torch.sin(torch.arange(logits.numel()).view(logits.shape)).to(logits)).sum() / 100


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Of the embedding and of all that makes queries."""
    names = ("q_proj", "qkv", "query_key_value", "c_attn")
    made = {
        name: value.grad.clone()
        for name, value in model.named_parameters()
        if any(each in name for each in names) and name.endswith("weight")
    }
    assert made
    made["embedding"] = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    return made


def each_alone(
    model: Any, rows: list[torch.Tensor], forward: Any = nullcontext
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, end to end, and gradients of samples that are alone in their rows; `forward`'s context is around it."""
    with forward():
        logits = torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in rows])
    score(logits).backward()
    return logits.detach(), gradients(model)


def in_a_pack(
    model: Any, rows: list[torch.Tensor], forward: Any = nullcontext
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with forward():
        logits = model(**end_to_end(rows)).logits[0]
    score(logits).backward()
    return logits.detach(), gradients(model)


def assert_close(found: torch.Tensor, expected: torch.Tensor, *, within: float = 1e-5) -> None:
    """The largest difference, next to the largest value."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= within * max(1.0, float(expected.abs().max()))


def assert_same(found: Any, expected: Any, *, within: float = 1e-5) -> None:
    assert_close(found[0], expected[0], within=within)
    for name, value in expected[1].items():
        assert value.abs().max() > 0
        assert_close(found[1][name], value, within=within)


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Any], None]]:
    """Puts another function in the place of one of ours, in transformers' registries too."""

    def replace(name: str, function: Any) -> None:
        monkeypatch.setattr(packed_attention, name, function)
        register()

    yield replace
    monkeypatch.undo()
    register()


# --- packs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKABLE)
def test_logits_and_gradients_of_a_pack_are_those_of_each_sample_alone(name: str) -> None:
    model, rows = model_of(name), samples()
    alone = each_alone(model, rows)
    assert fit_attention(model)
    assert model.config._attn_implementation == NAME
    # Gemma 4 does not scale its scores: at these weights they are large, and so is their rounding.
    assert_same(in_a_pack(model, rows), alone, within=5e-5 if name == "Gemma4" else 1e-5)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "GPTNeoX", "Granite", "Mistral", "Gemma2", "Gemma3"])
@pytest.mark.parametrize(
    ("block", "scores", "padding"),
    [(4, 1 << 20, 0), (4, 1, 0), (256, 1, 0), (256, 1 << 20, 1 << 20), (4, 1 << 20, 1 << 20)],
)
def test_a_pack_computed_in_any_blocks_and_groups_gives_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, name: str, block: int, scores: int, padding: int
) -> None:
    model, rows = model_of(name), samples()
    alone = each_alone(model, rows)
    monkeypatch.setattr(sample_attention, "_BLOCK", block)
    monkeypatch.setattr(sample_attention, "_SCORES", scores)
    monkeypatch.setattr(sample_attention, "_PADDING", padding)
    sample_attention._layout.cache_clear()
    assert fit_attention(model)
    assert_same(in_a_pack(model, rows), alone)
    sample_attention._layout.cache_clear()


def test_samples_are_computed_together_while_their_padding_costs_little() -> None:
    def lengths(*samples: int) -> list[tuple[int, int]]:
        edges = list(pairwise(accumulate(samples, initial=0)))
        return [(length, len(its)) for length, its in sample_attention._by_length(edges)]

    assert lengths(30, 64, 61, 2) == [(64, 4)]
    assert lengths(72, 112, 100, 300) == [(320, 1), (112, 3)]
    assert lengths(*[100] * 3, *[40] * 9) == [(104, 4), (40, 8)]
    assert lengths(2000) == [(2048, 1)]


def test_a_pack_of_one_long_sample_among_short_ones_is_that_of_each_alone() -> None:
    model, rows = model_of("Llama"), samples((3, 300, 20))
    alone = each_alone(model, rows)
    assert fit_attention(model)
    assert_same(in_a_pack(model, rows), alone)


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Gemma3", "Llama4"])
def test_the_order_of_samples_in_a_pack_changes_none_of_them(name: str) -> None:
    model, rows = packed_model(name), samples()
    turned = list(reversed(rows))
    with torch.no_grad():
        straight = model(**end_to_end(rows)).logits[0].split([row.shape[1] for row in rows])
        reverse = model(**end_to_end(turned)).logits[0].split([row.shape[1] for row in turned])
    for found, expected in zip(reversed(reverse), straight, strict=True):
        assert_close(found, expected)


def test_gradient_checkpointing_gives_a_pack_the_same_gradients(replaced: Callable[[str, Any], None]) -> None:
    calls: list[Any] = []
    replaced("attend", lambda *args, **options: (calls.append(args), attend(*args, **options))[1])
    rows = samples()
    plain, saving = packed_model("Gemma3"), packed_model("Gemma3")
    # transformers 5.24 renamed the method.
    enable = getattr(saving, "activation_checkpointing_enable", None) or saving.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    expected = in_a_pack(plain.train(), rows)
    assert len(calls) == 2
    found = in_a_pack(saving.train(), rows)
    assert len(calls) == 2 + 2 * 2
    assert_same(found, expected, within=1e-6)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2", "Gemma3", "Phi3"])
def test_autocast_computes_a_pack_as_it_does_the_model_s_own_attention(name: str) -> None:
    """Weights in fp32, as in full fine-tuning: Qwen3's and Gemma's norms hand on queries in fp32, values in bf16."""
    in_bf16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    assert_as_near_the_truth(name, lambda model: model, in_bf16)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2", "Mistral"])
def test_in_bf16_a_pack_is_as_near_the_truth_as_samples_alone(name: str) -> None:
    assert_as_near_the_truth(name, lambda model: model.bfloat16(), nullcontext)


def assert_as_near_the_truth(name: str, lowered: Callable[[Any], Any], within: Callable[[], Any]) -> None:
    """Errors of logits and gradients next to the own attention's, over twelve packs: in one they are chance."""
    ratios: dict[str, list[float]] = {}
    exact, own, ours = model_of(name), lowered(model_of(name)), lowered(packed_model(name))
    for seed in range(12):
        rows = samples(seed=seed)
        truth = as_one(each_alone(exact, rows))
        alone = as_one(each_alone(own, rows, within))
        packed = as_one(in_a_pack(ours, rows, within))
        for each, expected in truth.items():
            ratio = (packed[each] - expected).norm() / (alone[each] - expected).norm()
            ratios.setdefault(each, []).append(float(ratio))
    assert len(ratios) > 2
    for each, found in ratios.items():
        assert geometric_mean(found) <= 1.15, each


def as_one(found: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    logits, gradients = found
    return {"logits": logits, **gradients}


# --- masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Gemma3", "Mistral"])
def test_no_mask_of_a_pack_is_longer_than_its_list_of_samples(
    replaced: Callable[[str, Any], None], name: str
) -> None:
    masks: list[torch.Tensor] = []
    replaced("bounds", lambda *args, **options: (masks.append(bounds(*args, **options)), masks[-1])[1])
    packed_model(name)(**end_to_end(samples()))
    assert masks
    assert {mask.numel() for mask in masks} == {len(LENGTHS) + 2}
    assert {tuple(mask.flatten()[1:].tolist()) for mask in masks} == {(0, 7, 8, 20, 25)}


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Mistral"])
def test_nothing_is_made_that_grows_with_the_square_of_a_pack(name: str) -> None:
    rows = samples((8,) * 16)
    tokens = 8 * 16

    def largest(model: Any) -> int:
        with Largest() as made, torch.no_grad():
            model.base_model(**end_to_end(rows))
        return made.elements

    assert largest(packed_model(name)) < tokens * tokens <= largest(model_of(name))


def test_window_and_chunks_are_read_off_the_mask_s_own_rule() -> None:
    def chunked(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (query // 4 == key // 4)

    def read(rule: Any) -> Any:
        return bounds(1, 10, 10, mask_function=rule).flatten().tolist()  # type: ignore[union-attr]

    assert read(causal_mask_function) == [0, 0, 10]
    assert read(sliding_window_causal_mask_function(3)) == [3, 0, 10]
    assert read(sliding_window_causal_mask_function(10)) == [0, 0, 10]
    assert read(sliding_window_causal_mask_function(1)) == [0, *range(11)]
    assert read(chunked) == [0, 0, 4, 8, 10]
    assert read(lambda *places: chunked(*places) & (places[2] - places[3] < 2)) == [2, 0, 4, 8, 10]


def mask_of(create: Any, implementation: str, lengths: tuple[int, ...], **settings: Any) -> torch.Tensor:
    """The mask that transformers gives a model for samples of these lengths end to end; no model is needed."""
    config = transformers.LlamaConfig(**settings, attn_implementation=implementation)
    places = torch.cat([torch.arange(length) for length in lengths])[None]
    # By place: transformers 5.24 renamed the cache.
    made: torch.Tensor = create(config, torch.zeros(1, sum(lengths), 1), None, None, places)
    return made


@pytest.mark.parametrize("lengths", [(511, 2), (512, 1), (513, 3), (700, 1300), (1, 511, 1024, 1, 1025)], ids=str)
@pytest.mark.parametrize(
    "create", [create_causal_mask, create_sliding_window_causal_mask, create_chunked_causal_mask]
)
def test_bounds_of_windows_and_chunks_as_wide_as_real_ones_are_transformers_mask(
    create: Any, lengths: tuple[int, ...]
) -> None:
    register()
    settings = {"sliding_window": 512, "attention_chunk_size": 512}
    found = mask_of(create, NAME, lengths, **settings)
    assert found.dtype == torch.int32
    assert packed_attention._dense(found).equal(mask_of(create, "sdpa", lengths, **settings))


def _prefix(_row: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (key <= query) | ((key < 300) & (query < 300))


def _dilated(_row: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (key <= query) & (((query - key) % 2 == 0) | (query - key < 64))


def _with_sink(_row: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (key <= query) & ((query - key < 64) | (key == 0))


def _widening(_row: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (key <= query) & (query - key < 64 + 64 * (query > 500))


@pytest.mark.parametrize(
    "rule", [_prefix, _dilated, _with_sink, _widening, sliding_window_bidirectional_mask_function(64)]
)
def test_any_other_rule_gets_transformers_dense_mask(rule: Any) -> None:
    found = bounds(1, 600, 600, mask_function=rule, allow_is_causal_skip=False)
    assert found is not None
    assert found.equal(sdpa_mask(1, 600, 600, mask_function=rule, allow_is_causal_skip=False))


def test_tokens_behind_a_cache_get_transformers_dense_mask() -> None:
    rule = chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long))
    found = bounds(1, 4, 4, mask_function=rule, q_offset=2, kv_offset=2, allow_is_causal_skip=False)
    assert found is not None
    assert found.equal(sdpa_mask(1, 4, 4, 2, 2, mask_function=rule, allow_is_causal_skip=False))


MISREAD: dict[str, Callable[[int, list[int]], tuple[int, list[int]]]] = {
    "window + 1": lambda window, edges: (window + 1, edges),
    "window - 1": lambda window, edges: (window - 1, edges),
    "no window": lambda _, edges: (0, edges),
    "a sample missed": lambda window, edges: (window, [*edges[:2], *edges[3:]]),
    "a sample too many": lambda window, edges: (window, [*edges[:2], edges[1] + 100, *edges[2:]]),
    "a sample begins late": lambda window, edges: (window, [*edges[:2], edges[2] + 1, *edges[3:]]),
}


@pytest.mark.parametrize("create", [create_sliding_window_causal_mask, create_chunked_causal_mask])
@pytest.mark.parametrize("misread", MISREAD)
def test_bounds_that_were_misread_are_not_used(
    replaced: Callable[[str, Any], None], create: Any, misread: str
) -> None:
    settings, lengths = {"sliding_window": 512, "attention_chunk_size": 512}, (300, 1400, 700)
    window = 0 if create is create_chunked_causal_mask else 512
    if window == 0 and misread in ("window - 1", "no window"):
        pytest.skip("chunks are no windows")
    read = packed_attention._read
    replaced("_read", lambda *args: MISREAD[misread](*read(*args)))
    assert mask_of(create, NAME, lengths, **settings).equal(mask_of(create, "sdpa", lengths, **settings))


def test_chunks_taken_for_a_window_are_found_out(replaced: Callable[[str, Any], None]) -> None:
    settings, lengths = {"attention_chunk_size": 512}, (1400, 700)
    replaced("_read", lambda *_: (512, [0, 1400, 2100]))
    found = mask_of(create_chunked_causal_mask, NAME, lengths, **settings)
    assert found.equal(mask_of(create_chunked_causal_mask, "sdpa", lengths, **settings))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", UNPACKED)
def test_padded_batches_are_the_model_s_own(name: str, side: str, count: int) -> None:
    rows = samples((5, 9, 7))[:count]
    ids, mask = torch.zeros(count, 9, dtype=torch.long), torch.zeros(count, 9, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(9 - row.shape[1], 9) if side == "left" else slice(0, row.shape[1])
        ids[index, place], mask[index, place] = row[0], 1

    def real(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
        score(logits).backward()
        return logits.detach(), gradients(model)

    assert_same(real(packed_model(name)), real(model_of(name)))


@pytest.mark.parametrize("is_batch", [False, True])
@pytest.mark.parametrize("name", UNPACKED)
def test_generation_from_a_cache_is_the_model_s_own(name: str, is_batch: bool) -> None:
    (row,) = samples((9,))
    ids = torch.cat([row, torch.cat([torch.zeros(1, 3, dtype=torch.long), row[:, 3:]], dim=1)]) if is_batch else row
    settings = {"attention_mask": (ids != 0).long(), "do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}

    def generated(model: Any) -> Any:
        made = model.generate(
            ids, **settings, pad_token_id=0, output_logits=True, return_dict_in_generate=True, use_cache=True
        )
        return made.sequences, torch.stack(made.logits)

    (found, logits), (expected, own) = generated(packed_model(name)), generated(model_of(name))
    assert found.shape == (len(ids), 17)
    assert found.equal(expected)
    assert_close(logits, own)


def test_a_softcap_without_any_mask_is_causal_and_knows_its_cache() -> None:
    model = packed_model("Gemma2")
    module = model.model.layers[0].self_attn
    torch.manual_seed(2)
    query, key, value = (torch.randn(1, heads, 6, 16) for heads in (4, 2, 2))
    whole, _ = attend(module, query, key, value, None, scaling=0.25, softcap=2.0)
    last, _ = attend(module, query[:, :, 4:], key, value, None, scaling=0.25, softcap=2.0)
    edges = torch.tensor([0, 0, 6], dtype=torch.int32)
    pack, _ = attend(module, query, key, value, edges, scaling=0.25, softcap=2.0)
    assert_close(whole, pack)
    assert_close(last, pack[:, 4:])


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_last_queries_of_a_pack_are_as_among_all(softcap: float | None, window: int) -> None:
    module = packed_model("Gemma2").model.layers[0].self_attn
    torch.manual_seed(2)
    query, key, value = (torch.randn(1, heads, 9, 16) for heads in (4, 2, 2))
    edges = torch.tensor([window, 0, 3, 9], dtype=torch.int32)
    whole, _ = attend(module, query, key, value, edges, scaling=0.25, softcap=softcap)
    last, _ = attend(module, query[:, :, 7:], key, value, edges, scaling=0.25, softcap=softcap)
    assert_close(last, whole[:, 7:])


# --- dropout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Mistral"])
def test_attention_dropout_drops_in_training_and_not_in_evaluation(name: str) -> None:
    rows = samples((7, 12, 5))
    expected = each_alone(model_of(name), rows)
    model = packed_model(name, attention_dropout=0.4)
    assert_same(in_a_pack(model, rows), expected)
    model.train()
    torch.manual_seed(3)
    first, again = in_a_pack(model, rows), in_a_pack(model, rows)
    torch.manual_seed(3)
    assert in_a_pack(model, rows)[0].equal(first[0])
    assert (first[0] - again[0]).abs().max() > 0.1
    assert all(value.isfinite().all() for value in again[1].values())


def test_dropout_keeps_the_mean_of_what_attention_gives() -> None:
    torch.manual_seed(4)
    module = packed_model("Llama").model.layers[0].self_attn
    query, key, value = (torch.randn(1, heads, 6, 8) for heads in (4, 2, 2))
    edges = torch.tensor([0, 0, 2, 6], dtype=torch.int32)
    for softcap in (None, 2.0):
        expected, _ = attend(module, query, key, value, edges, scaling=0.3, softcap=softcap)
        drawn = [attend(module, query, key, value, edges, 0.3, 0.3, softcap)[0] for _ in range(2000)]
        assert (torch.stack(drawn).mean(0) - expected).abs().max() < 0.1


# --- the proof --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_is_not_for_us_keeps_its_own_attention_and_its_logits(name: str) -> None:
    model = model_of(name)
    before, isolates = model.config._attn_implementation, isolates_samples(model)
    ids = samples((70,))[0]
    expected = model(input_ids=ids, use_cache=False).logits
    assert fit_attention(model) is isolates
    assert model.config._attn_implementation == before != NAME
    assert model(input_ids=ids, use_cache=False).logits.equal(expected)


@pytest.mark.parametrize("option", ["s_aux", "sinks", "position_bias", "indices", "block_indices"])
def test_what_is_added_to_attention_or_left_out_of_it_is_refused(option: str) -> None:
    query, edges = torch.randn(1, 4, 6, 8), torch.tensor([0, 0, 6], dtype=torch.int32)
    with pytest.raises(TypeError, match="not computed sample by sample"):
        attend(torch.nn.Module(), query, query, query, edges, **{option: torch.zeros(4)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", PACKABLE)
def test_in_every_precision_it_is_found_to_be_the_model_s_own(name: str, dtype: torch.dtype) -> None:
    model = model_of(name).to(dtype)
    assert fit_attention(model)
    assert model.config._attn_implementation == NAME


def _with_scores(factor: float) -> Any:
    def attend_wrongly(module: Any, query: Any, *args: Any, **options: Any) -> Any:
        return attend(module, query * factor, *args, **options)

    return attend_wrongly


def _without(option: str) -> Any:
    def attend_wrongly(*args: Any, **options: Any) -> Any:
        return attend(*args, **{**options, option: None})

    return attend_wrongly


def _with_bounds(change: Callable[[int, list[int]], list[int]]) -> Any:
    def attend_wrongly(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        window, *edges = mask.flatten().tolist()
        return attend(module, query, key, value, torch.tensor(change(window, edges), dtype=torch.int32), **options)

    return attend_wrongly


def _wrong_in_half_precision(module: Any, query: Any, *args: Any, **options: Any) -> Any:
    return attend(module, query * (1.0 if query.dtype == torch.float32 else 1.1), *args, **options)


def _with_a_wrong_gradient(module: Any, query: Any, *args: Any, **options: Any) -> Any:
    return attend(module, query.detach() + 1.1 * (query - query.detach()), *args, **options)


WRONG: dict[str, Any] = {
    "gradient": _with_a_wrong_gradient,
    "scores 1.1": _with_scores(1.1),
    "scores 2": _with_scores(2.0),
    "no softcap": _without("softcap"),
    "no scaling": _without("scaling"),
    "no samples": _with_bounds(lambda window, edges: [window, 0, edges[-1]]),
    "no window": _with_bounds(lambda _, edges: [0, *edges]),
    "window + 1": _with_bounds(lambda window, edges: [window and window + 1, *edges]),
    "window - 1": _with_bounds(lambda window, edges: [window and window - 1, *edges]),
}
BETRAYED: dict[str, tuple[str, ...]] = {
    "Llama": ("gradient", "scores 1.1", "scores 2", "no samples", "no window", "window + 1", "window - 1"),
    "Gemma2": tuple(WRONG),
    "GPT2": ("scores 1.1", "scores 2", "no samples"),
    "Granite": ("scores 1.1", "no scaling"),
}


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name in BETRAYED for wrong in BETRAYED[name]])
def test_attention_that_is_not_the_model_s_own_is_refused(
    replaced: Callable[[str, Any], None], name: str, wrong: str, dtype: torch.dtype, is_trained: bool
) -> None:
    softcap = {"attn_logit_softcapping": 2.0 if is_trained else 50.0} if name == "Gemma2" else {}
    model = (model_of if is_trained else hardly_trained)(name, **softcap).to(dtype)
    before = model.config._attn_implementation
    replaced("attend", WRONG[wrong])
    assert fit_attention(model)
    assert model.config._attn_implementation == before
    # It is refused for what it computes: it runs.
    model.set_attn_implementation(NAME)
    assert model(**end_to_end(samples())).logits.isfinite().all()


def test_a_model_that_takes_no_use_cache_keeps_its_own_attention_and_is_not_trusted() -> None:
    model = tiny_model()
    forward = model.forward
    model.forward = lambda input_ids, position_ids=None: forward(input_ids=input_ids, position_ids=position_ids)
    assert not fit_attention(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_what_is_wrong_in_the_model_s_own_precision_only_is_refused_too(
    replaced: Callable[[str, Any], None], dtype: torch.dtype
) -> None:
    replaced("attend", _wrong_in_half_precision)
    assert fit_attention(right := hardly_trained("Llama"))
    assert right.config._attn_implementation == NAME
    assert fit_attention(wrong := hardly_trained("Llama").to(dtype))
    assert wrong.config._attn_implementation == "sdpa"


def test_a_model_s_own_rounding_is_no_reason_to_refuse_it() -> None:
    """LLM.int8(), for one, computes a token a little differently where others stand beside it."""
    model = model_of("Llama")
    model.lm_head.register_forward_hook(lambda _, inputs, output: output * (1 + 0.01 / inputs[0].shape[1]))
    assert fit_attention(model)
    assert model.config._attn_implementation == NAME


def test_layers_that_differ_are_each_compared(replaced: Callable[[str, Any], None]) -> None:
    """Gemma 3's window is in every second layer: all else about its layers is the same."""

    def wrong_in_windows(module: Any, query: Any, *args: Any, **options: Any) -> Any:
        return attend(module, query * (1.1 if options.get("sliding_window") else 1.0), *args, **options)

    replaced("attend", wrong_in_windows)
    model = model_of("Gemma3", layer_types=["full_attention", "sliding_attention"]).bfloat16()
    assert fit_attention(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_base_gets_it_too(tiny_base: Path, quantization: Quantization) -> None:
    model = load_model(resolve_model(str(tiny_base)), ModelOptions("bfloat16", "cpu", quantization))
    assert fit_attention(model)
    assert model.config._attn_implementation == NAME


def test_fitting_leaves_weights_and_the_word_of_transformers_loggers_as_they_were(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="transformers")
    model = model_of("Llama").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    assert fit_attention(model)
    assert model.training
    assert torch.get_rng_state().equal(drawn)
    assert logging.getLogger("transformers").level == logging.INFO
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
