"""A checkpoint in the hands of every process: machines whose disks do not have it get a copy from the first one."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from truetune.errors import BackendError
from truetune.launched import machine
from truetune.runs.checkpoints import MANIFEST
from truetune.training.world import World

_CHUNK = 4_000_000
"""Bytes sent at a time: torch's store takes 8 MiB at most."""


@contextmanager
def within_reach(
    world: World, checkpoint: Path | None, *, copies: Path, say: Callable[[str], None]
) -> Iterator[Path | None]:
    """The checkpoint's folder, as this process can read it while this lasts.

    It is the first process's own; on a machine that does not see that folder, or has another in its place, a copy of
    the same name in a temporary folder in `copies`. BackendError if processes of one machine see different disks.
    """
    if checkpoint is None or world.size == 1:
        yield checkpoint
        return
    has_it = _digest(checkpoint) == world.told_by_first(lambda: _digest(checkpoint))
    lacking = world.count(not has_it and world.is_first_here)
    if not has_it and not lacking:
        raise BackendError(
            f"{checkpoint} is seen by some processes and not by process {world.rank}",
            hint="give all processes of a machine the same disks and the same working directory",
        )
    if not lacking:
        yield checkpoint
        return
    say(f"{checkpoint.name} is sent to {lacking} machine{'s' * (lacking > 1)} that cannot see {checkpoint.parent}")
    with _copied(world, checkpoint, has_it=has_it, lacking=lacking, copies=copies) as copy:
        yield copy


@contextmanager
def _copied(world: World, checkpoint: Path, *, has_it: bool, lacking: int, copies: Path) -> Iterator[Path]:
    key = f"carried/{machine()}"
    if world.is_first:
        _send(world, checkpoint, receivers=lacking)
    if has_it:
        yield checkpoint
    elif not world.is_first_here:
        yield Path(world.told(key))
    else:
        copies.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="checkpoint-", dir=copies) as place:
            copy = Path(place) / checkpoint.name
            _receive(world, copy)
            world.tell(key, str(copy))
            yield copy


def _digest(checkpoint: Path) -> str | None:
    """Of its manifest, which knows the digests of its files; None where there is none."""
    manifest = checkpoint / MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None


def _send(world: World, checkpoint: Path, *, receivers: int) -> None:
    """Piece by piece: the store holds one at a time."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    world.tell("carried/files", [[str(path.relative_to(checkpoint)), path.stat().st_size] for path in files])
    for number, path in enumerate(files):
        with path.open("rb") as file:
            for place in range(0, path.stat().st_size, _CHUNK):
                world.hand_over(f"carried/{number}/{place}", file.read(_CHUNK), receivers=receivers)


def _receive(world: World, copy: Path) -> None:
    for number, (name, size) in enumerate(world.told("carried/files")):
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for place in range(0, size, _CHUNK):
                file.write(world.taken(f"carried/{number}/{place}"))
