"""How long `truetune runs` takes over many runs: a process of its own each time, from its start to its last line.

    .venv/bin/python bench/ledger.py [--runs 10000] [--rounds 3]

Of the runs nine in ten are finished; the rest were stopped, failed or died, with metrics of 200 lines.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from truetune.config.schema import Config

_REASON = (
    "LoRA, 0.13B parameters: the top of the guide's range for models under 1B, 1e-4 to 5e-4 (the guide, Learning "
)
_ENDS = ("stopped", "failed", "running")


def record(number: int, config: dict[str, Any]) -> dict[str, Any]:
    """A run.json as large as a real one."""
    settings = {**config["training"], "learning_rate": 1e-4 * (1 + number % 7), "seed": number}
    return {
        "status": "finished",
        "started": f"2026-11-{1 + number % 28:02}T06:01:{number % 60:02}Z",
        "command": ["truetune", "train", "run.yaml"],
        "model": {"name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "fingerprint": "5" * 64, "dtype": "float32"},
        "hardware": {"machine": "x86_64", "cpus": 2},
        "versions": {"torch": "2.13.0", "transformers": "5.24.0"},
        "data": {"path": f"data/set-{number % 9}.jsonl", "fingerprint": "1" * 64, "rows_read": 24, "rows_kept": 24},
        "total_steps": 300,
        "effective_batch_size": 8,
        "config": {**config, "training": settings},
        "settings": [{"name": f"training.setting_{n}", "value": n, "reason": _REASON * 2} for n in range(21)],
        "planned": {"memory": {"peak_bytes": 1_400_000_000, "parts": dict.fromkeys("abcdefgh", 1)}, "seconds": 1.8},
    }


def line(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 3.0 / step, "learning_rate": 1e-4, "grad_norm": 1.0, "num_tokens": 900 * step}


def write_runs(folder: Path, count: int) -> None:
    config = Config.model_validate({"model": {"name_or_path": "demo"}}).model_dump(mode="json")
    result = {"steps": 300, "final_loss": 1.2, "eval_loss": 1.4, "tokens_per_second": 260.0, "seconds": 800.0}
    for number in range(count):
        run = folder / f"run-{number}"
        run.mkdir()
        document = record(number, config)
        if number % 10:
            document |= result
        else:
            document["status"] = _ENDS[number // 10 % len(_ENDS)]
            (run / ".lock").touch()
            (run / "metrics.jsonl").write_text("".join(json.dumps(line(step)) + "\n" for step in range(1, 201)))
        (run / "run.json").write_text(json.dumps(document, indent=2))


def seconds(*words: str) -> float:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "truetune", "runs", *words], stdout=subprocess.PIPE, check=True)
    assert done.stdout
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_runs(Path(name), options.runs)
        size = (Path(name) / "run-1" / "run.json").stat().st_size
        print(f"{options.runs:,} runs, {size:,} bytes a run.json")
        for words in (["--limit", "20"], ["--sort", "loss", "--where", "lr=2e-4"], ["--json"]):
            taken = [seconds(name, *words) for _ in range(options.rounds)]
            print(f"truetune runs {' '.join(words)}: {min(taken):.2f} s at best, {max(taken):.2f} s at worst")


if __name__ == "__main__":
    main()
