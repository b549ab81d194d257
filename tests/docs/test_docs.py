"""Every command and every Python example of README and docs/ runs as it stands.

Those of READMEs run with the real demo model: the thresholds of two examples are reached, or their eval fails.
In the place of its 135M weights the pages of docs/ have a tiny model, which is enough to show that what they say can
be typed.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub import TOKEN
from stand_in import stand_in
from warm import python
from writable_hub import running_writable_hub

ROOT = Path(__file__).parents[2]
TRAINED = ("json-extraction", "style")
"""The examples that are trained whole: those that take the least time."""
RUN = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / "examples" / name / "README.md" for name in TRAINED),
]
PAGES = sorted({*RUN, *(ROOT / "examples").rglob("*.md")})
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> list[list[str]]:
    """The truetune lines of a shell block; make, pip and the demo have tests of their own."""
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words for words in lines if words[:1] == ["truetune"] and "demo" not in words[1:2]]


@pytest.fixture(scope="module")
def hub() -> Iterator[dict[str, str]]:
    """The environment of commands that upload: a hub on loopback, and a token for it."""
    with running_writable_hub() as running:
        yield {**os.environ, **running.environment(), "HF_TOKEN": TOKEN}


@pytest.fixture(scope="module")
def tiny_demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `demo` is a tiny model."""
    return stand_in(tmp_path_factory.mktemp("cache"))


@pytest.mark.real
@pytest.mark.timeout(1800)  # READMEs are commands with the real model, each of which loads it.
@pytest.mark.parametrize("page", [page for page in RUN if blocks(page)], ids=name_of)
def test_the_examples_of_a_page_run_in_order(
    page: Path, tmp_path: Path, hub: dict[str, str], tiny_demo: dict[str, str]
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    own = {} if page.name == "README.md" else {"TRUETUNE_CACHE": tiny_demo["TRUETUNE_CACHE"]}
    ran = 0
    for language, text in blocks(page):
        to_run = commands(text) if language == "bash" else [["python", "-c", text]]
        for words in to_run:
            module = ["-m", "truetune", *words[1:]] if words[0] == "truetune" else words[1:]
            done = subprocess.run(
                python(*module),
                cwd=tmp_path,
                env={**(hub if "hub" in words else os.environ), **own},
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                check=False,
            )
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
            ran += 1
    assert ran, f"{page.name} has code blocks, and none was run"


def test_every_page_that_is_linked_exists() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
