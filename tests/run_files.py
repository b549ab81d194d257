"""The files of a run, each with what a training, a check or an evaluation writes: for readers of damaged ones."""

import json
from pathlib import Path
from typing import Any

RECORD: dict[str, Any] = {
    "status": "finished",
    "started": "2026-11-29T05:09:54Z",
    "ended": "2026-11-29T05:10:54Z",
    "command": ["truetune", "train"],
    "resumed_from": None,
    "model": {"name_or_path": "org/model", "revision": None, "fingerprint": "f"},
    "backend": "trl",
    "device": "cpu",
    "hardware": {"machine": "x86_64", "cpus": 2},
    "versions": {"torch": "2.13.0"},
    "data": {"path": "a.jsonl", "fingerprint": "d", "rows_read": 24, "rows_kept": 24},
    "config": {"training": {"learning_rate": 2e-4, "seed": 42}, "adapter": {"r": 8}, "output_dir": "x"},
    "total_steps": 4,
    "effective_batch_size": 2,
    "settings": [{"name": "data.packing", "value": False, "reason": "few", "evidence": ""}],
    "planned": {"seconds": 2.5, "disk_bytes": 10, "memory": {"peak_bytes": 10, "parts": {"weights": 5}}},
    "steps": 4,
    "final_loss": 1.5,
    "eval_loss": 1.75,
    "tokens_per_second": 260.4,
    "seconds": 12.5,
    "tokens": 280,
    "supervised_tokens": 22,
    "peak_memory_bytes": 1000,
    "adapter": "adapter",
    "best_metric": 1.7,
    "best_step": 4,
}
LINE = {"step": 1, "loss": 1.5, "learning_rate": 1e-3, "num_tokens": 70, "tokens_per_second": 9.5, "memory_bytes": 10}
EVALUATED = {"step": 2, "eval_loss": 1.25, "eval_exact_match": 0.5, "eval_runtime": 1.0}
REPORT = {
    "rows_read": 3,
    "rows_kept": 2,
    "rejected": {"empty-answer": 1},
    "found": {"empty-answer": 1},
    "problems": [
        {
            "code": "TT101",
            "name": "empty-answer",
            "severity": "error",
            "message": "empty",
            "where": {"path": "a.jsonl", "line": 3, "unit": "line"},
            "hint": "fill it",
            "rows": 1,
        }
    ],
    "stats": {"formats": {"chat": 2}, "read_from": {"chat": 2}, "tokens": 10, "supervised_tokens": 4},
}
EVALUATION = {
    "data": "held-out.jsonl",
    "eval_loss": 1.5,
    "perplexity": 4.5,
    "rows": 2,
    "metrics": {"exact_match": 0.5},
    "base": {"eval_loss": 2.0, "metrics": {"exact_match": 0.0}},
    "comparison": {"eval_loss": {"difference": -0.5, "interval": [-1, -0.1], "wins": 1, "losses": 0, "ties": 1}},
    "record": {"time": "2026-11-29", "weights": "adapter"},
    "worst_rows": [{"where": {"path": "a.jsonl", "line": 3}, "loss": 2.0, "tokens": 4, "text": "x", "answer": "y"}],
    "figures": [],
}
ANSWER = {
    "where": {"path": "a.jsonl", "line": 1, "unit": "line"},
    "prompt": "q",
    "answer": "a",
    "expected": "a",
    "scores": {"exact_match": 1.0},
}
LOSS = {"row": "abc", "loss": 1.5, "tokens": 3}
FILES: dict[str, list[Any]] = {
    "run.json": [RECORD],
    "metrics.jsonl": [LINE, {**LINE, "step": 2}, EVALUATED],
    "data-report.json": [REPORT],
    "evaluations/held-out.json": [EVALUATION],
    "evaluations/held-out.answers.jsonl": [ANSWER],
    "evaluations/held-out.losses.jsonl": [LOSS, {**LOSS, "row": "abd"}],
    "answers/step-4.jsonl": [ANSWER],
}


def write_run(folder: Path, files: dict[str, list[Any]]) -> Path:
    """A run's directory with these documents in its files."""
    for name, documents in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(each) + "\n" for each in documents), encoding="utf-8")
    (folder / "config.yaml").write_text("model: {name_or_path: org/model}\n", encoding="utf-8")
    return folder
