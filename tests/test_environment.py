"""What a process computes with: set before torch loads, left alone behind it, and what the machine grants it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import truetune
from conftest import arithmetic_rows
from heard import Heard
from truetune import environment
from truetune.cgroups import cpu_quota, memory_left
from truetune.environment import set_computing, spinning_threads, usable_threads, visible_cores
from truetune.model import hardware
from truetune.model.hardware import free_memory, threads

CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "48", "LRU_CACHE_CAPACITY": "32"}
COMPUTING = ("OMP_WAIT_POLICY", *CACHES, "OMP_NUM_THREADS")


def said_by_a_process(code: str, **given: str) -> str:
    """What code prints in a process of its own, whose environment has nothing of COMPUTING but what is given."""
    kept = {name: value for name, value in os.environ.items() if name not in COMPUTING}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=kept | given, capture_output=True, text=True, check=True).stdout


def set_in_a_process(first: str = "", **given: str) -> dict[str, str]:
    """What `set_environment` leaves of COMPUTING in a process of its own; it must not import torch."""
    code = (
        f"import os, sys\n{first}\nhad = 'torch' in sys.modules\n"
        "from truetune.environment import set_environment\nset_environment()\n"
        "assert ('torch' in sys.modules) == had\n"
        f"print(*(f'{{name}}={{os.environ[name]}}' for name in {COMPUTING!r} if name in os.environ))"
    )
    return dict(word.split("=") for word in said_by_a_process(code, **given).split())


def test_threads_sleep_and_few_primitives_are_kept_unless_the_user_says_otherwise() -> None:
    usual = {"OMP_WAIT_POLICY": "PASSIVE", **CACHES}
    assert set_in_a_process() | {"OMP_NUM_THREADS": ""} == {**usual, "OMP_NUM_THREADS": ""}
    given = {"OMP_WAIT_POLICY": "ACTIVE", **dict.fromkeys(CACHES, "7"), "OMP_NUM_THREADS": "3"}
    assert set_in_a_process(**given) == given


@pytest.mark.skipif(not hardware.has_native_bf16("cpu"), reason="torch calls oneDNN only where a CPU has bf16")
def test_memory_does_not_grow_with_the_lengths_that_rows_have() -> None:
    """Of 340 lengths each had its primitives kept, in 390 MB."""
    code = (
        "from truetune.environment import set_environment\nset_environment()\n"
        "import psutil, torch\nfrom torch.nn.functional import linear\n"
        "weights = [torch.ones(*size, dtype=torch.bfloat16) for size in ((576, 576), (192, 576), (1536, 576))]\n"
        "def taken(lengths):\n"
        "    for n in lengths:\n"
        "        [linear(torch.ones(n, 576, dtype=torch.bfloat16), weight) for weight in weights]\n"
        "    return psutil.Process().memory_info().rss\n"
        "print(-taken(range(20, 60)) + taken(range(60, 400)))"
    )
    assert int(said_by_a_process(code)) < 50_000_000


def test_one_of_several_processes_computes_with_its_share_of_the_cores() -> None:
    """By torch's own word, in a process as a launcher starts it."""
    code = (
        "from truetune.environment import set_environment, usable_threads, visible_cores\nset_environment()\n"
        "import torch\nprint(torch.get_num_threads(), usable_threads(), visible_cores())"
    )
    said = said_by_a_process(code, WORLD_SIZE="2", RANK="1", LOCAL_WORLD_SIZE="2", LOCAL_RANK="1")
    threads, usable, cores = map(int, said.split())
    assert threads == usable <= max(1, cores // 2)


def test_nothing_is_set_once_torch_is_loaded_so_that_the_environment_does_not_lie() -> None:
    assert set_in_a_process("sys.modules['torch'] = sys") == {}


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (0.5, 1), (2.0, 2), (2.9, 2), (64.0, 8)])
def test_no_more_threads_than_a_container_is_granted(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "visible_cores", lambda: 8)
    monkeypatch.setattr(environment, "cpu_quota", lambda: quota)
    for name in COMPUTING:
        monkeypatch.setenv(name, "")  # So that what is set here is taken back.
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert usable_threads() == expected
    set_computing()
    assert os.environ.get("OMP_NUM_THREADS") == (None if expected == 8 else str(expected))


def test_the_cores_are_those_that_the_process_may_run_on() -> None:
    assert 1 <= visible_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("policy", "word"), [("ACTIVE", "ACTIVE"), ("", "not set")])
def test_spinning_threads_are_warned_of_with_the_remedy_before_anything_loads(
    policy: str, word: str, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    heard = Heard()
    with pytest.raises(truetune.TruetuneError):
        truetune.train(model=str(tiny_base / "no"), data=arithmetic_rows(4), device="cpu", listener=heard)
    (warning,) = [line for line in heard.lines if "OMP_WAIT_POLICY" in line]
    assert warning.startswith(f"warning: OMP_WAIT_POLICY is {word}")
    assert "set OMP_WAIT_POLICY=PASSIVE before torch is imported" in warning


def test_sleeping_threads_are_not_warned_of_and_the_run_says_how_it_computes(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert spinning_threads() is None
    heard = Heard()
    rows = arithmetic_rows(4)
    truetune.train(
        model=str(tiny_base), data=rows, output_dir=tmp_path / "run", max_steps=1, device="cpu", listener=heard
    )
    assert "OMP_WAIT_POLICY" not in heard.text()
    (loading,) = [line for line in heard.lines if line.startswith("loading")]
    assert loading.endswith(f"with {threads()}")
    assert "thread" in threads()


# --- control groups ---------------------------------------------------------------------------------------


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def test_limits_of_version_2_are_the_tightest_of_the_group_and_those_above(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "own": "0::/jobs/this",
            "jobs/cpu.max": "150000 100000",
            "jobs/this/cpu.max": "max 100000",
            "jobs/memory.max": "1000",
            "jobs/memory.current": "700",
            "jobs/memory.stat": "anon 500\ninactive_file 200",
            "jobs/this/memory.max": "max",
            "jobs/this/memory.current": "10",
        },
    )
    assert cpu_quota(root=tmp_path, own=tmp_path / "own") == 1.5
    assert memory_left(root=tmp_path, own=tmp_path / "own") == 500


def test_limits_of_version_1_and_of_a_container_that_sees_its_group_as_the_root(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "own": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/",
            "cpu/cpu.cfs_quota_us": "200000",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": "1000",
            "memory/memory.usage_in_bytes": "900",
            "memory/memory.stat": "total_inactive_file 100\ninactive_file 1",
        },
    )
    assert cpu_quota(root=tmp_path, own=tmp_path / "own") == 2.0
    assert memory_left(root=tmp_path, own=tmp_path / "own") == 200


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert cpu_quota(root=tmp_path, own=tmp_path / "own") is None
    write(tmp_path, {"own": "0::/", "cpu.max": "max 100000", "memory.max": "max", "memory.current": "5"})
    assert cpu_quota(root=tmp_path, own=tmp_path / "own") is None
    assert memory_left(root=tmp_path, own=tmp_path / "own") is None
    write(tmp_path, {"own": "3:cpu:/", "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"})
    assert cpu_quota(root=tmp_path, own=tmp_path / "own") is None


def test_free_memory_is_what_the_machine_has_or_the_group_is_left_if_that_is_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "memory_left", lambda: None)
    whole = free_memory("cpu")
    assert whole is not None
    assert whole > 100_000_000
    monkeypatch.setattr(hardware, "memory_left", lambda: 12_345)
    assert free_memory("cpu") == 12_345
