"""How long `truetune report` takes for a long run, and how large its page is.

    python bench/report.py                  a made-up run of 100,000 steps, each of them logged
    python bench/report.py --steps 1000000

The measures: 100,000 steps in 5 s from the command's start, in under 2 MB, and no extreme of a curve is lost.
"""

import argparse
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS, BYTES = 5.0, 2_000_000


def lines(steps: int) -> Iterator[dict[str, Any]]:
    """Metrics as a training writes them: a falling loss with noise and one outlier, an evaluation every thousand."""
    chance = random.Random(0)
    for step in range(1, steps + 1):
        loss = 1.5 + 2 * math.exp(-5 * step / steps) + chance.gauss(0, 0.15)
        yield {
            "step": step,
            "loss": 97.25 if step == steps // 3 else loss,
            "grad_norm": abs(chance.gauss(1, 0.3)),
            "learning_rate": 2e-4 * (1 - step / steps),
            "mean_token_accuracy": 0.7 - loss / 10,
            "num_tokens": 2_048 * step,
            "supervised_tokens": 900 * step,
            "tokens_per_second": 20_000 + chance.gauss(0, 50),
            "epoch": 3 * step / steps,
        }
        if step % 1_000 == 0:
            yield {"step": step, "eval_loss": loss + 0.1, "eval_mean_token_accuracy": 0.6, "epoch": 3 * step / steps}


def make_run(folder: Path, steps: int) -> None:
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines(steps))
    record = {"status": "finished", "steps": steps, "total_steps": steps, "seconds": 3_600.0}
    (folder / "run.json").write_text(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "long"
        make_run(run, options.steps)
        command = [sys.executable, "-m", "truetune", "report", str(run)]
        seconds = []
        for _ in range(options.rounds):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
        page = (run / "report.html").read_text(encoding="utf-8")
    size, drawn = len(page.encode()), page.partition('id="data-of-curves">')[2]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    computed = (used.ru_utime + used.ru_stime) / options.rounds
    outlier = "drawn" if "97.25" in drawn else "LOST"
    took = f"{min(seconds):.2f} s of {SECONDS:g} from the command's start, {computed:.2f} s of computing"
    print(f"{options.steps:,} steps: {took}")
    print(f"the page: {size / 1e6:.2f} MB of {BYTES / 1e6:g}; the outlier is {outlier}")


if __name__ == "__main__":
    main()
