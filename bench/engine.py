"""How fast, and in how much memory, a LoRA training runs: truetune beside plain TRL, on the same rows.

    .venv/bin/python bench/engine.py [DATA …] [--repeats 3] [--lengths 512 2048] [--losses all answers]
                                     [--device cpu|cuda] [--contestants NAME …] [--grow] [--quick] [--json FILE]

Without DATA, rows are made up. The model is SmolLM2-135M (`demo`) with LoRA, r 16 and alpha 16 on all linear layers.
truetune prepares the rows once and packs them; every contestant then trains on the same samples, step for step:
2,048 tokens a step, learning rate 2e-4, gradients clipped to 1.0, fused AdamW, the same seed. Contestants run in
turns, each time in a process of its own:

    guide       TRL as the guide has it: fp32, padded rows, four at a time
    trl         TRL's defaults: bf16 autocast, packs, gradient checkpointing
    trl-best    TRL's fastest settings that were found; engine_trl.py has those that were tried, and why
    truetune    truetune with whatever it decides by itself

Printed are medians over the repeats, with their range: real tokens per second of the timed steps (the first steps
are not), CPU seconds a step (which say more than the clock where other work runs beside), peak memory (resident; on
CUDA the allocator's), and how far the mean loss of the last half of the steps is off trl-best's. The guide's fp32
learns more in the first steps than anybody's bf16: there it is 2 to 4 % below, and all agree to a millionth in fp32.

The ceiling is the rate of the matrix products alone, were they as fast as the model's own MLP products (2,048 x
hidden by hidden x intermediate) are here by themselves, in bf16 where the hardware has it. A token costs

    layers x (4 W + 6 A) + 4 hidden x vocabulary x S + 12 layers x heads x head_dim x C    operations,

W the frozen weights of a layer's linear maps (2 operations forward, 2 for the gradient of their input), A the
adapter's weights in a layer, r x (in + out) of each map (2 forward, 4 backward), S the share of supervised tokens,
C the tokens that a token attends to on average (scores and mixed values, 4 forward, 8 backward).

--grow prints, for truetune and trl-best, how a step's time grows with the packs' length, the samples' length, the
tokens of a batch and the layers. --quick trains a tiny random model in fp32, where all losses must agree.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gpu_check
import preparation
from engine_trl import CONTESTANTS, EXTRA, LORA, Measure, Trial, Workload

CHILD = Path(__file__).with_name("engine_trl.py")
REFERENCE = "trl-best"


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
        """The machine's rate of matrix products, in operations a second."""
        shape = prepared.shape(workload)
        sizes = {"hidden": shape["hidden_size"], "intermediate": shape["intermediate_size"]}
        done = self.ask("ceiling", {"precision": prepared.precision, "device": prepared.device, **sizes})
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
            command = [sys.executable, str(CHILD), task, str(asked), str(answer)]
            done = subprocess.run(command, stdout=said, stderr=said, check=False)
        if done.returncode == 0:
            told: dict[str, Any] = json.loads(answer.read_text("utf-8"))
            return told
        tail = log.read_text(errors="replace").splitlines()[-12:]
        print(f"{request.get('contestant', task)} failed:", *tail, sep="\n  | ", file=sys.stderr)
        return None


def main() -> int:
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # The process that trains ends too.
    with tempfile.TemporaryDirectory() as folder:
        given = options.data or [rows_for(options, Path(folder) / "rows.jsonl")]
        bench = Bench(Path(folder), options, [os.path.abspath(path) for path in given])
        return grow(bench) if options.grow else compare(bench)


def rows_for(options: argparse.Namespace, path: Path) -> str:
    """Rows of some 200 tokens; of some 90 bytes, each a token of the tiny model."""
    if options.quick:
        gpu_check.made_up(path, 12, range(60))
    else:
        preparation.made_up(path, rows=1_000)
    return str(path)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2, help="steps that are not timed")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--losses", nargs="+", choices=["all", "answers"], default=["all", "answers"])
    parser.add_argument("--tokens", type=int, default=2048, help="per optimizer step")
    parser.add_argument("--contestants", nargs="+", choices=[*CONTESTANTS, *EXTRA], default=list(CONTESTANTS))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--grow", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="keep every single measure here")
    options = parser.parse_args()
    if options.quick:
        quick = {"repeats": 1, "steps": 4, "warmup": 1, "lengths": [256], "tokens": 1024, "losses": ["answers"]}
        vars(options).update(quick)
    if not 1 <= options.warmup < options.steps:
        parser.error("--warmup must be at least 1 and less than --steps")
    if options.quick and options.grow:
        parser.error("--grow has no quick form: its axes are the real model's")
    return options


