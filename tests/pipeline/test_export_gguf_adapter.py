"""`truetune export --to gguf-adapter` writes a LoRA for llama.cpp, asked there on its base, or nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import truetune
from commanded import printed_json, refusal
from tiny_runs import base_in, digests, trained
from truetune.inference.card import is_untouched


def exported(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    return printed_json(capsys, "export", *words, "--to", "gguf-adapter")


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    return refusal(capsys, "export", *words, "--to", "gguf-adapter")


def test_a_run_s_adapter_has_its_training_s_answers_in_llama_cpp(
    tiny_run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(tiny_run.directory)
    out = tmp_path / "desk.gguf"
    made = exported(capsys, tiny_run.directory, "-o", out)
    assert (made["path"], made["format"], made["quantization"]) == (str(out), "gguf-adapter", "f32")
    check = made["check"]
    assert check["prompts"] == check["equal"] == check["token_ids_equal"] > 3
    assert check["max_abs_logit_difference"] < 1e-4
    assert made["base"] == "base in f32"
    assert made["command"] == f"llama-server -m BASE.gguf --lora {out}"
    assert [path.name for path in tmp_path.iterdir()] == ["desk.gguf"]
    assert digests(tiny_run.directory) == before
    assert str(tiny_run.config.model.name_or_path).encode() not in out.read_bytes()


def test_its_base_is_written_beside_it_only_when_asked_for(
    tiny_run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = exported(capsys, tiny_run.directory, "-o", tmp_path / "alone")
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {"run-lora-f32.gguf", "README.md", "card.json"}
    made = exported(capsys, tiny_run.directory, "-o", tmp_path / "both", "--with-base", "--quantize", "q8_0")
    names = {"run-lora-f32.gguf", "base-q8_0.gguf", "README.md", "card.json"}
    assert {path.name for path in (tmp_path / "both").iterdir()} == names
    assert made["base"] == "base in q8_0"
    assert made["command"].endswith(f"-m {tmp_path / 'both' / 'base-q8_0.gguf'} --lora {made['path']}")
    assert made["check"]["token_ids_equal"] == made["check"]["prompts"]
    card = (tmp_path / "both" / "README.md").read_text()
    assert is_untouched(card)
    assert "A LoRA adapter in GGUF for `base`" in card
    assert "answers are the same in llama.cpp" in card
    assert "on base in q8_0" in card
    assert str(tmp_path) not in card
    assert refused(capsys, tiny_run.directory, "-o", tmp_path / "both")[0] == 2
    exported(capsys, tiny_run.directory, "-o", tmp_path / "both", "--overwrite", "--no-check")


def test_a_checkpoint_is_held_against_the_answers_that_it_gives_now(
    tiny_run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = sorted(int(path.name.rpartition("-")[2]) for path in (tiny_run.directory / "checkpoints").iterdir())
    made = exported(capsys, f"{tiny_run.directory}@{steps[0]}", "-o", tmp_path / "x.gguf")
    assert made["check"]["prompts"] == made["check"]["equal"] > 0


def test_an_adapter_trained_over_4_bits_is_held_against_its_answers_over_the_base_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(base_in(tmp_path / "base"), tmp_path / "run", load_in_4bit=True, num_train_epochs=5)
    file = run.directory / "adapter" / "parity.json"
    document = json.loads(file.read_text())
    document["fixtures"][0]["answer_ids"][0] ^= 1  # As if only the quantised weights had given this answer.
    file.write_text(json.dumps(document))
    (run.directory / "adapter" / "manifest.json").write_text(_without_parity(run.directory / "adapter"))
    made = exported(capsys, run.directory, "-o", tmp_path / "x.gguf")
    assert made["check"]["prompts"] == made["check"]["equal"] == 6


def _without_parity(adapter: Path) -> str:
    manifest = json.loads((adapter / "manifest.json").read_text())
    del manifest["files"]["parity.json"]
    return json.dumps(manifest)


def test_on_another_base_it_is_not_the_trained_model_and_nothing_is_left(
    tiny_run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = base_in(tmp_path / "other", seed=5)
    status, told = refused(capsys, tiny_run.directory, "-o", tmp_path / "x.gguf", "--base", other)
    assert status == 1
    assert "in llama.cpp it is not the trained model" in told
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_cannot_be_one_is_refused_before_weights_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(base_in(tmp_path / "base"), tmp_path / "run", use_dora=True, max_steps=1)
    with monkeypatch.context() as patched:
        patched.setattr(
            "truetune.pipeline.delivery.whole_model.load_model", lambda *_: pytest.fail("weights were loaded")
        )
        status, told = refused(capsys, run.directory, "-o", tmp_path / "x.gguf")
    assert status == 1
    assert "DoRA's magnitudes" in told
    assert "export --to gguf" in told
    shutil.rmtree(run.directory)
    full = trained(tmp_path / "base", tmp_path / "full", method="full", max_steps=1)
    status, told = refused(capsys, full.directory, "-o", tmp_path / "x.gguf")
    assert (status, "holds a whole model, no adapter" in told) == (1, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-o", "x.gguf", "--quantize", "q8_0"], "--with-base"),
        (["-o", "x.gguf", "--with-base"], "is one file"),
        (["-o", "x.gguf", "--llama-cpp", "."], "--llama-cpp is not for --to gguf-adapter"),
        (["-o", "x.gguf", "--public"], "--public is not for --to gguf-adapter"),
    ],
)
def test_a_command_that_makes_no_sense_is_told(
    words: list[str], told: str, tiny_run: truetune.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = refused(capsys, tiny_run.directory, *words)
    assert status == 2
    assert told in said
