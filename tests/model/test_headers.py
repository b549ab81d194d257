"""Headers are read alone, from a disk or a hub, and damaged ones are told instead of believed."""

import json
import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conftest import tiny_model
from hub import running_hub
from truetune.errors import BackendError
from truetune.model.headers import GGML_TYPES, Headers, Listed, read_headers
from truetune.model.stored import find_stored, find_weights, folder_model, headers_of


def read(path: Path) -> Headers:
    def prefix(count: int) -> bytes:
        with path.open("rb") as opened:
            return opened.read(count)

    return read_headers(path.name, prefix, size=path.stat().st_size)


def write_gguf(path: Path, *, words: int = 300) -> Path:
    """Three tensors, one of them in blocks, and metadata of each kind."""
    import gguf
    import numpy

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bool("llama.some.flag", True)
    writer.add_array("llama.some.layers", [1, 2, 3])
    writer.add_token_list([f"word {number} " + "x" * 30 for number in range(words)])
    writer.add_tensor("token_embd.weight", numpy.zeros((300, 64), numpy.float32))
    blocks = gguf.quantize(numpy.ones((8, 64), numpy.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.attn_q.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", numpy.zeros(64, numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_safetensors_header_names_every_tensor_with_its_bytes(tiny_base: Path) -> None:
    headers = read(tiny_base / "model.safetensors")
    model = tiny_model()
    assert {tensor.name: tensor.shape for tensor in headers.tensors} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }
    assert headers.parameters == model.num_parameters()
    assert headers.bytes_by_dtype == {"F32": 4 * headers.parameters}
    assert headers.has_output_layer
    assert headers.metadata == {"format": "pt"}


def test_tied_embeddings_show_by_the_output_layer_that_is_in_no_file(tmp_path: Path) -> None:
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    assert not read(tmp_path / "model.safetensors").has_output_layer


def test_a_model_in_shards_has_the_tensors_of_all_and_a_missing_shard_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    stored = folder_model(tmp_path, name="sharded")
    weights = find_weights(stored)
    assert len(weights.files) > 1
    headers = headers_of(stored, weights)
    assert headers is not None
    assert headers.parameters == model.num_parameters()
    (tmp_path / weights.files[0]).unlink()
    assert find_weights(folder_model(tmp_path, name="sharded")).missing == weights.files[:1]


def test_a_gguf_header_says_what_the_gguf_package_reads(tmp_path: Path) -> None:
    import gguf

    path = write_gguf(tmp_path / "tiny.gguf")
    headers, reader = read(path), gguf.GGUFReader(path)
    assert [(each.name, each.dtype, each.bytes, each.parameters) for each in headers.tensors] == [
        (each.name, each.tensor_type.name, each.n_bytes, each.n_elements) for each in reader.tensors
    ]
    assert headers.rows_of("token_embd.weight") == 300
    assert headers.metadata["general.architecture"] == "llama"
    assert headers.metadata["llama.some.flag"] is True
    assert headers.metadata["llama.some.layers"] == Listed(3, (1, 2, 3))
    assert headers.metadata["tokenizer.ggml.tokens"].count == 300


def test_a_header_longer_than_the_first_read_is_read_on_and_long_lists_are_only_counted(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "wordy.gguf", words=40_000)
    headers = read(path)
    assert headers.metadata["tokenizer.ggml.tokens"] == Listed(40_000, ())
    assert len(headers.tensors) == 3


def test_every_type_of_the_gguf_package_has_its_name_and_size() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    assert {int(kind): (kind.name, numbers, size) for kind, (numbers, size) in GGML_QUANT_SIZES.items()} == GGML_TYPES


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 0.999])
@pytest.mark.parametrize("name", ["model.safetensors", "tiny.gguf"])
def test_a_file_that_is_cut_off_is_refused_by_its_name(
    tiny_base: Path, tmp_path: Path, name: str, share: float
) -> None:
    whole = tiny_base / name if name.endswith(".safetensors") else write_gguf(tmp_path / "whole.gguf")
    content = whole.read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(BackendError, match=f"cannot read {name}: it") as caught:
        read(tmp_path / name)
    assert "fetch it again" in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tiny.gguf"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>not found</html>" * 9, "it is no"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS"),
    ],
)
def test_another_file_under_the_name_of_weights_is_refused(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackendError, match=words):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["model.safetensors", "tiny.gguf"])
def test_no_damage_to_a_header_raises_anything_but_a_refusal(tiny_base: Path, tmp_path: Path, name: str) -> None:
    whole = tiny_base / name if name.endswith(".safetensors") else write_gguf(tmp_path / "whole.gguf", words=9)
    content, chance, refused = whole.read_bytes(), random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[chance.randrange(900)] = chance.randrange(256)
        try:
            read_headers(name, partial(_first, bytes(damaged)), size=len(damaged))
        except BackendError:
            refused += 1
    assert refused > 50


