"""Two machines train one run: each has its own copies of model, rows and cache, and the run's directory or not."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import worlds
from namespaces import FIRST_ADDRESS, NotPermittedError, two_machines
from truetune.runs.checkpoints import problems
from worlds import BEST, SAVED, difference, figures

pytestmark = pytest.mark.timeout(3 * worlds.LIMIT)


@pytest.fixture(scope="module")
def alone(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with base and rows, where one process has trained what two machines are to train."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(tiny_base, folder / "base")
    worlds.written_rows(folder, "saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUETUNE_CACHE", str(folder / "cache"))
        worlds.train(folder, "saved", processes=1, max_steps=6, **SAVED, **BEST)
        yield folder


def machines(alone: Path, folder: Path) -> list[Path]:
    """The working directory on each of the two: base and rows lie in both, `lacking.jsonl` in the first one alone."""
    places = [folder / name for name in ("first", "second")]
    for place in places:
        shutil.copytree(alone / "base", place / "base")
        shutil.copy(alone / "saved.jsonl", place)
    shutil.copy(alone / "saved.jsonl", places[0] / "lacking.jsonl")
    return places


def trained(folder: Path, places: Sequence[Path], *scenarios: str, **where: Any) -> list[list[str]]:
    """How the last of the scenarios ended, on each of the machines."""
    worlds.require(worlds.ended(worlds.start(2, folder, *scenarios, places=places, **where)), statuses=[0, 0])
    return [json.loads((folder / f"outcomes-{scenarios[-1]}-{rank}.json").read_text()) for rank in range(2)]


def require_same_run(alone: Path, together: Path) -> None:
    """The weights, losses and checkpoints of one process that was never interrupted."""
    assert difference(alone / "saved-1", together) <= 1e-5
    names = ("loss", "eval_loss")
    assert figures(together, *names) == pytest.approx(figures(alone / "saved-1", *names), abs=1e-5)
    for step in (3, 6):
        assert problems(together / "checkpoints" / f"checkpoint-{step}") == []


def prepared(place: Path) -> list[Path]:
    return [*(place / "cache").rglob("tokens.arrow")]


def test_machines_whose_disks_are_their_own_go_on_from_the_first_one_s_checkpoint(
    alone: Path, tmp_path: Path
) -> None:
    first, second = places = machines(alone, tmp_path)
    assert trained(tmp_path, places, "apart") == [["finished", "None", "6"]] * 2
    require_same_run(alone, first / "runs" / "apart")
    # The second one has prepared its own rows, and kept nothing of the run, nor of the copied checkpoint.
    assert prepared(first)
    assert prepared(second)
    assert not [each for each in second.rglob("*") if "checkpoint-" in each.name or each.name == "run.json"]


def test_a_machine_that_lacks_the_rows_ends_both_with_its_own_error(alone: Path, tmp_path: Path) -> None:
    first, second = trained(tmp_path, machines(alone, tmp_path), "elsewhere")
    assert second[0] == "DataError"
    assert first[0] == "OtherProcessError"
    assert "process 1 failed: data file not found: lacking.jsonl" in first[1]


def test_two_machines_meet_over_a_network_and_each_prepares_its_rows(alone: Path, tmp_path: Path) -> None:
    """By host names that nobody can look up; the run's directory is on their own disks, then on one that both see."""
    places = machines(alone, tmp_path)
    try:
        with two_machines() as holders:
            where = {"holders": holders, "address": FIRST_ADDRESS}
            assert trained(tmp_path, places, "apart", "shared", **where) == [["finished", "None", "6"]] * 2
    except NotPermittedError as reason:
        pytest.skip(f"no network namespaces here: {reason}")
    for run in (places[0] / "runs" / "apart", tmp_path / "shared"):
        require_same_run(alone, run)
    assert all(map(prepared, places))
