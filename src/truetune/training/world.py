"""The processes that train one run together: what they tell each other, what they add up, and how one ends them all.

Each process runs the whole run's trainer over the same batches, and computes its share of every step: the gradients
are added up once a step. That is the arithmetic of one process, whatever the number of rows: nothing is padded or
averaged. torch's DDP and accelerate's samplers take the mean of equal shares instead, which uneven rows do not have.

What may take long (preparing rows, saving, answering) is waited for at torch's store, which has no time limit and
tells of failures; only sums are collective operations.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, partial
from itertools import count
from typing import Any, TypeVar

from truetune.errors import BackendError, ConfigError, OtherProcessError, TruetuneError, first_line
from truetune.launched import adopt_launcher, choose_interface, machine, running_processes, take_own_gpu
from truetune.training.groups import abort, disconnect, leave_behind
from truetune.training.other_strategies import refuse_other_strategies
from truetune.training.pulse import pulse

Told = TypeVar("Told")

_STARTING = timedelta(minutes=15)
"""How long the first processes wait for the last one to start, as torchrun's do."""

_SILENCE = timedelta(hours=1)
"""How long a sum waits for a process that neither computes nor dies."""

_ASKING = timedelta(seconds=1)
"""How long gloo waits before it is asked whether the others still live."""

_LAST_WORDS = 2.0
"""Seconds that a failed process has to tell its error, before the others' ends make a launcher kill it."""

_LOST = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "gloo", "NCCL")
"""What errors say that libraries meet while they speak to processes that are gone."""

_BUCKET = 16_000_000
"""Gradients that are added up at a time: 64 MB of them."""


