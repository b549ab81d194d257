"""LoRA in one step of autograd is PEFT's LoRA: outputs, gradients, files and trajectories; else PEFT does it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora.layer import Linear, LoraLayer
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from conftest import tiny_model
from tiny_runs import LORA, ROWS, Trained
from truetune.model.adapter import add_adapter
from truetune.model.fused_lora import FusedLinear, cast_once
from truetune.model.load import ModelOptions, load_model
from truetune.model.slices import TOKENS
from truetune.model.source import resolve_model

IDS = torch.arange(1, 25).view(2, 12)


def layers(
    *, size: tuple[int, int] = (24, 40), has_bias: bool = False, dtype: torch.dtype = torch.float32, **lora: Any
) -> tuple[FusedLinear, Linear]:
    """Ours and PEFT's around the same frozen layer, with adapters of the same values, in fp32."""
    torch.manual_seed(0)
    base = nn.Linear(*size, bias=has_bias).to(dtype).requires_grad_(False)
    settings = {"r": 4, "lora_alpha": 12, **lora}
    config = LoraConfig(**settings, init_lora_weights=False)
    ours, theirs = (
        kind(base, "default", config=config, r=config.r, lora_alpha=config.lora_alpha)
        for kind in (FusedLinear, Linear)
    )
    for layer in (ours, theirs):
        layer.lora_A.float()
        layer.lora_B.float()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def passed(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What the layer gives, and the gradients of its input and its parameters."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    made = layer(x)
    (made * torch.cos(torch.arange(made.numel()).view(made.shape)).to(made)).sum().backward()
    learned = {name: value.grad for name, value in layer.named_parameters() if value.requires_grad}
    return made.detach(), {"x": x.grad, **learned}


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_close(found: torch.Tensor, expected: torch.Tensor, *, within: float) -> None:
    """The largest difference, next to the largest value."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert float((found - expected).abs().max()) <= within * max(1.0, float(expected.abs().max()))


def assert_same(found: Any, expected: Any, *, within: float = 1e-6) -> None:
    assert_close(found[0], expected[0], within=within)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        assert_close(found[1][name], value, within=within)


def adapted(*, is_ours: bool, base: Any = None, **lora: Any) -> Any:
    """A tiny model whose adapter does something, with our layers or with PEFT's."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    config = LoraConfig(**settings)
    if is_ours:
        config._register_custom_module({nn.Linear: FusedLinear})
    model = get_peft_model(tiny_model() if base is None else base, config)
    return awakened(model).eval()


def awakened(model: Any) -> Any:
    """The same, its update matrices no longer zero."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name or "lora_magnitude" in name:
                value.add_(0.1 * torch.randn_like(value))
    return model


def logits(model: Any, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, **options).logits


@pytest.fixture
def peft_s(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layers whose forward PEFT computed."""
    computed: list[Any] = []
    forward = Linear.forward

    def spied(self: Any, *args: Any, **options: Any) -> torch.Tensor:
        computed.append(self)
        return forward(self, *args, **options)

    monkeypatch.setattr(Linear, "forward", spied)
    return computed


# --- one layer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24,), (7, 24), (3, 5, 24), (2, 3, 4, 24), (0, 24), (1, 1, 24)])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("lora", [{}, {"lora_alpha": 1}, {"use_rslora": True}, {"r": 1}, {"r": 32}], ids=str)
def test_outputs_and_gradients_are_peft_s(
    peft_s: list[Any], shape: tuple[int, ...], has_bias: bool, lora: dict[str, Any]
) -> None:
    ours, theirs = layers(has_bias=has_bias, **lora)
    x = inputs(*shape)
    if not x.numel():
        assert ours(x).shape == (0, 40)
        return
    found = passed(ours, x)
    assert not peft_s
    assert_same(found, passed(theirs, x))
    assert {*found[1]} == {"x", "lora_A.default.weight", "lora_B.default.weight"}


def test_an_input_that_is_not_contiguous_is_taken_as_it_stands() -> None:
    ours, theirs = layers()
    x = inputs(24, 5, 3).transpose(0, 2)
    assert not x.is_contiguous()
    assert_same(passed(ours, x), passed(theirs, x))


@pytest.mark.parametrize("learns", ["weight", "bias"])
def test_a_base_that_learns_too_has_peft_s_gradients(peft_s: list[Any], learns: str) -> None:
    ours, theirs = layers(has_bias=True)
    getattr(ours.get_base_layer(), learns).requires_grad_()
    found = passed(ours, inputs(3, 5, 24))
    assert f"base_layer.{learns}" in found[1]
    assert not peft_s
    assert_same(found, passed(theirs, inputs(3, 5, 24)))


def test_an_input_without_a_gradient_is_given_none() -> None:
    ours, _ = layers()
    x = inputs(3, 24)
    ours(x).sum().backward()
    assert x.grad is None
    assert ours.lora_A["default"].weight.grad.count_nonzero()


@pytest.mark.parametrize(
    "change", [lambda layer: layer.set_scale("default", 0.5), lambda layer: layer.scale_layer(3)]
)
def test_the_scale_is_read_when_it_is_used(change: Callable[[Any], None]) -> None:
    ours, theirs = layers()
    before = ours(inputs(3, 24))
    for layer in (ours, theirs):
        change(layer)
    assert not torch.allclose(ours(inputs(3, 24)), before)
    assert_same(passed(ours, inputs(3, 24)), passed(theirs, inputs(3, 24)))


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_in_bf16_outputs_and_gradients_are_within_its_rounding(
    peft_s: list[Any], x_dtype: torch.dtype, is_autocast: bool
) -> None:
    """The truth: fp32 arithmetic on the same bf16 numbers. fp32 inputs are what norms give under autocast."""
    ours, theirs = layers(size=(64, 96), has_bias=True, dtype=torch.bfloat16)
    exact, _ = layers(size=(64, 96), has_bias=True)
    exact.load_state_dict(ours.state_dict())
    x = inputs(4, 33, 64, dtype=torch.bfloat16).to(x_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        found = passed(ours, x)
    assert not peft_s
    truth = passed(exact, x.float())
    assert found[0].dtype == torch.bfloat16
    assert found[1]["x"].dtype == x_dtype
    assert found[1]["lora_A.default.weight"].dtype == torch.float32
    assert (found[0] - truth[0]).norm() <= 0.006 * truth[0].norm()
    for name, value in truth[1].items():
        assert (found[1][name] - value).norm() <= 0.006 * value.norm()
    if is_autocast or x_dtype == torch.bfloat16:  # PEFT's layer cannot take fp32 otherwise
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
            other = passed(theirs, x)
        assert found[0].dtype == other[0].dtype
        assert (found[0] - truth[0]).norm() <= 2 * (other[0] - truth[0]).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_over_a_base_in_fp32_is_left_to_peft(peft_s: list[Any], dtype: torch.dtype) -> None:
    ours, theirs = layers(has_bias=True)
    with torch.autocast("cpu", dtype=dtype):
        found = passed(ours, inputs(3, 5, 24))
        assert peft_s == [ours]
        expected = passed(theirs, inputs(3, 5, 24))
    assert found[0].dtype == dtype
    assert_same(found, expected)


@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24)])
def test_what_it_gives_may_be_changed_in_place(shape: tuple[int, ...]) -> None:
    """OLMo clamps its queries so, Llama 4 adds its experts so."""

    class Clamping(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = self.layer(x).clamp_(-0.5, 0.5)
            return made.add_(1.0)

    ours, theirs = map(Clamping, layers())
    assert_same(passed(ours, inputs(*shape)), passed(theirs, inputs(*shape)))


def kept_bytes(run: Callable[[], Any], parameters: Any) -> int:
    """Bytes of the tensors that wait for the backward pass, the parameters aside."""
    own = {each.untyped_storage().data_ptr() for each in parameters}
    kept: dict[int, Any] = {}

    def keep(each: torch.Tensor) -> torch.Tensor:
        # Held, so that no address is used twice.
        kept[each.untyped_storage().data_ptr()] = each.untyped_storage()
        return each

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
        run()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def test_less_waits_for_the_backward_pass_than_with_peft() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        ours, theirs = layers(size=(64, 96), dtype=dtype)
        x = inputs(2, 50, 64, dtype=dtype).requires_grad_()
        other = kept_bytes(lambda layer=theirs, x=x: layer(x), theirs.parameters())
        with cast_once(ours):
            assert ours.kept is not None
            found = kept_bytes(lambda layer=ours, x=x: layer(x), [*ours.parameters(), *ours.kept])
        assert found == 100 * (64 + 4) * dtype.itemsize  # the input and what passes between the factors
        assert other >= 100 * 64 * 4
        assert found <= other


def test_a_whole_model_keeps_less_for_the_backward_pass_than_with_peft() -> None:
    found, other = (
        kept_bytes(lambda model=model: model(input_ids=IDS), model.parameters())
        for model in (adapted(is_ours=ours, base=tiny_model().bfloat16()) for ours in (True, False))
    )
    assert found < 0.9 * other


def test_factors_that_are_cast_once_give_the_same_and_are_let_go_of_before_they_learn() -> None:
    ours, _ = layers(size=(64, 96), dtype=torch.bfloat16)
    x = inputs(2, 50, 64, dtype=torch.bfloat16)
    expected, gradients = passed(ours, x)
    with cast_once(nn.Sequential(ours)):
        found, its_gradients = passed(ours, x)
        assert ours.parts()[4:6] == ours.kept  # type: ignore[index]
    assert torch.equal(found, expected)
    assert all(torch.equal(its_gradients[name], value) for name, value in gradients.items())
    with torch.no_grad():
        ours.lora_B["default"].weight.mul_(2.0)
    assert not torch.equal(passed(ours, x)[0], expected)


def test_a_step_casts_an_adapter_once_however_many_slices_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    casts: list[str] = []
    cast = FusedLinear.cast
    monkeypatch.setattr(FusedLinear, "cast", lambda layer, name: casts.append(name) or cast(layer, name))
    monkeypatch.setitem(TOKENS, "cpu", 12)
    model = adapted(is_ours=True)
    learns = TrainerCallback()
    monkeypatch.setattr(learns, "on_train_begin", lambda *_, **__: casts.clear(), raising=False)
    Trained(tmp_path, ROWS, model=model, callbacks=[learns], max_steps=2, gradient_accumulation_steps=1)
    assert len(casts) == 2 * sum(isinstance(layer, FusedLinear) for layer in model.modules()) > 0


# --- what PEFT computes itself ----------------------------------------------------------------------------


def test_dropout_is_peft_s_in_training_and_nobody_s_in_evaluation(peft_s: list[Any]) -> None:
    ours, theirs = (adapted(is_ours=each, lora_dropout=0.5) for each in (True, False))
    expected = logits(theirs)
    peft_s.clear()
    assert_close(logits(ours), expected, within=1e-6)
    assert not peft_s
    drawn = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        drawn.append(logits(model.train()))
    assert len(peft_s) == 2 * 14
    assert drawn[0].equal(drawn[1])
    assert not torch.allclose(drawn[0], expected, atol=1e-4)


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"lora_bias": True, "target_modules": ["q_proj"]}], ids=str)
def test_dora_and_biases_of_the_adapter_are_peft_s(peft_s: list[Any], lora: dict[str, Any]) -> None:
    ours, theirs = (adapted(is_ours=each, base=tiny_model(attention_bias=True), **lora) for each in (True, False))
    found = logits(ours)
    assert {type(each) for each in peft_s} == {FusedLinear}
    assert found.equal(logits(theirs))


