"""What bench/engine.py and bench/levers.py share: trainings in turns, each in a process of its own."""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gpu_check
import preparation
from trial import Measure, Trial, Workload

CHILD = Path(__file__).with_name("engine_child.py")

Measures = dict[str, dict[str, list[Measure | None]]]
"""Of each workload, by its name, and each contestant: a measure a round, None where it failed."""


@dataclass(frozen=True)
class Prepared:
    """What the first process found and wrote: device, precision, folders of models, and each workload's counts."""

    device: str
    precision: str
    models: dict[str, str]
    counts: dict[str, list[dict[str, int]]]

    def count(self, workload: Workload, what: str, *, first: int = 0) -> int:
        """The tokens, supervised tokens or attending pairs of the steps from `first` on."""
        return sum(step[what] for step in self.counts[workload.name][first:])

    def shape(self, workload: Workload) -> dict[str, Any]:
        """The model's config.json."""
        text = (Path(self.models[str(workload.layers or "")]) / "config.json").read_text("utf-8")
        shape: dict[str, Any] = json.loads(text)
        return shape


@dataclass(frozen=True)
class Bench:
    """One call of this program: `folder` holds what its processes read and write."""

    folder: Path
    options: argparse.Namespace
    data: list[str]
    pythons: dict[str, Path] = field(default_factory=dict)
    """Of contestants that have an environment of their own."""

    def prepare(self, workloads: Sequence[Workload]) -> Prepared:
        request = {
            "folder": str(self.folder),
            "data": self.data,
            "model": self.options.model,
            "device": self.options.device,
            "is_quick": self.options.quick,
            "steps": self.options.steps,
            "workloads": [asdict(each) for each in workloads],
        }
        done = self.ask("prepare", request)
        if done is None:
            raise SystemExit("the rows could not be prepared")
        return Prepared(**done)

    def ceiling(self, prepared: Prepared, workload: Workload) -> float:
        """The machine's rate at the fastest of the model's matrix products, in operations a second."""
        shape = prepared.shape(workload)
        hidden, intermediate, vocabulary = (
            shape[name] for name in ("hidden_size", "intermediate_size", "vocab_size")
        )
        sizes = [(hidden, intermediate), (intermediate, hidden), (hidden, hidden), (hidden, vocabulary)]
        done = self.ask("ceiling", {"precision": prepared.precision, "device": prepared.device, "sizes": sizes})
        return done["flops"] if done else float("nan")

    def train(self, contestant: str, workload: Workload, prepared: Prepared) -> Measure | None:
        trial = Trial(
            contestant=contestant,
            workload=workload,
            model=prepared.models[str(workload.layers or "")],
            data=str(self.folder / f"{workload.name}.jsonl"),
            warmup=self.options.warmup,
            precision=prepared.precision,  # type: ignore[arg-type]
            device=prepared.device,  # type: ignore[arg-type]
        )
        done = self.ask("train", asdict(trial))
        return None if done is None else Measure(**done)

    def ask(self, task: str, request: dict[str, Any]) -> dict[str, Any] | None:
        """The task's answer, from a process of its own; None, and the end of what it said, if it failed.

        This process stays small: Linux counts the memory of whoever starts a process towards the peak of the started.
        """
        asked, answer, log = (self.folder / name for name in ("request.json", "answer.json", "log"))
        asked.write_text(json.dumps(request), "utf-8")
        answer.unlink(missing_ok=True)
        with log.open("w") as said:
            python = self.pythons.get(request.get("contestant", ""), sys.executable)
            command = [str(python), str(CHILD), task, str(asked), str(answer)]
            done = subprocess.run(command, stdout=said, stderr=said, check=False)
        if done.returncode == 0:
            told: dict[str, Any] = json.loads(answer.read_text("utf-8"))
            return told
        tail = log.read_text(errors="replace").splitlines()[-12:]
        print(f"{request.get('contestant', task)} failed:", *tail, sep="\n  | ", file=sys.stderr)
        return None


def run_in_folder(options: argparse.Namespace, run: Callable[[Bench], int], **pythons: Path) -> int:
    """The run's exit status; its folder is gone behind it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # The process that trains ends too.
    with TemporaryDirectory() as folder:
        given = options.data or [rows_for(options, Path(folder) / "rows.jsonl")]
        return run(Bench(Path(folder), options, [os.path.abspath(path) for path in given], pythons))


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """With what both programs are asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2, help="steps that are not timed")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="keep every single measure here")
    return parser


def settle(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """The options; those of a quick run are fixed."""
    options = parser.parse_args()
    if options.quick:
        vars(options).update({"repeats": 1, "steps": 4, "warmup": 1, **quick})
    if not 1 <= options.warmup < options.steps:
        parser.error("--warmup must be at least 1 and less than --steps")
    return options


def in_turns(
    bench: Bench, workloads: Sequence[Workload], names: Sequence[str], prepared: Prepared, *, rest: Callable[[], None]
) -> Measures:
    """Round by round, every workload, every contestant; each round begins with the `rest`."""
    measures: Measures = {each.name: {name: [] for name in names} for each in workloads}
    for _ in range(bench.options.repeats):
        rest()
        for workload in workloads:
            for name, so_far in measures[workload.name].items():
                so_far.append(bench.train(name, workload, prepared))
                tell_progress(workload, name, so_far[-1])
                keep(bench.options.json, measures)
    return measures


def has_failed(measures: Measures) -> bool:
    return any(None in found for each in measures.values() for found in each.values())


def rows_for(options: argparse.Namespace, path: Path) -> str:
    """Rows of some 200 tokens; of some 90 bytes, each a token of the tiny model."""
    if options.quick:
        gpu_check.made_up(path, 12, range(60))
    else:
        preparation.made_up(path, rows=1_000)
    return str(path)


def keep(file: Path | None, measures: Measures) -> None:
    if file:
        plain = {
            workload: {name: [each and asdict(each) for each in found] for name, found in ways.items()}
            for workload, ways in measures.items()
        }
        file.write_text(json.dumps(plain), "utf-8")


def tell_progress(workload: Workload, name: str, measure: Measure | None) -> None:
    said = "failed" if measure is None else f"{measure.seconds:.1f} s, {measure.peak_bytes / 1e9:.1f} GB"
    print(f"{workload.name} {name}: {said}", file=sys.stderr, flush=True)


def spread(values: Sequence[float], form: str) -> str:
    """The median with its range, right-aligned."""
    low, middle, high = (format(value, form) for value in (min(values), statistics.median(values), max(values)))
    return f"  {f'{middle} ({low}-{high})':>22}"


def late_loss(found: Sequence[Measure]) -> float:
    """The mean loss of the last half of the steps."""
    return statistics.fmean(statistics.fmean(each.losses[len(each.losses) // 2 :]) for each in found)
