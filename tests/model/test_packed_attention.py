"""Samples that stand end to end are to each other as if they were alone: in logits, gradients, windows and memory."""

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from conftest import tiny_model
from tiny_runs import Largest
from truetune.model import packed_attention
from truetune.model.attention import fit_attention, isolates_samples
from truetune.model.packed_attention import NAME, attend, bounds, register

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
    "GptOss": {
        **_EXPERTS,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": _LOCAL_AND_GLOBAL,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
"""Models that are not for us: no attention of transformers' interface, none at all, or one with sinks."""

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

INDEXING: dict[str, dict[str, Any]] = {"Doge": _MODEL}
"""Models that cut their masks themselves."""
if hasattr(transformers, "Gemma4TextConfig"):
    INDEXING["Gemma4"] = {
        **{name: value for name, value in _MODEL.items() if name != "max_position_embeddings"},
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "layer_types": 2 * _LOCAL_AND_GLOBAL,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 97,
        "hidden_size_per_layer_input": 8,
    }


def model_of(name: str, **changes: Any) -> Any:
    """A tiny model in evaluation mode, with weights so large that its attention is far from even."""
    torch.manual_seed(0)
    kind = name.split(",")[0]
    config_name = f"{kind}Text" if hasattr(transformers, f"{kind}TextConfig") else kind
    config = getattr(transformers, f"{config_name}Config")(**{**{**PACKABLE, **OTHERS, **INDEXING}[name], **changes})
    model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).eval()
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


def samples(lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    torch.manual_seed(1)
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
    assert_same(in_a_pack(model, rows), alone)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "GPTNeoX", "Granite"])
@pytest.mark.parametrize("short", [0, 6])
def test_samples_long_and_short_go_two_ways_to_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, name: str, short: int
) -> None:
    model, rows = model_of(name), samples()
    alone = each_alone(model, rows)
    monkeypatch.setattr(packed_attention, "_SHORT", short)
    assert fit_attention(model)
    assert_same(in_a_pack(model, rows), alone)


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
    rows, in_bf16 = samples(), partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    alone, packed = each_alone(model_of(name), rows, in_bf16), in_a_pack(packed_model(name), rows, in_bf16)
    truth = each_alone(model_of(name), rows)
    assert (packed[0] - truth[0]).norm() <= 1.2 * (alone[0] - truth[0]).norm()
    for each, expected in truth[1].items():
        assert (packed[1][each] - expected).norm() <= 1.2 * (alone[1][each] - expected).norm() + 1e-3


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2", "Mistral"])
def test_in_bf16_a_pack_is_as_near_the_truth_as_samples_alone(name: str) -> None:
    rows = samples()
    truth = each_alone(model_of(name), rows)
    alone = each_alone(model_of(name).bfloat16(), rows)
    packed = in_a_pack(packed_model(name).bfloat16(), rows)
    assert (packed[0] - truth[0]).norm() <= 1.2 * (alone[0] - truth[0]).norm()
    for each, expected in truth[1].items():
        assert (packed[1][each] - expected).norm() <= 1.2 * (alone[1][each] - expected).norm()


# --- masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Gemma3", "Mistral"])
def test_no_mask_of_a_pack_is_longer_than_its_list_of_samples(
    replaced: Callable[[str, Any], None], name: str
) -> None:
    masks: list[torch.Tensor] = []
    replaced("bounds", lambda *args, **options: (masks.append(bounds(*args, **options)), masks[-1])[1])
    packed_model(name)(**end_to_end(samples()))
    assert masks
    assert {mask.shape for mask in masks} == {(len(LENGTHS) + 2,)}
    assert {tuple(mask[1:].tolist()) for mask in masks} == {(0, 7, 8, 20, 25)}


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
        return bounds(1, 10, 10, mask_function=rule).tolist()  # type: ignore[union-attr]

    assert read(causal_mask_function) == [0, 0, 10]
    assert read(sliding_window_causal_mask_function(3)) == [3, 0, 10]
    assert read(sliding_window_causal_mask_function(10)) == [0, 0, 10]
    assert read(sliding_window_causal_mask_function(1)) == [0, *range(11)]
    assert read(chunked) == [0, 0, 4, 8, 10]
    assert read(lambda *places: chunked(*places) & (places[2] - places[3] < 2)) == [2, 0, 4, 8, 10]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2", "Gemma3", "Mistral", "GPT2", "Llama4"])
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
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2", "Gemma3", "Mistral", "GPT2", "Llama4"])
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
    pack, _ = attend(module, query, key, value, torch.tensor([0, 0, 6]), scaling=0.25, softcap=2.0)
    assert_close(whole, pack)
    assert_close(last, pack[:, 4:])


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
    edges = torch.tensor([0, 0, 2, 6])
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


@pytest.mark.parametrize("name", INDEXING)
def test_a_model_that_indexes_its_mask_keeps_its_own_attention(name: str) -> None:
    model = model_of(name)
    before, isolates = model.config._attn_implementation, isolates_samples(model)
    assert fit_attention(model) is isolates
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("option", ["s_aux", "sinks", "position_bias", "indices", "block_indices"])
def test_what_is_added_to_attention_or_left_out_of_it_is_refused(option: str) -> None:
    query = torch.randn(1, 4, 6, 8)
    with pytest.raises(TypeError, match="not computed sample by sample"):
        attend(torch.nn.Module(), query, query, query, torch.tensor([0, 0, 6]), **{option: torch.zeros(4)})


def _leaking(module: Any, query: Any, key: Any, value: Any, mask: Any, *args: Any, **options: Any) -> Any:
    whole = torch.tensor([int(mask[0]), 0, query.shape[2]])
    return attend(module, query, key, value, whole, *args, **options)


def _scaling_wrongly(module: Any, query: Any, key: Any, value: Any, mask: Any, *args: Any, **options: Any) -> Any:
    return attend(module, query * 1.1, key, value, mask, *args, **options)


def _forgetting_softcaps(module: Any, *args: Any, softcap: Any = None, **options: Any) -> Any:
    return attend(module, *args, **options)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("Llama", _leaking),
        ("Llama", _scaling_wrongly),
        ("Gemma2", _leaking),
        ("Gemma2", _scaling_wrongly),
        ("Gemma2", _forgetting_softcaps),
        ("GPT2", _leaking),
    ],
)
def test_attention_that_is_not_the_model_s_own_is_refused(
    replaced: Callable[[str, Any], None], name: str, wrong: Any
) -> None:
    replaced("attend", wrong)
    model = model_of(name)
    before = model.config._attn_implementation
    assert fit_attention(model)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("wrong", [_leaking, _scaling_wrongly])
def test_even_a_model_that_is_hardly_trained_betrays_it(replaced: Callable[[str, Any], None], wrong: Any) -> None:
    replaced("attend", wrong)
    model = tiny_model().eval()
    assert fit_attention(model)
    assert model.config._attn_implementation == "sdpa"


def test_fitting_leaves_weights_and_the_word_of_transformers_loggers_as_they_were(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="transformers")
    model = model_of("Llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fit_attention(model)
    assert logging.getLogger("transformers").level == logging.INFO
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