@dataclass
class World:
    """This process among those of the run; alone, all is as if there were no others.

    `is_first_here` is True in one process of each machine. `store` is torch's, which all of them reach.
    """

    rank: int = 0
    size: int = 1
    is_first_here: bool = True
    store: Any = None
    _numbers: Iterator[int] = field(default_factory=count)

    @property
    def is_first(self) -> bool:
        """True in the process that writes, reports and decides."""
        return self.rank == 0

    # --- told, without a time limit -----------------------------------------------------------------------

    def told_by_first(self, make: Callable[[], Told]) -> Told:
        """What the first process makes, in all of them; the others wait for it. JSON carries it.

        OtherProcessError if another process fails meanwhile.
        """
        if self.size == 1:
            return make()
        key = f"told/{next(self._numbers)}"
        if self.is_first:
            value = make()
            self.tell(key, value)
            return value
        return self.told(key)  # type: ignore[no-any-return]

    def tell(self, key: str, value: Any) -> None:
        """Has the others know a value, under a key that is used once. JSON carries it."""
        self.store.set(key, json.dumps(value))

    def told(self, key: str) -> Any:
        """What another process tells under a key, as soon as it does."""
        self._wait(lambda: self.store.check([key]))
        return json.loads(self.store.get(key))

    def hand_over(self, key: str, piece: bytes, *, receivers: int) -> None:
        """Gives so many others a piece of at most 8 MiB, and waits until all have `taken` it."""
        self.store.set(key, piece)
        self._wait(lambda: self.store.add(f"{key}/taken", 0) == receivers)
        for each in (key, f"{key}/taken"):
            self.store.delete_key(each)

    def taken(self, key: str) -> bytes:
        """A piece that another process hands over."""
        self._wait(lambda: self.store.check([key]))
        piece: bytes = self.store.get(key)
        self.store.add(f"{key}/taken", 1)
        return piece

    def count(self, is_so: bool) -> int:
        """In how many processes it is so."""
        key = f"counted/{next(self._numbers)}"
        if self.size == 1:
            return int(is_so)
        self.store.add(key, int(is_so))
        self.meet()
        return int(self.store.add(key, 0))

    def meet(self) -> None:
        """Waits until all processes are here; OtherProcessError if one of them fails before."""
        if self.size > 1:
            key = f"met/{next(self._numbers)}"
            self.store.add(key, 1)
            self._wait(lambda: self.store.add(key, 0) == self.size)

    @contextmanager
    def first_on_each_machine(self, what: str) -> Iterator[None]:
        """One process of each machine does the block; the others come behind it, and find what it has made."""
        key = f"{what}/{machine()}"
        if not self.is_first_here:
            self._wait(lambda: self.store.check([key]))
        yield
        if self.size > 1 and self.is_first_here:
            self.store.set(key, "done")

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """BackendError, with each difference, in a process that would train anything else than the first one."""
        if self.size == 1:
            return
        own = json.loads(json.dumps(facts, default=str))
        first = self.told_by_first(lambda: own)
        if differing := [name for name in first if first[name] != own.get(name)]:
            said = "; ".join(f"{name} is {own.get(name)} here and {first[name]} there" for name in differing)
            raise BackendError(
                f"process {self.rank} would train another run than the first process: {said}",
                hint="give all machines the same files, libraries and kind of device",
            )

    def _wait(self, is_over: Callable[[], bool]) -> None:
        started = time.monotonic()
        while not self._together(is_over):
            if failure := self._failure():
                raise failure
            time.sleep(min(0.5, max(0.005, (time.monotonic() - started) / 20)))

    # --- added up -----------------------------------------------------------------------------------------

    def connect(self, device: str, *, even_alone: bool = False) -> None:
        """Opens what sums go through: gloo, on CUDA NCCL too. A process that is alone has none, but where asked."""
        if self.size == 1 and not even_alone:
            return
        import torch.distributed as dist

        choose_interface()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            store=dist.HashStore() if self.size == 1 else dist.PrefixStore("group", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=_SILENCE,
        )

    def share(self, sizes: Sequence[int]) -> list[int]:
        """The places of the batches of a step that this process computes."""
        return deal(sizes, self.size)[self.rank]

    def sum(self, values: Any) -> Any:
        """The tensor, with each value the sum of all processes' values: the same bits in all of them."""
        if self.size > 1:
            from torch.distributed import all_reduce

            self._collect(partial(all_reduce, values), device=values.device.type)
        return values

    def most(self, values: Sequence[float]) -> list[float]:
        """Of each value the largest of all processes."""
        if self.size == 1:
            return list(values)
        import torch
        from torch.distributed import ReduceOp, all_reduce

        found = torch.tensor(values, dtype=torch.float64)
        self._collect(partial(all_reduce, found, op=ReduceOp.MAX))
        return found.tolist()  # type: ignore[no-any-return]

    def take_from_first(self, tensors: Sequence[Any]) -> None:
        """Gives the tensors, in place, the first process's values: all begin with the same bits."""
        if self.size > 1:
            from torch.distributed import broadcast

            for each in tensors:
                self._collect(partial(broadcast, each.detach(), src=0), device=each.device.type)

    def sum_gradients(self, parameters: Sequence[Any]) -> None:
        """Makes each gradient the sum of all processes' gradients; it stays None where no process has one."""
        import torch

        has_one = self.sum(torch.tensor([each.grad is not None for each in parameters], dtype=torch.int64))
        learned = [each for each, there in zip(parameters, has_one.tolist(), strict=True) if there]
        for bucket in _buckets(learned):
            summed = self.sum(torch.cat([_gradient(each) for each in bucket]))
            for each, part in zip(bucket, summed.split([each.numel() for each in bucket]), strict=True):
                each.grad = part.view_as(each).to(each.dtype)

    def _collect(self, collective: Callable[..., Any], *, device: str = "cpu") -> None:
        """Runs a collective operation of torch's; nothing ends gloo's own wait for a process that is halted."""
        if device == "cpu":
            self._together(lambda: self._completed(collective(async_op=True)))
        else:
            self._together(collective)

    def _completed(self, work: Any) -> None:
        while not work.is_completed():
            with suppress(RuntimeError):  # The time is over, or the work has failed, of which it tells below.
                work.wait(_ASKING)
            if not work.is_completed() and (failure := self._failure()):
                leave_behind(work)
                raise failure
        work.wait()

    def _together(self, ask: Callable[[], Any]) -> Any:
        """What is asked of the others, or of the store; where that has ended, the error says why."""
        try:
            return ask()
        except RuntimeError as error:
            raise self._lost(error) from error

    def why(self, error: RuntimeError) -> TruetuneError | None:
        """What to tell of an error in what speaks to the others as it computes; None where it is one of its own."""
        from torch.distributed import DistError

        is_of_others = isinstance(error, DistError) or any(words in str(error) for words in _LOST)
        return self._lost(error) if is_of_others else None

    def _lost(self, error: RuntimeError) -> TruetuneError:
        return self._failure(patience=_LAST_WORDS) or BackendError(
            f"process {self.rank} of {self.size} has lost the others: {first_line(error)}",
            hint="one of them died; its machine's log may say why (memory?). Go on with --resume",
        )

    # --- how it ends --------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Has the others end for this error. OtherProcessError if they do already for another's, which is told."""
        is_the_first = False
        with suppress(RuntimeError):  # The store may be gone with its process.
            if not isinstance(error, OtherProcessError) and self.store.add("failures", 1) == 1:
                self.store.set("failure", json.dumps(_described(error, self.rank)))
                is_the_first = True
        disconnect()  # Whoever waits for a sum hears of it now.
        if not is_the_first:
            error = self._failure(patience=_LAST_WORDS) or error
        if not is_the_first or self._keeps_store():
            time.sleep(_LAST_WORDS)
        if not is_the_first:
            raise error

    def leave(self) -> None:
        """The processes go apart; the first one stays until all have heard all."""
        disconnect()
        with suppress(RuntimeError):
            self.store.add("left", 1)
            until = time.monotonic() + _STARTING.total_seconds()
            while self.is_first and self.store.add("left", 0) < self.size and time.monotonic() < until:
                time.sleep(0.02)

    def give_up(self, reason: str) -> None:
        """Has all end for a process that does not answer, this one first: whoever waits here hears of it."""
        with suppress(RuntimeError):
            if self.store.add("failures", 1) == 1:
                error = BackendError(f"{reason}: it is halted, or its machine is gone", hint="go on with --resume")
                self.store.set("failure", json.dumps(_described(error, self.rank)))
        abort()

    def _failure(self, *, patience: float = 0.0) -> TruetuneError | None:
        """Why all end, if they do: another process's failure, or what this one found of another."""
        until = time.monotonic() + patience
        with suppress(RuntimeError):
            while not (is_there := self.store.check(["failure"])) and time.monotonic() < until:
                time.sleep(0.05)
            if is_there:
                failure = json.loads(self.store.get("failure"))
                if failure["rank"] == self.rank:
                    return BackendError(failure["message"], hint="go on with --resume")
                return OtherProcessError(
                    f"process {failure['rank']} failed: {failure['message']}", exit_status=failure["exit_status"]
                )
        return None

    def _keeps_store(self) -> bool:
        """True if the store goes with this process: torchrun's agent has one that outlives it."""
        return self.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


