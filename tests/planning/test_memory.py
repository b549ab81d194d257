"""The estimate of a training's memory, held against what torch keeps for the backward pass of real blocks."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from conftest import byte_tokenizer, tiny_model
from truetune.model.adapter import LoraSettings, add_adapter
from truetune.model.attention import fit_attention
from truetune.model.fused_blocks import fuse_blocks
from truetune.model.load import ModelOptions, load_model, read_config
from truetune.model.loss import provable_head, words_at_a_time
from truetune.model.shape import ModelShape, configured_shape, shape_of
from truetune.model.source import resolve_model
from truetune.planning.hyperparameters import gradient_checkpointing
from truetune.planning.memory import Memory, Workload, estimate, tokens_at_a_time

LORA = LoraSettings(r=16, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", bias="none")
TOKENS, SAMPLE = 512, 128
LORA_BF16 = Workload(
    device="cpu",
    trained=0,
    are_adapters=True,
    adapter_rank=LORA.r,
    recomputes=True,
    dtype="bfloat16",
    quantization="none",
    precision="bf16",
    optim="adamw_torch_fused",
    offloads=False,
    tokens=TOKENS,
    words=words_at_a_time(TOKENS, "cpu"),
    longest=SAMPLE,
)
LORA_FP32 = replace(LORA_BF16, dtype="float32", precision="fp32")
FULL_BF16 = replace(LORA_BF16, are_adapters=False, adapter_rank=0, dtype="float32")
FULL_FP32 = replace(FULL_BF16, precision="fp32")
SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
WIDE = {**SMALL, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 2}
DEEP = {**SMALL, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8}
SEVEN_B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def build(name: str, **sizes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes)
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    return getattr(transformers, kind)(config)


def ready(model: Any, work: Workload) -> Any:
    """The model as a session readies it."""
    fuse_blocks(model)
    assert fit_attention(model)
    return add_adapter(model, LORA, seed=0) if work.are_adapters else model.requires_grad_(True)


def kept_bytes(model: Any, work: Workload, *, checkpointing: bool = False) -> int:
    """The bytes that the model keeps for the backward pass beside its own weights, each storage once."""
    model = ready(model, work).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    head = provable_head(model)
    assert head
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value
        return value

    ids = torch.arange(work.tokens)[None] % 251
    mask = torch.ones(1, work.tokens - 1, dtype=torch.bool)
    inputs = {"input_ids": ids, "position_ids": ids.new_tensor(range(work.tokens))[None] % work.longest}
    autocast = torch.autocast("cpu", torch.bfloat16) if work.precision == "bf16" else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), autocast:
        values, _ = head.log_probs(inputs, mask, ids[:, 1:][mask])
    assert values.requires_grad
    return sum(value.untyped_storage().nbytes() for value in kept.values())


@pytest.mark.parametrize(
    ("name", "sizes", "work"),
    [
        ("Llama", SMALL, LORA_BF16),
        ("Llama", WIDE, LORA_BF16),
        ("Llama", DEEP, LORA_BF16),
        ("Llama", SMALL, LORA_FP32),
        ("Llama", SMALL, replace(LORA_BF16, dtype="float32")),
        ("Llama", SMALL, FULL_BF16),
        ("Llama", WIDE, FULL_FP32),
        ("Qwen2", SMALL, LORA_BF16),
        ("Qwen3", DEEP, LORA_BF16),
        ("Qwen3", WIDE, FULL_BF16),
        ("Gemma", SMALL, LORA_BF16),
        ("Gemma2", SMALL, LORA_BF16),
        ("Gemma2", WIDE, replace(LORA_BF16, longest=TOKENS // 2)),
        ("Gemma2", SMALL, FULL_FP32),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_kept_for_the_backward_pass_is_estimated_within_a_quarter(
    name: str, sizes: dict[str, Any], work: Workload
) -> None:
    model = build(name, **sizes).to(getattr(torch, work.dtype))
    memory = estimate(shape_of(model), work, checkpointing=False)
    kept = kept_bytes(model, work)
    assert kept / 1.25 <= memory.activations + memory.casts <= kept * 1.25


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("GPT2", {"vocab_size": 512, "n_embd": 256, "n_layer": 3, "n_head": 4, "resid_pdrop": 0, "attn_pdrop": 0}),
        ("Phi3", {**SMALL, "pad_token_id": 0}),
        ("Mixtral", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_blocks_that_are_not_fused_keep_about_what_is_said_of_them(name: str, sizes: dict[str, Any]) -> None:
    model = build(name, **sizes).to(torch.bfloat16)
    shape = shape_of(model)
    assert shape.blocks != "gated"
    kept = kept_bytes(model, LORA_BF16)
    assert kept / 1.25 <= estimate(shape, LORA_BF16, checkpointing=False).activations <= kept * 1.25


def test_with_checkpointing_a_layer_keeps_its_input_alone() -> None:
    """One layer more is computed again at the peak, which no hook sees in the forward pass."""
    model = build("Llama", **DEEP).to(torch.bfloat16)
    shape = shape_of(model)
    one = estimate(replace(shape, layers=1), LORA_BF16, checkpointing=False).activations
    kept = kept_bytes(model, LORA_BF16, checkpointing=True) + one
    assert kept / 1.25 <= estimate(shape, LORA_BF16, checkpointing=True).activations <= kept * 1.25


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_base_keeps_what_is_said_of_it(quantization: Any, tmp_path: Path) -> None:
    build("Llama", **SMALL).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    source = resolve_model(str(tmp_path))
    model = load_model(source, ModelOptions("bfloat16", "cpu", quantization))
    work, shape = replace(LORA_BF16, quantization=quantization), configured_shape(read_config(source))
    stored = sum(value.untyped_storage().nbytes() for value in model.parameters())
    memory = estimate(shape, work, checkpointing=False)
    assert stored / 1.25 <= memory.weights <= stored * 1.25
    kept = kept_bytes(model, work)
    assert kept / 1.25 <= memory.activations <= kept * 1.25


@pytest.mark.real
def test_the_demo_models_memory_is_estimated_within_a_quarter() -> None:
    work = replace(LORA_FP32, tokens=2 * SAMPLE, words=words_at_a_time(2 * SAMPLE, "cpu"))
    model = load_model(resolve_model("demo"), ModelOptions("float32", "cpu"))
    memory = estimate(shape_of(model), work, checkpointing=False)
    kept = kept_bytes(model, work)
    assert kept / 1.25 <= memory.activations <= kept * 1.25


# --- the parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Mixtral"])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj", "c_attn")])
def test_an_adapters_weights_are_counted_before_it_exists(name: str, targets: Any) -> None:
    sizes = {"Llama": SMALL, "GPT2": {"vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4}}
    model = build(name, **sizes.get(name, {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}))
    expected = shape_of(model).adapter_weights(16, targets)
    there = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    names = targets if isinstance(targets, str) else tuple(each for each in targets if each in there)
    adapted = add_adapter(model, replace(LORA, target_modules=names), seed=0)
    trained = sum(value.numel() for value in adapted.parameters() if value.requires_grad)
    assert expected == pytest.approx(trained, rel=0.02 if name == "Mixtral" else 0)  # Its routers are not counted.


def test_a_model_is_measured_without_its_weights(tiny_base: Path) -> None:
    shape = configured_shape(read_config(resolve_model(str(tiny_base))))
    assert shape == shape_of(tiny_model())
    assert shape.parameters == tiny_model().num_parameters()
    assert (shape.layers, shape.hidden, shape.intermediate, shape.vocabulary) == (2, 32, 64, 261)
    assert (shape.heads, shape.key_value_heads, shape.head_size, shape.blocks) == (4, 2, 8, "gated")


def eight_b() -> ModelShape:
    with torch.device("meta"):
        return shape_of(build("Llama", **SEVEN_B))


def test_weights_that_learn_cost_their_gradients_and_the_optimizers_states() -> None:
    shape = eight_b()
    lora = replace(LORA_BF16, trained=40_000_000, tokens=4096, longest=2048)
    memory = estimate(shape, lora, checkpointing=False)
    assert memory.weights == 2 * shape.parameters
    assert (memory.adapters, memory.gradients) == (4 * lora.trained, 4 * lora.trained)
    assert (memory.optimizer, memory.casts) == (8 * lora.trained, 0)
    eight_bit = estimate(shape, replace(lora, optim="adamw_8bit"), checkpointing=False)
    assert eight_bit.optimizer == pytest.approx(memory.optimizer / 4, rel=0.05)
    assert estimate(shape, replace(lora, optim="lion_32bit"), checkpointing=False).optimizer == 4 * lora.trained
    assert estimate(shape, replace(lora, optim="sgd"), checkpointing=False).optimizer == 0
    full = estimate(shape, replace(FULL_BF16, trained=shape.parameters), checkpointing=False)
    assert (full.weights, full.adapters, full.gradients) == (4 * shape.parameters, 0, 4 * shape.parameters)
    assert full.casts == pytest.approx(2 * shape.parameters, rel=0.1)
    four_bit = estimate(shape, replace(lora, quantization="4bit"), checkpointing=False)
    assert 5e9 < four_bit.weights < 7e9


PARTS = {"weights": 1, "adapters": 2, "gradients": 2, "casts": 4, "optimizer": 8, "activations": 16, "framework": 32}


def test_the_peak_has_the_larger_of_logits_and_one_layers_gradients() -> None:
    assert Memory(**PARTS, logits=100, backward=50).peak == 165
    assert Memory(**PARTS, logits=10, backward=50).peak == 115


def test_where_loading_or_evaluating_takes_more_than_training_it_is_a_part_of_its_own() -> None:
    million = {name: size * 10_000_000 for name, size in PARTS.items()}
    training = Memory(**million, logits=0, backward=0)
    assert training.parts["evaluation"] == training.parts["loading"] == 0
    evaluating = Memory(**million, logits=0, backward=0, evaluation=1_000_000_000)
    # Neither activations nor gradients are there by then.
    assert evaluating.peak == sum(million.values()) - million["activations"] - million["gradients"] + 1_000_000_000
    assert evaluating.parts["evaluation"] == evaluating.peak - training.peak
    loading = Memory(**million, logits=0, backward=0, loading=2_000_000_000)
    assert training.peak < loading.peak < 2_000_000_000 + million["framework"]
    assert loading.parts["loading"] == loading.peak - training.peak
    assert sum(loading.parts.values()) == loading.peak


def test_shards_split_weights_gradients_and_states_and_not_activations() -> None:
    shape = eight_b()
    work = replace(FULL_BF16, device="cuda", trained=shape.parameters)
    whole, shard = (estimate(shape, replace(work, shards=count), checkpointing=False) for count in (1, 8))
    assert shard.gradients == whole.gradients // 8
    assert shard.optimizer == whole.optimizer / 8
    # What is gathered for the layer at hand, and for the next, is there as a whole.
    assert whole.weights / 8 < shard.weights < whole.weights / 4
    assert shard.activations == whole.activations


def test_a_gpus_allocator_holds_nothing_besides_and_a_cpus_does() -> None:
    shape = eight_b()
    on_cpu, on_gpu = (
        estimate(shape, replace(LORA_BF16, device=device, recomputes=False), checkpointing=False)
        for device in ("cpu", "cuda")
    )
    assert on_gpu.held == 0
    assert on_cpu.held > on_cpu.activations / 2


def test_weights_that_are_stored_otherwise_are_there_twice_while_they_are_loaded() -> None:
    shape = eight_b()
    same = replace(LORA_BF16, stored=2 * shape.parameters)
    other = replace(same, stored=4 * shape.parameters, stored_as_loaded=False)
    assert estimate(shape, same, checkpointing=True).loading == 2 * shape.parameters
    assert estimate(shape, other, checkpointing=True).loading == 6 * shape.parameters


@pytest.mark.parametrize(
    ("limit", "batch", "sequence", "longest", "expected"),
    [
        (None, 2, 2048, 700, 4096),  # A GPU takes the whole batch.
        (1024, 2, 100, 100, 200),  # A small batch is one slice.
        (1024, 4, 2048, 60, 1024),
        (1024, 1, 1500, 60, 1500),  # Not enough to be worth a cut.
        (1024, 1, 4096, 4096, 4096),  # A sample is never cut.
    ],
)
def test_tokens_at_a_time_are_a_slice_on_a_cpu_and_a_batch_on_a_gpu(
    limit: int | None, batch: int, sequence: int, longest: int, expected: int
) -> None:
    assert tokens_at_a_time(limit=limit, batch=batch, sequence=sequence, longest=longest) == expected


# --- the decision -----------------------------------------------------------------------------------------


def of(gigabytes: float) -> Memory:
    return Memory(round(gigabytes * 1e9), 0, 0, 0, 0, 0, 0, 0, framework=0)


@pytest.mark.parametrize(
    ("kept", "checkpointed", "free", "expected", "reason"),
    [
        (3.1, 2.0, 22, False, "needs about 3.1 GB of 22 GB free"),
        (31, 9, 24, True, "needs about 31 GB of 24 GB free, 9.0 GB with checkpointing"),
        (21, 9, 24, True, "needs about 21 GB of 24 GB free, 9.0 GB with checkpointing"),
        (60, 40, 24, True, "40 GB with checkpointing: it may run out of memory"),
    ],
)
def test_checkpointing_is_off_where_the_run_fits_with_a_quarter_to_spare_and_says_by_what_numbers(
    kept: float, checkpointed: float, free: float, expected: bool, reason: str
) -> None:
    choice = gradient_checkpointing(of(kept), of(checkpointed), free=round(free * 1e9))
    assert choice.value is expected
    assert reason in choice.reason


def test_checkpointing_is_off_where_nothing_is_known_of_free_memory() -> None:
    choice = gradient_checkpointing(of(3.1), of(2), free=None)
    assert choice.value is False
    assert "needs about 3.1 GB" in choice.reason
