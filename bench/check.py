"""How fast `truetune check` is: from the command's start, by rows, and by rule.

    python bench/check.py [DATA]            rows of DATA (else $TRUETUNE_DATA, else made here), repeated with changes
    python bench/check.py DATA --rows 1000 100000 1000000 --rules 2000

The measures: 1,000 rows in 1 s from the command's start, 100,000 in 20 s with near duplicates, 1,000,000 in ten times
that. Peak memory is that of the command and its processes together.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

LIMITS = {1_000: 1.0, 100_000: 20.0, 1_000_000: 200.0}


def made_rows() -> list[dict[str, Any]]:
    """Rows of about the length that instruction data has, for machines without any."""
    chance = random.Random(0)
    syllables = [a + b for a in "bdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "ar", "en", "ist", "or")]
    vocabulary = ["".join(chance.choices(syllables, k=chance.randrange(1, 4))) for _ in range(8_000)]

    def prose(words: int) -> str:
        return " ".join(chance.choices(vocabulary, k=words)).capitalize() + "."

    return [{"instruction": prose(20), "output": prose(chance.randrange(10, 110))} for _ in range(5_000)]


def rows_of(path: Path | None) -> list[dict[str, Any]]:
    if path is None:
        return made_rows()
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]


def grown(rows: Sequence[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """The rows, and behind them copies in which every fourth word is another; one of fifty is a near duplicate."""
    chance = random.Random(1)
    words = sorted(
        {word for row in rows[:500] for value in row.values() if isinstance(value, str) for word in value.split()}
    )
    for number in range(count):
        row = rows[number % len(rows)]
        if number < len(rows):
            yield row
            continue
        share = 0.01 if chance.random() < 0.02 else 0.25
        yield {
            name: " ".join(chance.choice(words) if chance.random() < share else word for word in value.split(" "))
            if isinstance(value, str)
            else value
            for name, value in row.items()
        }


def written(rows: Sequence[dict[str, Any]], count: int, folder: Path) -> Path:
    path = folder / f"{count}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in grown(rows, count):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def checked(path: Path, *words: str) -> tuple[float, float, dict[str, Any]]:
    """Seconds from the command's start to its end, peak memory in MB, and the report."""
    command = [sys.executable, "-m", "truetune", "check", str(path), "--json", *words]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    return time.perf_counter() - started, peak[0] / 1e6, json.loads(output)


def _watch(pid: int, peak: list[float]) -> None:
    """The largest sum of proportional set sizes: pages that processes share count once."""
    try:
        root = psutil.Process(pid)
        while True:
            family = [root, *root.children(recursive=True)]
            peak[0] = max(peak[0], sum(each.memory_full_info().pss for each in family))
            time.sleep(0.2)
    except psutil.Error:
        return


def by_size(rows: Sequence[dict[str, Any]], sizes: Sequence[int], folder: Path, repeats: int) -> None:
    print("rows        seconds (all runs)            rows/s   peak MB  near duplicates   limit")
    for count in sizes:
        path = written(rows, count, folder)
        runs = [checked(path) for _ in range(repeats if count <= 100_000 else 1)]
        seconds = sorted(each[0] for each in runs)
        middle = seconds[len(seconds) // 2]
        found = runs[0][2]["found"].get("near-duplicates", 0)
        spread = " ".join(f"{each:.2f}" for each in seconds)
        limit = f"{LIMITS[count]:g} s" if count in LIMITS else ""
        megabytes = max(each[1] for each in runs)
        print(f"{count:<10,}  {middle:6.2f} ({spread})".ljust(42), end="")
        print(f"{count / middle:8,.0f}  {megabytes:8,.0f}  {found:15,}   {limit}", flush=True)
        path.unlink()


def by_rule(rows: Sequence[dict[str, Any]], count: int) -> None:
    """Each rule by itself, on rows that are read already."""
    import numpy as np

    from truetune.data.examples import Location, Record
    from truetune.data.formats import parse_example
    from truetune.data.near import NearIndex
    from truetune.lint import whole
    from truetune.lint.languages import language_of
    from truetune.lint.parts import parts_of, spoken
    from truetune.lint.sketch import SketchedRow, near_sketched, sketched
    from truetune.lint.texts import TEXT_RULES
    from truetune.lint.turns import turn_findings

    records = [Record(row, Location("bench", line)) for line, row in enumerate(grown(rows, count), start=1)]
    examples = _timed("read as examples", count, lambda: [parse_example(record) for record in records])
    parts = _timed("texts of examples", count, lambda: [parts_of(example) for example in examples])
    for name, look in TEXT_RULES.items():
        _timed(name, count, lambda look=look: [next(look(each), None) for each in parts])
    if hasattr(examples[0], "messages"):
        _timed("turn rules", count, lambda: [list(turn_findings(example)) for example in examples])
    _timed("language", count, lambda: [language_of(spoken(each)) for each in parts])
    read = [
        SketchedRow(example, each, 0, line)
        for line, (example, each) in enumerate(zip(examples, parts, strict=True), start=1)
    ]
    sketches = _timed("sketch", count, lambda: sketched(read, with_languages=False))
    near = _timed("word triples", count, lambda: near_sketched(parts))
    index = NearIndex()
    index.add(near)
    pairs = _timed("near pairs", count, index.pairs)
    index.close()

    def where(row: int) -> Location:
        return Location("bench", row)

    is_held_out = np.zeros(count, np.bool_)
    for name, find in {
        "duplicates": lambda: whole.duplicates(sketches, where, is_held_out=is_held_out),
        "near duplicates": lambda: whole.near_duplicates(sketches, pairs, where, is_held_out=is_held_out),
        "contradictions": lambda: whole.contradictions(sketches, where),
        "leaks": lambda: whole.leaks(sketches, pairs, where, is_held_out=is_held_out),
        "languages": lambda: whole.strange_languages(sketches, where),
        "lengths": lambda: whole.strange_lengths(sketches, where),
        "same answers": lambda: whole.same_answers(sketches, where),
    }.items():
        _timed(name, count, lambda find=find: list(find()))


def _timed(name: str, count: int, work: Any) -> Any:
    started = time.perf_counter()
    made = work()
    seconds = max(time.perf_counter() - started, 1e-6)
    print(f"{name:<20} {count / seconds:14,.0f} rows/s", flush=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--rows", nargs="*", type=int, default=[1_000, 100_000])
    parser.add_argument("--rules", type=int, default=5_000, help="rows to time each rule on; 0: none")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    given = options.data or os.environ.get("TRUETUNE_DATA")
    options.data = Path(given) if given else None
    rows = rows_of(options.data)
    characters = sum(len(value) for row in rows for value in row.values() if isinstance(value, str)) / len(rows)
    name = options.data.name if options.data else "made rows"
    print(f"{name}: {characters:.0f} characters a row, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        by_size(rows, options.rows, Path(folder), options.repeats)
    if options.rules:
        by_rule(rows, options.rules)


if __name__ == "__main__":
    main()
