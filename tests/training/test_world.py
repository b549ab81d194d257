"""What processes tell each other: here threads, with torch's store between them."""

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore
from transformers import TrainerControl, TrainerState, TrainingArguments

import warm
from heard import Heard
from truetune.errors import BackendError, ConfigError, OtherProcessError
from truetune.runs.checkpoints import manifested
from truetune.training import pulse as pulse_module
from truetune.training import world as module
from truetune.training.checkpoints import BestCheckpoint
from truetune.training.world import World, deal, open_world


def together(size: int, work: Callable[[World], Any]) -> list[Any]:
    """What each of so many worlds returns, or raises."""
    store, found = HashStore(), [None] * size

    def run(rank: int) -> None:
        world = World(rank, size, is_first_here=rank == 0, store=store)
        try:
            found[rank] = work(world)
        except Exception as error:  # noqa: BLE001 - what is raised is what is asked
            found[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
        assert not each.is_alive()
    return found


def test_all_are_told_what_the_first_one_makes_and_the_others_make_nothing() -> None:
    made: list[int] = []

    def work(world: World) -> list[Any]:
        def make() -> dict[str, Any]:
            made.append(world.rank)
            return {"loss": 0.1 + 0.2, "folder": "runs/ä"}

        return [world.told_by_first(make) for _ in range(3)]

    found = together(3, work)
    assert found == [[{"loss": 0.1 + 0.2, "folder": "runs/ä"}] * 3] * 3
    assert made == [0, 0, 0]


def test_the_first_process_of_a_machine_comes_before_the_others() -> None:
    order: list[int] = []

    def work(world: World) -> None:
        with world.first_on_each_machine("prepared"):
            time.sleep(0.2 if world.is_first_here else 0)
            order.append(world.rank)

    together(3, work)
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_whoever_waits_hears_of_a_failure_and_of_the_first_one_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAST_WORDS", 0.0)

    def work(world: World) -> None:
        try:
            if world.rank == 1:
                raise ConfigError("no such rate\nsecond line")
            world.told_by_first(lambda: time.sleep(0.3)) if world.rank else world.meet()
        except Exception as error:
            world.fail(error)
            raise

    first, second, third = together(3, work)
    assert isinstance(second, ConfigError)
    for other in (first, third):
        assert isinstance(other, OtherProcessError)
        assert str(other) == "process 1 failed: no such rate"
        assert other.exit_status == ConfigError.exit_status == 2


def test_of_several_that_fail_alike_one_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAST_WORDS", 0.2)

    def work(world: World) -> None:
        error = BackendError("no GPU")
        world.fail(error)
        raise error

    found = together(4, work)
    assert sorted(type(each).__name__ for each in found) == ["BackendError", *["OtherProcessError"] * 3]


def test_a_process_that_would_train_another_run_says_in_what_it_differs() -> None:
    first, second = together(2, lambda world: world.require_same({"seed": 1, "rows": f"{world.rank}", "r": 8}))
    assert first is None
    assert "process 1 would train another run than the first process: rows is 1 here and 0 there" in str(second)


def test_alone_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with open_world() as world, world.first_on_each_machine("anything"):
        assert (world.size, world.is_first) == (1, True)
        assert world.told_by_first(lambda: ("kept", "as it is")) == ("kept", "as it is")
        world.meet()
        values = torch.ones(2)
        assert world.sum(values) is values
        assert world.most([1.0, -2.0]) == [1.0, -2.0]
        assert world.share([5, 6, 7]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("sizes", "processes", "hands"),
    [
        ([4, 4, 4, 4, 4], 2, [[0, 2, 4], [1, 3]]),
        ([9, 1, 1, 1], 2, [[0], [1, 2, 3]]),
        ([5], 3, [[0], [], []]),
        ([], 2, [[], []]),
    ],
)
def test_batches_are_dealt_by_their_tokens(sizes: list[int], processes: int, hands: list[list[int]]) -> None:
    assert deal(sizes, processes) == hands


def test_a_launcher_that_does_not_say_who_is_who_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="cannot find each other"), open_world():
        pass


# --- signs of life ------------------------------------------------------------------------------------------


@pytest.fixture
def fast_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_BEAT", 0.02), ("_PATIENCE", 10), ("_GRACE", 20.0)):
        monkeypatch.setattr(pulse_module, name, value)
    monkeypatch.setattr(module, "_LAST_WORDS", 0.0)


@pytest.mark.usefixtures("fast_pulse")
@pytest.mark.parametrize(("own", "other"), [(0, 1), (1, 0)])
def test_a_process_that_gives_no_sign_of_life_is_given_up_by_whoever_waits(own: int, other: int) -> None:
    world = World(own, 2, store=HashStore())
    with (
        pytest.raises(BackendError, match=f"process {other} has given no sign of life .*: it is halted") as raised,
        pulse_module.pulse(world.store, rank=own, size=2, lost=world.give_up),
    ):
        world.meet()
    with pytest.raises(BackendError, match="no sign of life") as told:
        world.fail(raised.value)
    assert not isinstance(told.value, OtherProcessError)


@pytest.mark.usefixtures("fast_pulse")
def test_processes_that_are_busy_for_long_are_waited_for() -> None:
    def work(world: World) -> str:
        with pulse_module.pulse(world.store, rank=world.rank, size=3, lost=world.give_up):
            return world.told_by_first(lambda: (time.sleep(1.5), "done")[1])

    assert together(3, work) == ["done"] * 3


def test_a_process_whose_main_thread_waits_for_ever_ends_and_says_why() -> None:
    """As in a library's sum, which nothing interrupts."""
    code = (
        "import time\nfrom torch.distributed import HashStore\nfrom truetune.training import pulse\n"
        "pulse._BEAT, pulse._PATIENCE, pulse._GRACE = 0.02, 10, 0.2\n"
        "with pulse.pulse(HashStore(), rank=0, size=2, lost=lambda _: time.sleep(60)):\n    time.sleep(60)\n"
    )
    done = subprocess.run(warm.python("-c", code), capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert "process 0 ends: process 1 has given no sign of life" in done.stderr


def test_the_best_checkpoint_is_there_for_all_if_the_first_process_sees_it(tmp_path: Path) -> None:
    """The others may run on machines whose disks do not hold the run."""
    with manifested(tmp_path / "0" / "checkpoint-3", {}) as staged:
        (staged / "adapter.safetensors").write_bytes(b"weights")

    def work(world: World) -> tuple[Any, Any]:
        arguments = TrainingArguments(output_dir=str(tmp_path / str(world.rank)), use_cpu=True)
        state = TrainerState(best_global_step=3, best_metric=0.5)
        BestCheckpoint(Heard(), world).on_train_begin(arguments, state, TrainerControl())
        return state.best_global_step, state.best_metric

    assert together(2, work) == [(3, 0.5)] * 2
