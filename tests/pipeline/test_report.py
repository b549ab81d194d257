"""`truetune report`: true to what the run recorded, whatever of it is there, and never more than lies in the run."""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import truetune
from conftest import arithmetic_rows, write_jsonl
from pages import Page, assert_loads_nothing, assert_only_its_own_scripts_may_run, assert_well_formed
from truetune.cli import main
from truetune.config.load import load_config
from truetune.errors import CheckpointError, ConfigError, DataError
from truetune.figures import byte_size
from truetune.pipeline.check import prepare
from truetune.pipeline.inspect import pieces_of
from truetune.pipeline.review.report import run_page
from truetune.report.run_page import render_run_page
from truetune.runs.directory import RunDirectory

SECRET = "hf_" + "QwErTyUiOpAsDfGhJkLzXcVbNmQwErTyUi"


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps with validation and an evaluation, its prepared rows in the cache."""
    folder = tmp_path_factory.mktemp("reported")
    rows = write_jsonl(folder / "sums.jsonl", arithmetic_rows(24))
    run = truetune.train(
        model=str(tiny_base),
        data=str(rows),
        output_dir=folder / "run",
        max_steps=10,
        logging_steps=1,
        test_size=4,
        learning_rate=1e-2,
        precision="fp32",
    )
    truetune.evaluate(run, limit=2, max_new_tokens=4, forgetting=False)
    return run.directory


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def shown(run: Path) -> Page:
    return Page(truetune.write_report(run).path.read_text(encoding="utf-8"))


def record_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    return record


def test_the_page_tells_what_the_run_recorded(trained: Path) -> None:
    written = truetune.write_report(trained)
    source = written.path.read_text(encoding="utf-8")
    page, record = Page(source), record_of(trained)
    assert written.path == trained / "report.html"
    assert written.bytes == len(source.encode()) < 2_000_000
    assert (written.status, written.missing) == ("finished", {})
    assert {"Loss", "Learning rate", "Gradient norm", "Token accuracy"} <= set(written.charts)
    for setting in record["settings"]:
        assert setting["name"] in page.sections["settings"]
        assert setting["reason"] in page.sections["settings"]
    for library, version in record["versions"].items():
        assert library.replace("_", " ") in page.sections["environment"]
        assert version in page.sections["environment"]
    assert record["data"]["fingerprint"] in page.sections["data"]
    assert "10 of 10 steps" in source
    assert_well_formed(page)
    assert_loads_nothing(page, source)
    assert_only_its_own_scripts_may_run(page)


def test_its_curves_are_the_logged_values(trained: Path) -> None:
    lines = RunDirectory(trained).read_metrics()
    drawn = json.loads(shown(trained).scripts[0])
    loss, validation = drawn["charts"][0]["curves"]
    assert loss["steps"] == list(range(1, 11))
    assert loss["values"] == pytest.approx([line["loss"] for line in lines if "loss" in line], rel=1e-5)
    assert validation["values"] == pytest.approx(
        [line["eval_loss"] for line in lines if "eval_loss" in line], rel=1e-5
    )


def test_its_samples_are_rows_that_it_trained_on_with_what_it_learned(trained: Path) -> None:
    prepared = prepare(load_config(trained / "config.yaml").config)
    assert prepared.fingerprint == record_of(trained)["data"]["fingerprint"]
    marked = shown(trained).marked("learned")
    learned = {
        piece
        for row in prepared.train
        for piece, is_learned in pieces_of(row, prepared.template.tokenizer)
        if is_learned
    }
    of_samples = marked[marked.index("coloured") + 1 :]
    assert len(of_samples) == 5
    assert set(of_samples) <= learned
    held_out = {int(line) for line in prepared.validation.column("line")[prepared.validation.places]}
    page = run_page(RunDirectory(trained))
    lines = [int(row.where.rpartition(" ")[2]) for row in page.samples]
    assert not held_out & set(lines)
    assert page.samples[0].where.endswith(f"sums.jsonl, line {lines[0]}")


def test_rows_that_are_not_those_of_the_run_are_not_shown(run: Path) -> None:
    record = record_of(run)
    record["data"]["fingerprint"] = "0" * 64
    (run / "run.json").write_text(json.dumps(record))
    written = truetune.write_report(run)
    assert "truetune prepare" in written.missing["samples"]


def test_samples_come_back_when_the_rows_are_prepared_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "empty"))
    assert "samples" in truetune.write_report(trained).missing
    prepare(load_config(trained / "config.yaml").config)
    assert "samples" not in truetune.write_report(trained).missing


def test_answers_and_worst_rows_are_those_of_the_newest_evaluation(trained: Path) -> None:
    page = shown(trained)
    (path,) = (trained / "evaluations").glob("*-1.json")
    found = json.loads(path.read_text())
    answers = [json.loads(line) for line in path.with_suffix(".answers.jsonl").read_text().splitlines()]
    assert len(answers) == 2
    for answer in answers:
        assert answer["prompt"] in page.sections["answers"]
        assert answer["expected"] in page.sections["answers"]
    assert f"{found['eval_loss']:.4g}" in page.sections["answers"]
    assert f"{found['base']['eval_loss']:.4g}" in page.sections["answers"]
    for row in found["worst_rows"]:
        assert f"line {row['where']['line']}" in page.sections["worst"]
        assert f"loss {row['loss']:.4g}" in page.sections["worst"]


def test_a_later_evaluation_takes_the_place_of_an_earlier_one(run: Path) -> None:
    (path,) = (run / "evaluations").glob("*-1.json")
    later = json.loads(path.read_text())
    later["record"]["time"] = "2999-01-01T00:00:00Z"
    later["data"], later["eval_loss"] = "later.jsonl", 7.125
    (run / "evaluations" / "later-1.json").write_text(json.dumps(later))
    (run / "evaluations" / "tasks-1.json").write_text(json.dumps({"results": {}}))
    judged = run_page(RunDirectory(run)).judged
    assert judged is not None
    assert judged.title == "On later.jsonl"
    assert judged.compared[0].tuned == "7.125"
    assert [name for name, _ in judged.others] == [path.name]


def test_a_run_that_was_not_evaluated_says_how(run: Path) -> None:
    shutil.rmtree(run / "evaluations")
    assert f"truetune eval {run}" in shown(run).sections["answers"]


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "data-report.json", "config.yaml"])
@pytest.mark.parametrize("content", [None, "", "{", "[1, 2]", '"text"', "\x00\xff"])
def test_a_missing_or_damaged_file_is_told_and_stops_nothing(run: Path, name: str, content: str | None) -> None:
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    page = shown(run)
    assert_well_formed(page)
    section = {"run.json": "environment", "metrics.jsonl": "curves", "data-report.json": "data"}.get(name)
    if section and (content or name != "metrics.jsonl"):
        assert f"{name} is missing" in page.sections[section] or "damaged" in page.sections[section]


WRONG = [None, True, 1e300, "<b>x</b>", [[1]], {"where": 3, "interval": ["a"], "parts": {"x": "y"}}]


def small(document: Any, *, most: int = 2) -> Any:
    """The document with so many of its inner values at each place, so that all kinds of them can be tried."""
    match document:
        case dict():
            return {name: small(value) for name, value in list(document.items())[:most]}
        case list():
            return [small(value) for value in document[:1]]
        case _:
            return document


def replaced(document: Any) -> Iterator[Any]:
    """The document with each value of it, one at a time, replaced by something that has no business there."""
    places = document.items() if isinstance(document, dict) else enumerate(document)
    for place, value in list(places):
        for wrong in WRONG:
            changed = copy.copy(document)
            changed[place] = wrong
            yield changed
        if isinstance(value, dict | list):
            for inner in replaced(value):
                changed = copy.copy(document)
                changed[place] = inner
                yield changed


@pytest.mark.parametrize("name", ["run.json", "data-report.json", "evaluations"])
def test_whatever_stands_in_the_files_stops_nothing(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(run / "cache"))
    path = next((run / name).glob("*-1.json")) if name == "evaluations" else run / name
    document = small(json.loads(path.read_text()), most=100)
    count = 0
    for count, changed in enumerate(replaced(document)):
        path.write_text(json.dumps(changed))
        page = run_page(RunDirectory(run))
        if count % 50 == 0:
            assert_well_formed(Page(render_run_page(page)))
    assert count > 50


def test_a_link_in_a_run_does_not_bring_other_files_into_the_page(run: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.txt"
    hidden.write_text("the hidden words")
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(hidden)
    answers = next((run / "evaluations").glob("*.answers.jsonl"))
    line = answers.read_text().splitlines()[0].replace('"prompt": "', '"prompt": "the hidden words ')
    hidden.with_suffix(".jsonl").write_text(line)
    answers.unlink()
    answers.symlink_to(hidden.with_suffix(".jsonl"))
    source = truetune.write_report(run).path.read_text()
    assert "the hidden words" not in source


def test_a_secret_in_the_config_or_the_command_is_shortened(run: Path) -> None:
    (run / "config.yaml").write_text(f"# {SECRET}\n" + (run / "config.yaml").read_text())
    record = record_of(run)
    record["command"] = ["truetune", "train", SECRET]
    (run / "run.json").write_text(json.dumps(record))
    source = truetune.write_report(run).path.read_text()
    assert SECRET not in source
    assert "hf_QwErT…" in source


@pytest.mark.parametrize(
    ("changes", "status", "told"),
    [
        ({"status": "failed", "error": "loss is <none>"}, "failed", "loss is <none>"),
        ({"status": "stopped", "stopped_by": "SIGTERM"}, "stopped", "by SIGTERM after 10 of 10 steps"),
        ({"status": "running"}, "dead", "no process works at it"),
    ],
)
def test_the_page_tells_how_a_run_ended(run: Path, changes: dict[str, str], status: str, told: str) -> None:
    (run / "run.json").write_text(json.dumps({**record_of(run), **changes}))
    page = run_page(RunDirectory(run))
    assert page.status == status
    assert told in page.verdict
    assert_well_formed(Page(render_run_page(page)))


def test_a_run_that_is_going_on_can_be_looked_at(run: Path) -> None:
    record = {name: value for name, value in record_of(run).items() if name not in ("steps", "seconds", "ended")}
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    shutil.rmtree(run / "adapter")
    with RunDirectory(run).locked():
        page = run_page(RunDirectory(run))
    assert page.status == "running"
    assert "10 of 10 steps were logged" in page.verdict
    assert "not come to its end" in page.missing["plan"]
    assert page.samples, "the tokenizer of a checkpoint spells them"


def test_a_rising_validation_loss_is_told(run: Path) -> None:
    lines = [{"step": 0, "eval_loss": 4.0}, {"step": 5, "eval_loss": 2.0}, {"step": 10, "eval_loss": 2.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    notes = run_page(RunDirectory(run)).notes
    assert notes[0] == "Validation loss went from 4 to 2.5."
    assert notes[1] == "It was lowest at step 5 (2); the last is 25% above that."


def test_the_plan_stands_beside_what_the_run_took(run: Path) -> None:
    record = record_of(run)
    record.update(seconds=30.0, total_steps=10, device="cpu", peak_memory_bytes=3_000_000_000)
    record["planned"] = {
        "memory": {"peak_bytes": 2_000_000_000, "parts": {"weights": 1_500_000_000, "framework": 500_000_000}},
        "seconds": 20.0,
        "disk_bytes": 5_000_000,
    }
    (run / "run.json").write_text(json.dumps(record))
    told = {each.name: each for each in run_page(RunDirectory(run)).planned}
    assert list(told) == ["Steps", "Time", "Peak memory", "Disk"]
    assert (told["Time"].planned, told["Time"].taken, told["Time"].difference) == ("20 s", "30 s", "+50%")
    assert (told["Peak memory"].planned, told["Peak memory"].difference) == ("2.00 GB", "+50%")
    files = [path for name in ("checkpoints", "adapter") for path in (run / name).rglob("*") if path.is_file()]
    assert told["Disk"].taken == byte_size(sum(path.stat().st_size for path in files))
    (run / "run.json").write_text(json.dumps({**record, "device": "cuda"}))
    assert {each.name: each.planned for each in run_page(RunDirectory(run)).planned}["Peak memory"] == "1.50 GB"


# --- the command ------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_where_it_is_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "pages" / "run.html"
    assert main(["report", str(trained), "--output", str(target), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["bytes"], told["status"]) == (str(target), target.stat().st_size, "finished")
    assert main(["report", str(trained)]) == 0
    assert str(trained / "report.html") in capsys.readouterr().out


def test_without_a_run_or_a_file_to_write_there_is_no_page(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        truetune.write_report(tmp_path)
    with pytest.raises(ConfigError, match="is a folder"):
        truetune.write_report(trained, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        truetune.write_report(trained, tmp_path / "file" / "page.html")
    assert main(["report", str(trained), "-o", str(tmp_path)]) == 2


def test_a_new_training_takes_the_old_page_away(run: Path) -> None:
    truetune.write_report(run)
    RunDirectory(run).clear()
    assert not (run / "report.html").exists()


def test_no_model_library_is_imported_for_a_page(trained: Path) -> None:
    heavy = ("torch", "transformers", "trl", "peft", "datasets")
    code = (
        f"import sys\nfrom truetune.cli import main\nassert main(['report', {str(trained)!r}]) == 0\n"
        f"print(*(set({heavy!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1].split() == []


def test_without_an_evaluation_the_last_answers_of_the_training_are_shown(run: Path) -> None:
    (path,) = (run / "evaluations").glob("*-1.json")
    lines = path.with_suffix(".answers.jsonl").read_text().replace('"base_answer"', '"unused"').splitlines()
    shutil.rmtree(run / "evaluations")
    (run / "answers").mkdir()
    (run / "answers" / "step-9.jsonl").write_text(lines[0] + "\n")
    (run / "answers" / "step-10.jsonl").write_text(lines[1] + "\n")
    judged = run_page(RunDirectory(run)).judged
    assert judged is not None
    assert judged.title == "At step 10 of the training"
    assert [(each.prompt, each.base) for each in judged.answers] == [(json.loads(lines[1])["prompt"], None)]


def test_figures_of_tasks_are_told(run: Path) -> None:
    shutil.rmtree(run / "evaluations")
    (run / "evaluations").mkdir()
    figures = [{"task": "sums", "metric": "acc", "tuned": 0.75, "base": 0.5}]
    (run / "evaluations" / "lm-eval").mkdir()
    (run / "evaluations" / "lm-eval" / "tasks-1.json").write_text(json.dumps({"figures": figures}))
    assert "sums acc 0.75, the base 0.5" in shown(run).sections["answers"]
