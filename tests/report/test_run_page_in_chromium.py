"""The page of a run in a real browser: it draws, reacts to keys and clicks, says nothing, and fetches nothing."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_run_page import metrics, page

from truetune.report.run_page import render_run_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)")

REPORT = """
<pre id="seen"></pre>
<script>
addEventListener("load", () => setTimeout(async () => {
  const seen = {};
  const wait = () => new Promise((done) => setTimeout(done, 60));
  const key = (box, name) => box.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  const said = () => document.getElementById("said").textContent;
  const tips = () => [...document.querySelectorAll(".tip:not([hidden])")].map((each) => each.innerText);
  const [box] = document.querySelectorAll(".live");
  const whole = document.getElementById("whole");
  %s
  document.getElementById("seen").textContent = JSON.stringify(seen);
}, 60));
</script>
"""


def seen(folder: Path, source: str, steps: str, *options: str) -> dict[str, Any]:
    """What a script finds in the page. Its policy would not let it run, and is left out for that."""
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    file = folder / "driven.html"
    file.write_text(without_policy.replace("</body>", REPORT % steps + "</body>"), encoding="utf-8")
    found = re.search(r'<pre id="seen">(.*?)</pre>', opened(file, *options).stdout, re.DOTALL)
    assert found
    assert found[1], "the page's script did not come to its end"
    answer: dict[str, Any] = json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    return answer


def opened(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--window-size=1280,900",
        "--enable-logging=stderr",
        "--virtual-time-budget=4000",
        f"--user-data-dir={file.parent / 'profile'}",
        *options,
        "--dump-dom",
        file.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def source() -> str:
    return render_run_page(page(lines=metrics(60)))


def test_it_draws_every_chart_and_says_nothing(source: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(source, encoding="utf-8")
    done = opened(file)
    assert done.stdout.count("<canvas") == 2
    assert done.stdout.count('class="chart main drawn"') == 1
    assert "CONSOLE" not in done.stderr


def test_no_request_leaves_the_machine(source: str, tmp_path: Path) -> None:
    assert asked_by(tmp_path / "page.html", source) == []
    picture = "<img src=http://127.0.0.1:9/x></body>"
    leaky = source.replace("default-src 'none'", "img-src *").replace("</body>", picture)
    assert asked_by(tmp_path / "other.html", leaky), "else this test would hear of no request at all"


def asked_by(file: Path, source: str) -> list[str]:
    """Who asked for what, without what the browser asks of its maker by itself."""
    log = file.with_suffix(".json")
    file.write_text(source, encoding="utf-8")
    opened(file, f"--log-net-log={log}")
    askers = re.findall(r'"initiator":"([^"]*)"', log.read_text(encoding="utf-8", errors="replace"))
    return [asker for asker in askers if asker != "not an origin"]


def test_a_foreign_script_does_not_run_in_it(source: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(source.replace("</body>", "<script>document.title = 'taken'</script></body>"), encoding="utf-8")
    done = opened(file)
    assert "<title>taken" not in done.stdout
    assert "CONSOLE" in done.stderr, "else this test could not tell a silent page from a deaf test"


def test_the_keyboard_reads_values_and_zooms_all_charts(source: str, tmp_path: Path) -> None:
    found = seen(
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


def test_the_curves_can_be_drawn_over_tokens(source: str, tmp_path: Path) -> None:
    found = seen(
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


def test_a_drag_over_a_chart_zooms_all_of_them(source: str, tmp_path: Path) -> None:
    found = seen(
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


def test_light_and_dark_follow_the_system_and_the_button(source: str, tmp_path: Path) -> None:
    steps = """
        const theme = document.getElementById("theme");
        const paper = () => getComputedStyle(document.body).backgroundColor;
        seen.first = [theme.textContent, paper()];
        theme.click(); await wait();
        seen.second = [theme.textContent, paper()];
        """
    light = seen(tmp_path, source, steps)
    assert [name for name, _ in (light["first"], light["second"])] == ["Dark theme", "Light theme"]
    assert light["first"][1] != light["second"][1]


def test_a_run_without_a_single_step_is_a_page_too(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(render_run_page(page(lines=[])), encoding="utf-8")
    done = opened(file)
    assert "CONSOLE" not in done.stderr
    assert "<canvas" not in done.stdout


def test_on_paper_the_curves_are_drawings(source: str, tmp_path: Path) -> None:
    found = seen(
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