def test_two_adapters_at_once_are_peft_s_and_each_alone_is_ours(peft_s: list[Any]) -> None:
    models = [adapted(is_ours=each) for each in (True, False)]
    for model in models:
        torch.manual_seed(4)
        model.add_adapter("second", LoraConfig(r=2, lora_alpha=6, target_modules="all-linear"))
        awakened(model)
    expected = {}
    for active in ("default", "second", ["default", "second"]):
        for model in models:
            model.base_model.set_adapter(active)
        expected[str(active)] = logits(models[1])
        peft_s.clear()
        assert_close(logits(models[0]), expected[str(active)], within=1e-6)
        assert len(peft_s) == (14 if isinstance(active, list) else 0)
    assert not expected["default"].equal(expected["second"])


def test_an_adapter_that_is_switched_off_is_the_base(peft_s: list[Any]) -> None:
    ours = adapted(is_ours=True)
    with ours.disable_adapter():
        found = logits(ours)
    assert len(peft_s) == 14
    assert found.equal(logits(tiny_model().eval()))
    assert not torch.allclose(logits(ours), found, atol=1e-3)


def test_an_adapter_that_is_merged_is_not_added_twice(peft_s: list[Any]) -> None:
    ours = adapted(is_ours=True)
    expected = logits(ours)
    assert not peft_s
    ours.merge_adapter()
    assert_close(logits(ours), expected, within=1e-5)
    assert len(peft_s) == 14
    ours.unmerge_adapter()
    assert_close(logits(ours), expected, within=1e-5)
    assert len(peft_s) == 14