def _first(data: bytes, count: int) -> bytes:
    return data[:count]


@pytest.mark.real
def test_the_demo_s_header_alone_counts_its_parameters() -> None:
    stored = find_stored("demo")
    headers = headers_of(stored, find_weights(stored))
    assert headers is not None
    assert headers.parameters == 134_515_008
    assert headers.dtype == "Q4_1"
    assert not headers.has_output_layer


_PROGRAM = """
import json, sys
from truetune.errors import BackendError
from truetune.model.stored import find_stored, find_weights, headers_of
for name in sys.argv[1:]:
    try:
        stored = find_stored(name)
        headers = headers_of(stored, find_weights(stored))
        found = {"parameters": headers.parameters, "files": len(stored.sizes)}
    except BackendError as error:
        found = {"error": error.message}
    print(json.dumps({**found, "heavy": [name for name in ("torch", "transformers") if name in sys.modules]}))
"""


def test_of_a_model_on_the_hub_no_more_than_headers_are_fetched(tiny_base: Path, tmp_path: Path) -> None:
    wordy = write_gguf(tmp_path / "wordy.gguf", words=40_000).read_bytes() + bytes(9_000_000)
    with running_hub() as hub:
        small = {path.name: path.read_bytes() for path in tiny_base.iterdir()}
        hub.add(
            "org/whole", {**small, "model.safetensors": small["model.safetensors"] + bytes(5_000_000)}, kind="models"
        )
        hub.add("org/quants", {"README.md": b"", "tiny.gguf": wordy}, kind="models")
        hub.add("org/cut", {**small, "model.safetensors": small["model.safetensors"][:9_000]}, kind="models")
        hub.add("org/gated", small, kind="models", gated=True)
        found = asked(hub, tmp_path, "org/whole", "org/quants", "org/cut", "org/gated", "org/none")
        whole, quants, cut, gated, none = found
    assert whole == {"parameters": tiny_model().num_parameters(), "files": len(small), "heavy": []}
    assert hub.sent["model.safetensors"] < 2_200_000
    assert quants["parameters"] == 300 * 64 + 8 * 64 + 64
    assert 1_048_576 < hub.sent["tiny.gguf"] <= 4_194_304
    assert "cannot read model.safetensors: it is cut off" in cut["error"]
    assert "org/gated is gated" in gated["error"]
    assert "no model org/none on the hub" in none["error"]
    assert not list(tmp_path.glob("cache/**/*.safetensors"))


def asked(hub: Any, folder: Path, *names: str) -> list[dict[str, Any]]:
    """What a process that uses this hub finds of each model."""
    environment = {**os.environ, **hub.environment(), "HF_HOME": str(folder / "cache")}
    command = [sys.executable, "-c", _PROGRAM, *names]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_model_that_is_cached_is_described_offline(tiny_base: Path, tmp_path: Path) -> None:
    commit = "0" * 40
    folder = tmp_path / "hub" / "models--org--here"
    shutil.copytree(tiny_base, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _PROGRAM, "org/here", "org/elsewhere"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    here, elsewhere = (json.loads(line) for line in done.stdout.splitlines())
    assert here["parameters"] == tiny_model().num_parameters()
    assert "HF_HUB_OFFLINE forbids" in elsewhere["error"]
