"""A run's files hold what anybody has written there: each reader shows what it can, or says which file is damaged."""

import io
import json
import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import examples, spoiled
from run_files import FILES, write_run
from truetune.console.runs import show_comparison, show_runs
from truetune.errors import CheckpointError, TruetuneError
from truetune.pipeline.review.compare import compare_runs
from truetune.pipeline.review.report import write_report
from truetune.pipeline.run import open_run
from truetune.runs.directory import RunDirectory
from truetune.runs.ledger import ORDERS, find_runs, in_order


@pytest.fixture(autouse=True, scope="module")
def no_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Reports look for a run's rows among all that the cache holds."""
    os.environ["TRUETUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def read_all(folder: Path) -> None:
    """Everything that reads runs, over two of them; what cannot be read is told and nothing else is raised."""
    found = find_runs([folder], settings=["data.path"])
    assert len(found) == 2
    for order in ORDERS:
        assert len(in_order(found, order)) == 2
    with redirect_stdout(io.StringIO()):
        show_runs(found, found, named=["data.path"])
    json.dumps([entry.as_json() for entry in found], default=str)
    try:
        compared = compare_runs([folder / "a", folder / "b"])
        with redirect_stdout(io.StringIO()):
            show_comparison(compared)
        json.dumps(compared.as_json(), default=str)
    except TruetuneError as error:
        assert error.message
    try:
        open_run(folder / "a")
    except TruetuneError as error:
        assert str(folder / "a") in error.message
    write_report(folder / "a", folder / "a.html")
    assert "</html>" in (folder / "a.html").read_text(encoding="utf-8")


def test_what_is_spoiled_here_is_whole(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, FILES)
    read_all(tmp_path)
    compared = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert {"loss, last", "held-out: eval_loss", "eval_loss, last"} <= {each.name for each in compared.figures}
    assert write_report(tmp_path / "a", tmp_path / "a.html").missing.keys() == {"samples"}


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@examples(25)
def test_an_odd_value_anywhere_in_a_file_is_shown_or_told(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(FILES[name]) - 1))
    odd = [*FILES[name]]
    odd[place] = data.draw(spoiled(FILES[name][place]))
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder) / "a", {**FILES, name: odd})
        write_run(Path(folder) / "b", FILES)
        read_all(Path(folder))


@given(
    st.sampled_from(list(FILES)),
    st.sampled_from([b"", b"{", b"\xff\n", b"[]", b"7", b'"x"', b"null", b"[" * 90_000, b"\0" * 9]),
)
@examples(40)
def test_a_file_of_other_bytes_is_shown_or_told(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder) / "a", FILES)
        write_run(Path(folder) / "b", FILES)
        (Path(folder) / "a" / name).write_bytes(content)
        read_all(Path(folder))


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "data-report.json", "config.yaml"])
def test_a_folder_in_the_place_of_a_file_is_told(name: str, tmp_path: Path) -> None:
    for run in ("a", "b"):
        write_run(tmp_path / run, FILES)
    (tmp_path / "a" / name).unlink()
    (tmp_path / "a" / name).mkdir()
    read_all(tmp_path)


@pytest.mark.parametrize("content", ["[]", "7", "[" * 90_000, '{"status": "finished"'])
def test_a_record_that_is_no_object_is_told_by_its_name(content: str, tmp_path: Path) -> None:
    run = RunDirectory(write_run(tmp_path / "a", FILES))
    run.record.write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        run.read_record()