def test_rows_that_name_their_adapters_are_peft_s(peft_s: list[Any]) -> None:
    ours, theirs = (adapted(is_ours=each) for each in (True, False))
    found = logits(ours, adapter_names=["default", "__base__"])
    assert len(peft_s) == 14
    assert found.equal(logits(theirs, adapter_names=["default", "__base__"]))
    assert_close(found[0], logits(ours)[0], within=1e-5)
    assert_close(found[1], logits(tiny_model().eval())[1], within=1e-5)


# --- models -----------------------------------------------------------------------------------------------


def fused(model: Any) -> list[FusedLinear]:
    return [module for module in model.modules() if isinstance(module, FusedLinear)]


def wrapped(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def test_every_linear_layer_of_an_adapter_is_ours_new_or_gone_on_from(tmp_path: Path, peft_s: list[Any]) -> None:
    new = awakened(add_adapter(tiny_model(), LORA, seed=1)).eval()
    assert len(fused(new)) == len(wrapped(new)) == 14
    expected = logits(new)
    new.save_pretrained(tmp_path)
    again = add_adapter(tiny_model(), replace(LORA, init_from=str(tmp_path)), seed=1).eval()
    assert len(fused(again)) == len(wrapped(again)) == 14
    assert logits(again).equal(expected)
    assert not peft_s


@pytest.mark.parametrize(("quantization", "name"), [("4bit", "Linear4bit"), ("8bit", "Linear8bitLt")])
def test_quantised_layers_are_peft_s_own(tiny_base: Path, quantization: Any, name: str) -> None:
    model = load_model(resolve_model(str(tiny_base)), ModelOptions("float32", "cpu", quantization))
    adapter = add_adapter(model, LORA, seed=1)
    assert len(wrapped(adapter)) == 14
    assert {type(each).__name__ for each in wrapped(adapter)} == {name}


def test_the_transposed_layers_of_gpt_2_are_peft_s_own(peft_s: list[Any]) -> None:
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=261, n_embd=32, n_layer=2, n_head=4))
    model = add_adapter(base, LORA, seed=1)
    assert {type(each) for each in wrapped(model)} == {Linear}
    logits(model.eval())
    assert len(peft_s) == len(wrapped(model)) == 8


