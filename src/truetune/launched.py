"""What a launcher (torchrun, accelerate, srun) says in the environment of the processes that it starts.

torchrun's names are the ones that torch reads; what SLURM says is told by them too. Nothing heavy is imported here.
"""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from truetune.errors import ConfigError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_PORTS = range(15_000, 35_000)

_ELSEWHERE = "192.0.2.1"
"""An address that nobody has (RFC 5737): the way to it is the way to other machines."""


def adopt_launcher() -> None:
    """Says by torchrun's names what srun says by its own; what is set already wins.

    Only srun counts the tasks of a step: a batch script is one process, however many tasks it may start.
    """
    given = os.environ
    if "WORLD_SIZE" in given or int(given.get("SLURM_STEP_NUM_TASKS") or 1) < 2:
        return
    names = {
        "RANK": given["SLURM_PROCID"],
        "WORLD_SIZE": given["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "MASTER_ADDR": first_host(given.get("SLURM_STEP_NODELIST", "localhost")),
        "MASTER_PORT": str(_PORTS[int(given.get("SLURM_JOB_ID", "0")) % len(_PORTS)]),
    }
    if (tasks := _tasks_here()) is not None:
        names["LOCAL_WORLD_SIZE"] = str(tasks)
    for name, value in names.items():
        given.setdefault(name, value)


def first_host(hosts: str) -> str:
    """The first of SLURM's list of hosts: gpu003 of gpu[003-006,9],cpu1."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", hosts)
    return "".join(part or "" for part in found.groups()) if found else hosts


def machine() -> str:
    """A name for this machine that none of the others has, where their host names are alike as containers' may be."""
    place = os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or ""
    return f"{socket.gethostname()}/{place}"


def choose_interface() -> None:
    """Has gloo speak to other machines through the network that the first process is reached by, if nobody chose one.

    By itself it takes the address that this machine's own name stands for: on many 127.0.1.1, where nobody hears it.
    """
    first = os.environ.get("MASTER_ADDR")
    if not first or not _spans_machines() or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    from psutil import net_if_addrs  # type: ignore[import-untyped]

    own = _own_address(first) or _own_address(_ELSEWHERE)
    for name, addresses in net_if_addrs().items():
        if any(each.address.partition("%")[0] == own for each in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return


def _spans_machines() -> bool:
    """True if some of the processes run elsewhere, as far as the launcher says."""
    here, there = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    return (here is not None and here != there) or int(os.environ.get("SLURM_STEP_NUM_NODES") or 1) > 1


def _own_address(host: str) -> str | None:
    """This machine's address on the way to a host; None for a way within itself, or none at all."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as speaking:
            speaking.connect(place)  # Of datagrams: nothing is sent.
            address: str = speaking.getsockname()[0]
    except OSError:
        return None
    address = address.partition("%")[0]
    return None if address.startswith("127.") or address == "::1" else address


def is_launched() -> bool:
    """True if a launcher started this process, be it as the only one."""
    return "WORLD_SIZE" in os.environ


def running_processes() -> int:
    """How many processes the launcher started; 1 without one. ConfigError if it says no number."""
    said = os.environ.get("WORLD_SIZE", "1")
    if not said.isdecimal() or not (there := int(said)):
        raise ConfigError(
            f"WORLD_SIZE is {said!r}, where a launcher puts the number of processes",
            hint="unset it, or start with torchrun",
        )
    return there


def processes_here() -> int:
    """How many of them share this machine, as far as the launcher says."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(said)) if said.isdecimal() else 1


def cores_of_task() -> int | None:
    """The cores that SLURM gives each of its tasks: so many were asked for, or they share those of the job here."""
    asked, granted = (os.environ.get(name, "") for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"))
    if asked.isdecimal() and int(asked):
        return int(asked)
    tasks = _tasks_here()
    return int(granted) // tasks or 1 if granted.isdecimal() and tasks else None


def _tasks_here() -> int | None:
    """The tasks of a step on this machine, of SLURM's list for all of them: 3 on the third one of 8(x2),3."""
    listed = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    tasks = [int(count) for count, times in listed for _ in range(int(times or 1))]
    place = int(os.environ.get("SLURM_NODEID") or 0)
    return tasks[place] if place < len(tasks) else None


def take_own_gpu() -> None:
    """Leaves of the visible GPUs the process's own one, by its place on this machine.

    Trainer computes on the first one that it sees. Must run before CUDA is initialised.
    """
    place = os.environ.get("LOCAL_RANK", "")
    if not place.isdecimal():
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place
    elif len(gpus := visible.split(",")) > int(place) and len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(place)]


@contextmanager
def as_if_alone() -> Iterator[None]:
    """Hides the launcher: accelerate would wrap the model in DDP, and deal out and pad the rows in its own way."""
    if not is_launched():
        yield
        return
    hidden = {name: os.environ[name] for name in os.environ if name in (*_NAMES, *_MPI) or _is_of_accelerate(name)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _is_of_accelerate(name: str) -> bool:
    return name.startswith("ACCELERATE_")
