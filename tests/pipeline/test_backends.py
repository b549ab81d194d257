"""Which engine trains, why, and what is told of what Unsloth cannot do. A GPU is the one thing pretended here."""

from pathlib import Path
from typing import Any

import pytest

from conftest import arithmetic_rows, write_jsonl
from heard import Heard
from truetune import train
from truetune.config.load import load_config
from truetune.config.schema import Config
from truetune.errors import BackendError, CheckpointError
from truetune.pipeline import backends
from truetune.pipeline.backends import Situation, choose_backend, settle

GPU = Situation(device="cuda", model_type="llama")
CPU = Situation(device="cpu", model_type="llama")


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth installed beside a GPU that it supports, with models of its own for Llama."""
    monkeypatch.setattr(backends, "metadata_has", lambda name: True)
    monkeypatch.setattr(backends, "_capability", lambda: (8, 0))
    monkeypatch.setattr(backends, "_has_own_model", lambda model_type: model_type == "llama")


def config(**settings: Any) -> Config:
    return load_config(None, settings={"model.name_or_path": "m", "data.path": "d.jsonl", **settings}).config


@pytest.mark.usefixtures("_installed")
def test_auto_takes_unsloth_where_everything_speaks_for_it() -> None:
    backend, reason = choose_backend(config(), GPU)
    assert backend == "unsloth"
    assert "supports this GPU and this model" in reason


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("settings", "situation", "reason"),
    [
        ({}, CPU, "on cpu"),
        ({}, Situation("cuda", "olmo9"), "no model of its own for olmo9"),
        ({}, Situation("cuda", "llama", num_processes=2), "several processes"),
        ({}, Situation("cuda", "llama", has_callbacks=True), "callbacks"),
        ({"adapter.target_modules": r".*_proj"}, GPU, "regular expression"),
        ({"training.precision": "fp32"}, GPU, "fp32"),
        ({"adapter.method": "full"}, GPU, "LoRA"),
        ({"evaluation.generate": 5}, GPU, "evaluation.generate"),
    ],
)
def test_auto_takes_trl_and_says_why(settings: dict[str, Any], situation: Situation, reason: str) -> None:
    backend, said = choose_backend(config(**settings), situation)
    assert backend == "trl"
    assert reason in said


def test_auto_takes_trl_where_unsloth_is_missing_or_the_gpu_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "metadata_has", lambda name: False)
    assert choose_backend(config(), GPU) == ("trl", "Unsloth is not installed")
    monkeypatch.setattr(backends, "metadata_has", lambda name: True)
    monkeypatch.setattr(backends, "_capability", lambda: (6, 1))
    backend, reason = choose_backend(config(), GPU)
    assert backend == "trl"
    assert "older" in reason


def test_an_engine_that_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "metadata_has", lambda name: True)
    assert choose_backend(config(**{"training.backend": "unsloth"}), CPU) == ("unsloth", "asked for")
    assert choose_backend(config(**{"training.backend": "trl"}), GPU) == ("trl", "asked for")


def test_unsloth_is_refused_with_every_reason_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "metadata_has", lambda name: False)
    asked = config(**{"training.backend": "unsloth", "adapter.target_modules": "q_.*"})
    with pytest.raises(BackendError, match=r"not installed.*callbacks.*regular expression") as error:
        choose_backend(asked, Situation("cpu", "llama", has_callbacks=True))
    assert "pip install 'truetune[unsloth]'" in str(error.value.hint)


def test_a_module_of_unsloth_s_own_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unsloth" / "models").mkdir(parents=True)
    (tmp_path / "unsloth" / "__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "unsloth" / "models" / "llama.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert backends._has_own_model("llama")
    assert not backends._has_own_model("olmo9")


def test_what_unsloth_replaces_on_a_cpu_is_replaced_before_and_told() -> None:
    heard = Heard()
    asked = config(**{"data.packing": True, "training.optim": "adamw_8bit"})
    settled = settle(asked, backend="unsloth", device="cpu", listener=heard)
    assert settled.data.packing is False
    assert settled.training.optim == "adamw_torch_fused"
    assert [line.split(":")[:2] for line in heard.lines] == [
        ["warning", " data.packing"],
        ["warning", " training.optim"],
    ]
    assert settle(asked, backend="unsloth", device="cuda", listener=heard) == asked
    assert settle(asked, backend="trl", device="cpu", listener=heard) == asked


def test_the_run_says_which_engine_and_why_and_goes_on_with_no_other(tmp_path: Path, tiny_base: Path) -> None:
    data, heard = write_jsonl(tmp_path / "rows.jsonl", arithmetic_rows(8)), Heard()
    settings = {"model": str(tiny_base), "data": data, "output_dir": tmp_path / "run", "max_steps": 1}
    run = train(**settings, listener=heard)
    assert any(line.startswith("training.backend: trl (") for line in heard.lines)
    assert run.config.training.backend == "trl"
    record = run.directory / "checkpoints" / "checkpoint-1" / "manifest.json"
    record.write_text(record.read_text().replace('"training.backend": "trl"', '"training.backend": "unsloth"'))
    with pytest.raises(CheckpointError, match=r"training.backend was unsloth and is trl"):
        train(**settings, resume="newest")
