"""The measures of what is made of a run, by one command."""

import subprocess
from pathlib import Path

import pytest

import truetune
import warm
from conftest import CHATML, arithmetic_rows, byte_tokenizer, tiny_model, write_jsonl

PROGRAM = Path(__file__).parents[1] / "bench" / "after_training.py"

pytest.importorskip("xllamacpp")


def test_the_measures_are_taken_of_a_run_and_held_against_their_targets(tmp_path: Path) -> None:
    base, data = tmp_path / "base", write_jsonl(tmp_path / "rows.jsonl", arithmetic_rows(12))
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(base)
    byte_tokenizer(chat_template=CHATML).save_pretrained(base)
    options = {"precision": "fp32", "num_train_epochs": 20, "learning_rate": 1e-2, "save_strategy": "no"}
    run = truetune.train(model=str(base), data=str(data), output_dir=tmp_path / "run", **options)
    done = subprocess.run(
        warm.python(PROGRAM, "--run", run.directory, "--data", data, "--quick"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("largest logit difference")
    assert float(lines[1].split()[6]) < float(lines[0].split()[6])
    assert 0 < float(lines[2].split()[-1]) < 1e-4
    assert "4 of 4" in lines[3]
    assert [line.split()[2] for line in lines[4:]] == ["adapter", "merged", "GGUF", "GGUF"]
    assert [line.endswith("holds") for line in lines] == [True, True, False, True, False, True, True, True]
