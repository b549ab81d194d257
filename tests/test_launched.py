"""Who a process is among those that a launcher started: by torchrun's names, or by SLURM's."""

import os
import sys
from dataclasses import dataclass

import psutil
import pytest

from truetune import environment, launched
from truetune.environment import usable_threads
from truetune.errors import BackendError
from truetune.launched import (
    adopt_launcher,
    as_if_alone,
    choose_interface,
    first_host,
    machine,
    running_processes,
    take_own_gpu,
)
from truetune.training.world import open_world

STEP = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[003-004],gpu009",
    "SLURM_JOB_ID": "4321007",
}
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
MORE = (
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_CPUS_ON_NODE",
    "SLURM_CPUS_PER_TASK",
    "GLOO_SOCKET_IFNAME",
    "GROUP_RANK",
    "SLURM_NODEID",
    "SLURM_STEP_NUM_NODES",
)


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a launcher; whatever is set in it is taken back."""
    for name in (*NAMES, *MORE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def said(environ: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        environ.setenv(name, value)


def test_srun_s_tasks_are_processes_that_train_together(environ: pytest.MonkeyPatch) -> None:
    said(environ, **STEP)
    adopt_launcher()
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["5", "8", "1"]
    assert os.environ["MASTER_ADDR"] == "gpu003"
    assert 15_000 <= int(os.environ["MASTER_PORT"]) < 35_000
    assert running_processes() == 8


def test_what_is_set_already_wins_over_what_srun_says(environ: pytest.MonkeyPatch) -> None:
    said(environ, **STEP, MASTER_ADDR="10.0.0.7", MASTER_PORT="2222")
    adopt_launcher()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.7", "2222")
    said(environ, WORLD_SIZE="2", RANK="1")
    adopt_launcher()
    assert (os.environ["WORLD_SIZE"], os.environ["RANK"]) == ("2", "1")


def test_a_batch_script_is_one_process_however_many_tasks_it_may_start(environ: pytest.MonkeyPatch) -> None:
    said(environ, SLURM_NTASKS="8", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_JOB_ID="1")
    environ.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    adopt_launcher()
    assert running_processes() == 1
    assert "RANK" not in os.environ


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu[003-006,9],x7", "gpu003"),
        ("a1,b[2-3]", "a1"),
        ("node-5", "node-5"),
        ("n[7,9]", "n7"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_the_first_of_slurm_s_hosts(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    ("visible", "place", "left"),
    [(None, "1", "1"), ("2,3,5", "1", "3"), ("4", "1", "4"), ("2,3", None, "2,3"), ("", "1", "")],
)
def test_each_process_sees_its_own_gpu(
    environ: pytest.MonkeyPatch, visible: str | None, place: str | None, left: str
) -> None:
    """The scheduler may have given it one of its own; then it is that one."""
    given = {"CUDA_VISIBLE_DEVICES": visible, "LOCAL_RANK": place}
    said(environ, **{name: value for name, value in given.items() if value is not None})
    for _ in range(2):
        take_own_gpu()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def test_processes_of_a_machine_share_its_cores(environ: pytest.MonkeyPatch) -> None:
    environ.setattr(environment, "visible_cores", lambda: 8)
    environ.setattr(environment, "cpu_quota", lambda: None)
    for processes, threads in (("1", 8), ("3", 2), ("16", 1)):
        said(environ, LOCAL_WORLD_SIZE=processes)
        assert usable_threads() == threads
    environ.delenv("LOCAL_WORLD_SIZE")
    said(environ, SLURM_CPUS_PER_TASK="3")
    assert usable_threads() == 3
    environ.setenv("OMP_NUM_THREADS", "")
    environ.delenv("OMP_NUM_THREADS")
    environ.delitem(sys.modules, "torch", raising=False)
    environment.set_computing()
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("tasks", "node", "here"), [("2", "0", 2), ("8(x2),3", "1", 8), ("8(x2),3", "2", 3), ("1,4(x2)", "1", 4)]
)
def test_srun_s_tasks_share_the_cores_of_their_job_on_their_machine(
    environ: pytest.MonkeyPatch, tasks: str, node: str, here: int
) -> None:
    environ.setattr(environment, "visible_cores", lambda: 64)
    environ.setattr(environment, "cpu_quota", lambda: None)
    said(environ, **STEP, SLURM_STEP_TASKS_PER_NODE=tasks, SLURM_NODEID=node, SLURM_CPUS_ON_NODE="24")
    adopt_launcher()
    assert os.environ["LOCAL_WORLD_SIZE"] == str(here)
    assert usable_threads() == 24 // here
    # Bound to its share, a task sees no other cores, and is not given a share of that.
    environ.setattr(environment, "visible_cores", lambda: 24 // here)
    assert usable_threads() == 24 // here
    said(environ, SLURM_CPUS_PER_TASK="2")
    assert usable_threads() == 2


def test_accelerate_is_shown_one_process_only_while_the_trainer_is_built(environ: pytest.MonkeyPatch) -> None:
    there = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "ACCELERATE_MIXED_PRECISION": "bf16"}
    said(environ, **there)
    with as_if_alone():
        assert not any(name in os.environ for name in there)
    assert {name: os.environ[name] for name in there} == there


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "configured for FSDP, which is not taken from there"),
        ({"ACCELERATE_USE_DEEPSPEED": "True"}, "configured for DeepSpeed"),
        ({"PARALLELISM_CONFIG_CP_SIZE": "2"}, "context parallelism.*kept apart"),
        ({"PARALLELISM_CONFIG_TP_SIZE": "4"}, "tensor parallelism"),
    ],
)
def test_what_accelerate_is_configured_for_and_would_not_happen_is_refused(
    environ: pytest.MonkeyPatch, given: dict[str, str], words: str
) -> None:
    said(environ, **{"WORLD_SIZE": "2", "RANK": "0", **given})
    with pytest.raises(BackendError, match=words), open_world():
        pass


@dataclass(frozen=True)
class Address:
    """As psutil tells one."""

    address: str


CARDS = {"lo": ["127.0.0.1"], "docker0": ["172.17.0.1"], "ib0": ["10.9.8.7", "fe80::1%ib0"]}


@pytest.mark.parametrize(
    ("said_by_launcher", "ways", "chosen"),
    [
        ({"LOCAL_WORLD_SIZE": "8"}, {"node1": "10.9.8.7"}, "ib0"),
        ({"LOCAL_WORLD_SIZE": "8"}, {"node1": "fe80::1"}, "ib0"),
        # On the first machine its own name may be an address within itself: then the way to anywhere else counts.
        ({"LOCAL_WORLD_SIZE": "8"}, {"node1": None, "192.0.2.1": "172.17.0.1"}, "docker0"),
        ({"SLURM_STEP_NUM_NODES": "2"}, {"node1": "10.9.8.7"}, "ib0"),
        ({"LOCAL_WORLD_SIZE": "16"}, {"node1": "10.9.8.7"}, None),
        ({}, {"node1": "10.9.8.7"}, None),
        ({"LOCAL_WORLD_SIZE": "8"}, {"node1": None, "192.0.2.1": None}, None),
        ({"LOCAL_WORLD_SIZE": "8", "GLOO_SOCKET_IFNAME": "eth7"}, {"node1": "10.9.8.7"}, "eth7"),
    ],
)
def test_processes_of_several_machines_speak_through_the_network_that_joins_them(
    environ: pytest.MonkeyPatch, said_by_launcher: dict[str, str], ways: dict[str, str | None], chosen: str | None
) -> None:
    environ.setattr(psutil, "net_if_addrs", lambda: {name: [Address(each) for each in CARDS[name]] for name in CARDS})
    environ.setattr(launched, "_own_address", lambda host: ways.get(host))
    said(environ, WORLD_SIZE="16", MASTER_ADDR="node1", **said_by_launcher)
    choose_interface()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == chosen


def test_an_address_within_the_machine_is_none_that_others_reach() -> None:
    assert launched._own_address("127.0.0.1") is None
    assert launched._own_address("localhost") is None
    assert launched._own_address("no-such-host.invalid") is None


def test_machines_of_one_host_name_are_told_apart_by_the_launcher_s_number(environ: pytest.MonkeyPatch) -> None:
    names = set()
    for number in ("0", "1"):
        said(environ, GROUP_RANK=number)
        names.add(machine())
    assert len(names) == 2
    environ.delenv("GROUP_RANK")
    said(environ, SLURM_NODEID="1")
    assert machine() in names
