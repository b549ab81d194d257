"""A disk that is full: the run ends with its name, and what was saved before can be gone on from."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tiny_runs import ROWS, Trained
from truetune.errors import CheckpointError
from truetune.runs.checkpoints import checkpoints_in, problems

SAVES = {"save_strategy": "steps", "save_steps": 2}
TINY_DISK = 4_000_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes, which root can make."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TINY_DISK}", "tmpfs", disk], check=False)
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


class Filler(TrainerCallback):
    """Leaves so many bytes of the disk free, once something is saved."""

    def __init__(self, disk: Path, *, free: int) -> None:
        self._disk, self._free = disk, free

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        room = shutil.disk_usage(self._disk).free - self._free
        (self._disk / "filler").write_bytes(bytes(max(0, room)))


@pytest.mark.parametrize("free", [0, 4_096, 20_000, 60_000, 100_000])
def test_g23_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(small_disk: Path, free: int) -> None:
    with pytest.raises(CheckpointError, match="no space left on its disk") as caught:
        Trained(small_disk / "run", ROWS, callbacks=[Filler(small_disk, free=free)], **SAVES)
    assert "checkpoint-4 could not be saved" in str(caught.value)
    assert "checkpoint-2 is the last good checkpoint" in str(caught.value)
    assert [path.name for path in (small_disk / "run").iterdir()] == ["checkpoint-2"]
    (small_disk / "filler").unlink()
    assert problems(small_disk / "run" / "checkpoint-2") == []
    resumed = Trained(small_disk / "run", ROWS, resume_from=small_disk / "run" / "checkpoint-2", **SAVES)
    assert resumed.result.steps == 6


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "no space left"),
        (RuntimeError("[enforce fail at inline_container.cc:663] . unexpected pos 64 vs 0"), "unexpected pos"),
        (PermissionError(13, "Permission denied"), "this user may not write there"),
        (OSError(30, "Read-only file system"), "that disk can only be read"),
    ],
    ids=str,
)
def test_g23_whatever_keeps_a_checkpoint_from_being_saved_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    save, calls = torch.save, []

    def failing(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) > 4:
            raise error
        save(*args, **options)

    monkeypatch.setattr("torch.save", failing)
    with pytest.raises(CheckpointError, match="could not be saved") as caught:
        Trained(tmp_path / "run", ROWS, **SAVES)
    assert told in str(caught.value)
    assert [problems(path) for path in checkpoints_in(tmp_path / "run")] == [[]]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]
