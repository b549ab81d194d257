"""Is the plan true? Real trainings beside what `truetune plan` says of them: peak memory, and time with a probe.

    .venv/bin/python bench/plan.py [--only NAME …] [--cuda] [--time] [--steps 4] [--quick]
                                   [--step-seconds S] [--most-steps N] [--json FILE] [--again FILE] [--markdown]

Each case is a model (SmolLM2-135M, or a random one made here: deep, wide, of a large vocabulary), a method, a length
and levers. It is planned by `truetune plan --json` and trained by `truetune train`, each in a process of its own, and
the estimated peak is compared with the peak_memory_bytes of the run (resident memory; on CUDA the allocator's
peak). With --time it is planned again with --probe and trained for as many steps as take about half a minute, and the
seconds of training are compared too; --step-seconds halves a case's length until the estimate of a step is below it,
and --most-steps cuts a training off, for machines on which the whole list would take hours. Printed is a line a case,
the median and the worst at the end.

--json keeps what was measured; --again plans anew and compares with the measures of such a file, training nothing.
--cuda runs the same list on a GPU, where models are larger. --quick trains two tiny cases, which checks this script.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ENVIRONMENT = {
    **os.environ,
    "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
CHILD = Path(__file__).with_name("plan_models.py")
HALF_A_MINUTE = 30.0
FEWEST, MOST = 6, 30
SHORTEST = 64
"""Tokens: shorter rows hold no answer."""
SENTENCE = "the train to Oslo leaves at seven from platform two and takes four hours with one change in Hamar"


@dataclass(frozen=True)
class Case:
    """A training: of a model from plan_models.py, or `demo`, on rows of up to `length` tokens."""

    model: str
    length: int
    batch: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        words = [self.model, f"{self.batch}x{self.length}"]
        words += [SHORT.get(f"{name}={value}", f"{name}={value}") for name, value in self.settings.items()]
        return " ".join(words)


@dataclass(frozen=True)
class Measure:
    """What a case was planned to take, and took: bytes at the peak, seconds of training."""

    name: str
    planned_bytes: int
    bytes: int
    parts: Mapping[str, int]
    planned_seconds: float | None
    seconds: float

    @property
    def memory_error(self) -> float:
        return self.planned_bytes / self.bytes - 1

    @property
    def time_error(self) -> float | None:
        return None if self.planned_seconds is None else self.planned_seconds / self.seconds - 1


FULL: dict[str, Any] = {"method": "full"}
CHECKPOINTING: dict[str, Any] = {"gradient_checkpointing": True}
KEEPING: dict[str, Any] = {"gradient_checkpointing": False}
QLORA: dict[str, Any] = {"load_in_4bit": True}
EIGHT_BIT: dict[str, Any] = {"optim": "adamw_8bit"}
FP32: dict[str, Any] = {"precision": "fp32"}
SHORT = {
    "method=full": "full",
    "gradient_checkpointing=True": "checkpointing",
    "load_in_4bit=True": "QLoRA",
    "load_in_8bit=True": "8-bit base",
    "optim=adamw_8bit": "8-bit AdamW",
    "precision=fp32": "fp32",
    "packing=True": "packed",
}

CASES = (
    Case("demo", 512, 2),
    Case("demo", 2048, 1),
    Case("demo", 256, 8),
    Case("demo", 1024, 4, {"r": 64}),
    Case("demo", 4096, 1, CHECKPOINTING),
    Case("demo", 512, 2, FP32),
    Case("demo", 512, 2, QLORA),
    Case("demo", 1024, 2, {**QLORA, **CHECKPOINTING}),
    Case("demo", 512, 2, {"load_in_8bit": True}),
    Case("demo", 512, 2, FULL),
    Case("demo", 1024, 4, {**FULL, **CHECKPOINTING}),
    Case("demo", 512, 2, {**FULL, **EIGHT_BIT}),
    Case("demo", 512, 4, {"packing": True}),
    Case("deep", 1024, 2),
    Case("deep", 4096, 1),
    Case("deep", 512, 4, FULL),
    Case("deep", 2048, 1, {**FULL, **CHECKPOINTING}),
    Case("deep", 512, 1, {**FULL, "optim": "adafactor"}),
    Case("wide", 512, 2),
    Case("wide", 2048, 4, CHECKPOINTING),
    Case("wide", 512, 1, QLORA),
    Case("wide", 256, 8, FULL),
    Case("wide", 512, 1, {**FULL, **EIGHT_BIT}),
    Case("words", 1024, 2),
    Case("words", 512, 4, FP32),
    Case("words", 512, 2, FULL),
    Case("words", 2048, 1, {**FULL, **CHECKPOINTING, **FP32}),
    Case("qwen", 512, 2),
    Case("qwen", 1024, 2, FULL),
    Case("gpt2", 512, 2),
)
HELD_OUT = (
    Case("demo", 1024, 2),
    Case("demo", 256, 4, {**FULL, **FP32}),
    Case("qwen", 256, 4),
    Case("qwen", 1024, 1, {**FULL, **EIGHT_BIT}),
    Case("deep", 512, 2, QLORA),
    Case("words", 4096, 1, CHECKPOINTING),
    Case("wide", 512, 4, {**FULL, **CHECKPOINTING}),
    Case("gpt2", 1024, 1, FULL),
)
"""Trainings that the estimate was not fitted to, as it was to CASES: they are summed up by themselves."""

QUICK = (Case("tiny", 64, 2), Case("tiny", 64, 2, FULL))


def main() -> int:
    options = parsed()
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        measures = list(bench.measures())
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in measures], indent=1), "utf-8")
    tell(measures, is_markdown=options.markdown)
    return 0 if measures and bench.failed == 0 else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases whose names contain one of them")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--step-seconds", type=float)
    parser.add_argument("--most-steps", type=int, default=MOST)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--again", type=Path)
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args()


class Bench:
    """The cases asked for, in a folder of their own."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.failed = 0

    def measures(self) -> Iterator[Measure]:
        """A measure of each case, told as it comes; what fails is told and left out."""
        cases = [case for case in (QUICK if self.options.quick else (*CASES, *HELD_OUT)) if self._is_wanted(case)]
        names = sorted({case.model for case in cases if case.model != "demo"})
        subprocess.run([sys.executable, str(CHILD), str(self.folder), *names, *self._size()], check=True)
        earlier = json.loads(self.options.again.read_text()) if self.options.again else []
        before = {each["name"]: each for each in earlier}
        for case in cases:
            try:
                measure = self._planned_again(case, before[case.name]) if before else self._measure(case)
            except (subprocess.CalledProcessError, KeyError) as error:
                self.failed += 1
                print(f"{case.name} failed: {(getattr(error, 'stderr', '') or str(error))[-800:]}", file=sys.stderr)
                continue
            print(line(measure), file=sys.stderr, flush=True)
            yield measure

    def _is_wanted(self, case: Case) -> bool:
        return not self.options.only or any(word in case.name for word in self.options.only)

    def _size(self) -> list[str]:
        return ["--large"] if self.options.cuda else []

    def _measure(self, case: Case) -> Measure:
        words, seconds = self._words(case, self.options.steps), None
        planned = self._plan(words)
        if self.options.time:
            case, steps = half_a_minute(case, planned, step_seconds=self.options.step_seconds)
            steps = min(steps, self.options.most_steps)
            words = self._words(case, steps)
            planned = self._plan(words, "--probe")
            seconds = planned["seconds"]
        run = self.folder / "run"
        ask("train", *words, "--output-dir", str(run), "--overwrite")
        record = json.loads((run / "run.json").read_text("utf-8"))
        return measured(case, planned, record, seconds)

    def _planned_again(self, case: Case, before: Mapping[str, Any]) -> Measure:
        record = {"peak_memory_bytes": before["bytes"], "seconds": before["seconds"]}
        return measured(case, self._plan(self._words(case, self.options.steps)), record, before["planned_seconds"])

    def _plan(self, words: Sequence[str], *flags: str) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads(ask("plan", *words, "--json", *flags))
        return plan

    def _words(self, case: Case, steps: int) -> list[str]:
        """The case on the command line."""
        rows = self.folder / f"{case.length}.jsonl"
        if not rows.exists():
            write_rows(rows, case.length)
        model = case.model if case.model == "demo" else str(self.folder / case.model)
        settings = {
            **KEEPING,
            "per_device_train_batch_size": case.batch,
            "gradient_accumulation_steps": 1,
            "max_length": case.length,
            "overlong": "truncate",
            "packing": False,
            "max_steps": steps,
            "save_strategy": "no",
            "eval_strategy": "no",
            "torch_compile": False,
            "device": "cuda" if self.options.cuda else "cpu",
            **case.settings,
        }
        given = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
        return ["--model", model, "--data", str(rows), *given]


