"""How memory grows with the rows: the peak of preparing 100,000 and 1,000,000, each in a process of its own.

.venv/bin/python bench/preparation_memory.py [--rows 100000 1000000] [--model demo]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

PROGRAM = """
import json, resource, sys, time
from pathlib import Path
from truetune.config.load import load_config
from truetune.data.packing import pack
from truetune.model.source import resolve_model
from truetune.model.tokenizer import load_tokenizer
from truetune.pipeline.prepare import prepare_rows
path, model = sys.argv[1:]
config = load_config(None, settings={"model.name_or_path": model, "data.path": path}).config
tokenizer = load_tokenizer(resolve_model(model))
def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
start = time.perf_counter()
prepared = prepare_rows(config, tokenizer=tokenizer)
seconds = time.perf_counter() - start
peak, worker = (resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
pack(prepared.train, max_length=2048)
print(json.dumps({"seconds": seconds, "peak": peak, "worker": worker, "private_at_the_end": private()}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    from truetune.model.source import resolve_model

    model = resolve_model(options.model).path  # Unpacked here, where its memory does not count.
    peaks = {}
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "rows.jsonl"
            with data.open("w", encoding="utf-8") as file:
                for n in range(rows):
                    file.write(json.dumps({"instruction": f"Add {n} and {n + 1}.", "output": str(2 * n + 1)}) + "\n")
            environment = {**os.environ, "TRUETUNE_CACHE": folder}
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, str(data), model],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            )
        found = json.loads(done.stdout)
        peaks[rows] = found["peak"]
        print(
            f"{rows:>9,} rows: peak {found['peak'] / 1e6:,.0f} MB resident (mapped files included), "
            f"{found['worker'] / 1e6:,.0f} MB the largest worker (what it shares with its parent included), "
            f"{found['private_at_the_end'] / 1e6:,.0f} MB private at the end, {rows / found['seconds']:,.0f} rows/s"
        )
    (few, low), *_, (many, high) = sorted(peaks.items())
    print(
        f"peak of {many:,} rows / of {few:,}: {high / low:.2f}; {(high - low) / (many - few):,.0f} bytes a row more"
    )


if __name__ == "__main__":
    sys.exit(main())
