"""Checkpoints on the disk: whole or not there, damage told by file, rotation that keeps the best and the newest."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from truetune.errors import CheckpointError
from truetune.runs.checkpoints import (
    checkpoint_folder,
    checkpoint_step,
    checkpoints_in,
    logged_lines,
    manifested,
    newest_listed,
    problems,
    read_manifest,
    rotate,
)


def checkpoint(folder: Path, step: int) -> Path:
    with manifested(checkpoint_folder(folder, step), {"step": step}) as staged:
        (staged / "weights.safetensors").write_bytes(bytes(range(256)) * 4)
        (staged / "sub").mkdir()
        (staged / "sub" / "state.pt").write_bytes(b"state")
    return checkpoint_folder(folder, step)


def steps(folder: Path) -> list[int]:
    return [checkpoint_step(path) for path in checkpoints_in(folder)]


def test_a_checkpoint_is_listed_with_sizes_digests_and_facts(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 4)
    manifest = read_manifest(folder)
    assert manifest["step"] == 4
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
        "weights.safetensors": 1024,
        "sub/state.pt": 5,
    }
    assert problems(folder) == []


def test_facts_are_those_of_the_blocks_end(tmp_path: Path) -> None:
    facts = {"late": 0}
    with manifested(tmp_path / "checkpoint-1", facts):
        facts["late"] = 1
    assert read_manifest(tmp_path / "checkpoint-1")["late"] == 1


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def rotten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def linked(path: Path) -> None:
    elsewhere = path.parents[2] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (Path.unlink, "weights.safetensors is missing"),
        (truncated, "weights.safetensors has 512 of 1,024 bytes"),
        (zeroed, "weights.safetensors is not what was written"),
        (rotten, "weights.safetensors is not what was written"),
        (linked, "weights.safetensors is a link"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_g23_every_damage_is_found_and_told_by_file(tmp_path: Path, harm: Callable[[Path], None], told: str) -> None:
    folder = checkpoint(tmp_path / "checkpoints", 8)
    harm(folder / "weights.safetensors")
    (found,) = problems(folder)
    assert found.startswith(told)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\0" * 100, b'{"files": 1}'])
def test_a_folder_without_a_sound_manifest_is_no_checkpoint(tmp_path: Path, content: bytes | None) -> None:
    folder = checkpoint(tmp_path, 8)
    if content is None:
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_bytes(content)
    (found,) = problems(folder)
    assert found == f"manifest.json is {'missing' if content is None else 'damaged'}"


def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 8)
    (tmp_path / "secret").write_text("x")
    manifest = read_manifest(folder)
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert problems(folder) == ["../secret is a link, or leads out of its folder"]


def test_nobody_sees_half_a_checkpoint(tmp_path: Path) -> None:
    def write() -> None:
        with manifested(tmp_path / "checkpoint-4", {}) as staged:
            (staged / "weights").write_text("half")
            assert checkpoints_in(tmp_path) == []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_come_newest_first_by_number(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-none").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert steps(tmp_path) == [100, 20, 5]
    assert newest_listed(tmp_path) == tmp_path / "checkpoint-100"
    (tmp_path / "checkpoint-100" / "manifest.json").unlink()
    assert newest_listed(tmp_path) == tmp_path / "checkpoint-20"
    assert newest_listed(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("name", "step"), [("checkpoint-12", 12), ("checkpoint-12.tmp", -1), ("checkpoint", -1), ("checkpoint-²", -1)]
)
def test_the_step_of_a_checkpoint_is_in_its_name(name: str, step: int) -> None:
    assert checkpoint_step(Path(name)) == step


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [8, 6, 4, 2]),
        (2, None, [8, 6]),
        (1, None, [8]),
        (2, 4, [8, 4]),
        (1, 4, [8, 4]),
        (3, 4, [8, 6, 4]),
        (2, 8, [8, 6]),
        (9, 2, [8, 6, 4, 2]),
    ],
)
def test_g23_rotation_keeps_the_newest_the_best_and_no_more_than_asked(
    tmp_path: Path, limit: int | None, best: int | None, kept: list[int]
) -> None:
    for step in (2, 4, 6, 8):
        checkpoint(tmp_path, step)
    rotate(tmp_path, limit=limit, best=(best and checkpoint_folder(tmp_path, best)) or None)
    assert steps(tmp_path) == kept


def test_rotation_touches_only_what_has_a_manifest(tmp_path: Path) -> None:
    for step in (2, 4):
        checkpoint(tmp_path, step)
    for name in ("checkpoint-1", "checkpoint-500", "mine"):
        (tmp_path / name).mkdir()
    rotate(tmp_path, limit=1, best=None)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-4", "checkpoint-500", "mine"}


def test_metrics_are_kept_with_a_checkpoint_as_they_were_logged(tmp_path: Path) -> None:
    history = [
        {"loss": math.nan, "epoch": 0.5, "step": 1},
        {"eval_loss": 2.0, "step": 1},
        {"train_runtime": 3.0, "step": 2},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert logged_lines(tmp_path) == [{"step": 1, "loss": None, "epoch": 0.5}, {"step": 1, "eval_loss": 2.0}]


def test_a_folder_that_is_none_has_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        read_manifest(tmp_path / "nowhere")
