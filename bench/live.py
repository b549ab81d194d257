"""How fast the live page answers for long runs: a run's page and its curves, and two runs side by side.

    .venv/bin/python bench/live.py [--steps 100000] [--rounds 5]

The measure: each answer in under 1 s, the first one too, which imports what it needs. The runs are made up, every
step of them logged (bench/report.py). The server is `truetune report --serve` in a process of its own.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from report import make_run

LIMIT = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for seed, name in enumerate(("one", "other")):
            write_run(Path(place) / name, options.steps, seed)
        with served(Path(place)) as address:
            one, other = ids(address)
            pages = {
                "two runs side by side": f"compare?runs={one},{other}",
                "a run's page": f"run/{one}",
                "its curves": f"run/{one}/curves",
            }
            taken = {name: timed(f"{address}{path}", options.rounds) for name, path in pages.items()}
    print(f"{options.steps:,} steps a run")
    for name, found in taken.items():
        print(f"{name}: {statistics.median(found):.3f} s, the first {found[0]:.3f} s, of {LIMIT:g}")
    is_met = max(map(max, taken.values())) < LIMIT
    print(f"the measure, each under {LIMIT:g} s: {'holds' if is_met else 'MISSED'}")
    return 0 if is_met else 1


def write_run(folder: Path, steps: int, seed: int) -> None:
    """A run of which all is there that is compared."""
    make_run(folder, steps)
    record = json.loads((folder / "run.json").read_text())
    config = {"training": {"learning_rate": 2e-4, "seed": seed}, "adapter": {"method": "lora", "r": 8}}
    (folder / "run.json").write_text(json.dumps({**record, "config": config}))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the live page of a folder's runs."""
    command = [sys.executable, "-m", "truetune", "report", str(folder), "--serve", "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    with subprocess.Popen(command, **options) as server:
        assert server.stdout
        try:
            yield next(found[0] for line in server.stdout if (found := re.search(r"http://\S+/", line)))
        finally:
            server.terminate()


def ids(address: str) -> list[str]:
    """What stands for the runs in addresses, by the list's first event."""
    with urllib.request.urlopen(f"{address}runs", timeout=60) as events:
        told = next(line for line in events if line.startswith(b"data: "))
    return [found.decode() for found in re.findall(rb'"id":"(\w+)"', told)]


def timed(address: str, rounds: int) -> list[float]:
    return [seconds(address) for _ in range(rounds)]


def seconds(address: str) -> float:
    started = time.perf_counter()
    with urllib.request.urlopen(address, timeout=60) as answer:
        page = answer.read()
    taken = time.perf_counter() - started
    assert b'class="error"' not in page, page
    return taken


if __name__ == "__main__":
    sys.exit(main())
