"""bench/report.py looks at a run's page in a real Chromium, on the browser's own clock."""

import sys
from pathlib import Path

import pytest

import truetune

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

from browser import chromium, measured_in  # noqa: E402

import report  # noqa: E402

PROGRAM = chromium() or ""
needs_chromium = pytest.mark.skipif(not PROGRAM, reason="no Chromium is installed (Debian: apt install chromium)")


COUNTED = """
  let cleared = 0;
  const canvases = document.querySelectorAll("canvas").length;
  const own = CanvasRenderingContext2D.prototype.clearRect;
  CanvasRenderingContext2D.prototype.clearRect = function (...to) { cleared += 1; own.apply(this, to); };
"""
"""Each time that a canvas is drawn anew, it is cleared first."""


@needs_chromium
def test_each_step_of_a_zoom_draws_all_curves_anew(tmp_path: Path) -> None:
    report.make_run(tmp_path / "run", 200)
    page = truetune.write_report(tmp_path / "run").path.read_text(encoding="utf-8")
    script = COUNTED + report.WATCHED.replace("return {", "return { cleared, canvases, ")
    found = measured_in(PROGRAM, page, script)
    assert found["drawn"] >= found["paint"] > 0
    assert len(found["redraws"]) == len(found["frames"]) == 20
    assert found["canvases"] > 1
    assert found["cleared"] >= 20 * found["canvases"]


@needs_chromium
def test_a_script_that_fails_in_the_page_fails_the_measure() -> None:
    assert measured_in(PROGRAM, "<body></body>", "return { sum: 1 + 1 };") == {"sum": 2}
    with pytest.raises(RuntimeError, match="nothing is called so"):
        measured_in(PROGRAM, "<body></body>", "throw new Error('nothing is called so');")


def test_without_chromium_the_rest_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "chromium", lambda: None)
    report.tell_browser("<body></body>", 1)
    assert "no Chromium is installed" in capsys.readouterr().out
