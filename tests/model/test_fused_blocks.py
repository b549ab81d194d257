"""Norms and MLPs that keep less give what transformers' own give, and their gradients; else they are not taken."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from conftest import tiny_model
from tiny_runs import LORA, ROWS, Heard, Trained
from truetune.model import fused_blocks, fused_lora
from truetune.model.adapter import add_adapter
from truetune.model.fused_blocks import GatedMLP, RMSNorm, fuse_blocks
from truetune.model.fused_lora import FusedLinear, cast_once
from truetune.model.load import ModelOptions
from truetune.model.source import resolve_model
from truetune.training.session import ModelRequest, TrlSession

IDS = torch.arange(1, 41).view(2, 20)
_SIZES = {"vocab_size": 261, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

BLOCKS = {
    "Llama": (5, 2),
    "Mistral": (5, 2),
    "Qwen2": (5, 2),
    "SmolLM3": (5, 2),
    "Qwen3": (9, 2),
    "Gemma2": (9, 2),
    "Gemma3": (13, 2),
    "Olmo2": (9, 2),
    "Phi3": (5, 0),
    "Mixtral": (5, 0),
    "Qwen3Moe": (9, 0),
}
"""The norms and MLPs of two layers that are replaced. Phi-3's gate and up are one layer; experts are no MLPs."""


def architecture(name: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A tiny random model whose norms scale every feature differently."""
    torch.manual_seed(0)
    kind = "Gemma3Text" if name == "Gemma3" else name
    experts = _EXPERTS if name in ("Mixtral", "Qwen3Moe") else {}
    config = getattr(transformers, f"{kind}Config")(**{**_SIZES, **_HEADS, **experts, **changes})
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for each, value in model.named_parameters():
            if "norm" in each:
                value.add_(0.3 * torch.randn_like(value))
    return model.to(dtype).eval()


def adapted(model: Any, **lora: Any) -> Any:
    """The model with an adapter that does something."""
    model = add_adapter(model, replace(LORA, **lora), seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.add_(0.1 * torch.randn_like(value))
    return model


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(each) is kind for each in model.modules())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Of every trained parameter, from the model's own loss; dropout drops the same each time."""
    model.zero_grad()
    torch.manual_seed(3)
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    found = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    assert all(value is not None for value in found.values())
    return found


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], name: str) -> float:
    value = expected[name].double()
    return float((found[name].double() - value).norm() / value.norm().clamp(min=1e-12))


def assert_same_gradients(fused: Any, plain: Any, *, within: float = 1e-5) -> None:
    ours, theirs = gradients(fused), gradients(plain)
    assert ours.keys() == theirs.keys()
    assert {name: value.dtype for name, value in ours.items()} == {name: each.dtype for name, each in theirs.items()}
    far = {name: distance(ours, theirs, name) for name in ours}
    assert max(far.values()) <= within, far


def pair(build: Callable[[], Any]) -> tuple[Any, Any]:
    """A model with fused blocks, and the same with its own."""
    fused = build()
    assert fuse_blocks(fused)
    return fused, build()


# --- which blocks, and what they give ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_the_blocks_that_are_replaced_give_the_same_logits_to_the_bit(name: str, dtype: torch.dtype) -> None:
    fused, plain = pair(lambda: architecture(name, dtype=dtype))
    assert (count(fused, RMSNorm), count(fused, GatedMLP)) == BLOCKS[name]
    assert torch.equal(logits(fused), logits(plain))


