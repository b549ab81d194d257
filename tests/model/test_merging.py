"""Merged weights are base and adapter, to one rounding, whichever way they were merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model
from tiny_runs import architecture
from truetune.errors import CheckpointError
from truetune.model.adapter import load_trained_adapter
from truetune.model.load import ModelOptions, load_model
from truetune.model.merging import (
    grow_for,
    merge_shards,
    merge_whole,
    plan_shards,
    read_stored,
    require_update,
    write_configuration,
)
from truetune.model.source import ModelSource

PROBE = torch.arange(1, 9).unsqueeze(0)


def saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def adapter_on(base: Path, folder: Path, *, size: float = 0.05, **settings: Any) -> Path:
    """A stored adapter of random numbers, everything that it trains moved."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    adapted = get_peft_model(loaded(base), LoraConfig(**options))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return folder


def loaded(folder: Path, dtype: str = "float32") -> Any:
    return load_model(ModelSource(str(folder), str(folder)), ModelOptions(dtype, "cpu"))


def by_shards(base: Path, adapter: Path, out: Path, *, dtype: str | None = None) -> dict[str, Any]:
    plan = plan_shards(read_stored(base), adapter)
    assert plan is not None
    out.mkdir()
    merge_shards(plan, out, dtype=dtype, progress=lambda done, total: None)
    write_configuration(ModelSource(str(base), str(base)), out, dtype=dtype or str(read_stored(base).dtype))
    return tensors(out)


def by_model(base: Path, adapter: Path, out: Path, *, dtype: str = "float32", load_in: str = "float32") -> Any:
    merge_whole(load_trained_adapter(loaded(base, load_in), adapter), out, dtype=dtype, dtypes={})
    return tensors(out)


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: each for file in folder.glob("*.safetensors") for name, each in load_file(file).items()}


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=PROBE).logits


ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Llama", {}),
    "patterns": ("Llama", {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    "biases of all": ("Qwen2", {"bias": "all"}),
    "biases of its layers": ("Qwen2", {"bias": "lora_only"}),
    "transposed": ("GPT2", {}),
    "embeddings trained whole": ("Llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_ways_make_the_same_tensors(tmp_path: Path, kind: str, dtype: str) -> None:
    name, settings = ADAPTERS[kind]
    base = saved(architecture(name).to(getattr(torch, dtype)), tmp_path / "base")
    adapter = adapter_on(base, tmp_path / "adapter", **settings)
    one, other = by_shards(base, adapter, tmp_path / "one"), by_model(base, adapter, tmp_path / "other", dtype=dtype)
    before = tensors(base)
    assert one.keys() == other.keys() == before.keys()
    assert all(torch.equal(one[each], other[each]) for each in one)
    assert {each.dtype for each in one.values()} == {getattr(torch, dtype)}
    assert sum(not torch.equal(one[each], before[each]) for each in one) > 4


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_merged_model_gives_the_adapters_logits(tmp_path: Path, kind: str) -> None:
    name, settings = ADAPTERS[kind]
    base = saved(architecture(name), tmp_path / "base")
    adapter = adapter_on(base, tmp_path / "adapter", **settings)
    expected = logits(load_trained_adapter(loaded(base), adapter))
    by_shards(base, adapter, tmp_path / "merged")
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), expected, rtol=1e-5, atol=1e-5)
    assert (logits(loaded(base)) - expected).abs().max() > 1e-2


def test_a_16_bit_base_is_added_to_in_fp32_in_the_loaded_model_too(tmp_path: Path) -> None:
    base = saved(tiny_model().bfloat16(), tmp_path / "base")
    adapter = adapter_on(base, tmp_path / "adapter")
    one = by_shards(base, adapter, tmp_path / "one")
    other = by_model(base, adapter, tmp_path / "other", dtype="bfloat16", load_in="bfloat16")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_shards_keep_their_names_and_their_index(tmp_path: Path) -> None:
    base = saved(tiny_model(), tmp_path / "base", max_shard_size="60KB")
    adapter = adapter_on(base, tmp_path / "adapter")
    by_shards(base, adapter, tmp_path / "merged", dtype="bfloat16")
    files = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors")) == files
    before, after = (
        json.loads((each / "model.safetensors.index.json").read_text()) for each in (base, tmp_path / "merged")
    )
    assert after["weight_map"] == before["weight_map"]
    assert after["metadata"]["total_size"] * 2 == before["metadata"]["total_size"]
    expected = logits(load_trained_adapter(loaded(base), adapter))
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), expected, rtol=0.02, atol=0.02)


WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "DoRA": ("Llama", {"use_dora": True}),
    "embeddings with an adapter": ("Llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "some tokens": ("Llama", {"trainable_token_indices": [5, 6]}),
    "tied, an adapter on the embeddings": ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied, an adapter on the output layer": ("tied", {"target_modules": ["lm_head", "q_proj"]}),
    "tied, the embeddings whole": ("tied", {"modules_to_save": ["embed_tokens"]}),
    "tied, both whole": ("tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "experts": ("Mixtral", {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}),
    "an output layer stored under another name": ("GPTNeoX", {"bias": "lora_only"}),
    "experts, stored otherwise": ("Mixtral", {"target_modules": ["q_proj"]}),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_takes_the_whole_model_gives_the_adapters_logits_too(tmp_path: Path, kind: str) -> None:
    name, settings = WHOLE[kind]
    model = tiny_model(tie_word_embeddings=True) if name == "tied" else architecture(name)
    base = saved(model, tmp_path / "base")
    adapter = adapter_on(base, tmp_path / "adapter", **settings)
    assert plan_shards(read_stored(base), adapter) is None
    expected = logits(load_trained_adapter(loaded(base), adapter))
    by_model(base, adapter, tmp_path / "merged")
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), expected, rtol=1e-5, atol=1e-5)
    assert (logits(loaded(base)) - expected).abs().max() > 1e-3


def test_tied_embeddings_are_parted_only_where_one_of_them_was_trained(tmp_path: Path) -> None:
    base = saved(tiny_model(tie_word_embeddings=True), tmp_path / "base")
    for number, (settings, are_parted) in enumerate(
        [({}, False), ({"target_modules": ["embed_tokens"]}, True), ({"trainable_token_indices": [5]}, False)]
    ):
        adapter = adapter_on(base, tmp_path / f"adapter-{number}", **settings)
        adapted = load_trained_adapter(loaded(base), adapter)
        out = tmp_path / f"merged-{number}"
        assert merge_whole(adapted, out, dtype="float32", dtypes={}) == are_parted
        assert ("lm_head.weight" in tensors(out)) == are_parted
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] == (not are_parted)


def test_embeddings_of_more_tokens_grow_with_the_adapter(tmp_path: Path) -> None:
    base, longer = saved(tiny_model(), tmp_path / "base"), tiny_model()
    longer.resize_token_embeddings(270)
    saved(longer, tmp_path / "longer")
    adapter = adapter_on(tmp_path / "longer", tmp_path / "adapter", modules_to_save=["embed_tokens", "lm_head"])
    assert plan_shards(read_stored(base), adapter) is None
    grown = loaded(base)
    assert grow_for(grown, adapter) == 270
    merge_whole(load_trained_adapter(grown, adapter), tmp_path / "merged", dtype="float32", dtypes={})
    expected = logits(load_trained_adapter(loaded(tmp_path / "longer"), adapter))
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), expected, rtol=1e-5, atol=1e-5)
    assert grow_for(loaded(base), adapter_on(base, tmp_path / "other", modules_to_save=["embed_tokens"])) is None


def test_a_value_that_the_dtype_cannot_hold_is_refused_by_the_name_of_its_weight(tmp_path: Path) -> None:
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e6
    base = saved(model, tmp_path / "base")
    adapter = adapter_on(base, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight holds values that float16 cannot"):
        by_shards(base, adapter, tmp_path / "merged", dtype="float16")


def test_a_base_under_other_names_is_left_to_the_loaded_model(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = saved(tiny_model(), tmp_path / "base")
    adapter = adapter_on(base, tmp_path / "adapter")
    assert plan_shards(read_stored(base), adapter) is not None
    save_file({**tensors(base), "model.unknown.weight": torch.zeros(2)}, base / "model.safetensors", {"format": "pt"})
    assert plan_shards(read_stored(base), adapter) is None


def test_an_adapter_without_tensors_or_on_another_start_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = saved(tiny_model(), tmp_path / "base")
    moved = adapter_on(base, tmp_path / "moved", init_lora_weights="pissa")
    with pytest.raises(CheckpointError, match="stands on a base changed by pissa"):
        require_update(moved)
    adapter = adapter_on(base, tmp_path / "adapter")
    require_update(adapter)
    save_file({}, adapter / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="holds no tensors"):
        require_update(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"version https")
    with pytest.raises(CheckpointError, match="cannot be read"):
        require_update(adapter)
