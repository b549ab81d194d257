"""What preparation gains by several processes, on the same rows, one after the other in each round.

    .venv/bin/python bench/preparing.py [DATA …] [--processes 2] [--rounds 5] [--model demo]

Without DATA rows are made up. Every preparation starts with an empty cache, and is whole: it reads, checks, renders,
tokenizes, masks, looks for near duplicates, splits and writes. One process has one thread, as each of several has
(truetune itself lets a process that is alone tokenize on all cores). Ratios are of neighbours in a round, as median
and range.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

sys.path.insert(0, str(Path(__file__).parent))

from preparation import made_up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for path in options.data or [made_up(Path(folder) / "rows.jsonl", rows=options.rows)]:
            compare(Path(path), options)


def compare(path: Path, options: argparse.Namespace) -> None:
    from truetune.model.source import resolve_model
    from truetune.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve_model(options.model))
    seconds: dict[int, list[float]] = {1: [], options.processes: []}
    rows = 0
    for number in range(options.rounds + 1):
        for processes, values in seconds.items() if number % 2 else reversed(seconds.items()):
            taken, rows = prepared(path, options.model, tokenizer, processes)
            if number:  # The first round warms up.
                values.append(taken)
    print(f"{path.name}: {rows:,} rows, {options.rounds} rounds, {os.cpu_count()} cores")
    for processes, values in seconds.items():
        middle = statistics.median(values)
        spread = f"{min(values):.2f}-{max(values):.2f}"
        print(f"  {processes} processes: {middle:6.2f} s ({spread}), {rows / middle:,.0f} rows/s")
    ratios = [one / more for one, more in zip(seconds[1], seconds[options.processes], strict=True)]
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    print(f"  {options.processes} are {statistics.median(ratios):.2f} times as fast ({spread})")


def prepared(path: Path, model: str, tokenizer: Any, processes: int) -> tuple[float, int]:
    """The seconds that it takes, and the rows that were read."""
    from truetune.config.load import load_config
    from truetune.pipeline.prepare import prepare_rows

    settings = {"model.name_or_path": model, "data.path": str(path), "data.num_proc": processes}
    config = load_config(None, settings=settings).config
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRUETUNE_CACHE"] = cache
        started = time.perf_counter()
        rows = prepare_rows(config, tokenizer=tokenizer).report.rows_read
        return time.perf_counter() - started, rows


if __name__ == "__main__":
    sys.exit(main())
