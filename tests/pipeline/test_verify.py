"""`truetune verify`: what is as it was written is sound, and whatever is not is named."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import truetune
from conftest import arithmetic_rows, byte_tokenizer, tiny_model, write_jsonl
from heard import FAST
from truetune.cli import main
from truetune.pipeline.verify import verify_run
from truetune.runs.checkpoints import read_manifest, sha256


@pytest.fixture(scope="module")
def original(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified")
    settings = {**FAST, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lora_dropout": 0.1}
    shutil.copytree(tiny_base, folder / "base")
    data = write_jsonl(folder / "rows.jsonl", arithmetic_rows(24))
    truetune.train(model=str(folder / "base"), data=data, output_dir=folder / "run", **settings)
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original / "run", tmp_path / "run")
    return tmp_path / "run"


def told(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    status = main(["verify", str(run), *options])
    return status, capsys.readouterr().out


def test_a_sound_run_is_told_part_by_part(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = told(run, capsys)
    assert status == 0
    assert [line.partition(":")[0] for line in printed.splitlines()[:5]] == [
        "checkpoint-4",
        "checkpoint-2",
        "adapter",
        "answers",
        "config.yaml",
    ]
    assert printed.count("as it was written") == 5
    assert printed.splitlines()[-1] == f"{run}: sound"


def test_a_damaged_checkpoint_is_named_in_words_and_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    status, printed = told(run, capsys)
    assert status == 1
    assert "checkpoint-2: optimizer.pt has 0 of" in printed
    status, printed = told(run, capsys, "--json")
    found = json.loads(printed)
    assert status == 1
    assert not found["sound"]
    assert [(each["step"], each["complete"]) for each in found["checkpoints"]] == [(4, True), (2, False)]
    assert found["checkpoints"][1]["problems"][0].startswith("optimizer.pt has 0 of")
    assert found["weights"]["complete"]


def test_an_adapter_on_another_base_gives_other_logits(original: Path, run: Path, tmp_path: Path) -> None:
    tiny_model(seed=5).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    found = verify_run(run, base_model=str(tmp_path / "other")).weights
    assert found is not None
    assert "gives logits" in found.problems[0]
    found = verify_run(run, base_model=str(original / "base")).weights
    assert found is not None
    assert found.complete
    assert 0 <= found.facts["max_abs_logit_difference"] < 1e-5


def test_weights_that_were_changed_with_their_manifest_give_other_logits(run: Path) -> None:
    file = run / "adapter" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    found = verify_run(run).weights
    assert found is not None
    assert "is not what was written" in found.problems[0]
    manifest = read_manifest(run / "adapter")
    manifest["files"][file.name]["sha256"] = sha256(file)
    (run / "adapter" / "manifest.json").write_text(json.dumps(manifest))
    found = verify_run(run).weights
    assert found is not None
    assert "gives logits" in found.problems[0]


def test_weights_that_are_missing_from_a_finished_run_are_told(run: Path) -> None:
    shutil.rmtree(run / "adapter")
    found = verify_run(run).weights
    assert found is not None
    assert found.problems == ("the run has finished, and its weights are missing",)


def test_rows_that_have_changed_since_are_told(original: Path, run: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", arithmetic_rows(23))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(original / "rows.jsonl"), str(other)))
    assert verify_run(run).config.problems == ("makes other rows now than the run trained on",)
    other.unlink()
    assert "other.jsonl" in verify_run(run).config.problems[0]


def test_the_resume_proof_trains_twice_and_finds_the_same_bits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    status, printed = told(run, capsys, "--resume-proof", "4")
    assert status == 0, printed
    assert "resume proof: as it was written (steps 4, resumed_from 2)" in printed
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before


def test_a_resume_that_draws_other_random_numbers_fails_the_proof(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from truetune.training.trl import Engine

    monkeypatch.setattr(Engine, "_load_rng_state", lambda *_: None)
    found = verify_run(run, proof_steps=4).resume_proof
    assert found is not None
    assert "adapter_model.safetensors differs at step 4" in found.problems


def test_a_folder_without_a_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err
