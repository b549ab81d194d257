"""What is saved is what was trained, or the run does not call itself finished."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model
from tiny_runs import LORA, ROWS, TOKENIZER, job
from truetune.errors import BackendError, CheckpointError
from truetune.listener import LogListener
from truetune.model.adapter import add_adapter, verify_adapter
from truetune.training.saving import save_adapter, save_full_model
from truetune.training.trackers import require_trackers
from truetune.training.trl import build_engine


def engine_for(model: Any, folder: Path) -> Any:
    return build_engine(
        job(folder), model=model, tokenizer=TOKENIZER, train=ROWS, validation=(), listener=LogListener()
    )


def learned(seed: int = 1) -> Any:
    """An adapted model whose updates are not zero."""
    model = add_adapter(tiny_model(), LORA, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    return model


def test_an_adapter_is_saved_with_tokenizer_and_template_and_without_pickles_or_paths(tmp_path: Path) -> None:
    tensors = save_adapter(
        engine_for(learned(), tmp_path), tmp_path / "adapter", base_model="org/base", revision="abc"
    )
    assert tensors == 2 * 7 * 2
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not {name for name in names if name.endswith((".bin", ".md", ".pt"))}
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/base", "abc")
    assert str(tmp_path) not in "".join(path.read_text(errors="ignore") for path in (tmp_path / "adapter").iterdir())


def test_an_adapter_that_learned_nothing_is_no_finished_run(tmp_path: Path) -> None:
    engine = engine_for(add_adapter(tiny_model(), LORA, seed=1), tmp_path)
    with pytest.raises(CheckpointError, match="learned nothing"):
        save_adapter(engine, tmp_path / "adapter", base_model="b", revision=None)
    assert not list(tmp_path.glob("*adapter*"))


def test_a_tensor_that_differs_on_disk_is_caught(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = learned()
    model.save_pretrained(tmp_path)
    assert verify_adapter(model, tmp_path) == 28
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1e-7}, file)
    with pytest.raises(CheckpointError, match="differs"):
        verify_adapter(model, tmp_path)
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    with pytest.raises(CheckpointError, match="differs"):
        verify_adapter(model, tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_model_is_saved_compared_and_stops_at_the_templates_token(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model(tie_word_embeddings=tied)
    save_full_model(engine_for(model, tmp_path), tmp_path / "model", stop_token_ids=(260, 257))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    assert loaded.generation_config.eos_token_id == [260, 257]


def test_a_tracker_that_is_not_installed_is_told_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truetune.training.trackers._is_importable", lambda _: False)
    with pytest.raises(BackendError, match="trackio is not installed") as caught:
        require_trackers(["trackio"])
    assert "truetune[trackio]" in str(caught.value)


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_g27_wandb_without_a_login_is_refused_unless_it_stays_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    with pytest.raises(BackendError, match="no login") as caught:
        require_trackers(["wandb"])
    assert "WANDB_API_KEY" in str(caught.value)
    assert "offline" in str(caught.value)
    monkeypatch.setenv("WANDB_MODE", mode)
    require_trackers(["wandb"])