@pytest.mark.parametrize("is_checkpointing", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_full_fine_tuning_has_the_same_gradients(name: str, is_checkpointing: bool) -> None:
    fused, plain = (each.train() for each in pair(lambda: architecture(name)))
    if is_checkpointing:
        fused.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert any("norm" in each for each in gradients(fused))
    assert_same_gradients(fused, plain)


@pytest.mark.parametrize("is_checkpointing", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_an_adapter_has_the_same_gradients(name: str, is_checkpointing: bool) -> None:
    fused, plain = (adapted(each).train() for each in pair(lambda: architecture(name)))
    if is_checkpointing:
        fused.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert torch.equal(logits(fused), logits(plain))
    assert_same_gradients(fused, plain)


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_bf16_is_no_further_from_fp32_than_transformers_own(name: str, is_full: bool) -> None:
    def built(dtype: torch.dtype) -> Any:
        return architecture(name, dtype=torch.bfloat16).to(dtype)

    fused, plain = pair(lambda: built(torch.bfloat16))
    exact = built(torch.float32)
    if not is_full:
        fused, plain, exact = map(adapted, (fused, plain, exact))
    ours, theirs, truth = map(gradients, (fused, plain, exact))
    assert ours.keys() == theirs.keys() == truth.keys()
    errors = [[distance(each, truth, name) for name in truth] for each in (ours, theirs)]
    assert sum(errors[0]) <= 1.5 * sum(errors[1])
    assert all(mine <= 1.5 * its + 0.02 for mine, its in zip(*errors, strict=True))


@pytest.mark.parametrize(
    "lora",
    [
        {"lora_dropout": 0.3},
        {"bias": "all"},
        {"target_modules": ["down_proj"]},
        {"target_modules": ["gate_proj", "up_proj"]},
        {"target_modules": ["q_proj"]},
        {"use_dora": True},
        {"use_rslora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["down_proj"]},
    ],
    ids=str,
)
def test_whatever_stands_behind_the_gate_has_the_same_gradients(lora: dict[str, Any]) -> None:
    fused, plain = (adapted(each, **lora).train() for each in pair(lambda: architecture("Llama", mlp_bias=True)))
    assert torch.equal(logits(fused.eval()), logits(plain.eval()))
    assert_same_gradients(fused.train(), plain.train())


def test_behind_a_fused_block_the_fused_layer_is_one_step_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fused, _ = pair(lambda: architecture("Llama"))
    fused = adapted(fused).train()
    layer = fused.get_base_model().model.layers[0].mlp.down_proj
    assert isinstance(layer, FusedLinear)
    monkeypatch.setattr(layer, "forward", lambda *_: pytest.fail("its input was kept"))
    logits(fused)


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_under_autocast_an_fp32_model_is_computed_as_transformers_does(name: str, is_full: bool) -> None:
    fused, plain = pair(lambda: architecture(name))
    if not is_full:
        fused, plain = adapted(fused), adapted(plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(fused), logits(plain))
        assert_same_gradients(fused, plain, within=0.02)


@pytest.mark.parametrize("bits", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=str)
def test_quantised_bases_have_the_same_logits_and_gradients(tmp_path: Path, bits: dict[str, bool]) -> None:
    architecture("Llama").to(torch.bfloat16).save_pretrained(tmp_path)
    config = transformers.BitsAndBytesConfig(**bits, bnb_4bit_compute_dtype=torch.bfloat16)

    def build() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=config, dtype=torch.bfloat16
        )

    fused, plain = (adapted(each).train() for each in pair(build))
    assert (count(fused, RMSNorm), count(fused, GatedMLP)) == BLOCKS["Llama"]
    assert torch.equal(logits(fused), logits(plain))
    assert_same_gradients(fused, plain, within=0.03)


@pytest.mark.parametrize("shape", [(3, 32), (2, 5, 32), (2, 3, 4, 32), (0, 32), (1, 1, 32)])
@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Olmo2"])
def test_a_norm_takes_any_shape(name: str, shape: tuple[int, ...]) -> None:
    fused, plain = pair(lambda: architecture(name))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fused.model.norm(x), plain.model.norm(x))


def test_a_training_takes_the_same_way(tmp_path: Path) -> None:
    fused, plain = pair(tiny_model)
    ours = Trained(tmp_path / "ours", ROWS, model=fused, num_train_epochs=2)
    theirs = Trained(tmp_path / "theirs", ROWS, model=plain, num_train_epochs=2)
    assert ours.logged("loss") == pytest.approx(theirs.logged("loss"), rel=1e-4)
    assert ours.logged("grad_norm") == pytest.approx(theirs.logged("grad_norm"), rel=1e-3)


# --- what is not what it seems ----------------------------------------------------------------------------


class PlainRMSNorm(nn.Module):
    """As in Llama; others of its name below differ in one thing each."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(32, generator=draw))
        self.eps = eps

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * self.normed(x.float()).to(x.dtype)


class OneMoreRMSNorm(PlainRMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.normed(x.float()) * (1.0 + self.weight.float())).type_as(x)


class MeanRMSNorm(PlainRMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class OtherEpsilonRMSNorm(PlainRMSNorm):
    def normed(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 10 * self.eps)


class BiasedRMSNorm(PlainRMSNorm):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((32,), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.bias


class DetachedRMSNorm(PlainRMSNorm):
    """The same output, another gradient."""

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps).detach()


class WeightlessRMSNorm(PlainRMSNorm):
    """As Gemma 3n's and 4's of values."""

    def __init__(self) -> None:
        super().__init__()
        del self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normed(x.float()).to(x.dtype)


class BufferedRMSNorm(PlainRMSNorm):
    def __init__(self) -> None:
        super().__init__()
        del self.weight
        self.register_buffer("weight", torch.ones(32))


class NoneRMSNorm(PlainRMSNorm):
    def __init__(self) -> None:
        super().__init__()
        self.weight = None  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normed(x.float()).to(x.dtype)


class MaybeGatedRMSNorm(PlainRMSNorm):
    """As Bamba's and Mamba 2's: the gate makes it another norm, and is not there when it is tried."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x if gate is None else x * nn.functional.silu(gate))


class PlainMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate_proj, self.up_proj = nn.Linear(32, 64), nn.Linear(32, 64)
        self.down_proj, self.act_fn = nn.Linear(64, 32), nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class ScaledMLP(PlainMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1.01


class SwappedMLP(PlainMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))


@pytest.mark.parametrize("kind", [MeanRMSNorm, OtherEpsilonRMSNorm])
def test_weights_that_are_zero_prove_nothing(kind: type[nn.Module]) -> None:
    block = nn.Sequential(kind())
    nn.init.zeros_(block[0].weight)
    assert fuse_blocks(block) == 0


@pytest.mark.parametrize("kind", [PlainRMSNorm, OneMoreRMSNorm, PlainMLP])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_known_is_replaced(kind: type[nn.Module], dtype: torch.dtype) -> None:
    block = nn.Sequential(kind()).to(dtype)
    assert fuse_blocks(block) == 1
    rows = torch.randn(7, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(block(rows), kind().to(dtype)(rows))


@pytest.mark.parametrize(
    "kind",
    [
        MeanRMSNorm,
        OtherEpsilonRMSNorm,
        BiasedRMSNorm,
        DetachedRMSNorm,
        WeightlessRMSNorm,
        BufferedRMSNorm,
        NoneRMSNorm,
        MaybeGatedRMSNorm,
        ScaledMLP,
        SwappedMLP,
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_what_it_seems_stays(kind: type[nn.Module], dtype: torch.dtype) -> None:
    block = nn.Sequential(kind()).to(dtype)
    assert fuse_blocks(block) == 0
    assert type(block[0]) is kind


@pytest.mark.parametrize("kind", [PlainRMSNorm, OneMoreRMSNorm])
def test_weights_that_are_all_one_or_zero_do_not_hide_which_norm_it_is(kind: type[nn.Module]) -> None:
    """A fresh model's: they learn, and the norm must still be the model's own then."""

    def fresh(value: float) -> nn.Module:
        block = nn.Sequential(kind()).to(torch.bfloat16)
        nn.init.constant_(block[0].weight, value)
        return block

    for value in (0.0, 1.0):
        fused, plain = fresh(value), fresh(value)
        assert fuse_blocks(fused) == 1
        rows = torch.randn(7, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
        learned = torch.randn(32, generator=torch.Generator().manual_seed(2)).bfloat16()
        with torch.no_grad():
            for each in (fused, plain):
                each[0].weight.copy_(learned)
        assert torch.equal(fused(rows), plain(rows))


@pytest.mark.parametrize("kind", [PlainRMSNorm, OneMoreRMSNorm])
def test_fp32_norms_of_bf16_rows_give_what_the_models_own_give(kind: type[nn.Module]) -> None:
    """As under autocast, where a norm behind a linear layer gets bf16."""
    fused = nn.Sequential(kind())
    assert fuse_blocks(fused) == 1
    rows = torch.randn(7, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    ours, theirs = fused(rows), kind()(rows)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


# --- names, files, memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Qwen3"])
def test_names_and_saved_files_stay(tmp_path: Path, name: str) -> None:
    fused, plain = pair(lambda: architecture(name))
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert [each for each, _ in fused.named_parameters()] == [each for each, _ in plain.named_parameters()]
    with torch.no_grad():
        for value in fused.parameters():
            value.add_(0.01 * torch.randn_like(value))
    fused.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert not count(again, RMSNorm)
    assert torch.equal(logits(again), logits(fused))


def test_the_same_weights_decay_with_fused_blocks(tmp_path: Path) -> None:
    fused, plain = pair(tiny_model)
    decaying = [
        Trained(tmp_path / str(place), ROWS[:2], model=each).engine.get_decay_parameter_names(each)
        for place, each in enumerate((fused, plain))
    ]
    assert decaying[0] == decaying[1]
    assert not any("norm" in each for each in decaying[0])


def test_an_adapter_finds_the_same_layers() -> None:
    fused, plain = (adapted(each) for each in pair(lambda: architecture("Llama")))
    names = [[name for name, value in each.named_parameters() if value.requires_grad] for each in (fused, plain)]
    assert names[0] == names[1]
    assert any("down_proj.lora_A" in each for each in names[0])


def kept(block: nn.Module, rows: torch.Tensor) -> int:
    """The bytes that a block keeps for the backward pass, but for its own weights."""
    factors = [factor for layer in block.modules() for factor in getattr(layer, "kept", None) or ()]
    own = {value.untyped_storage().data_ptr() for value in [*block.parameters(), *factors]}
    found: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        made = block(rows)
    del made  # Until here nothing was freed, so that no two storages had one place.
    return sum(found.values())


def test_a_norm_keeps_its_input_and_an_mlp_on_a_cpu_its_own() -> None:
    tokens, wide, narrow, rank, size = 256, 64, 32, 4, 2
    norm, mlp, before = kept_of_fused()
    assert norm == tokens * narrow * size + tokens * 4
    assert before[0] == tokens * narrow * 4 + tokens * 4
    # Each LoRA layer keeps what passes between its factors; gate and up keep their common input.
    assert mlp == tokens * (narrow + 3 * rank) * size
    assert before[1] >= mlp + tokens * 4 * wide * size


def test_elsewhere_an_mlp_keeps_two_of_its_widest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_lora, "with_recipe", lambda made, _: made)
    assert kept_of_fused()[1] == 256 * (2 * 64 + 32 + 3 * 4) * 2


def kept_of_fused() -> tuple[int, int, list[int]]:
    """What a norm and an MLP keep that are fused, and what they kept before."""
    model = adapted(architecture("Llama", dtype=torch.bfloat16)).train()
    plain = model.get_base_model().model.layers[0]
    fused = nn.ModuleList([plain.input_layernorm, plain.mlp])
    before = [kept(each, kept_rows()) for each in fused]
    fuse_blocks(fused)
    with cast_once(fused):
        norm, mlp = (kept(each, kept_rows()) for each in fused)
    return norm, mlp, before


def test_layers_behind_a_norm_keep_nothing_more_than_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    def built() -> nn.Module:
        fused, _ = pair(lambda: architecture("Llama", dtype=torch.bfloat16))
        layer = adapted(fused).train().get_base_model().model.layers[0]
        return nn.Sequential(layer.post_attention_layernorm, layer.mlp)

    tokens, narrow, rank, size = 256, 32, 4, 2
    with cast_once(block := built()):
        assert kept(block, kept_rows()) == tokens * (narrow + 3 * rank) * size + tokens * 4
    monkeypatch.setattr(fused_blocks, "with_recipe", lambda made, _: made)
    with cast_once(block := built()):
        assert kept(block, kept_rows()) == tokens * (2 * narrow + 3 * rank) * size + tokens * 4


@pytest.mark.parametrize("name", ["Llama", "Gemma3", "Olmo2", "Qwen3"])
def test_what_is_made_again_has_the_same_gradients_to_the_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    again, keeping = (adapted(pair(lambda: architecture(name, dtype=torch.bfloat16))[0]).train() for _ in range(2))
    found = gradients(again)
    for module in (fused_lora, fused_blocks):
        monkeypatch.setattr(module, "with_recipe", lambda made, _: made)
    expected = gradients(keeping)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[each], expected[each]) for each in expected)


def kept_rows() -> torch.Tensor:
    return torch.randn(256, 32, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()


def test_a_session_fuses_the_model_it_loads(tiny_base: Path) -> None:
    session = TrlSession(Heard(), lambda _: None)
    request = ModelRequest(
        source=resolve_model(str(tiny_base)),
        options=ModelOptions("float32", "cpu"),
        adapter=LORA,
        seed=1,
        max_length=64,
        gradient_checkpointing=False,
    )
    session.load(request)
    assert count(session._model, GatedMLP) == 2
