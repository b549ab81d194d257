"""What vLLM, llama.cpp and Ollama do not take of an adapter, told before it is trained."""

from dataclasses import replace
from typing import Any

import pytest

from truetune.planning.deployment import AdapterFacts, Obstacle, Target, obstacles

PLAIN = AdapterFacts(
    method="lora",
    r=16,
    use_dora=False,
    use_rslora=False,
    bias="none",
    modules_to_save=(),
    target_modules="all-linear",
    target_parameters=(),
    init_lora_weights="default",
    adds_tokens=False,
    is_mixture=False,
    model_type="llama",
)
TARGETS: tuple[Target, ...] = ("vllm", "gguf", "ollama")


def only(target: Target, **changes: Any) -> Obstacle:
    [obstacle] = obstacles(target, replace(PLAIN, **changes))
    return obstacle


@pytest.mark.parametrize("target", TARGETS)
def test_a_plain_adapter_of_rank_16_meets_no_obstacle(target: Target) -> None:
    assert obstacles(target, PLAIN) == ()


@pytest.mark.parametrize("target", TARGETS)
def test_a_run_of_all_weights_has_no_adapter_to_serve(target: Target) -> None:
    assert obstacles(target, replace(PLAIN, method="full", use_dora=True, r=1024, model_type="qwen3")) == ()


@pytest.mark.parametrize(("rank", "flag"), [(17, 32), (64, 64), (100, 128), (257, 320), (512, 512)])
def test_a_rank_above_vllm_s_default_names_the_flag_it_is_started_with(rank: int, flag: int) -> None:
    obstacle = only("vllm", r=rank)
    assert (obstacle.setting, obstacle.severity) == ("adapter.r", "warning")
    assert f"--max-lora-rank {flag}" in obstacle.remedy
    assert obstacles("gguf", replace(PLAIN, r=rank)) == ()


def test_a_rank_above_vllm_s_largest_is_an_error() -> None:
    obstacle = only("vllm", r=513)
    assert obstacle.severity == "error"
    assert "512" in obstacle.why


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_starts_in_the_base_is_served_at_twice_its_rank(start: str) -> None:
    obstacle = only("vllm", r=16, init_lora_weights=start)
    assert "rank 32 (saved as twice r" in obstacle.why
    assert "--max-lora-rank 32" in obstacle.remedy
    assert only("vllm", r=300, init_lora_weights=start).severity == "error"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("setting", "value"), [("use_dora", True), ("bias", "all"), ("modules_to_save", ("embed_tokens", "lm_head"))]
)
def test_what_no_server_takes_is_an_error_that_merging_removes(target: Target, setting: str, value: Any) -> None:
    obstacle = only(target, **{setting: value})
    assert (obstacle.setting, obstacle.severity) == (f"adapter.{setting}", "error")
    assert "merge the adapter into its base" in obstacle.remedy


def test_vllm_scales_rslora_as_it_was_trained_and_llama_cpp_does_not() -> None:
    assert obstacles("vllm", replace(PLAIN, use_rslora=True)) == ()
    for target in ("gguf", "ollama"):
        obstacle = only(target, use_rslora=True)
        assert obstacle.severity == "error"
        assert "4 times too little" in obstacle.why
    assert "5.66 times" in only("gguf", use_rslora=True, init_lora_weights="pissa").why


def test_llama_cpp_stops_at_whole_modules_but_drops_norms_in_silence() -> None:
    assert "stops at whole modules" in only("gguf", modules_to_save=("lm_head",)).why
    assert "stops at whole modules" in only("gguf", modules_to_save=("q_norm",)).why
    assert "without a word (norm, input_layernorm)" in only("gguf", modules_to_save=("norm", "input_layernorm")).why
    assert len(obstacles("gguf", replace(PLAIN, modules_to_save=("norm", "lm_head")))) == 2


@pytest.mark.parametrize("target", TARGETS)
def test_added_tokens_need_the_base_that_has_them(target: Target) -> None:
    obstacle = only(target, adds_tokens=True)
    assert (obstacle.setting, obstacle.severity) == ("model.name_or_path", "warning")
    assert "not on the published one" in obstacle.remedy


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("modules", [("q_proj", "lm_head"), r".*\.(q_proj|lm_head)"])
def test_an_adapter_on_the_output_layer_is_warned_of(target: Target, modules: str | tuple[str, ...]) -> None:
    obstacle = only(target, target_modules=modules)
    assert (obstacle.setting, obstacle.severity) == ("adapter.target_modules", "warning")
    assert "lm_head" in obstacle.why


@pytest.mark.parametrize("reach", [{}, {"target_modules": ("q_proj",), "target_parameters": ("experts.down_proj",)}])
def test_adapted_experts_are_doubtful_at_vllm_and_impossible_at_llama_cpp(reach: dict[str, Any]) -> None:
    assert only("vllm", is_mixture=True, **reach).severity == "warning"
    assert only("gguf", is_mixture=True, **reach).severity == "error"


def test_a_mixture_whose_experts_stay_as_they_are_meets_no_obstacle() -> None:
    for target in TARGETS:
        assert obstacles(target, replace(PLAIN, is_mixture=True, target_modules=("q_proj", "v_proj"))) == ()


def test_gguf_has_no_name_for_the_factors_peft_writes_for_experts() -> None:
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3MOE, 1)
    assert (
        names.get_name("model.layers.0.self_attn.q_proj.weight", try_suffixes=(".weight",)) == "blk.0.attn_q.weight"
    )
    for experts in ("mlp.experts.base_layer.weight", "mlp.experts.weight"):
        assert names.get_name(f"model.layers.0.{experts}", try_suffixes=(".weight",)) is None


def test_ollama_converts_adapters_of_few_architectures_by_itself() -> None:
    obstacle = only("ollama", model_type="qwen3")
    assert obstacle.severity == "warning"
    assert "convert_lora_to_gguf.py" in obstacle.remedy
    for known in ("mistral", "gemma2"):
        assert obstacles("ollama", replace(PLAIN, model_type=known)) == ()


def test_all_obstacles_are_told_errors_first_each_with_where_it_was_read() -> None:
    found = obstacles("vllm", replace(PLAIN, r=64, use_dora=True, adds_tokens=True, modules_to_save=("lm_head",)))
    assert [each.severity for each in found] == ["error", "error", "warning", "warning"]
    everything = replace(
        PLAIN,
        r=600,
        use_dora=True,
        use_rslora=True,
        bias="all",
        modules_to_save=("norm", "lm_head"),
        target_modules="(lm_head|embed_tokens)",
        target_parameters=("experts.down_proj",),
        adds_tokens=True,
        is_mixture=True,
        model_type="qwen3_moe",
    )
    for target in TARGETS:
        assert all("read 2026-11-29" in each.source for each in obstacles(target, everything))
