"""The wheel and the sdist: what is in them, and what PyPI shows."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import truetune
from manual.contents import ROOT
from manual.distribution import absolute, build

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGE = ROOT / "src" / "truetune"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist and the wheel that was made from it, by their endings."""
    return {path.suffix: path for path in build(tmp_path_factory.mktemp("dist"))}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: dict[str, Path]) -> None:
    ours = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {path.relative_to(PACKAGE.parent).as_posix() for path in ours}
    with zipfile.ZipFile(built[".whl"]) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (about,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(wheel.read(about).decode())
        licences = {Path(name).name for name in wheel.namelist() if "/licenses/" in name}
    assert found == expected
    assert licences == {"LICENSE", "NOTICE"}
    assert (metadata["Name"], metadata["Version"]) == ("truetune", PROJECT["version"])
    assert "truetune/report/vendor/LICENSE" in found


def test_the_sdist_holds_what_a_package_is_made_of_and_no_tests(built: dict[str, Path]) -> None:
    with tarfile.open(built[".gz"]) as sdist:
        names = {Path(name).parts[1] for name in sdist.getnames() if "/" in name}
    assert {"src", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "NOTICE"} <= names
    assert not names & {"tests", "bench", "docs", "manual", "examples"}


def test_the_version_stands_once_and_is_told_everywhere() -> None:
    told = subprocess.run([sys.executable, "-m", "truetune", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"truetune {PROJECT['version']}\n"
    assert truetune.__version__ == PROJECT["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest
    assert newest[1] == PROJECT["version"]


def test_links_of_readme_lead_into_the_repository_on_pypi() -> None:
    readme = "![a picture](docs/a.svg) [a page](docs/a.md#part) [here](#part) [there](https://example.org/x)"
    assert absolute(readme, repository="https://example.org/truetune/", tag="v1.0") == (
        "![a picture](https://example.org/truetune/raw/v1.0/docs/a.svg) "
        "[a page](https://example.org/truetune/blob/v1.0/docs/a.md#part) [here](#part) [there](https://example.org/x)"
    )
