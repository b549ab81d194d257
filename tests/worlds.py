"""Real processes that train together on this machine, and what they are to train.

Run as a program it is one of them: it trains each scenario in turn, and writes down what it computed and how it
ended.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.launched import adopt_launcher

TESTS = Path(__file__).parent
ROWS_A_STEP = 12
LIMIT = 600.0
"""Seconds that a world may take: a machine with other work needs minutes, and what hangs must fail."""
FAST: dict[str, Any] = {
    "precision": "fp32",
    "device": "cpu",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "logging_steps": 1,
    "r": 4,
    "max_length": 64,
    "per_device_train_batch_size": 2,
    "packing": False,
    "test_size": 0,
    "save_strategy": "no",
}
EXACT: dict[str, dict[str, Any]] = {
    "uneven": {"num_train_epochs": 2, "test_size": 7, "eval_strategy": "epoch", "per_device_eval_batch_size": 2},
    "tiny": {"num_train_epochs": 2},
    "packed": {"num_train_epochs": 2, "packing": True},
    "full": {"max_steps": 3, "method": "full", "learning_rate": 1e-4},
    "plus": {"max_steps": 3, "loraplus_lr_ratio": 4.0},
    "dropout": {"max_steps": 3, "lora_dropout": 0.3},
    "streamed": {
        "max_steps": 6,
        "streaming": True,
        "shuffle_buffer_size": 10,
        "save_strategy": "steps",
        "save_steps": 3,
    },
    "answered": {
        "max_steps": 2,
        "test_size": 5,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "generate": 3,
        "generate_max_new_tokens": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_exact_match",
    },
}
"""What has to be the same in any number of processes."""
LEFT_OUT = {1: {"dropout"}, 3: {"packed", "full", "streamed", "answered"}}
"""What so many processes need not train: one has another dropout, and three add up as two do."""
SAVED: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "lora_dropout": 0.0}
BEST: dict[str, Any] = {"test_size": 5, "eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
_PORTS = iter(range(15_000 + os.getpid() * 173 % 15_000, 32_000))
ROWS = {"tiny": 13}
"""How many rows a scenario has: the last step of `tiny` has one."""


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it printed."""

    status: int
    out: str
    err: str


def trained_by(size: int) -> list[str]:
    """The scenarios that so many processes train."""
    return [name for name in EXACT if name not in LEFT_OUT.get(size, ())]


