"""How long `truetune report` takes for a long run, how large its page is, and how it behaves in a browser.

    python bench/report.py                  a made-up run of 100,000 steps, each of them logged
    python bench/report.py --steps 1000000

The measures: 100,000 steps in 5 s from the command's start, in under 2 MB, and no extreme of a curve is lost. Where
Chromium is installed, the page's first paint in it under 1 s, and curves that are drawn anew, all of them, in under
33 ms at each step of a zoom: 30 pictures a second.
"""

import argparse
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from browser import chromium, measured_in

SECONDS, BYTES = 5.0, 2_000_000
PAINT, REDRAW = 1_000, 33
"""Milliseconds."""

# A task that is sent to itself runs behind all that a key has set going; a frame, behind what was drawn last.
WATCHED = """
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const settled = () => new Promise((done) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = done;
    port2.postMessage(null);
  });
  await frame(); await frame();
  const drawn = performance.now();
  const [paint] = performance.getEntriesByName("first-contentful-paint");
  const box = document.querySelector(".live");
  const redraws = [], frames = [];
  for (const name of "+++---++++----+++---") {
    const start = await frame();
    const began = performance.now();
    box.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
    await settled();
    redraws.push(performance.now() - began);
    frames.push(await frame() - start);
  }
  return { paint: paint.startTime, drawn, redraws, frames };
"""


def lines(steps: int) -> Iterator[dict[str, Any]]:
    """Metrics as a training writes them: a falling loss with noise and one outlier, an evaluation every thousand."""
    chance = random.Random(0)
    for step in range(1, steps + 1):
        loss = 1.5 + 2 * math.exp(-5 * step / steps) + chance.gauss(0, 0.15)
        yield {
            "step": step,
            "loss": 97.25 if step == steps // 3 else loss,
            "grad_norm": abs(chance.gauss(1, 0.3)),
            "learning_rate": 2e-4 * (1 - step / steps),
            "mean_token_accuracy": 0.7 - loss / 10,
            "num_tokens": 2_048 * step,
            "supervised_tokens": 900 * step,
            "tokens_per_second": 20_000 + chance.gauss(0, 50),
            "epoch": 3 * step / steps,
        }
        if step % 1_000 == 0:
            yield {"step": step, "eval_loss": loss + 0.1, "eval_mean_token_accuracy": 0.6, "epoch": 3 * step / steps}


def make_run(folder: Path, steps: int) -> None:
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines(steps))
    record = {"status": "finished", "steps": steps, "total_steps": steps, "seconds": 3_600.0}
    (folder / "run.json").write_text(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "long"
        make_run(run, options.steps)
        tell_command(run, options)
        page = (run / "report.html").read_text(encoding="utf-8")
    size, drawn = len(page.encode()), page.partition('id="data-of-curves">')[2]
    outlier = "drawn" if "97.25" in drawn else "LOST"
    print(f"the page: {size / 1e6:.2f} MB of {BYTES / 1e6:g}; the outlier is {outlier}")
    tell_browser(page, options.rounds)


def tell_command(run: Path, options: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "truetune", "report", str(run)]
    seconds = []
    for _ in range(options.rounds):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    computed = (used.ru_utime + used.ru_stime) / options.rounds
    took = f"{min(seconds):.2f} s of {SECONDS:g} from the command's start, {computed:.2f} s of computing"
    print(f"{options.steps:,} steps: {took}")


def tell_browser(page: str, rounds: int) -> None:
    program = chromium()
    if program is None:
        print("not looked at in a browser: no Chromium is installed")
        return
    found = [measured_in(program, page, WATCHED) for _ in range(rounds)]
    paint, drawn = (min(each[name] for each in found) for name in ("paint", "drawn"))
    print(f"in Chromium: first painted after {paint:,.0f} ms of {PAINT:,}, its curves drawn after {drawn:,.0f} ms")
    redraws, frames = ([each for one in found for each in one[name]] for name in ("redraws", "frames"))
    usual = f"{statistics.median(redraws):.1f} ms of {REDRAW}, {max(redraws):.1f} at worst"
    print(f"a step of a zoom: {usual}; a picture every {statistics.median(frames):.0f} ms")


if __name__ == "__main__":
    main()
