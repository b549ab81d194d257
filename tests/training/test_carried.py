"""Checkpoints reach machines that do not see the run's directory; here threads, with torch's store between them."""

from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from torch.distributed import HashStore

from truetune.errors import BackendError, OtherProcessError
from truetune.runs.checkpoints import MANIFEST
from truetune.training import carried
from truetune.training import world as world_module
from truetune.training.carried import within_reach
from truetune.training.world import World

FILES = {MANIFEST: b"{}", "adapter.safetensors": bytes(range(256)) * 5, "empty": b"", "parts/one.bin": b"x" * 256}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "_CHUNK", 256)
    monkeypatch.setattr(world_module, "_LAST_WORDS", 0.0)


def written(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reached(
    checkpoints: list[Path], copies: Path, *, first_here: list[bool]
) -> tuple[list[Any], list[str], HashStore]:
    """For each process where it reads the checkpoint and what is there, or its error; what is said; the store."""
    store, said = HashStore(), []
    found: list[Any] = [None] * len(checkpoints)

    def run(rank: int) -> None:
        world = World(rank, len(checkpoints), is_first_here=first_here[rank], store=store)
        try:
            with within_reach(world, checkpoints[rank], copies=copies, say=said.append) as place:
                assert place
                found[rank] = (place, read(place))
                world.meet()
        except BackendError as error:
            found[rank] = error
            with suppress(OtherProcessError):
                world.fail(error)

    threads = [Thread(target=run, args=(rank,)) for rank in range(len(checkpoints))]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
        assert not each.is_alive()
    return found, said, store


def test_a_machine_that_lacks_a_checkpoint_gets_one_copy_of_its_name_which_does_not_stay(tmp_path: Path) -> None:
    there, elsewhere = written(tmp_path / "run" / "checkpoint-3"), tmp_path / "gone" / "checkpoint-3"
    found, said, store = reached([there, elsewhere, elsewhere], tmp_path / "copies", first_here=[True, True, False])
    assert [files for _, files in found] == [FILES] * 3
    places = [place for place, _ in found]
    assert places[0] == there
    assert places[1] == places[2] != elsewhere
    assert places[1].name == "checkpoint-3"
    assert not any((tmp_path / "copies").iterdir())
    assert not elsewhere.exists()
    assert len([line for line in said if "checkpoint-3 is sent to 1 machine that cannot see" in line]) == 3
    # Of what was sent the store keeps nothing: pieces of a large model would fill its memory.
    assert not any(store.check([f"carried/{number}/0"]) for number in range(4))


def test_a_machine_whose_own_disk_has_another_checkpoint_there_does_not_take_that(tmp_path: Path) -> None:
    there = written(tmp_path / "run" / "checkpoint-3")
    stale = written(tmp_path / "old" / "checkpoint-3", {MANIFEST: b"[]"})
    found, _, _ = reached([there, stale], tmp_path / "copies", first_here=[True, True])
    assert found[1][1] == FILES
    assert read(stale) == {MANIFEST: b"[]"}


def test_a_checkpoint_that_all_see_is_read_where_it_is(tmp_path: Path) -> None:
    there = written(tmp_path / "checkpoint-3")
    found, said, _ = reached([there] * 3, tmp_path / "copies", first_here=[True, False, True])
    assert [place for place, _ in found] == [there] * 3
    assert said == []
    assert not (tmp_path / "copies").exists()


def test_processes_of_one_machine_that_see_different_disks_are_told_so(tmp_path: Path) -> None:
    there = written(tmp_path / "checkpoint-3")
    found, _, _ = reached([there, tmp_path / "gone" / "checkpoint-3"], tmp_path, first_here=[True, False])
    assert isinstance(found[1], BackendError)
    assert "is seen by some processes and not by process 1" in str(found[1])


def test_alone_nothing_is_copied(tmp_path: Path) -> None:
    for checkpoint in (None, tmp_path / "checkpoint-3"):
        with within_reach(World(), checkpoint, copies=tmp_path, say=lambda _: None) as place:
            assert place == checkpoint
