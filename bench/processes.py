"""What a second process gains on this machine: the same steps in one process and in several.

    .venv/bin/python bench/processes.py [DATA] [--processes 2] [--repeats 3] [--steps 8] [--model demo] [--quick]
                                        [--json FILE]

Without DATA, rows are made up. Every training has the same rows a step, and is `truetune train` in a process of its
own: one process with one thread, several (`--num-processes`) with one thread each, and one with all cores, in turns.
Compared is the rate that a run records (tokens a second over its steps, without the first one), and the loss, which
must agree. The cost of launch is what the command takes beside its training, with several processes and with one.
--quick trains a tiny random model, whose rate says nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import gpu_check

ROWS_A_STEP = 8


@dataclass(frozen=True)
class Contestant:
    """So many processes, with one thread each or with all that there are."""

    processes: int
    has_one_thread: bool

    def __str__(self) -> str:
        return f"{self.processes} x {'1 thread' if self.has_one_thread else 'all threads'}"


@dataclass(frozen=True)
class Measure:
    """One training: its rate, its last loss, and the seconds of the command beside it."""

    tokens_per_second: float
    loss: float
    besides: float


def main() -> int:
    options = parsed()
    contestants = [Contestant(1, True), Contestant(options.processes, True), Contestant(1, False)]
    with TemporaryDirectory() as folder:
        data = options.data or made_up(Path(folder) / "rows.jsonl", options)
        model = tiny(Path(folder) / "tiny") if options.quick else options.model
        command = ["--model", model, "--data", data, *settings(options)]
        rounds = [
            [measure(each, command, Path(folder) / "run") for each in contestants] for _ in range(options.repeats)
        ]
    tell(contestants, rounds)
    if options.json:
        options.json.write_text(json.dumps([[asdict(each) for each in one] for one in rounds], indent=2), "utf-8")
    losses = [each.loss for one in rounds for each in one]
    return 0 if max(losses) - min(losses) < 0.01 * max(losses) else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--processes", type=int, choices=(2, 4, 8), default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--words", type=int, default=120, help="of a made-up row, on the average")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="keep every single measure here")
    options = parser.parse_args()
    if options.quick:
        vars(options).update({"repeats": 1, "steps": 3, "words": 20})
    return options


def made_up(path: Path, options: argparse.Namespace) -> str:
    gpu_check.made_up(path, options.words, range(ROWS_A_STEP * options.steps))
    return str(path)


def tiny(folder: Path) -> str:
    """A random model of a few thousand weights, with the tests' tokenizer."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from conftest import CHATML, byte_tokenizer, tiny_model

    tiny_model().save_pretrained(folder)
    byte_tokenizer(chat_template=CHATML).save_pretrained(folder)
    return str(folder)


def settings(options: argparse.Namespace) -> list[str]:
    """What all trainings have in common: batches that each number of processes can share."""
    values = {
        "max_steps": options.steps,
        "per_device_train_batch_size": batch_size(options.processes),
        "packing": "false",
        "test_size": 0,
        "save_strategy": "no",
        "learning_rate": 2e-4,
        "logging_steps": 1,
    }
    return [f"{name}={value}" for name, value in values.items()]


def batch_size(processes: int) -> int:
    return max(1, ROWS_A_STEP // 2 // processes)


def measure(contestant: Contestant, command: Sequence[str], run: Path) -> Measure:
    size = next(int(word.partition("=")[2]) for word in command if word.startswith("per_device"))
    accumulated = ROWS_A_STEP // (size * contestant.processes)
    own = [f"gradient_accumulation_steps={accumulated}", f"num_processes={contestant.processes}"]
    place = ["--output-dir", str(run), "--overwrite"]
    threads = {"OMP_NUM_THREADS": "1"} if contestant.has_one_thread else {}
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "truetune", "train", *command, *own, *place],
        env={**environment, **threads},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{contestant} failed:\n{done.stderr}")
    record = json.loads((run / "run.json").read_text("utf-8"))
    return Measure(record["tokens_per_second"], record["final_loss"], seconds - record["seconds"])


def tell(contestants: Sequence[Contestant], rounds: Sequence[Sequence[Measure]]) -> None:
    """Medians; gains and costs are those within a round."""
    for contestant, found in zip(contestants, zip(*rounds, strict=True), strict=True):
        rate = statistics.median(each.tokens_per_second for each in found)
        besides = statistics.median(each.besides for each in found)
        print(f"{contestant}: {rate:,.0f} tokens/s, loss {found[-1].loss:.5f}, {besides:.1f} s beside the training")
    for base in (0, 2):
        gains = sorted(one[1].tokens_per_second / one[base].tokens_per_second for one in rounds)
        middle = f"{statistics.median(gains):.2f} ({gains[0]:.2f}-{gains[-1]:.2f})"
        print(f"{contestants[1]}: {middle} times the tokens/s of {contestants[base]}")
    costs = sorted(one[1].besides - one[0].besides for one in rounds)
    print(f"launch: {statistics.median(costs):+.1f} s ({costs[0]:+.1f} to {costs[-1]:+.1f})")


if __name__ == "__main__":
    sys.exit(main())
