"""`truetune models`: what is here, what each needs, and what is unusual, from the models' own files."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from conftest import CHATML, byte_tokenizer, tiny_model
from truetune.cli import main
from truetune.errors import BackendError
from truetune.model.shape import shape_of
from truetune.pipeline.models.describe import ModelDescription, describe_model
from truetune.pipeline.models.found import list_models
from truetune.pipeline.models.needs import Here, needs

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
WORDS = {"vocab_size": 261, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of the test's own; returns Hugging Face's."""
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "truetune-cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def configured(folder: Path, kind: str = "Llama", *, tokenizer: Any = None, **settings: Any) -> Path:
    """A folder with a configuration and a tokenizer, and no weights."""
    config = getattr(transformers, f"{kind}Config")(**{**TINY, **WORDS, **settings})
    config.save_pretrained(folder)
    (tokenizer or byte_tokenizer(chat_template=CHATML)).save_pretrained(folder)
    return folder


def edited(folder: Path, **settings: Any) -> Path:
    """The configuration with other settings, as another program might write them."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def oddities(folder: Path) -> str:
    found = describe_model(str(folder)).unusual
    assert all(oddity.what and oddity.meaning for oddity in found)
    return "\n".join(oddity.what for oddity in found)


def test_a_plain_model_is_described_and_nothing_about_it_is_unusual(tiny_base: Path) -> None:
    described = describe_model(str(tiny_base))
    assert described.parameters == tiny_model().num_parameters()
    assert described.bytes == (tiny_base / "model.safetensors").stat().st_size
    assert (described.context_length, described.template, described.dtype) == (4096, True, "F32")
    assert described.unusual == ()
    assert described.problem is None
    peaks = [need.peak_bytes for need in described.needs.values() if need]
    assert len(peaks) == 3
    assert set(described.as_json()["needs"]["lora"]) == {"peak_bytes", "fits", "gradient_checkpointing"}


ODD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "tied": (lambda at: configured(at, tie_word_embeddings=True), "tied embeddings"),
    "windows": (
        lambda at: configured(at, "Gemma2", sliding_window=128, num_key_value_heads=2, head_dim=8),
        "sliding windows of 128 tokens in 2 of 4 layers (layers 0, 2)",
    ),
    "window everywhere": (
        lambda at: configured(at, "Mistral", sliding_window=512),
        "sliding windows of 512 tokens in all layers",
    ),
    "scores": (
        lambda at: configured(at, "Gemma2", num_key_value_heads=2, head_dim=8),
        "attention scores are capped at 50",
    ),
    "logits": (lambda at: configured(at, "Gemma2", num_key_value_heads=2, head_dim=8), "logits are capped at 30"),
    "experts": (lambda at: configured(at, "Mixtral", num_local_experts=6), "a mixture of experts: 2 of 6 are asked"),
    "rope": (
        lambda at: configured(
            at,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 1024,
            },
        ),
        "positions are scaled (yarn) by 4, from 1,024 tokens",
    ),
    "eos": (lambda at: configured(at, eos_token_id=[257, 260]), "2 end tokens: 257, 260"),
    "no template": (lambda at: configured(at, tokenizer=byte_tokenizer()), "no chat template"),
    "no pad": (
        lambda at: configured(at, tokenizer=byte_tokenizer(chat_template=CHATML, pad_token=None)),
        "no pad token",
    ),
    "pad is end": (
        lambda at: configured(at, tokenizer=byte_tokenizer(chat_template=CHATML, pad_token="</s>")),
        "pad token and end token are one (257)",
    ),
    "few embeddings": (lambda at: configured(at, vocab_size=259), "ids up to 260, the model has 259 embeddings"),
    "many embeddings": (lambda at: configured(at, vocab_size=320), "59 of 320 embeddings belong to no token"),
    "quantised": (
        lambda at: edited(configured(at), quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised already: gptq, 4 bits",
    ),
    "encoder and decoder": (
        lambda at: configured(at, "T5", d_model=32, num_layers=1, num_heads=2, d_ff=32),
        "not a causal language model: t5",
    ),
    "classifier": (
        lambda at: configured(at, architectures=["LlamaForSequenceClassification"]),
        "stored as LlamaForSequenceClassification, loaded as LlamaForCausalLM",
    ),
    "text inside another model": (
        lambda at: configured(at, "CLIP", architectures=["CLIPModel"], text_config=TINY),
        "not a causal language model: CLIPModel",
    ),
    "pictures": (
        lambda at: configured(at, "Gemma3", text_config={**TINY, **WORDS}),
        "reads more than text (vision)",
    ),
    "unknown type": (lambda at: edited(configured(at), model_type="newer"), "its configuration cannot be read"),
    "own code": (
        lambda at: edited(configured(at), model_type="newer", auto_map={"AutoConfig": "config.New"}),
        "code of its own (auto_map: AutoConfig)",
    ),
    "layers of other kinds": (
        lambda at: configured(at, "Lfm2", layer_types=["conv", "conv", "full_attention", "conv"]),
        "layers of other kinds: 3 conv",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_unusual_is_told_with_its_meaning(tmp_path: Path, name: str) -> None:
    make, words = ODD[name]
    assert words in oddities(make(tmp_path / "model"))
    assert words not in oddities(configured(tmp_path / "plain"))


def test_weights_in_another_dtype_than_the_configuration_says_are_told(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "model")
    assert "stored in float32, and its configuration says bfloat16" in oddities(
        edited(tmp_path / "model", dtype="bfloat16")
    )


def test_pickles_and_a_missing_tokenizer_are_told_and_parameters_come_from_the_configuration(tmp_path: Path) -> None:
    configured(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "model" / "tokenizer_config.json").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(bytes(100))
    described = describe_model(str(tmp_path / "model"))
    whats = "\n".join(oddity.what for oddity in described.unusual)
    assert "its weights are pickles" in whats
    assert "its tokenizer cannot be read" in whats
    assert described.bytes == 100
    assert described.parameters is not None
    assert described.parameters > 10_000


def test_code_of_a_repository_is_not_run_unless_it_is_trusted(tmp_path: Path) -> None:
    folder = edited(configured(tmp_path / "model"), model_type="newer", auto_map={"AutoConfig": "config_new.New"})
    (folder / "config_new.py").write_text(
        f"from transformers import PretrainedConfig\nopen({str(tmp_path / 'ran')!r}, 'w')\n"
        "class New(PretrainedConfig):\n    model_type = 'newer'\n"
    )
    described = describe_model(str(folder))
    assert described.context_length == 2048
    assert set(described.needs.values()) == {None}
    assert not (tmp_path / "ran").exists()
    describe_model(str(folder), trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_what_does_not_fit_is_said_and_checkpointing_is_counted_where_it_would_be_chosen() -> None:
    shape = replace(shape_of(tiny_model()), layers=100)
    wide = needs(shape, Here("cuda", "bf16", 10**12), context=4096, quantization="none")
    tight = needs(shape, Here("cuda", "bf16", 1000), context=4096, quantization="none")
    short = needs(shape, Here("cuda", "bf16", 10**12), context=64, quantization="none")
    assert all(need and need.fits and not need.gradient_checkpointing for need in wide.values())
    assert all(need and need.fits is False and need.gradient_checkpointing for need in tight.values())
    for method, need in wide.items():
        less = (tight[method], short[method])
        assert all(need and other and other.peak_bytes < need.peak_bytes for other in less)
    assert needs(shape, Here("cuda", "bf16", None), context=64, quantization="4bit")["full"] is None
    assert set(needs(shape, Here("cuda", "bf16", None), context=64, quantization=None).values()) == {None}


@pytest.mark.real
def test_the_demo_is_described_from_its_header_and_not_converted(tmp_path: Path) -> None:
    described = describe_model("demo")
    assert (described.parameters, described.context_length, described.dtype) == (134_515_008, 8192, "Q4_1")
    assert described.template
    assert all(described.needs.values())
    assert not (tmp_path / "truetune-cache").exists()


# --- the list ---------------------------------------------------------------------------------------------


def cached(cache: Path, name: str, model: Path, *, without: str = "") -> Path:
    """A model as huggingface_hub keeps it."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot, blobs = folder / "snapshots" / ("a" * 40), folder / "blobs"
    for path in (snapshot, blobs, folder / "refs"):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    for file in model.iterdir():
        if file.name != without:
            shutil.copy(file, blobs / file.name)
            (snapshot / file.name).symlink_to(blobs / file.name)
    return folder