def written_rows(folder: Path, name: str) -> Path:
    """The scenario's rows, of very different lengths, all different, and some of them over-long."""
    file = folder / f"{name}.jsonl"
    numbers = range(ROWS.get(name, 43))
    rows = [{"instruction": f"Q{n}", "output": "x" * (n * 7 % 23 + 1) + str(n)} for n in numbers]
    rows += [{"instruction": f"long {n}", "output": "y" * 90} for n in range(2)]
    if not file.exists():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def weights(run: Path) -> dict[str, Any]:
    """What a run has trained: its adapter's tensors, or its model's."""
    from safetensors.torch import load_file

    (file,) = [*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")]
    return load_file(file)


def difference(one: Path, other: Path) -> float:
    """The largest one between the trained weights of two runs."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def figures(run: Path, *names: str) -> list[float]:
    """Those of a run's metrics, line by line."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in names if name in line]


def train(folder: Path, name: str, *, processes: int, output: str | None = None, **settings: Any) -> Any:
    """The scenario's run."""
    import truetune

    return truetune.train(
        model=str(folder / "base"),
        data=folder / f"{name}.jsonl",
        output_dir=folder / (output or f"{name}-{processes}"),
        **{
            **FAST,
            "gradient_accumulation_steps": ROWS_A_STEP // (2 * processes),
            **EXACT.get(name, {}),
            **settings,
        },
    )


def start(
    size: int,
    folder: Path,
    *scenarios: str,
    by_srun: bool = False,
    places: Sequence[Path] | None = None,
    holders: Sequence[int] = (),
    address: str = "127.0.0.1",
) -> list[subprocess.Popen[str]]:
    """So many processes that train what they are told to, with torchrun's names for who they are, or srun's.

    `places` are their working directories, where each is to be on a machine of its own, with a cache of its own; that
    machine is the one of the process of that number among the `holders`, if there are any. The first is at `address`.
    """
    import warm

    said, port = _said_by_srun if by_srun else _said_by_torchrun, free_port()
    names = [said(rank, size, port, address, are_apart=places is not None) for rank in range(size)]
    entered = [*holders, *[0] * size]
    return [
        subprocess.Popen(
            warm.python(TESTS / "worlds.py", json.dumps(names[rank]), entered[rank], folder, *scenarios),
            cwd=None if places is None else places[rank],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def _said_by_torchrun(rank: int, size: int, port: int, address: str, *, are_apart: bool) -> dict[str, Any]:
    world = {"MASTER_ADDR": address, "MASTER_PORT": port, "WORLD_SIZE": size, "RANK": rank}
    if are_apart:
        return {**world, "LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 0, "GROUP_RANK": rank, "TRUETUNE_CACHE": "cache"}
    return {**world, "LOCAL_WORLD_SIZE": size, "LOCAL_RANK": rank}


def _said_by_srun(rank: int, size: int, port: int, address: str, *, are_apart: bool) -> dict[str, Any]:
    step = {"SLURM_STEP_NUM_TASKS": size, "SLURM_STEP_NODELIST": address, "SLURM_JOB_ID": port - 15_000}
    return {**step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}


def free_port() -> int:
    """Of those that the number of a job of SLURM leads to, each once, and far from those of pytest's other worker,
    whose number is near: until its first process listens there, nothing tells that a port is taken."""
    for port in _PORTS:
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def ended(
    processes: list[subprocess.Popen[str]], *, timeout: float = LIMIT, without: Sequence[int] = ()
) -> list[Ended]:
    """How all of them ended, but for those `without` an end of their own; whoever takes longer fails the test."""
    waited_for = [each for rank, each in enumerate(processes) if rank not in without]
    try:
        printed = [each.communicate(timeout=timeout) for each in waited_for]
        return [Ended(each.returncode, *said) for each, said in zip(waited_for, printed, strict=True)]
    finally:
        for each in processes:
            each.kill()


def require(ends: Sequence[Ended], *, statuses: Sequence[int]) -> None:
    """Fails the test, with the last words of each process, unless they ended so."""
    import pytest

    if [each.status for each in ends] != [*statuses]:
        last = (f"process {rank}: status {each.status}\n{_last_lines(each.err)}" for rank, each in enumerate(ends))
        pytest.fail(f"expected were {[*statuses]}\n" + "\n".join(last), pytrace=False)


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-8:])


# --- one of the processes ---------------------------------------------------------------------------------


def main(names: dict[str, Any], holder: int, folder: Path, scenarios: Sequence[str]) -> None:
    """One process, which had the libraries loaded: what they read of the environment is set by hand."""
    _enter(holder)
    import torch

    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    adopt_launcher()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not scenarios:
        _train_exactly(folder, rank, size)
    for name in scenarios:
        outcomes = folder / f"outcomes-{name}-{rank}.json"
        began = time.time()
        _write(outcomes, _outcome(lambda name=name: SCENARIOS[name](folder, rank)))
        _write(folder / f"times-{name}-{rank}.json", [began, time.time()])


def _enter(holder: int) -> None:
    """Makes that process's network and host name this one's, and first its user, who may do that."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    for kind in ("user", "net", "uts") if holder else ():
        place = f"/proc/{holder}/ns/{kind}"
        if os.readlink(place) == os.readlink(f"/proc/self/ns/{kind}"):
            continue
        with open(place) as namespace:
            if setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"cannot enter {place}")


def _train_exactly(folder: Path, rank: int, size: int) -> None:
    computed: list[Any] = []
    for name in trained_by(size):
        computed.clear()
        with _spied(computed, fails_once=name == "plus" and rank == size - 1):
            train(folder, name, processes=size)
        _write(folder / f"computed-{name}-{size}-{rank}.json", computed)
    if size == 3:
        _go_on(folder, size, checkpoint=folder / "saved-3" / "checkpoints" / "checkpoint-3")
    if size == 2:
        train(folder, "saved", processes=size, max_steps=3, **SAVED)
        _go_on(folder, size)


def _go_on(folder: Path, size: int, checkpoint: Path | None = None) -> None:
    train(folder, "saved", processes=size, max_steps=6, resume_from_checkpoint=checkpoint or True, **SAVED)


@contextmanager
def _spied(computed: list[Any], *, fails_once: bool) -> Iterator[None]:
    """Notes the step and the samples of each batch that is computed; in the second step memory may run out once."""
    from torch import OutOfMemoryError

    from truetune.training.trl import Engine

    learn, failures = Engine._learn, [OutOfMemoryError("CUDA out of memory.")] * fails_once

    def spied(self: Any, model: Any, batch: Any, *args: Any) -> Any:
        computed.append((self.state.global_step, samples(batch)))
        loss = learn(self, model, batch, *args)
        if failures and self.state.global_step == 1:
            raise failures.pop()
        return loss

    Engine._learn = spied  # type: ignore[method-assign]
    try:
        yield
    finally:
        Engine._learn = learn  # type: ignore[method-assign]


def samples(batch: Any) -> list[list[int]]:
    """The ids of each sample of a batch of samples that stand end to end."""
    ids, starts = batch["input_ids"][0].tolist(), (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    return [ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]


def _outcome(run: Any) -> list[str]:
    try:
        found = run()
    except Exception as error:  # noqa: BLE001 - what kind it is is what is asked
        return [type(error).__name__, str(error)]
    return [found.status, str(found.stopped_by), str(found.steps)]


def _at(step: int, do: Any) -> Any:
    """A callback that does something as a step begins."""
    from transformers import TrainerCallback

    class At(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            return do(control) if state.global_step == step - 1 else None

    return At()


def _differs(folder: Path, rank: int) -> Any:
    """The second process has been given another setting, and what was there is to be replaced."""
    return train(folder, "saved", processes=2, output="uneven-2", overwrite=True, weight_decay=rank / 10)


def _asked_to_stop(folder: Path, rank: int) -> Any:
    """By a callback in one process only."""
    return train(folder, "saved", processes=2, output="asked", max_steps=4, callbacks=[_Stopping(rank)])


def _Stopping(rank: int) -> Any:  # noqa: N802 - a class that needs transformers, which is imported late
    from transformers import TrainerCallback

    class Stopping(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= rank == 1 and state.global_step == 2

    return Stopping()


def _signalled(folder: Path, rank: int) -> Any:
    """In one process only."""

    def interrupt(_: Any) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return train(folder, "saved", processes=2, output="signalled", max_steps=4, callbacks=[_at(2, interrupt)])


def _fails(folder: Path, rank: int) -> Any:
    from truetune.errors import BackendError

    def fail(_: Any) -> None:
        if rank == 1:
            _happens(folder, "failed")
            raise BackendError("the fan of process 1 stands still")

    return train(folder, "saved", processes=2, output="failed", max_steps=4, callbacks=[_at(2, fail)])


def _cannot_save(folder: Path, rank: int) -> Any:
    """The first process fails where the others wait for it."""
    from truetune.training import trl

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    written = trl.write_checkpoint
    trl.write_checkpoint = full
    try:
        return train(folder, "saved", processes=2, output="unsaved", max_steps=2, save_strategy="steps", save_steps=1)
    finally:
        trl.write_checkpoint = written


def _killed(folder: Path, rank: int) -> Any:
    def kill(_: Any) -> None:
        if rank == 1:
            _happens(folder, "killed")
            os.kill(os.getpid(), signal.SIGKILL)

    return train(folder, "saved", processes=2, output="killed", max_steps=4, callbacks=[_at(2, kill)])


def _killed_saving(folder: Path, rank: int) -> Any:
    """The first process, with the store of all, while it writes the checkpoint that the other waits for."""
    from truetune.training import trl

    def die(*_: Any, **__: Any) -> None:
        _happens(folder, "killed-saving")
        os.kill(os.getpid(), signal.SIGKILL)

    trl.write_checkpoint = die
    return train(
        folder, "saved", processes=2, output="killed-saving", max_steps=2, save_strategy="steps", save_steps=1
    )


def _halted(folder: Path, rank: int) -> Any:
    """Neither dead nor alive, as a machine that hangs; what is waited for it is shortened."""
    from truetune.training import pulse

    pulse._BEAT, pulse._PATIENCE = 0.2, 50

    def halt(_: Any) -> None:
        if rank == 1:
            _happens(folder, "halted")
            os.kill(os.getpid(), signal.SIGSTOP)

    return train(folder, "saved", processes=2, output="halted", max_steps=4, callbacks=[_at(2, halt)])


def _apart(folder: Path, rank: int) -> Any:
    """On two machines whose disks are their own: what is named is named by each as it lies there."""
    return _in_two_parts("runs/apart")


def _shared(folder: Path, rank: int) -> Any:
    """On two machines that see one disk."""
    return _in_two_parts(str(folder / "shared"))


def _in_two_parts(output: str) -> Any:
    there = {**SAVED, **BEST, "processes": 2, "output": output}
    train(Path(), "saved", max_steps=3, **there)
    return train(Path(), "saved", max_steps=6, resume_from_checkpoint=True, **there)


def _elsewhere(folder: Path, rank: int) -> Any:
    """On two machines, of which the second one lacks the rows."""
    return train(Path(), "lacking", processes=2, output="runs/elsewhere", max_steps=2)


SCENARIOS: dict[str, Callable[[Path, int], Any]] = {
    "differs": _differs,
    "asked": _asked_to_stop,
    "signalled": _signalled,
    "failed": _fails,
    "unsaved": _cannot_save,
    "killed": _killed,
    "killed-saving": _killed_saving,
    "halted": _halted,
    "apart": _apart,
    "shared": _shared,
    "elsewhere": _elsewhere,
}
"""How runs end, and how they go on; behind some of them one process is left."""


def _happens(folder: Path, name: str) -> None:
    _write(folder / f"happened-{name}.json", time.time())


def _write(file: Path, found: Any) -> None:
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
