"""How fast, and in how much memory, a LoRA training runs: truetune beside plain TRL, on the same rows.

    .venv/bin/python bench/engine.py [DATA …] [--repeats 3] [--lengths 512 2048] [--losses all answers]
                                     [--device cpu|cuda] [--contestants NAME …] [--llamafactory DIR]
                                     [--grow] [--quick] [--json FILE]

Without DATA, rows are made up. The model is SmolLM2-135M (`demo`) with LoRA, r 16 and alpha 16 on all linear layers.
truetune prepares the rows once and packs them; every contestant then trains on the same samples, step for step:
2,048 tokens a step, learning rate 2e-4, gradients clipped to 1.0, fused AdamW, the same seed. Contestants run in
turns, each time in a process of its own:

    guide       TRL as the guide has it: fp32, padded rows, four at a time
    trl         TRL's defaults: bf16 autocast, packs, gradient checkpointing
    trl-best    TRL's fastest settings that were found; engine_trl.py has those that were tried, and why
    truetune    truetune with whatever it decides by itself
    compiled    truetune with `training.torch_compile`, which is its own choice in long full fine-tunings;
                on request only. Compiling belongs to the first step, which is not timed
    llamafactory  LLaMA-Factory 0.9.5 with neat_packing, in the environment DIR that bench/llamafactory.sh makes

Printed are medians over the repeats, with their range: real tokens per second of the timed steps (the first steps
are not), CPU seconds a step (which say more than the clock where other work runs beside), peak memory (resident; on
CUDA the allocator's), and how far the mean loss of the last half of the steps is off trl-best's. The guide's fp32
learns more in the first steps than anybody's bf16: there it is 2 to 4 % below, and all agree to a millionth in fp32.

The ceiling is the rate of the matrix products alone, were they all as fast as the fastest of the model's own (MLP,
attention and output layer, of 2,048 tokens each) is here by itself, in bf16 where the hardware has it. A token costs

    layers x (4 W + 6 A) - 2 Q + 4 hidden x vocabulary x S + 12 layers x heads x head_dim x C    operations,

W the frozen weights of a layer's linear maps (2 operations forward, 2 for the gradient of their input), A the
adapter's weights in a layer, r x (in + out) of each map (2 forward, 4 backward), Q the weights of the first layer's
queries, keys and values, whose input needs no gradient, S the share of supervised tokens, C the tokens that a token
attends to on average (scores and mixed values, 4 forward, 8 backward).

--grow prints, for truetune and trl-best, how a step's time grows with the packs' length, the samples' length, the
tokens of a batch and the layers. --quick trains a tiny random model in fp32, where all losses must agree.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine_trl import EXTRA, TRL
from side_by_side import (
    Bench,
    Prepared,
    has_failed,
    in_turns,
    late_loss,
    parser_of,
    run_in_folder,
    settle,
    spread,
    tell_progress,
)
from trial import LORA, Measure, Workload

REFERENCE = "trl-best"
COMPILED = "compiled"
"""truetune with its layers compiled; on request only."""
CHECKED = ("truetune", "llamafactory")
"""Contestants that get their rows in a form of their own, and count what they compute."""


def main() -> int:
    options = parsed()
    run = grow if options.grow else compare
    if options.llamafactory is None:
        return run_in_folder(options, run)
    options.contestants = list(dict.fromkeys([*options.contestants, "llamafactory"]))
    return run_in_folder(options, run, llamafactory=options.llamafactory.absolute() / "bin" / "python")


def parsed() -> argparse.Namespace:
    parser, usual = parser_of(__doc__), [*TRL, "truetune"]
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--losses", nargs="+", choices=["all", "answers"], default=["all", "answers"])
    parser.add_argument("--tokens", type=int, default=2048, help="per optimizer step")
    parser.add_argument("--contestants", nargs="+", choices=[*usual, *EXTRA, COMPILED], default=usual)
    parser.add_argument("--llamafactory", type=Path, metavar="DIR", help="environment of bench/llamafactory.sh")
    parser.add_argument("--grow", action="store_true")
    options = settle(parser, lengths=[256], tokens=1024, losses=["answers"])
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

    def measure_ceiling() -> None:
        rates.append(bench.ceiling(prepared, workloads[0]))

    measures = in_turns(bench, workloads, options.contestants, prepared, rest=measure_ceiling)
    print(f"{', '.join(Path(path).name for path in bench.data)}, {prepared.device}, {os.cpu_count()} cores")
    print(f"matrix products: {statistics.median(rates) / 1e9:,.0f} GFLOP/s in {prepared.precision}")
    for workload in workloads:
        tell_workload(workload, prepared, statistics.median(rates), measures[workload.name], first=options.warmup)
    return 1 if has_failed(measures) else 0


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
    for name in CHECKED:
        if name in finished:
            tell_counts(name, finished[name], prepared, workload)


def loss_off(found: Sequence[Measure], finished: dict[str, list[Measure]]) -> str:
    """The late losses next to the reference's."""
    if REFERENCE not in finished:
        return "-"
    return f"{late_loss(found) / late_loss(finished[REFERENCE]) - 1:+.3%}"


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


def tell_counts(name: str, found: Sequence[Measure], prepared: Prepared, workload: Workload) -> None:
    """What the contestant itself counted next to what was prepared, and its losses: a wrong comparison shows here."""
    counted = found[-1].counted
    wanted = {what: prepared.count(workload, what) for what in counted}
    numbers = ", ".join(f"{number:,} {what}" for what, number in counted.items())
    verdict = "as prepared" if counted and counted == wanted else f"NOT WHAT WAS PREPARED: {wanted}"
    print(f"  {name} counted {numbers}: {verdict}; late loss {late_loss(found):.5f}")


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
    unneeded = 2 * hidden * (wide + 2 * narrow)
    return layers * (4 * frozen + 6 * adapter) - unneeded + head + 12 * layers * wide * attended


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
