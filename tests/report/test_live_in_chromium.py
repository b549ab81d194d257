"""The live pages in a real browser: they keep up with runs, lay them over each other, and stay on this machine."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import warm
from chromium import Browser, Tab, needs_chromium, running_chromium
from conftest import arithmetic_rows, write_jsonl
from live import HARMFUL, listed_ids, served, write_run
from truetune.pipeline.review.live.security import Access
from truetune.runs.directory import RunDirectory

pytestmark = needs_chromium

WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from live import log_steps
from truetune.runs.directory import RunDirectory

run = RunDirectory(Path(sys.argv[1]))
with run.locked():
    for step in range(6, 101):
        log_steps(run, range(step, step + 1))
        time.sleep(0.05)
"""
"""A process that logs steps as a training does."""
LAST = "(() => {{ const box = document.querySelectorAll('.live')[{chart}]; box?.dispatchEvent(new KeyboardEvent('keydown', {{ key: 'End', bubbles: true }})); return document.getElementById('said').textContent; }})()"  # noqa: E501


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    write_run(folder / "first", steps=100)
    write_run(folder / "second", steps=80, status="stopped", rate=1e-3)
    write_run(folder / "harm", steps=3, status="failed", model={"name_or_path": HARMFUL}, error=HARMFUL)
    write_run(folder / "growing", steps=5, status="running")
    return folder


@pytest.fixture(scope="module")
def access(folder: Path) -> Iterator[Access]:
    with served(folder) as access:
        yield access


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def tab(browser: Browser, access: Access) -> Iterator[Tab]:
    """A page whose console stays empty, and which asks nobody but its own server."""
    tab = browser.open(access.url)
    yield tab
    assert tab.said == []
    assert all(address.startswith((access.url, "data:")) for address in tab.asked)
    tab.close()


def read_last(tab: Tab, chart: int = 0) -> str:
    """What the keyboard reads out at the end of a chart."""
    said = tab.tell(LAST.format(chart=chart))
    assert isinstance(said, str)
    return said


def test_the_list_is_sorted_filtered_and_chosen_from(tab: Tab, access: Access) -> None:
    tab.wait("document.querySelectorAll('#runs tr').length === 4")
    names = "[...document.querySelectorAll('#runs .name a')].map((each) => each.textContent)"
    tab.tell("document.querySelector('th[data-sort=name] button').click()")
    assert tab.tell(names) == ["first", "growing", "harm", "second"]
    assert tab.tell("document.querySelector('th[data-sort=name]').getAttribute('aria-sort')") == "ascending"
    tab.do(
        "const box = document.getElementById('search');",
        "box.value = 'stopped'; box.dispatchEvent(new Event('input'));",
    )
    assert tab.tell(names) == ["second"]
    assert tab.tell("document.getElementById('count').textContent") == "1 of 4 runs"
    tab.do(
        "box.value = ''; box.dispatchEvent(new Event('input'));".replace("box", "document.getElementById('search')")
    )
    assert tab.tell("document.getElementById('overlay').disabled") is True
    tab.tell(
        "document.querySelectorAll('#runs input')[0].click(); document.querySelectorAll('#runs input')[3].click()"
    )
    assert tab.tell("document.getElementById('overlay').textContent") == "Overlay 2 runs"
    assert tab.tell("document.querySelectorAll('img').length") == 0
    tab.tell("document.getElementById('overlay').click()")
    tab.wait("location.pathname === '/compare' && document.querySelectorAll('canvas').length > 3")


def test_the_list_follows_the_runs(tab: Tab, folder: Path) -> None:
    tab.wait("document.querySelectorAll('#runs tr').length === 4")
    new = write_run(folder / "late", steps=2)
    tab.wait("document.querySelectorAll('#runs tr').length === 5")
    new.record.unlink()
    tab.wait("document.querySelectorAll('#runs tr').length === 4")


def test_the_curves_of_a_training_grow_and_its_figures_follow(tab: Tab, access: Access, folder: Path) -> None:
    tab.go(f"{access.url}run/{listed_ids(access)['growing']}")
    tab.wait("document.querySelectorAll('canvas').length === 4")
    assert read_last(tab).startswith("step 5: training ")
    assert tab.tell("document.getElementById('log-section').hidden") is True
    (folder / "growing" / "log.txt").write_text("preparing <b>rows</b>\n")
    command = [sys.executable, "-c", WRITER, str(folder / "growing"), str(Path(__file__).parents[1])]
    writer = subprocess.Popen(command)
    try:
        tab.wait("document.getElementById('status').textContent === 'running'")
        tab.wait("document.title.endsWith('% · growing')")
        seen = []
        for _ in range(3):
            time.sleep(1)
            seen.append(int(read_last(tab).split(":")[0].removeprefix("step ")))
        assert seen == sorted(set(seen)), "it grew each second"
        assert "Time left" in tab.tell("document.getElementById('figures').textContent")
        assert tab.tell("document.getElementById('log-text').textContent") == "preparing <b>rows</b>\n"
    finally:
        assert writer.wait(timeout=60) == 0
    tab.wait("document.getElementById('status').textContent === 'dead'")
    tab.wait(f"{LAST.format(chart=0)}.startsWith('step 100: training')")
    # The smoothed line and the points of validation came while it grew, without a reload.
    assert "smoothed" in read_last(tab)
    assert "validation 1.2" in read_last(tab)
    assert tab.tell("document.querySelectorAll('canvas').length") == 4


