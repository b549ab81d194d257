"""Builds the wheel and the sdist of this version into dist/: `make dist`.

PyPI shows README and has nothing to resolve its relative links against. There they are addresses of the repository
at the tag of the version, where pyproject.toml names one: `Repository` among [project.urls]. Else they stay.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from manual.contents import ROOT

DIST = ROOT / "dist"
SOURCES = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "NOTICE", "MANIFEST.in", "src")
"""What a package is made of, and an sdist holds."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)")


def absolute(readme: str, *, repository: str, tag: str) -> str:
    """README with each relative link as an address: pictures as they are, pages as the repository's host has them."""

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found[1] else "blob"
        return f"{found[1]}[{found[2]}]({repository.rstrip('/')}/{kind}/{tag}/{found[3]})"

    return _LINK.sub(link, readme)


def build(dist: Path = DIST, root: Path = ROOT) -> list[Path]:
    """The sdist, and the wheel that was built from it."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with TemporaryDirectory() as folder:
        sources = Path(folder) / "truetune"
        _copy(root, sources)
        _address(sources / "README.md", project)
        subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(sources)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return sorted(dist.glob(f"truetune-{project['version']}*"))


def _copy(root: Path, sources: Path) -> None:
    """Without what Python and earlier builds have left beside the code."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    sources.mkdir()
    for name in SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, sources / name, ignore=ignored)
        else:
            shutil.copy(root / name, sources / name)


def _address(readme: Path, project: dict[str, Any]) -> None:
    if repository := project.get("urls", {}).get("Repository"):
        text = absolute(readme.read_text(encoding="utf-8"), repository=repository, tag=f"v{project['version']}")
        readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for built in build():
        print(built.relative_to(ROOT), f"{built.stat().st_size / 1e6:.2f} MB")