def listed(folder: Path) -> dict[str, ModelDescription]:
    return {model.name: model for model in list_models(folder) if model.source != "demo"}


def test_the_cache_is_listed_with_what_is_incomplete_or_damaged(tiny_base: Path, empty_caches: Path) -> None:
    cached(empty_caches, "org/whole", tiny_base)
    cached(empty_caches, "org/half", tiny_base, without="model.safetensors")
    (cached(empty_caches, "org/broken", tiny_base) / "blobs" / "config.json").unlink()
    header = cached(empty_caches, "org/cut", tiny_base) / "blobs" / "model.safetensors"
    header.write_bytes(header.read_bytes()[:500])
    text = cached(empty_caches, "org/garbled", tiny_base) / "blobs" / "config.json"
    text.write_text("{")
    (empty_caches / "datasets--org--rows").mkdir()
    models = listed(empty_caches.parent / "nothing")
    problems = {name: model.problem or "" for name, model in models.items()}
    assert set(problems) == {"org/whole", "org/half", "org/broken", "org/cut", "org/garbled"}
    assert problems["org/whole"] == ""
    assert problems["org/half"] == "incomplete: no weights"
    assert "Blob missing" in problems["org/broken"]
    assert "cannot read model.safetensors" in problems["org/cut"]
    assert "config.json" in problems["org/garbled"]
    assert models["org/whole"].parameters == tiny_model().num_parameters()
    assert models["org/whole"].template
    assert all(models["org/whole"].needs.values())


def test_models_below_a_folder_are_found_in_runs_too_and_other_config_files_are_not(
    tiny_base: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    for place in ("mine", "runs/one/merged", "far/too/deep/model", ".hidden/model"):
        shutil.copytree(tiny_base, work / place)
    (work / "runs/one/run.json").write_text("{}")
    (work / "web").mkdir()
    (work / "web" / "config.json").write_text('{"port": 80}')
    (work / "notes.gguf").write_text("not a model")
    models = listed(work)
    assert set(models) == {"./mine", "runs/one/merged", "./notes.gguf"}
    assert "cannot read notes.gguf" in (models["./notes.gguf"].problem or "")
    assert models["./mine"].source == "folder"


def test_the_command_prints_a_line_a_model_and_json(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_base, tmp_path / "mine")
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("./mine")).split("\t")[3:6] == ["4,096", "yes", "F32"]
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"]
    assert "./mine" in {model["name"] for model in found}
    assert main(["models", "mine", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    keys = {"name", "source", "parameters", "bytes", "context_length", "template", "dtype", "needs", "unusual"}
    assert keys <= set(document)
    assert main(["models", "mine"]) == 0
    assert "nothing unusual" in capsys.readouterr().out


def test_a_name_that_is_nothing_and_a_damaged_model_are_errors(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "./nowhere"]) == 1
    assert "model not found: ./nowhere" in capsys.readouterr().err
    shutil.copytree(tiny_base, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BackendError, match=r"cannot read model\.safetensors: it is cut off"):
        describe_model("cut")
