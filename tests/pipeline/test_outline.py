"""A plan without rows: what it tells is the same with and without torch, and without is where that is certain."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import tiny_model
from heard import Heard
from hub import running_hub
from truetune.config.load import load_config
from truetune.errors import BackendError
from truetune.model import hardware
from truetune.model.source import demo_file
from truetune.model.stored import folder_model
from truetune.pipeline import outline, read_machine
from truetune.pipeline.forecast import forecast
from truetune.pipeline.outline import Outline

HEAVY = ("torch", "transformers", "datasets", "huggingface_hub")
ASK = f"""
import json, sys
from truetune.cli import main
status = main(sys.argv[1:])
print(json.dumps([status, [name for name in {HEAVY!r} if name in sys.modules]]), file=sys.stderr)
"""


def told(model: Path | str, *settings: str, device: str | None = None) -> Outline:
    found = forecast(load_config(overrides=[f"model={model}", *settings]).config, device=device, listener=Heard())
    assert isinstance(found, Outline)
    return found


def without_reading(monkeypatch: pytest.MonkeyPatch, model: Path | str, *settings: str, **options: Any) -> Outline:
    """The same by way of torch and transformers."""
    with monkeypatch.context() as patched:
        patched.setattr(outline, "read_machine", lambda *_, **__: None)
        return told(model, *settings, **options)


def in_a_process(*words: str, **environment: str) -> tuple[dict[str, Any], int, list[str]]:
    """What `plan --json` prints, its status, and which heavy packages it has loaded."""
    command = [sys.executable, "-c", ASK, "plan", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, done.stderr
    status, heavy = json.loads(done.stderr.splitlines()[-1])
    return json.loads(done.stdout), status, heavy


def comparable(found: Outline) -> dict[str, Any]:
    """All but what is free at the moment, and what a converted file holds beside its weights."""
    document = found.as_json()
    memory = {**document["memory"], "free_bytes": None}
    return {**document, "memory": memory, "settings": [each["value"] for each in document["settings"]]}


SETTINGS = {
    "as it is": (),
    "trained whole": ("method=full",),
    "in fp32": ("precision=fp32", "adapter.r=4", "per_device_train_batch_size=3"),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("device", [None, "t4", "h100:8"])
def test_a_plan_from_files_alone_is_that_from_torch_and_transformers(
    settings: tuple[str, ...], device: str | None, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_machine, "_has_gpu", lambda: False)
    slow = without_reading(monkeypatch, tiny_base, *settings, device=device)
    monkeypatch.setattr(outline, "ask_machine", lambda *_, **__: pytest.fail("torch was asked"))
    assert comparable(told(tiny_base, *settings, device=device)) == comparable(slow)


def test_no_heavy_package_is_imported_for_a_folder(tiny_base: Path) -> None:
    document, status, heavy = in_a_process("--model", str(tiny_base), "--device", "t4")
    assert (status, heavy) == (0, [])
    assert document["memory"]["parts"] == told(tiny_base, device="t4").memory.parts
    assert document["max_length"] == 2048


def test_neither_the_demo_nor_a_gguf_file_is_converted_and_no_heavy_package_imported(tmp_path: Path) -> None:
    model, cache = tmp_path / "own.gguf", tmp_path / "cache"
    model.symlink_to(demo_file())
    demo = in_a_process("--model", "demo", "model.device=cpu", TRUETUNE_CACHE=str(cache))
    own = in_a_process("--model", str(model), "model.device=cpu", TRUETUNE_CACHE=str(cache))
    assert demo[1:] == own[1:] == (0, [])
    assert demo[0]["memory"]["parts"] == own[0]["memory"]["parts"]
    assert demo[0]["memory"]["parts"]["weights"] in (134_515_008 * 2, 134_515_008 * 4)
    assert not cache.exists()


def test_a_model_on_the_hub_is_planned_for_by_the_beginning_of_its_files(tiny_base: Path) -> None:
    with running_hub() as hub:
        hub.add("org/tiny", {file.name: file.read_bytes() for file in tiny_base.iterdir()}, kind="models")
        home = {**hub.environment(), "HF_HOME": str(tiny_base.parent / "hub")}
        document, status, heavy = in_a_process("--model", "org/tiny", "--device", "t4", **home)
    assert (status, heavy) == (0, ["huggingface_hub"])
    expected = told(tiny_base, device="t4").memory.parts
    assert {**document["memory"]["parts"], "loading": 0} == {**expected, "loading": 0}


def test_linux_and_torch_agree_on_whether_this_cpu_computes_in_bf16() -> None:
    assert read_machine.has_native_bf16() == hardware.has_native_bf16("cpu")


def asked(monkeypatch: pytest.MonkeyPatch, model: Path | str, *settings: str) -> bool:
    """Whether torch and transformers are."""

    def ask(*_: Any, **__: Any) -> Any:
        raise BackendError("asked")

    with monkeypatch.context() as patched:
        patched.setattr(outline, "ask_machine", ask)
        try:
            told(model, *settings)
        except BackendError as error:
            return error.message == "asked"
    return False


def test_torch_is_asked_wherever_a_gpu_may_be(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_machine, "nvidia_gpus", tuple)
    monkeypatch.setattr(read_machine, "_GPU_FILES", (str(tmp_path / "none"),))
    assert not asked(monkeypatch, tiny_base)
    monkeypatch.setattr(read_machine, "_GPU_FILES", (str(tmp_path),))
    assert asked(monkeypatch, tiny_base)
    assert not asked(monkeypatch, tiny_base, "model.device=cpu")
    assert asked(monkeypatch, tiny_base, "model.device=cuda")


def test_torch_is_asked_about_a_precision_that_this_cpu_lacks(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_machine, "_has_gpu", lambda: False)
    monkeypatch.setattr(read_machine, "has_native_bf16", lambda: False)
    assert asked(monkeypatch, tiny_base, "precision=bf16")
    assert asked(monkeypatch, tiny_base, "precision=fp16")
    assert not asked(monkeypatch, tiny_base)


def test_damaged_or_missing_weights_leave_a_model_to_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model().save_pretrained(tmp_path)
    whole = told(tmp_path, device="t4")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert told(tmp_path, device="t4").memory.parts["adapters"] == whole.memory.parts["adapters"]
    weights.unlink()
    assert told(tmp_path, device="t4").memory.parts["adapters"] == whole.memory.parts["adapters"]
    assert asked(monkeypatch, tmp_path, "model.device=cpu")


def test_what_a_machine_refuses_is_refused_without_torch_too(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outline, "ask_machine", lambda *_, **__: pytest.fail("torch was asked"))
    for setting, words in (
        ("model.dtype=float16", "float16 weights train on a GPU only"),
        ("training.activation_offloading=true", "needs a CUDA GPU"),
    ):
        with pytest.raises(BackendError, match=words):
            told(tiny_base, "model.device=cpu", setting)


def test_of_a_hub_model_in_many_files_no_headers_are_fetched(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    stored = replace(folder_model(tiny_base, name="org/large", kind="hub"), first=lambda _, count: read.append(count))
    monkeypatch.setattr(read_machine, "find_stored", lambda *_, **__: stored)
    monkeypatch.setattr(read_machine, "_MOST_FETCHED", 0)
    assert asked(monkeypatch, "org/large", "model.device=cpu")
    assert not read