def write_rows(path: Path, length: int) -> None:
    """Rows cut to `length` tokens, bytes of the random models and words of the real one; each fourth is shorter.

    So that some step has the largest batch there is: what the plan tells is the peak of that.
    """
    chosen = random.Random(length)
    words = SENTENCE.split()
    with path.open("w", encoding="utf-8") as file:
        for number in range(60):
            count = 2 * length if number % 4 else chosen.randint(length // 3, length)
            text = " ".join(chosen.choices(words, k=count))
            row = {"instruction": f"{number}: {text[: count // 8]}", "output": f"{number} {text}"}
            file.write(json.dumps(row) + "\n")


def ask(command: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "truetune", command, *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and not (command == "plan" and done.stdout):  # A plan that does not fit exits with 1.
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout


def half_a_minute(case: Case, planned: Mapping[str, Any], *, step_seconds: float | None) -> tuple[Case, int]:
    """The case, halved in length until a step is estimated to be as short as is wished, and how many to train."""
    a_step = planned["seconds"] / planned["total_steps"]
    wished = max(0, math.ceil(math.log2(a_step / step_seconds))) if step_seconds else 0
    halvings = min(wished, int(math.log2(case.length / SHORTEST)))
    steps = round(HALF_A_MINUTE / a_step * 2**halvings)
    return replace(case, length=case.length >> halvings), min(MOST, max(FEWEST, steps))


def measured(case: Case, planned: Mapping[str, Any], record: Mapping[str, Any], seconds: float | None) -> Measure:
    parts = {name: size for name, size in planned["memory"]["parts"].items() if name != "not estimated"}
    return Measure(case.name, sum(parts.values()), record["peak_memory_bytes"], parts, seconds, record["seconds"])


def line(measure: Measure) -> str:
    said = f"{measure.name}: {measure.planned_bytes / 1e9:.2f} GB planned, {measure.bytes / 1e9:.2f} GB taken"
    said += f" ({measure.memory_error:+.1%})"
    if measure.time_error is not None:
        said += f"; {measure.planned_seconds:.1f} s planned, {measure.seconds:.1f} s taken"
        said += f" ({measure.time_error:+.1%})"
    return said


def tell(measures: Sequence[Measure], *, is_markdown: bool) -> None:
    if is_markdown:
        heads = ["training", "planned GB", "taken GB", "error", "planned s", "taken s", "error"]
        print(f"| {' | '.join(heads)} |\n|---|{'---:|' * (len(heads) - 1)}")
        for each in measures:
            sizes = f"{each.planned_bytes / 1e9:.2f} | {each.bytes / 1e9:.2f} | {each.memory_error:+.1%}"
            print(f"| {each.name} | {sizes} | {times(each)} |")
    unseen = {case.name for case in HELD_OUT}
    summarise("memory", [each.memory_error for each in measures if each.name not in unseen])
    summarise("memory, not fitted to", [each.memory_error for each in measures if each.name in unseen])
    summarise("time", [each.time_error for each in measures if each.time_error is not None])


def times(measure: Measure) -> str:
    if measure.time_error is None:
        return "| |"
    return f"{measure.planned_seconds:.0f} | {measure.seconds:.0f} | {measure.time_error:+.1%}"


def summarise(what: str, errors: Sequence[float]) -> None:
    if errors:
        sizes = [abs(error) for error in errors]
        print(f"{what}: {len(sizes)} runs, median error {statistics.median(sizes):.1%}, worst {max(sizes):.1%}")


if __name__ == "__main__":
    sys.exit(main())
