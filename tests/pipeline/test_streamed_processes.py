"""Two processes read the same blocks of a stream, which one of them prepares, and train what one does."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import warm
import worlds
from conftest import write_jsonl
from streamed_process import STEPS, train
from worlds import difference

PROGRAM = Path(__file__).parents[1] / "streamed_process.py"
ROWS = [{"instruction": f"Q{n}", "output": "x" * (n * 7 % 23 + 1) + str(n)} for n in range(26)]

pytestmark = pytest.mark.timeout(worlds.LIMIT)


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, and that of two, which was cut in two; then rows that break off in the fourth block."""
    folder = tmp_path_factory.mktemp("streamed")
    shutil.copytree(tiny_base, folder / "base")
    lines = write_jsonl(folder / "rows.jsonl", ROWS).read_text().splitlines()
    (folder / "broken.jsonl").write_text("\n".join([*lines[:23], "{", *lines[23:]]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUETUNE_CACHE", str(folder / "cache"))
        train(folder, "alone", "rows.jsonl", processes=1, max_steps=STEPS)
        port = worlds.free_port()
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        processes = [
            subprocess.Popen(
                warm.python(PROGRAM, json.dumps({**shared, "RANK": rank, "LOCAL_RANK": rank}), folder),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        ends = worlds.ended(processes)
    worlds.require(ends, statuses=[0, 0])
    return folder


def test_two_processes_train_the_weights_of_one_and_go_on_with_them(folder: Path) -> None:
    assert difference(folder / "alone", folder / "together") <= 1e-5
    lines, others = (
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "together")
    )
    for counted in ("step", "epoch", "num_tokens", "supervised_tokens"):
        assert [line[counted] for line in lines] == [line[counted] for line in others]
    losses, found = ([line["loss"] for line in each] for each in (lines, others))
    assert found == pytest.approx(losses, abs=1e-5, rel=1e-5)


def test_both_are_at_one_place_of_the_stream(folder: Path) -> None:
    places = [
        json.loads((folder / name / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
        for name in ("alone", "together")
    ]
    one, two = (each["stateful_callbacks"]["StreamPosition"]["attributes"] for each in places)
    assert one["start"] == two["start"]
    assert one["first"] == two["first"]
    report, other = (json.loads((folder / name / "data-report.json").read_text()) for name in ("alone", "together"))
    assert report == other


def test_rows_that_cannot_be_read_end_both_with_their_line(folder: Path) -> None:
    first, other = ((folder / f"error-{rank}.txt").read_text() for rank in range(2))
    assert first.startswith("DataError: ")
    assert "broken.jsonl, line 24" in first
    assert other.startswith("OtherProcessError: process 0 failed")
    assert "line 24" in other
    assert list((folder / "broken" / "checkpoints").glob("checkpoint-*"))
    assert not list((folder / "cache" / "streams").glob("*/*"))
