"""The second engine on a tiny Llama: the same tokens, labels and losses as TRL's, and nothing swallowed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import truetune
from conftest import arithmetic_rows, tiny_model, write_jsonl
from heard import FAST, Heard
from tiny_runs import LORA, ROWS, Trained
from truetune.data.store import RowWriter, StoredRow, StoredRows, row_batch
from truetune.errors import BackendError

GUIDE = {
    "load_in_4bit": True,
    "dtype": None,
    "r": 16,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "lora_alpha": 16,
    "lora_dropout": 0,
    "bias": "none",
    "use_gradient_checkpointing": "unsloth",
    "random_state": 3407,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": 2e-4,
    "warmup_ratio": 0.03,
    "weight_decay": 0.01,
    "logging_steps": 1,
    "evaluation_strategy": "epoch",
    "save_strategy": "epoch",
    "optim": "adamw_8bit",
    "packing": True,
    "test_size": 0.2,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "train.jsonl", arithmetic_rows(24))


@pytest.fixture(scope="module")
def trained(
    tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[truetune.Run, Heard]]:
    """A run with these settings and what was heard of it; asked for again, the same."""

    @cache
    def train(backend: str, model: Path = tiny_base, **settings: Any) -> tuple[truetune.Run, Heard]:
        heard = Heard()
        folder = tmp_path_factory.mktemp("runs") / backend
        asked = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        run = truetune.train(model=str(model), data=rows, output_dir=folder, backend=backend, listener=heard, **asked)
        return run, heard

    return train


Train = Callable[..., tuple[truetune.Run, Heard]]
PLAIN = {**FAST, "max_steps": 10, "eval_strategy": "steps", "eval_steps": 5, "test_size": 0.2}


def losses(run: truetune.Run) -> list[float]:
    return [line[name] for line in run.metrics for name in ("loss", "eval_loss") if name in line]


def agree(left: truetune.Run, right: truetune.Run) -> bool:
    return losses(left) == pytest.approx(losses(right), rel=1e-4) and len(losses(left)) >= 3


# --- the same run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inside(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What Unsloth's process saw of twelve rows in two epochs, and its folder."""
    folder = tmp_path_factory.mktemp("inside")
    writer = RowWriter(folder)
    writer.write(row_batch([StoredRow(row, n, n, 0, n) for n, row in enumerate(ROWS)]))
    writer.close()
    script = Path(__file__).parent / "inside.py"
    path = os.pathsep.join(str(Path(__file__).parents[number]) for number in (0, 1))
    ran = subprocess.run(
        [sys.executable, str(script), str(tiny_base), str(folder), str(folder)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stderr.splitlines()[-1]), folder


def test_it_is_unsloth_s_trainer_that_trains(inside: tuple[dict[str, Any], Path]) -> None:
    assert "unsloth" in inside[0]["trainer"] or "trl.trainer.sft_trainer" in inside[0]["trainer"]


def test_both_engines_read_the_same_tokens_and_labels_in_the_same_order_and_lose_as_much(
    inside: tuple[dict[str, Any], Path], tiny_base: Path, tmp_path: Path
) -> None:
    from truetune.model.adapter import add_adapter

    stored = StoredRows.open(inside[1])
    model = add_adapter(_base(tiny_base), LORA, seed=7)
    reference = Trained(tmp_path, stored, model=model, num_train_epochs=2)
    batches = [{k: v.tolist() for k, v in batch.items()} for batch in reference.engine.get_train_dataloader()]
    assert inside[0]["batches"] == batches
    assert len(inside[0]["losses"]) == 12
    assert inside[0]["losses"][:10] == pytest.approx(reference.logged("loss")[:10], rel=1e-5)


def test_the_adapter_gives_the_trained_logits_in_plain_peft(
    inside: tuple[dict[str, Any], Path], tiny_base: Path
) -> None:
    from truetune.model.adapter import load_trained_adapter

    model = load_trained_adapter(_base(tiny_base), inside[1] / "adapter")
    with torch.no_grad():
        logits = model(input_ids=torch.arange(1, 9).unsqueeze(0)).logits[0]
        plain = _base(tiny_base)(input_ids=torch.arange(1, 9).unsqueeze(0)).logits[0]
    trained = torch.tensor(inside[0]["logits"])
    assert torch.allclose(logits, trained, atol=1e-5)
    assert not torch.allclose(plain, trained, atol=1e-3)


def _base(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_training_and_validation_losses_are_those_of_trl(trained: Train) -> None:
    run, _ = trained("unsloth", **PLAIN)
    other, _ = trained("trl", **PLAIN)
    assert agree(run, other)
    assert run.metrics[-1].keys() >= {"eval_loss", "eval_mean_token_accuracy"}
    record, reference = (json.loads((each.directory / "run.json").read_text()) for each in (run, other))
    assert record["data"]["fingerprint"] == reference["data"]["fingerprint"]
    assert record["backend"] == "unsloth"
    assert record["versions"]["unsloth"]
    assert record["tokens_per_second"] > 0
    assert record["peak_memory_bytes"] > 100_000_000


def test_rows_with_weights_lose_as_much_as_with_trl(tiny_base: Path, tmp_path: Path) -> None:
    data = [{**row, "weight": 0.1 if n % 3 else 2.0} for n, row in enumerate(arithmetic_rows(12))]
    found = [
        truetune.train(
            model=str(tiny_base), data=data, output_dir=tmp_path / backend, backend=backend, max_steps=4, **FAST
        )
        for backend in ("unsloth", "trl")
    ]
    assert agree(*found)


# --- the guide's settings ---------------------------------------------------------------------------------


def test_the_guide_s_settings_train_in_four_bits_and_what_a_cpu_lacks_is_told(trained: Train) -> None:
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in GUIDE.items()}
    run, heard = trained("unsloth", **settings, report_to="tensorboard")
    assert run.status == "finished"
    assert len(run.losses) == 3
    told = [line for line in heard.lines if line.startswith("warning:")]
    assert any("data.packing" in line and "not packed" in line for line in told)
    assert any("adamw_8bit" in line and "adamw_torch_fused" in line for line in told)
    assert run.config.training.optim == "adamw_torch_fused"
    assert run.config.data.packing is False
    assert run.config.training.gradient_checkpointing is True
    assert list((run.directory / "tensorboard").glob("events.*"))
    assert "Unsloth" in (run.directory / "unsloth.log").read_text()


@pytest.mark.parametrize("how", ["load_in_4bit", "load_in_8bit"])
def test_a_quantised_base_loses_as_much_as_with_trl(how: str, trained: Train) -> None:
    settings = {**FAST, how: True, "max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "test_size": 0.2}
    run, other = trained("unsloth", **settings)[0], trained("trl", **settings)[0]
    assert losses(run) == pytest.approx(losses(other), rel=2e-3)
    assert len(losses(run)) == 10


def test_a_base_that_is_stored_in_four_bits_is_loaded_as_it_is(
    tiny_base: Path, trained: Train, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from truetune.model.load import ModelOptions, load_model
    from truetune.model.source import ModelSource

    folder = tmp_path_factory.mktemp("stored")
    load_model(ModelSource("b", str(tiny_base)), ModelOptions("float32", "cpu", "4bit")).save_pretrained(folder)
    for file in tiny_base.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text((tiny_base / "chat_template.jinja").read_text())
    settings = {**FAST, "max_steps": 4}
    stored, quantised = (trained("unsloth", **settings, model=folder)[0], trained("trl", **settings, model=folder)[0])
    asked = trained("trl", **settings, load_in_4bit=True)[0]
    assert losses(stored) == pytest.approx(losses(quantised), rel=2e-3)
    assert losses(quantised) == pytest.approx(losses(asked), rel=1e-5)


def test_all_weights_train_too(trained: Train) -> None:
    settings = {**FAST, "learning_rate": 1e-4, "method": "full", "max_steps": 4}
    run, other = trained("unsloth", **settings)[0], trained("trl", **settings)[0]
    assert agree(run, other)
    assert run.adapter == run.directory / "model"


def test_a_run_goes_on_from_another_s_adapter(trained: Train) -> None:
    first = trained("trl", **PLAIN)[0]
    settings = {**FAST, "max_steps": 3, "init_from": str(first.directory)}
    assert agree(trained("unsloth", **settings)[0], trained("trl", **settings)[0])


# --- its process ------------------------------------------------------------------------------------------


def test_the_caller_s_process_is_left_as_it_is(trained: Train) -> None:
    trained("unsloth", **PLAIN)
    import trl

    assert not [name for name in sys.modules if name.split(".")[0] in ("unsloth", "unsloth_zoo")]
    assert trl.SFTTrainer.__module__ == "trl.trainer.sft_trainer"
    assert "<locals>" not in trl.SFTTrainer.__qualname__
    assert not Path("unsloth_compiled_cache").exists()


def test_a_machine_without_a_gpu_that_forbids_the_cpu_is_told_in_unsloth_s_own_words(
    tiny_base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSLOTH_DISABLE_CPU_FALLBACK", "1")
    with pytest.raises(BackendError, match=r"(?i)unsloth cannot be used here: .*(gpu|accelerator)") as error:
        truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path / "run", backend="unsloth", **FAST)
    assert "trl" in str(error.value.hint)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "unsloth.log"}


def test_a_run_that_is_stopped_goes_on_to_the_losses_of_an_uninterrupted_one(
    trained: Train, tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    settings = {**FAST, "max_steps": 60, "save_steps": 1000, "save_strategy": "steps", "eval_strategy": "no"}
    words = [f"{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "truetune", "train", "--model", str(tiny_base), "--data", str(rows)]
    command += ["--output-dir", str(tmp_path / "run"), "backend=unsloth", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    _until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 3)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    stopped = truetune.open_run(tmp_path / "run")
    assert stopped.status == "stopped"
    assert 3 <= stopped.steps < 60
    resumed = truetune.train(tmp_path / "run" / "config.yaml", resume="newest")
    whole = trained("unsloth", **settings)[0]
    assert resumed.steps == whole.steps == 60
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-6)


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_model_of_another_vocabulary_is_trained_whole(tmp_path: Path, rows: Path) -> None:
    """Its embeddings are larger than the tokenizer, as Qwen's are: Unsloth must not cut or fill them."""
    from conftest import CHATML, byte_tokenizer

    tiny_model(vocab_size=300).save_pretrained(tmp_path / "base")
    byte_tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "base")
    found = [
        truetune.train(
            model=str(tmp_path / "base"),
            data=rows,
            output_dir=tmp_path / backend,
            backend=backend,
            max_steps=3,
            **FAST,
        )
        for backend in ("unsloth", "trl")
    ]
    assert agree(*found)
