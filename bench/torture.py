"""A training killed at random instants, resumed, and compared to the bit with one that nobody killed.

    .venv/bin/python bench/torture.py [--kills 200] [--cold 10] [--steps 40] [--jobs 2] [--seed 0] [--keep DIR]

A run of 40 steps on a tiny model, with dropout, shuffling, packing, accumulation, validation, the best checkpoint
kept and two others. It is killed with SIGKILL: half of the times at a random instant, half at a random one of the
calls that change its directory (each file made, each write, flush, rename and removal: torture_faults.c, preloaded,
leaves the write half done). Then the same call resumes it (`resume="auto"`). Those processes are forked from one that
has loaded the libraries; `--cold` ones are the command line's, killed from its start on.

Each has to end with the adapter, the last checkpoint's weights, optimizer, schedule and random numbers, the metrics
(but for times and rates) and the checkpoints of the run that was not killed; and after each kill no checkpoint may
be seen that is not whole. Exit status 1 otherwise. Needs Linux and a C compiler.
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

_HERE = Path(__file__).parent
_FAULTS = "TRUETUNE_TORTURE_FAULTS"


def main() -> int:
    options = parsed()
    if _FAULTS not in os.environ:
        return preloaded()
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        work = options.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        return torture(work, options)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cold", type=int, default=10, help="kills of the command line, besides")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the runs, which are else removed")
    return parser.parse_args()


def preloaded() -> int:
    """This program once more, with the faults compiled and in place."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "faults.so"
        subprocess.run(
            ["cc", "-O1", "-shared", "-fPIC", "-o", library, _HERE / "torture_faults.c", "-ldl"], check=True
        )
        environment = {**os.environ, "LD_PRELOAD": str(library), _FAULTS: str(library), "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode


# --- the run ----------------------------------------------------------------------------------------------


def settings(work: Path, steps: int) -> dict[str, Any]:
    """What is trained, as a config file says it; the files it names are made here."""
    from engine_rows import tiny

    base, data = work / "base", work / "rows.jsonl"
    if not data.exists():
        tiny(base)
        draw = random.Random(1)
        rows = [
            {
                "instruction": f"Add {n} and {n + 1}",
                "output": " ".join(str(draw.randint(0, 99)) for _ in range(n % 9 + 1)),
            }
            for n in range(160)
        ]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    every = max(2, steps // 10)
    return {
        "model": {"name_or_path": str(base)},
        "adapter": {"r": 4, "lora_dropout": 0.1},
        "data": {"path": str(data), "packing": True, "max_length": 256, "test_size": 0.1},
        "training": {
            "max_steps": steps,
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 1,
            "learning_rate": 1e-3,
            "torch_compile": False,
            "precision": "fp32",
        },
        "evaluation": {"eval_strategy": "steps", "eval_steps": every, "load_best_model_at_end": True},
        "checkpoints": {"save_strategy": "steps", "save_steps": every, "save_total_limit": 3},
        "logging": {"logging_steps": 1},
    }


def train(config: dict[str, Any], run: Path, *, fatal: int, counted: Path | None) -> None:
    """In a process of its own: trains, or goes on; `fatal` is the call to be killed at, 0 none."""
    import truetune

    faults = ctypes.CDLL(None)
    faults.faults_arm(str(run).encode(), ctypes.c_long(fatal))
    truetune.train(config, output_dir=run, resume="auto")
    if counted is not None:
        seen = faults.faults_seen()
        faults.faults_arm(b"", ctypes.c_long(0))
        counted.write_text(str(seen))


def outcome(run: Path) -> dict[str, Any]:
    """All that has to be equal of two runs."""
    from truetune.runs.checkpoints import checkpoints_in, problems, sha256, state_digests, untimed

    checkpoints = checkpoints_in(run / "checkpoints")
    assert checkpoints, f"{run} has no checkpoints"
    assert not any(map(problems, checkpoints)), f"{run}: a checkpoint is damaged"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "adapter": sha256(run / "adapter" / "adapter_model.safetensors"),
        "state": state_digests(checkpoints[0]),
        "checkpoints": [path.name for path in checkpoints],
        "metrics": [untimed(line) for line in lines],
    }


# --- the torture ------------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """One run that is to be killed once, and then resumed."""

    number: int
    run: Path
    fatal: int = 0
    seconds: float = 0.0
    was_killed: bool = False
    pid: int = 0
    started: float = 0.0
    problems: list[str] = field(default_factory=list)


def torture(work: Path, options: argparse.Namespace) -> int:
    import torch
    import trl  # noqa: F401 - what is loaded here is loaded in each forked process
    from peft import PeftModel  # noqa: F401

    from truetune.pipeline import verify  # noqa: F401

    torch.set_num_threads(1)
    config, draw = settings(work, options.steps), random.Random(options.seed)
    reference, counted = work / "reference", work / "calls"
    shutil.rmtree(reference, ignore_errors=True)
    started = time.monotonic()
    wait_for(forked(lambda: train(config, reference, fatal=0, counted=counted), work / "reference.log"))
    seconds, calls, expected = time.monotonic() - started, int(counted.read_text()), outcome(reference)
    print(f"{options.steps} steps take {seconds:.1f} s and {calls} calls that change the directory", flush=True)

    def attempts() -> list[Attempt]:
        made = [Attempt(number, work / f"run-{number}") for number in range(options.kills)]
        for attempt in made:
            aim(attempt, draw, calls, seconds)
        return made

    done = warm(attempts(), lambda each: aim(each, draw, calls, seconds), config, work, expected, options.jobs)
    cold = [killed_cold(work, config, draw, expected, number) for number in range(options.cold)]
    return told(done, cold)


def aim(attempt: Attempt, draw: random.Random, calls: int, seconds: float) -> None:
    """Every other one at a call, the rest at an instant."""
    attempt.fatal = draw.randint(1, calls) if attempt.number % 2 else 0
    attempt.seconds = draw.uniform(0, seconds) if not attempt.fatal else 600


def warm(
    waiting: list[Attempt],
    again: Callable[[Attempt], None],
    config: dict[str, Any],
    work: Path,
    expected: dict[str, Any],
    jobs: int,
) -> list[Attempt]:
    """Each attempt killed, looked at, resumed and compared; some at a time, from this one thread."""
    total, running, done = len(waiting), dict[int, Attempt](), list[Attempt]()
    while waiting or running:
        while waiting and len(running) < jobs:
            attempt = waiting.pop(0)
            start(attempt, config, work)
            running[attempt.pid] = attempt
        time.sleep(0.005)
        for attempt in list(running.values()):
            if not attempt.was_killed and time.monotonic() - attempt.started > attempt.seconds:
                os.kill(attempt.pid, signal.SIGKILL)
            pid, status = os.waitpid(attempt.pid, os.WNOHANG)
            if not pid:
                continue
            del running[pid]
            if attempt.was_killed:
                compare(attempt, os.waitstatus_to_exitcode(status), expected)
                done.append(attempt)
                print(f"\r{len(done)} of {total}", end="", file=sys.stderr, flush=True)
            elif os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
                attempt.was_killed = True
                look(attempt)
                waiting.insert(0, attempt)
            else:  # It was done before its instant came.
                shutil.rmtree(attempt.run, ignore_errors=True)
                again(attempt)
                waiting.append(attempt)
    print(file=sys.stderr)
    return done


def start(attempt: Attempt, config: dict[str, Any], work: Path) -> None:
    fatal = 0 if attempt.was_killed else attempt.fatal
    attempt.pid = forked(
        lambda: train(config, attempt.run, fatal=fatal, counted=None), work / f"run-{attempt.number}.log"
    )
    attempt.started = time.monotonic()


def look(attempt: Attempt) -> None:
    """After a kill: no checkpoint is there by its name that is not whole."""
    from truetune.runs.checkpoints import checkpoints_in, problems

    for checkpoint in checkpoints_in(attempt.run / "checkpoints"):
        attempt.problems += [f"half a checkpoint is seen: {checkpoint.name}: {each}" for each in problems(checkpoint)]


def compare(attempt: Attempt, status: int, expected: dict[str, Any]) -> None:
    if status:
        attempt.problems.append(f"the resumed run ended with status {status}")
        return
    found = outcome(attempt.run)
    attempt.problems += [f"{name} differs" for name in expected if found[name] != expected[name]]
    if not attempt.problems:
        shutil.rmtree(attempt.run)


def killed_cold(
    work: Path, config: dict[str, Any], draw: random.Random, expected: dict[str, Any], number: int
) -> Attempt:
    """The command line, killed between its start and its end, and given once more."""
    attempt = Attempt(number, work / f"cold-{number}")
    file = work / "config.json"
    file.write_text(json.dumps(config))
    command = [
        *(sys.executable, "-m", "truetune", "train", str(file)),
        *("--output-dir", str(attempt.run), "--resume", "auto"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with (work / f"cold-{number}.log").open("wb") as log:

        def begun() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

        while not attempt.was_killed:
            shutil.rmtree(attempt.run, ignore_errors=True)
            process = begun()
            time.sleep(draw.uniform(4, 16))
            process.kill()
            attempt.was_killed = process.wait() == -signal.SIGKILL
        look(attempt)
        compare(attempt, begun().wait(), expected)
    return attempt


def told(done: list[Attempt], cold: list[Attempt]) -> int:
    at_calls = sum(each.fatal > 0 for each in done)
    print(f"{sound(done)} end bit-identical: {at_calls} killed at a call, the rest at an instant")
    print(f"{sound(cold)} that were killed from a cold start end bit-identical")
    problems = [(each, problem) for each in [*done, *cold] for problem in each.problems]
    print(f"{sum('half a checkpoint' in problem for _, problem in problems)} half checkpoints were seen")
    for each, problem in problems:
        print(f"  {each.run.name} (call {each.fatal}, {each.seconds:.2f} s): {problem}")
    return int(bool(problems))


def sound(attempts: list[Attempt]) -> str:
    return f"{sum(not each.problems for each in attempts)} of {len(attempts)}"


# --- processes --------------------------------------------------------------------------------------------


def forked(work: Callable[[], None], log: Path) -> int:
    """A process that does the work and ends; what it prints goes to the log."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - it is printed, and nothing may go on in this copy of the program
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait_for(pid: int) -> None:
    if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit(f"the run that nobody kills ended with status {status}")


if __name__ == "__main__":
    sys.exit(main())