@contextmanager
def open_world() -> Iterator[World]:
    """The processes that a launcher started, of which this is one; what fails in one of them ends all."""
    adopt_launcher()
    size = running_processes()
    if size == 1:
        yield World()
        return
    world = _join(size)
    try:
        with pulse(world.store, rank=world.rank, size=size, lost=world.give_up):
            yield world
    except BaseException as error:
        world.fail(error)
        raise
    world.leave()


def deal(sizes: Sequence[int], processes: int) -> list[list[int]]:
    """For each process the places of its batches: the largest first, each to the one with the least to do."""
    hands: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        least = loads.index(min(loads))
        hands[least].append(place)
        loads[least] += sizes[place]
    return [sorted(hand) for hand in hands]


def _join(size: int) -> World:
    from torch.distributed import PrefixStore

    refuse_other_strategies()
    take_own_gpu()
    try:
        store, rank = _store()
    except ValueError as error:
        raise ConfigError(
            f"WORLD_SIZE is {size}, and the processes cannot find each other: {first_line(error)}",
            hint="start them with truetune train --num-processes, torchrun or srun",
        ) from error
    except RuntimeError as error:
        raise BackendError(
            f"the {size} processes did not find each other: {first_line(error)}",
            hint="MASTER_ADDR and MASTER_PORT must be reachable from all machines",
        ) from error
    # A program may train several runs, one after the other: each has its own keys.
    run = store.add(f"runs/{rank}", 1)
    is_first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    return World(rank, size, is_first_here, PrefixStore(f"run{run}", store))


@cache
def _store() -> tuple[Any, int]:
    """The store of all processes, and this one's rank: once, since the first process keeps it for the others."""
    from torch.distributed.rendezvous import rendezvous

    store, rank, _ = next(rendezvous("env://", timeout=_STARTING))
    return store, rank


def _described(error: BaseException, rank: int) -> dict[str, Any]:
    match error:
        case TruetuneError():
            status = error.exit_status
        case KeyboardInterrupt():
            status = 130
        case _:
            status = 1
    return {"rank": rank, "message": first_line(error), "exit_status": status}


def _buckets(parameters: Sequence[Any]) -> Iterator[list[Any]]:
    """The parameters in order, some at a time, each time on one device."""
    bucket: list[Any] = []
    held = 0
    for each in parameters:
        if bucket and (held + each.numel() > _BUCKET or each.device != bucket[0].device):
            yield bucket
            bucket, held = [], 0
        bucket.append(each)
        held += each.numel()
    if bucket:
        yield bucket


def _gradient(parameter: Any) -> Any:
    """As one row of fp32 numbers, in which sums lose least; zeros where there is none."""
    import torch

    if parameter.grad is None:
        return torch.zeros(parameter.numel(), device=parameter.device)
    return parameter.grad.reshape(-1).float()
