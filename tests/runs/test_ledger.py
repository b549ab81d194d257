"""The list of runs: what their directories say, also of the dead, the damaged and the half written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import truetune
from truetune.arguments.parse import parse_arguments
from truetune.cli import main
from truetune.errors import CheckpointError, ConfigError
from truetune.files import write_json
from truetune.runs.directory import RunDirectory
from truetune.runs.ledger import ORDERS, STATUSES, RunEntry, Wanted, find_runs, in_order, read_run

RESULT = {"steps": 30, "final_loss": 1.5, "eval_loss": 1.75, "tokens_per_second": 260.4, "seconds": 12.5}
HOLDER = """
import sys
from pathlib import Path
from truetune.runs.directory import RunDirectory

with RunDirectory(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def write_run(path: Path, *, status: str = "finished", result: dict[str, Any] = RESULT, **facts: Any) -> RunDirectory:
    """A run's directory as a training leaves it."""
    directory = RunDirectory(path)
    rate, r = facts.pop("rate", 2e-4), facts.pop("r", 8)
    config = {"training": {"learning_rate": rate}, "adapter": {"method": "lora", "r": r}, "output_dir": str(path)}
    directory.begin_record(
        **{
            "started": "2026-11-29T06:01:11Z",
            "model": {"name_or_path": "org/model"},
            "data": {"path": "data/sums.jsonl", "fingerprint": "f"},
            "total_steps": 30,
            "effective_batch_size": 4,
            "config": config,
            **facts,
        }
    )
    (path / ".lock").touch()
    directory.update_record(status=status, **result)
    return directory


def statuses(folder: Path) -> dict[str, str]:
    return {entry.path.name: entry.status for entry in find_runs([folder])}


# --- what is read -----------------------------------------------------------------------------------------


def test_a_finished_run_is_listed_as_its_record_has_it(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    (entry,) = find_runs([tmp_path])
    assert (entry.status, entry.model, entry.data) == ("finished", "org/model", "data/sums.jsonl")
    assert (entry.steps, entry.final_loss, entry.eval_loss, entry.tokens_per_second) == (30, 1.5, 1.75, 260.4)
    assert entry.settings == {"training.learning_rate": 2e-4, "adapter.method": "lora", "adapter.r": 8}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", status="failed", result={})
    (run.path / name).unlink(missing_ok=True)
    os.mkfifo(run.path / name)
    assert statuses(tmp_path) == {"a": "unreadable"}


def test_a_run_that_has_not_ended_tells_how_far_it_came_by_the_last_whole_lines(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", status="failed", result={"error": "no space"})
    for step in range(1, 2001):
        run.append_metrics({"step": step, "loss": 1 / step, "tokens_per_second": step})
        if step == 1950:
            run.append_metrics({"step": step, "eval_loss": 0.5, "eval_tokens": 12})
    with run.metrics.open("a") as file:
        file.write('{"step": 2001, "loss": 0.')
    entry = read_run(run.path)
    assert (entry.steps, entry.final_loss, entry.eval_loss) == (2000, 1 / 2000, 0.5)
    assert (entry.tokens_per_second, entry.problem) == (2000, "no space")


def test_a_loss_that_was_no_number_is_none_and_not_the_one_before(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", status="failed", result={})
    run.append_metrics({"step": 1, "loss": 2.0})
    run.append_metrics({"step": 2, "loss": None})
    assert (read_run(run.path).steps, read_run(run.path).final_loss) == (2, None)


def test_a_run_that_has_logged_nothing_is_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", status="running", result={})
    assert (read_run(run.path).status, read_run(run.path).steps) == ("dead", None)
    run.metrics.touch()
    assert read_run(run.path).steps is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "null", '{"status": 5}', '{"status": "running", "model": "x"}', "[" * 100_000, "\xff\xfe"],
)
def test_a_damaged_record_is_an_entry_and_ends_nothing(text: str, tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(text, encoding="latin-1")
    found = {entry.path.name: entry for entry in find_runs([tmp_path])}
    assert (found["bad"].status, found["good"].status) == ("unreadable", "finished")
    assert "run.json cannot be read" in str(found["bad"].problem)


def test_values_of_the_wrong_kind_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "a", result={"steps": "many", "final_loss": [1], "eval_loss": True}, started=5)
    (entry,) = find_runs([tmp_path])
    assert (entry.steps, entry.final_loss, entry.eval_loss, entry.started) == (None, None, None, None)


# --- who is alive -----------------------------------------------------------------------------------------


def test_a_run_is_running_while_its_process_lives_and_dead_when_it_was_killed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", status="running", result={})
    command = [sys.executable, "-c", HOLDER, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "locked\n"
        assert statuses(tmp_path) == {"run": "running"}
        holder.kill()
        holder.communicate()
    assert statuses(tmp_path) == {"run": "dead"}


def test_who_asks_whether_a_run_lives_hinders_no_training_and_leaves_no_trace(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", status="running", result={})
    before = sorted(path.name for path in run.path.iterdir())
    assert read_run(run.path).status == "dead"
    assert sorted(path.name for path in run.path.iterdir()) == before
    with run.locked():
        assert read_run(run.path).status == "running"
    shutil.rmtree(run.path)
    assert not run.is_at_work()
    assert not run.path.exists()


def test_a_training_waits_for_the_instant_in_which_the_lock_is_asked_for(tmp_path: Path) -> None:
    import threading
    import time

    from filelock import FileLock

    asker = FileLock(tmp_path / ".lock", thread_local=False)
    asker.acquire()
    threading.Thread(target=lambda: (time.sleep(0.05), asker.release())).start()
    with RunDirectory(tmp_path).locked():
        pass


# --- where they lie ---------------------------------------------------------------------------------------


def test_runs_are_found_below_a_folder_each_once_and_none_inside_a_run(tmp_path: Path) -> None:
    for name in ("b", "a", "sweeps/one/lr=1", "sweeps/one/lr=2", "a/checkpoints/copy"):
        write_run(tmp_path / name)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / ".hidden").mkdir()
    write_run(tmp_path / ".hidden" / "gone")
    found = find_runs([tmp_path, tmp_path / "a", str(tmp_path / "sweeps")])
    assert [str(entry.path.relative_to(tmp_path)) for entry in found] == [
        "a",
        "b",
        "sweeps/one/lr=1",
        "sweeps/one/lr=2",
    ]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        find_runs([tmp_path / "nowhere"])


def test_without_a_folder_the_runs_of_the_default_one_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert truetune.list_runs() == []
    write_run(Path("runs/a"))
    assert [entry.path for entry in truetune.list_runs()] == [Path("runs/a")]


# --- which, and in what order -----------------------------------------------------------------------------


def test_runs_are_chosen_by_status_names_and_settings(tmp_path: Path) -> None:
    write_run(tmp_path / "a", rate=1e-4)
    write_run(tmp_path / "b", status="stopped", r=16, model={"name_or_path": "other/Thing"})
    found = find_runs([tmp_path])

    def chosen(**wanted: Any) -> list[str]:
        return [entry.path.name for entry in found if Wanted(**wanted).matches(entry)]

    assert chosen() == ["a", "b"]
    assert chosen(statuses=["stopped", "failed"]) == ["b"]
    assert chosen(model="thing") == ["b"]
    assert chosen(data="sums") == ["a", "b"]
    assert chosen(settings={"training.learning_rate": 1e-4}) == ["a"]
    assert chosen(settings={"adapter.r": 16, "training.learning_rate": 1e-4}) == []
    assert chosen(settings={"training.seed": None}) == []
    with pytest.raises(ConfigError, match="there is no status done"):
        Wanted(statuses=["done"])


def test_runs_without_a_figure_come_last_either_way_round() -> None:
    entries = [
        RunEntry(Path(name), "finished", eval_loss=loss) for name, loss in (("a", 2.0), ("b", None), ("c", 1.0))
    ]
    assert [str(entry.path) for entry in in_order(entries, "eval_loss")] == ["c", "a", "b"]
    assert [str(entry.path) for entry in in_order(entries, "eval_loss", reverse=True)] == ["a", "c", "b"]


def test_the_best_of_each_order_comes_first() -> None:
    low = RunEntry(Path("low"), "finished", None, None, None, "2026-01", None, 1, 1, 1, 1.0, 1.0, 1.0, 1.0, 1.0, 1)
    high = RunEntry(Path("up"), "finished", None, None, None, "2026-02", None, 2, 2, 2, 2.0, 2.0, 2.0, 2.0, 2.0, 2)
    first = {order: str(in_order([high, low], order)[0].path) for order in ORDERS}
    highest = {"started", "steps", "speed"}
    assert first == {order: "up" if order in highest else "low" for order in ORDERS}


# --- the command ------------------------------------------------------------------------------------------


def test_the_command_takes_each_order_and_no_other() -> None:
    for order in ORDERS:
        assert parse_arguments(["runs", "--sort", order]).sort == order
    with pytest.raises(SystemExit):
        parse_arguments(["runs", "--sort", "beauty"])
    assert set(STATUSES) == set(parse_arguments(["runs", "--status", ",".join(STATUSES)]).status.split(","))


def test_the_list_as_json_has_what_scripts_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", rate=1e-4)
    write_run(tmp_path / "b", r=16)
    assert main(["runs", str(tmp_path), "--json", "--where", "lr=2e-4", "--where", "lora_rank=16"]) == 0
    document = json.loads(capsys.readouterr().out)
    (run,) = document["runs"]
    assert {"path", "status", "model", "data", "steps", "final_loss", "eval_loss"} <= set(run)
    assert (run["path"], run["settings"]["adapter.r"]) == (str(tmp_path / "b"), 16)
    assert main(["runs", str(tmp_path), "--where", "learnig_rate=1"]) == 2
    assert "did you mean training.learning_rate" in capsys.readouterr().err


def test_the_list_says_how_many_there_are_and_what_is_wrong_with_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        write_run(tmp_path / f"run-{number}", started=f"2026-11-2{number}T00:00:00Z")
    write_json(tmp_path / "run-1" / "run.json", [])
    assert main(["runs", str(tmp_path), "--limit", "2", "--sort", "name"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines[:3]] == ["run", str(tmp_path / "run-0"), str(tmp_path / "run-1")]
    assert lines[3].startswith(f"{tmp_path / 'run-1'}: run.json cannot be read")
    assert lines[-1] == "4 runs: 3 finished, 1 unreadable; 2 are shown"
    assert main(["runs", str(tmp_path / "run-0"), "--status", "dead"]) == 0
    assert capsys.readouterr().out == "no runs found\n"


@pytest.mark.parametrize(("width", "shown"), [(80, ["status", "loss"]), (200, ["rows/step", "data", "started"])])
def test_a_terminal_is_given_the_columns_that_fit(
    width: int, shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/support-1"), model={"name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"})
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["runs"]) == 0
    lines = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    assert all(name in lines[0] for name in shown)
    assert "runs/support-1" in lines[1]


def test_the_list_imports_nothing_heavy(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    heavy = ("torch", "transformers", "numpy", "pydantic", "ruamel")
    code = (
        f"import sys\nfrom truetune.cli import main\nmain(['runs', {str(tmp_path)!r}])\n"
        f"print(*(set({heavy!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("indent", [2, None, 4])
@pytest.mark.parametrize("reasons", [[], [{"name": "a", "reason": '\n  ]\n  "status": "failed"'}]])
def test_the_reasons_of_settings_are_passed_over_and_nothing_else(
    reasons: list[Any], indent: int | None, tmp_path: Path
) -> None:
    before = {"status": "finished", "command": ["a", "b"], "settings": reasons, "steps": 7, "list": [1, 2]}
    (tmp_path / "run.json").write_text(json.dumps(before, indent=indent))
    entry = read_run(tmp_path)
    assert (entry.status, entry.steps) == ("finished", 7)