# Contestants side by side.


def compare(bench: Bench) -> int:
    options = bench.options
    workloads = [
        Workload(length, max(options.tokens // length, 1), loss)
        for length in options.lengths
        for loss in options.losses
    ]
    prepared = bench.prepare(workloads)
    rates: list[float] = []
    measures: dict[str, dict[str, list[Measure | None]]] = {
        each.name: {name: [] for name in options.contestants} for each in workloads
    }
    for _ in range(options.repeats):
        rates.append(bench.ceiling(prepared, workloads[0]))
        for workload in workloads:
            for name, so_far in measures[workload.name].items():
                so_far.append(bench.train(name, workload, prepared))
                tell_progress(workload, name, so_far[-1])
                keep(options.json, measures)
    print(f"{', '.join(Path(path).name for path in bench.data)}, {prepared.device}, {os.cpu_count()} cores")
    print(f"matrix products: {statistics.median(rates) / 1e9:,.0f} GFLOP/s in {prepared.precision}")
    for workload in workloads:
        tell_workload(workload, prepared, statistics.median(rates), measures[workload.name], first=options.warmup)
    has_failed = any(None in found for each in measures.values() for found in each.values())
    return 1 if has_failed else 0


def keep(file: Path | None, measures: dict[str, dict[str, list[Measure | None]]]) -> None:
    if file:
        plain = {
            workload: {name: [each and asdict(each) for each in found] for name, found in ways.items()}
            for workload, ways in measures.items()
        }
        file.write_text(json.dumps(plain), "utf-8")


def tell_progress(workload: Workload, name: str, measure: Measure | None) -> None:
    said = "failed" if measure is None else f"{measure.seconds:.1f} s, {measure.peak_bytes / 1e9:.1f} GB"
    print(f"{workload.name} {name}: {said}", file=sys.stderr, flush=True)


def tell_workload(
    workload: Workload,
    prepared: Prepared,
    flops: float,
    measures: dict[str, list[Measure | None]],
    *,
    first: int,
) -> None:
    """The table of one workload, and truetune's ratios to each other contestant."""
    tokens = prepared.count(workload, "tokens", first=first)
    steps = len(prepared.counts[workload.name]) - first
    ceiling = flops / operations_per_token(workload, prepared, first=first)
    finished = {name: [each for each in found if each] for name, found in measures.items()}
    finished = {name: found for name, found in finished.items() if found}
    print(
        f"\nloss on {workload.loss}, packed to {workload.max_length:,}: {tokens / steps:,.0f} tokens a step, "
        f"ceiling {ceiling:,.0f} tokens/s"
    )
    print(f"  {'':<18}{'tokens/s':>24}{'of ceiling':>12}{'CPU-s a step':>24}{'peak GB':>24}{'loss off':>11}")
    for name, found in finished.items():
        rates = [tokens / each.seconds for each in found]
        print(
            f"  {name:<18}{spread(rates, ',.0f')}{statistics.median(rates) / ceiling:>12.1%}"
            f"{spread([each.cpu_seconds / steps for each in found], '.3g')}"
            f"{spread([each.peak_bytes / 1e9 for each in found], '.2f')}{loss_off(found, finished):>11}"
        )
    for name, found in finished.items():
        if name != "truetune" and "truetune" in finished:
            tell_ratios(name, found, finished["truetune"])


def spread(values: Sequence[float], form: str) -> str:
    """The median with its range, right-aligned."""
    low, middle, high = (format(value, form) for value in (min(values), statistics.median(values), max(values)))
    return f"  {f'{middle} ({low}-{high})':>22}"


def loss_off(found: Sequence[Measure], finished: dict[str, list[Measure]]) -> str:
    """The late losses next to the reference's."""
    if REFERENCE not in finished:
        return "-"
    return f"{late_loss(found) / late_loss(finished[REFERENCE]) - 1:+.3%}"


def late_loss(found: Sequence[Measure]) -> float:
    """The mean loss of the last half of the steps."""
    return statistics.fmean(statistics.fmean(each.losses[len(each.losses) // 2 :]) for each in found)


def tell_ratios(name: str, other: Sequence[Measure], ours: Sequence[Measure]) -> None:
    """Ratios of neighbouring runs."""
    pairs = list(zip(other, ours, strict=False))
    by_clock, by_cpu, memory = (
        spread([a / b for a, b in values], ".2f").strip()
        for values in (
            [(theirs.seconds, mine.seconds) for theirs, mine in pairs],
            [(theirs.cpu_seconds, mine.cpu_seconds) for theirs, mine in pairs],
            [(mine.peak_bytes, theirs.peak_bytes) for theirs, mine in pairs],
        )
    )
    print(f"  truetune next to {name}: {by_clock} times as fast, {by_cpu} by CPU seconds, {memory} of its memory")


def operations_per_token(workload: Workload, prepared: Prepared, *, first: int) -> float:
    """Of the training of a Llama's adapter, averaged over the workload's timed steps: the formula above."""
    shape, tokens = prepared.shape(workload), prepared.count(workload, "tokens", first=first)
    hidden, heads, layers = shape["hidden_size"], shape["num_attention_heads"], shape["num_hidden_layers"]
    wide = heads * (shape.get("head_dim") or hidden // heads)
    narrow = wide * shape["num_key_value_heads"] // heads
    up = shape["intermediate_size"]
    maps = [
        (hidden, wide),
        (hidden, narrow),
        (hidden, narrow),
        (wide, hidden),
        (hidden, up),
        (hidden, up),
        (up, hidden),
    ]
    frozen = sum(inside * outside for inside, outside in maps)
    adapter = LORA["r"] * sum(inside + outside for inside, outside in maps)
    supervised = prepared.count(workload, "supervised", first=first) / tokens
    attended = prepared.count(workload, "pairs", first=first) / tokens
    head = 4 * hidden * shape["vocab_size"] * supervised
    return layers * (4 * frozen + 6 * adapter) + head + 12 * layers * wide * attended


# How time grows.


def grown() -> dict[str, list[Workload]]:
    """The workloads along each axis, in ascending order."""
    usual = Workload(512, 4, "answers")
    lengths = [(256, 8), (512, 4), (1024, 2), (2048, 1)]
    return {
        "packs' length, 2,048 tokens a step": [Workload(length, batch, "answers") for length, batch in lengths],
        "samples' length, 2,048 tokens a step": [
            Workload(length, batch, "answers", is_whole=True) for length, batch in lengths
        ],
        "sequences of 512 a step": [replace(usual, batch=batch) for batch in (1, 2, 4, 8)],
        "layers, 4 sequences of 512 a step": [replace(usual, layers=layers) for layers in (6, 12, 24, 30)],
    }


def grow(bench: Bench) -> int:
    """Median seconds per 1,000 tokens along each axis."""
    axes = grown()
    names = [name for name in bench.options.contestants if name in ("truetune", REFERENCE)]
    workloads = list(dict.fromkeys(each for axis in axes.values() for each in axis))
    prepared = bench.prepare(workloads)
    seconds: dict[tuple[str, Workload], list[float]] = {}
    for _ in range(bench.options.repeats):
        for workload in workloads:
            for name in names:
                measure = bench.train(name, workload, prepared)
                tell_progress(workload, name, measure)
                if measure:
                    seconds.setdefault((name, workload), []).append(measure.seconds)
    for title, axis in axes.items():
        print(f"\n{title}: ms a token ({', '.join(names)}), and the growth of a step's time from the line before")
        for name in names:
            tell_axis(name, axis, prepared, seconds, first=bench.options.warmup)
    return 0


def tell_axis(
    name: str,
    axis: Sequence[Workload],
    prepared: Prepared,
    seconds: dict[tuple[str, Workload], list[float]],
    *,
    first: int,
) -> None:
    before = None
    for workload in axis:
        found = seconds.get((name, workload))
        if not found:
            continue
        tokens = prepared.count(workload, "tokens", first=first)
        step = statistics.median(found) / (len(prepared.counts[workload.name]) - first)
        growth = f"x{step / before:.2f}" if before else ""
        depth = f" {workload.layers} layers" if workload.layers else ""
        each = [value / tokens * 1000 for value in found]
        print(f"  {name:<10}{f'{workload.batch} x {workload.max_length}{depth}':<22}{spread(each, '.2f')}{growth:>8}")
        before = step


if __name__ == "__main__":
    sys.exit(main())
