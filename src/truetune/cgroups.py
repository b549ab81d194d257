"""What Linux grants this process of the machine, in either version of control groups: asked without torch."""

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def cpu_quota(*, root: Path = _ROOT, own: Path = _OWN) -> float | None:
    """The cores' time that is granted, 1.5 for one and a half; None where there is no limit."""
    return min(_quotas(root, own), default=None)


def memory_left(*, root: Path = _ROOT, own: Path = _OWN) -> int | None:
    """The bytes left below the limit, with what the kernel would give back of files; None where there is no limit."""
    return min(_rests(root, own), default=None)


def _quotas(root: Path, own: Path) -> Iterator[float]:
    for folder in _folders(root, own, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        quota = quota or _read(folder / "cpu.cfs_quota_us")
        period = period or _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # "max" and -1 are no limit.
            yield int(quota) / int(period)


def _rests(root: Path, own: Path) -> Iterator[int]:
    for folder in _folders(root, own, "memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        if limit.isdigit() and used.isdigit():
            yield max(0, int(limit) - int(used) + _given_back(folder))


def _given_back(folder: Path) -> int:
    lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
    counts = {name: int(count) for name, count in lines}
    return counts.get("total_inactive_file", counts.get("inactive_file", 0))


def _folders(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """The process's group and those above it: the root alone where a container does not see the group's path."""
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        group = top / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top) and folder.is_dir())


def _read(path: Path) -> str:
    """The file's text; nothing where there is none to read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
