"""FSDP2 on CPU tensors, through gloo: processes that share a model out train what one process does with all of it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

import sharded_worlds
import worlds
from conftest import tiny_model
from sharded_worlds import FOUR_BITS, MORE, SAVED
from tiny_runs import LORA, ROWS, Trained
from truetune.model.adapter import add_adapter
from truetune.training import computing
from truetune.training.sharded import FullyShard
from worlds import difference, figures

pytestmark = pytest.mark.timeout(3 * worlds.LIMIT)  # A test that is the first waits for all worlds.
HAS_BITS = find_spec("bitsandbytes") is not None


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base and rows, trained by one process that holds all, then by two that share it, then by three."""
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(tiny_base, folder / "base")
    for name in (*MORE, "saved", "four_bits"):
        worlds.written_rows(folder, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUETUNE_CACHE", str(folder / "cache"))
        for name in MORE:
            sharded_worlds.train(folder, name, processes=1)
        sharded_worlds.train(folder, "saved", processes=1, max_steps=6, **SAVED)
        if HAS_BITS:
            sharded_worlds.train(folder, "four_bits", processes=1, **FOUR_BITS)
        _together(folder, 2)
        for copy in ("saved-3", "back-to-1"):
            shutil.copytree(folder / "saved-2", folder / copy)
        _together(folder, 3)
        options: dict[str, Any] = {"resume_from_checkpoint": True, **SAVED}
        sharded_worlds.train(folder, "saved", processes=1, output="back-to-1", max_steps=6, **options)
        yield folder


def _together(folder: Path, size: int) -> None:
    worlds.require(worlds.ended(sharded_worlds.start(size, folder)), statuses=[0] * size)


PAIRS = [*[(name, 2) for name in MORE], ("uneven", 3), ("full", 3)]


@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_a_model_that_is_shared_out_learns_what_it_learns_whole(folder: Path, name: str, size: int) -> None:
    alone, together = folder / f"{name}-1", folder / f"{name}-{size}"
    assert difference(alone, together) <= 1e-5
    for names in (("loss", "grad_norm"), ("eval_loss", "eval_mean_token_accuracy"), ("mean_token_accuracy",)):
        assert figures(together, *names) == pytest.approx(figures(alone, *names), abs=1e-5, rel=1e-5)
    for counted in ("num_tokens", "supervised_tokens", "eval_supervised_tokens", "learning_rate", "eval_exact_match"):
        assert figures(together, counted) == figures(alone, counted)
    assert figures(together, "loss")
    assert json.loads((together / "run.json").read_text())["status"] == "finished"


def test_a_shared_model_is_verified_and_answers_as_it_is_saved(folder: Path) -> None:
    for name in ("uneven", "full"):
        alone, together = (
            json.loads(next((folder / f"{name}-{size}").glob("*/parity.json")).read_text()) for size in (1, 2)
        )
        assert [each["answer_ids"] for each in together["fixtures"]] == [
            each["answer_ids"] for each in alone["fixtures"]
        ]
        assert together["fixtures"]


def test_shares_that_lie_in_the_cpus_memory_learn_the_same(folder: Path) -> None:
    assert difference(folder / "full-2", folder / "offloaded-2") == 0.0


def test_a_checkpoint_is_the_one_that_one_process_writes(folder: Path) -> None:
    alone, shared = (folder / f"{name}" / "checkpoints" / "checkpoint-3" for name in ("saved-1", "back-to-1"))
    assert {path.name for path in alone.iterdir()} == {path.name for path in shared.iterdir()}
    one, other = (torch.load(each / "optimizer.pt", weights_only=True)["state"] for each in (alone, shared))
    assert one.keys() == other.keys()
    for place, states in one.items():
        assert states.keys() == other[place].keys()
        for name, value in states.items():
            assert torch.allclose(value, other[place][name], atol=1e-5), (place, name)


@pytest.mark.parametrize("resumed", ["saved-3", "back-to-1"])
def test_a_shared_run_goes_on_in_another_number_of_processes(folder: Path, resumed: str) -> None:
    assert difference(folder / "saved-1", folder / resumed) <= 1e-5
    assert figures(folder / resumed, "loss") == pytest.approx(figures(folder / "saved-1", "loss"), rel=1e-5)


@pytest.mark.skipif(not HAS_BITS, reason="bitsandbytes is not installed")
def test_a_base_in_four_bits_is_shared_out(folder: Path) -> None:
    assert difference(folder / "four_bits-1", folder / "four_bits-2") <= 1e-5


def test_whoever_waits_for_a_share_hears_why_it_does_not_come(folder: Path) -> None:
    first, second = (json.loads((folder / f"failed-{rank}.json").read_text()) for rank in range(2))
    assert second == ["BackendError", "the fan of process 1 stands still"]
    assert first == ["OtherProcessError", "process 1 failed: the fan of process 1 stands still"]


# --- one process --------------------------------------------------------------------------------------------


@pytest.fixture
def _closed() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("_closed")
@pytest.mark.parametrize("is_lora", [True, False])
def test_one_process_can_share_with_itself(tmp_path: Path, is_lora: bool) -> None:
    def model() -> Any:
        return add_adapter(tiny_model(), LORA, seed=0) if is_lora else tiny_model()

    options: dict[str, Any] = {"optim": "adamw_torch_fused", "gradient_accumulation_steps": 2}
    alone = Trained(tmp_path / "alone", ROWS, model=model(), **options)
    together = Trained(tmp_path / "shared", ROWS, model=model(), strategy="fsdp", **options)
    is_shared = [isinstance(each, DTensor) for each in together.model.parameters()]
    assert any(is_shared)
    assert all(is_shared) is not is_lora
    assert together.logged("loss") == pytest.approx(alone.logged("loss"), rel=1e-5)
    assert together.logged("grad_norm") == pytest.approx(alone.logged("grad_norm"), rel=1e-5)
    whole = {name: _full(value) for name, value in together.model.named_parameters()}
    for name, value in alone.model.named_parameters():
        assert torch.allclose(whole[name], value, atol=1e-6), name


def _full(value: Any) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adagrad", "rmsprop"])
@pytest.mark.usefixtures("_closed")
def test_every_optimizer_that_is_let_in_takes_shares(tmp_path: Path, optim: str) -> None:
    alone = Trained(tmp_path / "alone", ROWS[:4], model=tiny_model(), optim=optim, learning_rate=1e-3)
    together = Trained(
        tmp_path / "shared", ROWS[:4], model=tiny_model(), optim=optim, learning_rate=1e-3, strategy="fsdp"
    )
    assert together.logged("loss") == pytest.approx(alone.logged("loss"), rel=1e-4)


@pytest.mark.usefixtures("_closed")
def test_where_memory_runs_out_nothing_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from truetune.errors import BackendError

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(computing.Computing, "compute_loss", fail)
    with pytest.raises(BackendError, match="out of memory in step 1"):
        Trained(tmp_path, ROWS, model=tiny_model(), strategy="fsdp")


def test_a_strategy_is_the_jobs(tmp_path: Path) -> None:
    from tiny_runs import job
    from truetune.training.strategies import Replicated, strategy_of
    from truetune.training.world import World

    assert isinstance(strategy_of(job(tmp_path), World()), Replicated)
    assert isinstance(strategy_of(replace(job(tmp_path), strategy="fsdp"), World()), FullyShard)