def test_the_merged_model_has_the_logits_of_the_adapter() -> None:
    ours = adapted(is_ours=True)
    expected = logits(ours)
    merged = ours.merge_and_unload()
    assert not wrapped(merged)
    assert_close(logits(merged), expected, within=1e-5)
    assert not torch.allclose(expected, logits(tiny_model().eval()), atol=1e-3)


def test_files_and_names_are_peft_s_and_load_without_us(tmp_path: Path) -> None:
    ours, theirs = (adapted(is_ours=each) for each in (True, False))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert list(get_peft_model_state_dict(ours)) == list(get_peft_model_state_dict(theirs))
    for name, model in (("ours", ours), ("theirs", theirs)):
        model.save_pretrained(tmp_path / name)
    texts = [(tmp_path / name / "adapter_config.json").read_text() for name in ("ours", "theirs")]
    assert texts[0] == texts[1]
    found, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert found.keys() == expected.keys()
    assert all(value.equal(expected[name]) for name, value in found.items())
    plain = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "ours")).eval()
    assert not fused(plain)
    assert_close(logits(plain), logits(ours), within=1e-6)


@pytest.mark.parametrize("kind", ["Olmo", "Llama4"])
def test_models_that_change_a_layer_s_output_in_place_have_peft_s_gradients(kind: str) -> None:
    small = {"vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}
    own = {
        "Olmo": {"clip_qkv": 0.05},
        "Llama4": {"head_dim": 16, "num_local_experts": 4, "intermediate_size_mlp": 48, "attention_chunk_size": 8},
    }[kind]

    def gradients(is_ours: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}TextConfig" if kind == "Llama4" else f"{kind}Config")(**small, **own)
        base = getattr(transformers, f"{kind}ForCausalLM")(config)
        with torch.no_grad():
            for value in base.parameters():
                value.normal_(0.0, 0.1)
        model = adapted(is_ours=is_ours, base=base, target_modules=r".*(q_proj|v_proj|down_proj|gate_proj)")
        assert bool(fused(model)) is is_ours
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}

    found, expected = gradients(is_ours=True), gradients(is_ours=False)
    assert found.keys() == expected.keys()
    assert any(value.count_nonzero() for value in found.values())
    for name, value in expected.items():
        assert_close(found[name], value, within=1e-5)


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"is_padding_free": False}], ids=str)
def test_twenty_steps_are_those_of_plain_peft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    def trained(folder: str) -> Trained:
        model = add_adapter(tiny_model(), LORA, seed=1)
        return Trained(tmp_path / folder, ROWS, model=model, max_steps=20, **settings)

    ours = trained("ours")
    monkeypatch.setattr("truetune.model.adapter._compute_at_once", lambda config, model: None)
    theirs = trained("theirs")
    assert len(fused(ours.model)) == 14
    assert not fused(theirs.model)
    assert len(ours.logged("loss")) == 20
    assert ours.logged("loss") == pytest.approx(theirs.logged("loss"), abs=1e-4)
    assert ours.logged("grad_norm") == pytest.approx(theirs.logged("grad_norm"), rel=1e-3)
    assert (ours.weights() - theirs.weights()).abs().max() < 1e-4
    assert ours.logged("loss")[-1] < ours.logged("loss")[0] - 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_adapter_learns_in_bf16_over_either_base(tmp_path: Path, dtype: torch.dtype) -> None:
    model = add_adapter(tiny_model().to(dtype), LORA, seed=1)
    trained = Trained(tmp_path, ROWS, model=model, max_steps=8, precision="bf16")
    assert trained.weights().dtype == torch.float32
    assert trained.weights().isfinite().all()
    assert trained.logged("loss")[-1] < trained.logged("loss")[0]


def test_biases_that_learn_beside_the_adapter_have_plain_peft_s_trajectory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(folder: str) -> Trained:
        base = tiny_model(attention_bias=True, mlp_bias=True)
        model = add_adapter(base, replace(LORA, bias="all"), seed=1)
        return Trained(tmp_path / folder, ROWS, model=model)

    ours = trained("ours")
    monkeypatch.setattr("truetune.model.adapter._compute_at_once", lambda config, model: None)
    theirs = trained("theirs")
    assert (ours.weights() - theirs.weights()).abs().max() < 1e-4
    biases = [value for name, value in ours.model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 14
    assert all(value.count_nonzero() for value in biases)
