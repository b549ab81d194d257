"""What a stream costs and saves: tokens a second, memory and disk beside a training on rows that are all prepared.

    .venv/bin/python bench/streaming.py [--model demo] [--rows 2000] [--steps 12] [--rounds 3]

Each round trains the same steps both ways on so many rows, and on ten times as many, each time in a process of its
own with a cache of its own. Ratios are of neighbours in a round, as median and range. `in all` is all that the
command takes, preparation, loading and saving included; `disk` is the most that the cache held, `memory` the peak
of the training process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

PROGRAM = """
import json, sys
import truetune
settings = json.loads(sys.argv[1])
truetune.train(**settings)
"""
_LOOKS = 0.1
"""Seconds between two looks at the disk."""


@dataclass(frozen=True)
class Trained:
    """Tokens a second of the steps, waits for rows included; seconds to the end; bytes at the peak."""

    rate: float
    seconds: float
    memory: int
    disk: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--block", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for rows in (options.rows, 10 * options.rows):
            compare(written(folder / f"{rows}.jsonl", rows=rows), rows, folder, options)


def compare(data: Path, rows: int, folder: Path, options: argparse.Namespace) -> None:
    found: dict[bool, list[Trained]] = {True: [], False: []}
    for number in range(options.rounds):
        for is_streamed in (True, False) if number % 2 else (False, True):
            found[is_streamed].append(trained(data, folder, options, is_streamed=is_streamed))
    print(f"{rows:,} rows, {options.steps} steps, blocks of {options.block:,}, {options.rounds} rounds")
    for is_streamed, name in ((False, "prepared"), (True, "streamed")):
        runs = found[is_streamed]
        rate, seconds = (statistics.median(getattr(each, what) for each in runs) for what in ("rate", "seconds"))
        memory, disk = (max(getattr(each, what) for each in runs) / 1e6 for what in ("memory", "disk"))
        print(f"  {name}: {rate:,.0f} tokens/s, {seconds:.1f} s in all, {memory:,.0f} MB memory, {disk:,.1f} MB disk")
    pairs = list(zip(found[True], found[False], strict=True))
    told("rate", [streamed.rate / prepared.rate for streamed, prepared in pairs])
    told("time", [streamed.seconds / prepared.seconds for streamed, prepared in pairs])


def told(what: str, ratios: list[float]) -> None:
    print(f"  {what} streamed / prepared: {statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})")


def trained(data: Path, folder: Path, options: argparse.Namespace, *, is_streamed: bool) -> Trained:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        cache, run = Path(place) / "cache", Path(place) / "run"
        cache.mkdir()
        settings = {
            "model": options.model,
            "data": str(data),
            "output_dir": str(run),
            "max_steps": options.steps,
            "max_length": 1024,
            "test_size": 0,
            "save_strategy": "no",
            "streaming": is_streamed,
            "shuffle_buffer_size": options.block,
        }
        started = time.perf_counter()
        with Watched(cache) as watched:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, json.dumps(settings)],
                env={**os.environ, "TRUETUNE_CACHE": str(cache)},
                check=False,
                capture_output=True,
                text=True,
            )
        if done.returncode:
            sys.exit(done.stderr)
        seconds = time.perf_counter() - started
        record = json.loads((run / "run.json").read_text())
        return Trained(record["tokens"] / record["seconds"], seconds, record["peak_memory_bytes"], watched.most)


class Watched(threading.Thread):
    """Looks at a folder while it lasts, and keeps the most bytes that it held."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._is_over = threading.Event()
        self.most = 0

    def run(self) -> None:
        while not self._is_over.wait(_LOOKS):
            self.most = max(self.most, held(self._folder))

    def __enter__(self) -> "Watched":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join()


def held(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_size
            except FileNotFoundError:  # It is gone by now.
                continue
    return total


def written(path: Path, *, rows: int) -> Path:
    """Rows of some 150 tokens."""
    words = [
        "the",
        "train",
        "to",
        "Oslo",
        "leaves",
        "at",
        "seven",
        "from",
        "platform",
        "two",
        "and",
        "takes",
        "hours",
    ]

    def text(seed: int, length: int) -> str:
        return " ".join(words[(seed * 7 + place * (seed % 11 + 1)) % len(words)] for place in range(length))

    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            row = {"instruction": text(n, 40 + n % 30), "output": f"{text(n + 1, 60 + n % 40)} {n}"}
            file.write(json.dumps(row) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
