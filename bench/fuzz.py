"""Coverage-guided fuzzing of all that reads what people hand in: whatever comes is read, or refused in our own words.

    make fuzz [SECONDS=600]
    .venv/bin/python bench/fuzz.py [--seconds 600] [--target readers …] [--keep DIR] [--list]

Each target (fuzz_targets.py) gets its share of the seconds, in a process of its own. libFuzzer, through atheris,
changes the seeds and keeps what reaches a new branch of truetune or ruamel.yaml; it begins with what --keep holds of
earlier runs. An input at which anything but a TruetuneError is raised, which takes over 20 s or 3 GB, is a finding:
it is written into DIR, once for each place that raises, and told with its traceback. Exit status 1 if there was any.
Needs atheris (pip install atheris), which has wheels for Linux.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TARGETS = Path(__file__).with_name("fuzz_targets.py")
NAMES = ("readers", "tables", "rows", "lint", "templates", "config", "settings", "imports", "scripts", "runs")
_GRACE = 600
"""Seconds that a target may take to load, and to end."""
_LAST = re.compile(rb"#(\d+)\s.*?cov: (\d+) ft: (\d+) corp: (\d+)")


@dataclass(frozen=True)
class Fuzzed:
    """What came of a target: inputs tried, branches reached at the first and at the last, findings by their file."""

    name: str
    executions: int
    first: int
    branches: int
    corpus: int
    findings: tuple[Path, ...]


def main() -> int:
    options = parsed()
    if options.list:
        print("\n".join(NAMES))
        return 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        place = options.keep or Path(temporary)
        share = options.seconds / len(options.target)
        found = [fuzzed(name, place / name, seconds=share) for name in options.target]
        tell(found)
    return 1 if any(each.findings for each in found) else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--target", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--keep", type=Path, help="a folder for corpus and findings, which are else removed")
    parser.add_argument("--list", action="store_true", help="name the targets")
    return parser.parse_args()


def fuzzed(name: str, folder: Path, *, seconds: float) -> Fuzzed:
    """Runs one target."""
    corpus, findings = folder / "corpus", folder / "findings"
    for each in (corpus, findings):
        each.mkdir(parents=True, exist_ok=True)
    limits = ["-timeout=20", "-rss_limit_mb=3000", f"-max_total_time={seconds:.0f}", "-max_len=4096"]
    command = [
        sys.executable,
        str(_TARGETS),
        name,
        str(findings),
        *limits,
        f"-artifact_prefix={findings}/",
        str(corpus),
    ]
    done = subprocess.run(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, timeout=seconds + _GRACE, check=False
    )
    lines = _LAST.findall(done.stderr)
    if not lines:
        sys.exit(f"{name} did not start:\n{done.stderr.decode(errors='replace')[-2000:]}")
    executions, branches, _, kept = map(int, lines[-1])
    if done.returncode:
        (findings / "end.txt").write_bytes(done.stderr[-8000:])
    found = tuple(sorted(findings.glob("*.txt")))
    return Fuzzed(name, executions, int(lines[0][1]), branches, kept, found)


def tell(found: Iterable[Fuzzed]) -> None:
    print(f"{'target':<10} {'executions':>10} {'branches':>8} {'at first':>8} {'corpus':>7} {'findings':>8}")
    for each in found:
        counts = (
            f"{each.executions:>10,} {each.branches:>8,} {each.first:>8,} {each.corpus:>7,} {len(each.findings):>8}"
        )
        print(f"{each.name:<10} {counts}")
        for path in each.findings:
            print(f"\n--- {path}\n{path.read_text(errors='replace')}")


if __name__ == "__main__":
    sys.exit(main())