def test_a_run_that_begins_anew_is_drawn_anew(tab: Tab, access: Access, folder: Path) -> None:
    run = write_run(folder / "restarted", steps=50)
    tab.go(f"{access.url}run/{listed_ids(access)['restarted']}")
    tab.wait("document.querySelectorAll('canvas').length === 4")
    assert read_last(tab).startswith("step 50: ")
    run.metrics.unlink()
    write_run(folder / "restarted", steps=20)
    tab.wait(f"{LAST.format(chart=0)}.startsWith('step 20: ')")


def test_two_runs_lie_over_each_other_and_either_can_be_hidden(tab: Tab, access: Access) -> None:
    ids = listed_ids(access)
    tab.go(f"{access.url}compare?runs={ids['first']},{ids['second']}")
    for name in ("first", "second"):
        tab.wait(f"{LAST.format(chart=0)}.includes('{name}, validation')")
    said = read_last(tab)
    assert said.startswith("step 100: first, training, smoothed 1.0")
    assert "second, training, smoothed 1.4" in said
    assert "second, validation 1.6" in said
    assert read_last(tab, 1) == "step 100: first 1e-4, second 1e-4"
    assert "0.001" in tab.tell("document.querySelector('.beside').textContent")
    colours = tab.tell("[...document.querySelectorAll('.legend path')].map((each) => getComputedStyle(each).stroke)")
    assert len(set(colours)) == 2
    tab.tell("document.querySelector('input[data-run]').click()")
    tab.rest(0.5)
    assert read_last(tab, 1) == "step 80: second 1e-4"


def test_a_page_comes_back_when_its_server_does(browser: Browser, folder: Path) -> None:
    with served(folder) as first:
        tab = browser.open(first.url)
        tab.wait("document.getElementById('link').textContent === 'live'")
    tab.wait("document.getElementById('link').textContent !== 'live'")
    with served(folder, port=first.port):
        tab.wait("document.getElementById('link').textContent === 'live'", seconds=20)
    tab.close()


def test_the_key_in_the_address_opens_the_page_and_leaves_it(browser: Browser, folder: Path) -> None:
    with served(folder, key="k3y") as keyed:
        tab = browser.open(keyed.url)
        tab.wait("document.querySelectorAll('#runs tr').length > 2")
        assert "k3y" not in tab.tell("location.href + document.cookie")
        tab.close()


def test_a_hidden_page_hears_nothing_until_it_is_seen_again(tab: Tab, folder: Path) -> None:
    hide = "Object.defineProperty(document, 'hidden', { value: %s, configurable: true }); document.dispatchEvent(new Event('visibilitychange'))"  # noqa: E501
    rows = "[...document.querySelectorAll('#runs .name a')].map((each) => each.textContent).includes('unseen')"
    tab.wait("document.getElementById('link').textContent === 'live'")
    tab.tell(hide % "true")
    new = write_run(folder / "unseen", steps=2)
    tab.rest(3)
    assert tab.tell(rows) is False
    tab.tell(hide % "false")
    tab.wait(rows)
    new.record.unlink()


def test_a_real_training_is_watched(browser: Browser, tiny_base: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "sums.jsonl", arithmetic_rows(24))
    words = ["--model", str(tiny_base), "--data", str(rows), "--output-dir", str(tmp_path / "runs" / "real")]
    settings = ["max_steps=30", "logging_steps=1", "test_size=4", "eval_strategy=steps", "eval_steps=10"]
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs") as access:
        tab = browser.open(access.url)
        training = subprocess.Popen(
            warm.truetune("train", *words, *settings),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            tab.wait("document.querySelectorAll('#runs a').length", seconds=200)
            tab.tell("document.querySelector('#runs a').click()")
            tab.wait("document.querySelectorAll('canvas').length > 3", seconds=60)
            tab.wait("document.getElementById('status')?.textContent === 'finished'", seconds=120)
        finally:
            assert training.wait(timeout=120) == 0
        lines = RunDirectory(tmp_path / "runs" / "real").read_metrics()
        last = next(line for line in reversed(lines) if "loss" in line)
        tab.wait(f"{LAST.format(chart=0)}.startsWith('step 30: ')")
        assert f"training {float(format(last['loss'], '.4g')):g}" in read_last(tab)
        assert tab.said == []
        tab.close()
