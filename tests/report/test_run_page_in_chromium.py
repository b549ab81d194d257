"""The page of a run in a real browser: it draws, reacts to keys and clicks, says nothing, and fetches nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_run_page import metrics, page

from chromium import Browser, Tab, needs_chromium, running_chromium
from truetune.report.run_page import render_run_page

pytestmark = needs_chromium

HANDS = """
const wait = () => new Promise((done) => setTimeout(done, 60));
const key = (box, name) => box.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
const said = () => document.getElementById("said").textContent;
const tips = () => [...document.querySelectorAll(".tip:not([hidden])")].map((each) => each.innerText);
const [box] = document.querySelectorAll(".live");
const whole = document.getElementById("whole");
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


def opened(browser: Browser, folder: Path, source: str) -> Tab:
    """The page, as a file that somebody opens."""
    file = folder / "page.html"
    file.write_text(source, encoding="utf-8")
    return browser.open(file.as_uri())


def seen(browser: Browser, folder: Path, source: str, steps: str) -> dict[str, Any]:
    """What is found in the page by steps taken in it."""
    return opened(browser, folder, source).do(HANDS, steps)


@pytest.fixture(scope="module")
def source() -> str:
    return render_run_page(page(lines=metrics(60)))


def test_it_draws_every_chart_and_says_nothing(source: str, browser: Browser, tmp_path: Path) -> None:
    tab = opened(browser, tmp_path, source)
    assert tab.tell("document.querySelectorAll('canvas').length") == 2
    assert tab.tell("document.querySelectorAll('.chart.main.drawn').length") == 1
    assert tab.said == []


def test_it_fetches_nothing(source: str, browser: Browser, tmp_path: Path) -> None:
    tab = opened(browser, tmp_path, source)
    assert tab.asked == [(tmp_path / "page.html").as_uri()]
    picture = "<img src=http://127.0.0.1:9/x></body>"
    leaky = source.replace("default-src 'none'", "img-src *").replace("</body>", picture)
    assert "http://127.0.0.1:9/x" in opened(browser, tmp_path, leaky).asked, "else this test would hear of no request"


def test_a_foreign_script_does_not_run_in_it(source: str, browser: Browser, tmp_path: Path) -> None:
    taken = source.replace("</body>", "<script>document.title = 'taken'</script></body>")
    tab = opened(browser, tmp_path, taken)
    assert tab.tell("document.title") != "taken"
    assert tab.said, "else this test could not tell a silent page from a deaf test"


def test_the_keyboard_reads_values_and_zooms_all_charts(source: str, browser: Browser, tmp_path: Path) -> None:
    found = seen(
        browser,
        tmp_path,
        source,
        """
        key(box, "Home"); await wait(); seen.first = said();
        key(box, "ArrowRight"); await wait(); seen.second = said();
        key(box, "End"); await wait(); seen.last = said(); seen.tips = tips();
        seen.before = whole.disabled;
        key(box, "+"); await wait(); seen.zoomed = whole.disabled;
        key(box, "Home"); await wait(); seen.inside = said();
        key(box, "0"); await wait(); seen.after = whole.disabled;
        key(box, "Home"); await wait(); seen.again = said();
        """,
    )
    assert found["first"] == "step 0: validation 4.5"
    assert found["second"].startswith("step 1: training 3.983, training, smoothed ")
    assert found["last"].endswith("validation 3.5")
    assert "step 60" in found["tips"][0]
    assert len(found["tips"]) == 2, "the cursor stands in both charts"
    assert (found["before"], found["zoomed"], found["after"]) == (True, False, True)
    assert found["inside"].startswith("step 30: ")
    assert found["again"] == found["first"]


def test_the_curves_can_be_drawn_over_tokens(source: str, browser: Browser, tmp_path: Path) -> None:
    found = seen(
        browser,
        tmp_path,
        source,
        """
        document.querySelector("input[name=axis][value='1']").click(); await wait();
        key(document.querySelector(".live"), "End"); await wait(); seen.last = said();
        document.getElementById("log").click(); await wait();
        seen.canvases = document.querySelectorAll("canvas").length;
        """,
    )
    assert found["last"].startswith("tokens 600: ")
    assert found["canvases"] == 2


def test_a_drag_over_a_chart_zooms_all_of_them(source: str, browser: Browser, tmp_path: Path) -> None:
    found = seen(
        browser,
        tmp_path,
        source,
        """
        const over = document.querySelector(".u-over");
        const at = over.getBoundingClientRect();
        const mouse = (kind, share) => over.dispatchEvent(new MouseEvent(kind, {
          bubbles: true, button: 0, clientX: at.left + share * at.width, clientY: at.top + 40, detail: 1,
          movementX: 1, movementY: 0, view: window }));
        mouse("mouseenter", 0.5); mouse("mousemove", 0.5); mouse("mousedown", 0.5);
        for (const share of [0.55, 0.65, 0.75]) { mouse("mousemove", share); await wait(); }
        mouse("mouseup", 0.75); await wait();
        seen.zoomed = whole.disabled;
        key(document.querySelectorAll(".live")[1], "Home"); await wait(); seen.other = said();
        whole.click(); await wait(); seen.after = whole.disabled;
        """,
    )
    assert (found["zoomed"], found["after"]) == (False, True)
    assert found["other"].startswith("step 30: ")


def test_light_and_dark_follow_the_system_and_the_button(source: str, browser: Browser, tmp_path: Path) -> None:
    steps = """
        const theme = document.getElementById("theme");
        const paper = () => getComputedStyle(document.body).backgroundColor;
        seen.first = [theme.textContent, paper()];
        theme.click(); await wait();
        seen.second = [theme.textContent, paper()];
        """
    light = seen(browser, tmp_path, source, steps)
    assert [name for name, _ in (light["first"], light["second"])] == ["Dark theme", "Light theme"]
    assert light["first"][1] != light["second"][1]


def test_a_run_without_a_single_step_is_a_page_too(browser: Browser, tmp_path: Path) -> None:
    tab = opened(browser, tmp_path, render_run_page(page(lines=[])))
    assert tab.said == []
    assert tab.tell("document.querySelectorAll('canvas').length") == 0


def test_on_paper_the_curves_are_drawings(source: str, browser: Browser, tmp_path: Path) -> None:
    found = seen(
        browser,
        tmp_path,
        source,
        """
        dispatchEvent(new Event("beforeprint"));
        seen.open = [...document.querySelectorAll("details:not(.long)")].every((each) => each.open);
        seen.paths = document.querySelectorAll(".still path").length;
        """,
    )
    assert found["open"] is True
    assert found["paths"] == 5
