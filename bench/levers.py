"""What each lever on memory and speed does: truetune with it beside truetune's defaults, on the same rows.

    .venv/bin/python bench/levers.py [DATA …] [--repeats 3] [--length 512] [--batch 8] [--steps 8]
                                     [--device cpu|cuda] [--levers NAME …] [--quick] [--json FILE]

Without DATA, rows are made up. The model is SmolLM2-135M (`demo`) with LoRA as in bench/engine.py; a step has `batch`
sequences of up to `length` tokens, the loss is the answers'. truetune trains the same steps with its defaults and
with each lever, in turns, each time in a process of its own. engine_truetune.py has the levers: settings, and parts
of truetune that are put out of use in that process, which fails if truetune no longer calls them.

Printed are the defaults' peak memory (resident; on CUDA the allocator's), CPU seconds a step and tokens a second,
then each lever's, as ratios to the defaults of the same round: medians with their range. The loss is the mean of the
last half of the steps, next to the defaults'. On a CPU `slices-512` is the default: what it differs by is noise.
--quick trains a tiny random model in fp32, where memory and speed say nothing, and losses must agree.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from engine_truetune import LEVERS, Lever
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
)
from trial import Measure, Workload

DEFAULTS = "truetune"


def main() -> int:
    return run_in_folder(parsed(), measure)


def parsed() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--length", type=int, default=512, help="of a sequence, in tokens")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--levers", nargs="+", choices=list(LEVERS), default=list(LEVERS))
    return settle(parser, length=256, batch=4)


def measure(bench: Bench) -> int:
    options = bench.options
    workload = Workload(options.length, options.batch, "answers")
    prepared = bench.prepare([workload])
    names = [DEFAULTS, *movable(options.levers, prepared.device)]
    measures = in_turns(bench, [workload], names, prepared, rest=lambda: None)
    rounds = measures[workload.name]
    steps = f"{options.batch} x {options.length} tokens a step"
    print(f"{prepared.device}, {prepared.precision}, {steps}, {options.steps - options.warmup} timed steps")
    tell_defaults([each for each in rounds[DEFAULTS] if each], prepared, workload, first=options.warmup)
    print(f"\n  {'next to the defaults':<18}{'peak memory':>24}{'CPU seconds':>24}{'tokens/s':>24}{'loss':>11}")
    for name in names[1:]:
        tell_lever(name, rounds[name], rounds[DEFAULTS])
    return 1 if has_failed(measures) else 0


def movable(names: Sequence[str], device: str) -> list[str]:
    """The levers that can be pulled here; says which cannot."""
    reasons = {name: reason for name in names if (reason := obstacle(LEVERS[name], device))}
    for name, reason in reasons.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    return [name for name in names if name not in reasons]


def obstacle(lever: Lever, device: str) -> str | None:
    if lever.needs_cuda and device != "cuda":
        return f"it does nothing on {device}"
    return f"{lever.needs} is not installed" if lever.needs and not find_spec(lever.needs) else None


def tell_defaults(found: Sequence[Measure], prepared: Prepared, workload: Workload, *, first: int) -> None:
    if not found:
        return
    tokens, steps = prepared.count(workload, "tokens", first=first), len(prepared.counts[workload.name]) - first
    peak = spread([each.peak_bytes / 1e9 for each in found], ".2f").strip()
    cpu = spread([each.cpu_seconds / steps for each in found], ".3g").strip()
    rate = spread([tokens / each.seconds for each in found], ",.0f").strip()
    print(f"truetune's defaults: {peak} GB, {cpu} CPU seconds a step, {rate} tokens/s, loss {late_loss(found):.5f}")


def tell_lever(name: str, found: Sequence[Measure | None], defaults: Sequence[Measure | None]) -> None:
    """A line of ratios of the same rounds."""
    pairs = [(pulled, usual) for pulled, usual in zip(found, defaults, strict=True) if pulled and usual]
    if not pairs:
        print(f"  {name:<18}  failed")
        return

    def ratios(of: Callable[[Measure], float]) -> str:
        return spread([of(pulled) / of(usual) for pulled, usual in pairs], ".3f")

    peak, cpu = ratios(lambda each: each.peak_bytes), ratios(lambda each: each.cpu_seconds)
    rate = ratios(lambda each: 1 / each.seconds)
    loss = late_loss([pulled for pulled, _ in pairs]) / late_loss([usual for _, usual in pairs]) - 1
    print(f"  {name:<20}{peak}{cpu}{rate}{loss:>+11.3%}  {LEVERS[name].says}")


if __name__ == "__main__":
    sys.exit(main())
