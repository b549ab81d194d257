"""Adapters train what they should, start where they should, and refuse what cannot work before it costs anything."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model
from tiny_runs import LORA, ROWS, Trained, architecture
from truetune.errors import BackendError
from truetune.model.adapter import add_adapter, load_trained_adapter, missed_experts, reached_weights
from truetune.model.fused_lora import FusedLinear, as_peft, as_trained
from truetune.model.load import ModelOptions, load_model, require_quantization
from truetune.model.source import ModelSource

PROBE = torch.arange(8).unsqueeze(0)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(PROBE).logits
    return logits


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A folder with a trained adapter, and its logits."""
    folder = tmp_path_factory.mktemp("learned")
    model = add_adapter(tiny_model(), LORA, seed=1)
    Trained(folder / "checkpoints", ROWS, model=model)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter", logits_of(model)


@pytest.mark.parametrize("name", ["GPT2", "GPTNeoX", "Falcon", "Qwen3", "Bloom", "OPT", "Mpt"])
def test_all_linear_finds_the_linear_layers_of_every_architecture(name: str) -> None:
    model = add_adapter(architecture(name), LORA, seed=1)
    per_layer = len([1 for name, _ in model.named_parameters() if "lora_A" in name]) / 2
    assert per_layer >= 4
    assert not any("embed" in name or "lm_head" in name for name, _ in model.named_parameters() if "lora_" in name)


def test_a_new_adapter_changes_no_answer_and_trains_nothing_else() -> None:
    base = tiny_model()
    expected = logits_of(base)
    model = add_adapter(base, LORA, seed=1)
    assert torch.equal(logits_of(model), expected)
    assert all(("lora_" in name) == value.requires_grad for name, value in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_g20_every_weight_that_trains_is_fp32_whatever_the_base_is_stored_in(
    dtype: torch.dtype, learned: tuple[Path, torch.Tensor]
) -> None:
    for settings in (LORA, replace(LORA, init_from=str(learned[0]))):
        model = add_adapter(tiny_model().to(dtype), settings, seed=1)
        assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
        assert {value.dtype for value in model.parameters() if not value.requires_grad} == {dtype}


def test_rank_alpha_dropout_targets_and_bias_are_those_asked_for() -> None:
    asked = replace(
        LORA, r=3, lora_alpha=5, lora_dropout=0.25, target_modules=("q_proj", "up_proj"), bias="lora_only"
    )
    model = add_adapter(tiny_model(attention_bias=True), asked, seed=1)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (3, 5, 0.25, "lora_only")
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"q_proj", "up_proj"}
    trained = [name for name, value in model.named_parameters() if value.requires_grad and "lora_" not in name]
    assert len(trained) == 2
    assert all(name.endswith("q_proj.base_layer.bias") for name in trained)


@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "lm_head"), r".*(q_proj|head)"])
def test_an_adapter_on_the_output_layer_is_refused_before_the_training(targets: Any) -> None:
    with pytest.raises(BackendError, match=r"target_modules.*lm_head") as caught:
        add_adapter(tiny_model(), replace(LORA, target_modules=targets), seed=1)
    assert "all-linear" in str(caught.value)


def test_going_on_from_an_adapter_starts_at_its_answers_and_moves_on(
    learned: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, expected = learned
    model = add_adapter(tiny_model(), replace(LORA, init_from=str(folder)), seed=9)
    assert torch.equal(logits_of(model), expected)
    further = Trained(tmp_path, ROWS, model=model)
    fresh = Trained(tmp_path, ROWS, model=add_adapter(tiny_model(), LORA, seed=9))
    assert further.logged("loss")[0] < fresh.logged("loss")[0] - 0.1
    assert not torch.equal(logits_of(model), expected)


def test_going_on_from_a_runs_directory_takes_the_adapter_in_it(learned: tuple[Path, torch.Tensor]) -> None:
    model = add_adapter(tiny_model(), replace(LORA, init_from=str(learned[0].parent)), seed=9)
    assert torch.equal(logits_of(model), learned[1])


def test_a_folder_without_an_adapter_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=rf"adapter\.init_from: no adapter in {tmp_path}") as caught:
        add_adapter(tiny_model(), replace(LORA, init_from=str(tmp_path)), seed=1)
    assert "adapter_config.json" in str(caught.value)


def test_an_adapter_of_another_base_is_refused_in_one_line(learned: tuple[Path, torch.Tensor]) -> None:
    other = tiny_model(hidden_size=64)
    for attempt in (
        lambda: add_adapter(other, replace(LORA, init_from=str(learned[0])), seed=1),
        lambda: load_trained_adapter(tiny_model(hidden_size=64), learned[0]),
    ):
        with pytest.raises(BackendError, match="does not fit this base model: size mismatch") as caught:
            attempt()
        assert len(caught.value.message.splitlines()) == 1


