"""`truetune export --to vllm`: what vLLM is given is the trained model, with its template and stops."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import truetune
from commanded import printed_json
from tiny_runs import base_in, trained
from truetune.cli import main


def exported(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    return printed_json(capsys, "export", *words, "--to", "vllm")


def guided(folder: Path) -> list[str]:
    """The words of the command in SERVING.md."""
    text = (folder / "SERVING.md").read_text()
    return shlex.split(text.split("```bash\n")[1].split("\n```")[0])


def stops_in(folder: Path) -> list[int]:
    found: list[int] = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    return found


def test_an_adapter_is_merged_and_served_by_its_folder(
    tiny_run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "desk"
    made = exported(capsys, tiny_run.directory, "-o", out)
    assert made["check"]["prompts"] == made["check"]["equal"] == 6
    assert shlex.split(made["command"]) == ["vllm", "serve", str(out), "--served-model-name", "desk"]
    assert guided(out) == ["vllm", "serve", "desk", "--served-model-name", "desk"]
    assert 260 in stops_in(out)
    assert (out / "chat_template.jinja").is_file()
    assert truetune.load(out).generate("Add 3 and 4") == truetune.load(tiny_run).generate("Add 3 and 4")
    assert str(tmp_path) not in (out / "SERVING.md").read_text() + (out / "README.md").read_text()


def test_an_unmerged_adapter_takes_template_and_stops_along(
    tiny_run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, base = tmp_path / "desk", str(tiny_run.config.model.name_or_path)
    made = exported(capsys, tiny_run.directory, "-o", out, "--adapter")
    assert made["check"]["prompts"] == made["check"]["equal"] == 6
    words = shlex.split(made["command"])
    assert words[:3] == ["vllm", "serve", base]
    options = dict(zip(words[4::2], words[5::2], strict=True))
    assert words[3] == "--enable-lora"
    assert options == {
        "--max-lora-rank": "16",
        "--lora-modules": f"desk={out}",
        "--chat-template": str(out / "chat_template.jinja"),
        "--generation-config": str(out),
    }
    assert "desk=desk" in guided(out)
    assert 260 in stops_in(out)
    assert (out / "adapter_model.safetensors").is_file()


def test_the_rank_that_vllm_is_told_is_one_that_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(base_in(tmp_path / "base"), tmp_path / "run", r=24, max_steps=1)
    words = shlex.split(exported(capsys, run.directory, "-o", tmp_path / "x", "--adapter")["command"])
    assert words[words.index("--max-lora-rank") + 1] == "32"


def test_an_adapter_that_vllm_does_not_load_is_refused_and_merged_it_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(base_in(tmp_path / "base"), tmp_path / "run", use_dora=True, max_steps=1)
    status = main(["export", str(run.directory), "--to", "vllm", "-o", str(tmp_path / "x"), "--adapter"])
    told = capsys.readouterr().err
    assert status == 1
    assert "vLLM does not load DoRA adapters" in told
    assert "leave --adapter out" in told
    assert not (tmp_path / "x").exists()
    assert exported(capsys, run.directory, "-o", tmp_path / "x")["check"]["prompts"] == 6


def test_a_whole_model_is_copied_and_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(base_in(tmp_path / "base"), tmp_path / "run", method="full", num_train_epochs=5)
    made = exported(capsys, run.directory, "-o", tmp_path / "x")
    assert made["check"]["prompts"] == made["check"]["equal"] == 6
    assert 260 in stops_in(tmp_path / "x")
    assert guided(tmp_path / "x")[:3] == ["vllm", "serve", "x"]
    exported(capsys, run.directory, "-o", tmp_path / "x", "--overwrite", "--no-check")


def test_a_model_of_plain_texts_is_asked_for_completions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = base_in(tmp_path / "base", template=None)
    rows = [{"text": f"line {number}"} for number in range(12)]
    run = truetune.train(model=str(base), data=rows, output_dir=tmp_path / "run", max_steps=1, save_strategy="no")
    main(["export", str(run.directory), "--to", "vllm", "-o", str(tmp_path / "x")])
    assert "not trained on conversations" in capsys.readouterr().err
    assert "`/v1/completions`" in (tmp_path / "x" / "SERVING.md").read_text()