def test_a_damaged_adapter_is_refused(learned: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    shutil.copytree(learned[0], tmp_path / "copy")
    file = tmp_path / "copy" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BackendError, match="is damaged"):
        load_trained_adapter(tiny_model(), tmp_path / "copy")


def test_a_loaded_adapter_computes_as_peft_does_and_as_training_did_where_that_is_asked_for(
    learned: tuple[Path, torch.Tensor],
) -> None:
    model = load_trained_adapter(tiny_model(), learned[0])
    layers = [layer for layer in model.modules() if isinstance(layer, FusedLinear)]

    def are_ours() -> set[bool]:
        return {layer.parts() is not None for layer in layers}

    assert are_ours() == {False}
    with as_trained(model):
        assert are_ours() == {True}
        with as_peft(model):
            assert are_ours() == {False}
        assert are_ours() == {True}
    assert are_ours() == {False}


def test_a_loaded_adapter_answers_as_trained_and_is_frozen(learned: tuple[Path, torch.Tensor]) -> None:
    model = load_trained_adapter(tiny_model(), learned[0])
    assert torch.equal(logits_of(model), learned[1])
    assert not model.training
    assert not any(value.requires_grad for value in model.parameters())


@pytest.mark.parametrize(("quantization", "kind"), [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_g20_a_quantised_base_learns_as_its_own_dequantised_weights_would(
    tmp_path: Path, quantization: Any, kind: str
) -> None:
    """The adapter's gradients reach through every quantised layer, before and after evaluations."""
    import bitsandbytes

    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    source = ModelSource("base", str(tmp_path / "base"))
    base = load_model(source, ModelOptions("float32", "cpu", quantization))
    plain = tiny_model(hidden_size=64, intermediate_size=128)
    layers = {name: layer for name, layer in base.named_modules() if type(layer).__name__ == kind}
    assert len(layers) == 2 * 7
    for name, layer in layers.items():
        if quantization == "4bit":
            value = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        else:
            value = layer.weight.CB * layer.weight.SCB.unsqueeze(1) / 127
        plain.get_submodule(name).weight.data.copy_(value)
    settings = {"eval_strategy": "steps", "eval_steps": 2, "validation": ROWS[:2]}
    model = add_adapter(base, LORA, seed=1)
    quantised = Trained(tmp_path / "a", ROWS, model=model, **settings)
    reference = Trained(tmp_path / "b", ROWS, model=add_adapter(plain, LORA, seed=1), **settings)
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    # Of rounding, 4 bit has the matrix products' only; LLM.int8() rounds activations too.
    rounding = 2e-4 if quantization == "4bit" else 5e-3
    assert quantised.logged("loss") == pytest.approx(reference.logged("loss"), rel=rounding)
    assert quantised.logged("loss")[-1] < quantised.logged("loss")[0] - 0.3


def test_quantisation_without_bitsandbytes_is_refused_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truetune.model.load.metadata_has", lambda _: False)
    require_quantization("none")
    with pytest.raises(BackendError, match="load_in_4bit needs bitsandbytes") as caught:
        require_quantization("4bit")
    assert "truetune[bnb]" in str(caught.value)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe"])
def test_a_mixture_s_experts_are_reached_by_all_linear_and_missed_ones_are_named(name: str) -> None:
    whole = add_adapter(architecture(name), LORA, seed=1)
    assert missed_experts(whole) == ()
    some = add_adapter(architecture(name), replace(LORA, target_modules=("q_proj",)), seed=1)
    assert missed_experts(some) == ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    base = architecture(name)
    queries = sum(each.weight.numel() for each in (layer.self_attn.q_proj for layer in base.model.layers))
    experts = sum(each.numel() for each in base.parameters() if each.dim() == 3)
    assert reached_weights(some) == queries
    assert queries + experts < reached_weights(whole) < base.num_parameters()
    with pytest.raises(BackendError, match="lora_dropout: the experts of a mixture take no dropout"):
        add_adapter(architecture(name), replace(LORA, lora_dropout=0.1), seed=1)


@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_the_weights_that_adapters_reach_are_counted_however_they_are_stored(
    tiny_base: Path, quantization: Any
) -> None:
    base = load_model(ModelSource("b", str(tiny_base)), ModelOptions("float32", "cpu", quantization))
    linear = {name: layer for name, layer in tiny_model().named_modules() if isinstance(layer, torch.nn.Linear)}
    expected = sum(layer.weight.numel() for name, layer in linear.items() if name != "lm_head")
    assert reached_weights(add_adapter(base, LORA, seed=1)) == expected
