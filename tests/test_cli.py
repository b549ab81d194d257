"""The command line as its users meet it: a process, its output and its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import warm
from conftest import arithmetic_rows, write_jsonl
from stand_in import stand_in
from truetune.cli import main

HEAVY = ("torch", "transformers", "trl", "peft", "datasets")
SMALL = ("training.precision=fp32", "learning_rate=1e-3", "logging_steps=1")


def truetune(*words: str, cwd: Path | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = warm.truetune(*words)
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, input=stdin, timeout=200, check=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "sums.jsonl", arithmetic_rows(12))


@pytest.fixture(scope="module")
def trained(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made by the command line."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    words = ("--model", str(tiny_base), "--data", str(rows), "--output-dir", str(folder), "max_steps=2", *SMALL)
    done = truetune("train", *words)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("--version",)])
def test_help_and_version_import_nothing_heavy(words: tuple[str, ...]) -> None:
    assert imported_by(words) == set()


def test_a_config_error_imports_nothing_heavy(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("model: {name_or_path: x}\ntraining: {learnig_rate: 1e-4}\n")
    assert imported_by(("train", str(config))) == set()


def imported_by(words: tuple[str, ...]) -> set[str]:
    """The heavy libraries that a command imports before it ends."""
    code = (
        "import sys\nfrom truetune.cli import main\n"
        f"try:\n    main({list(words)!r})\nexcept SystemExit:\n    pass\n"
        f"print(*(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split()) if done.stderr.strip() else set()


def test_every_command_that_is_listed_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    listed = truetune("--help").stdout
    commands = [
        "demo",
        "train",
        "plan",
        "find-lr",
        "verify",
        "runs",
        "compare",
        "sweep",
        "launch",
        "generate",
        "chat",
        "eval",
        "report",
        "merge",
        "export",
        "serve",
        "check",
        "prepare",
        "inspect",
        "init",
        "import",
        "schema",
        "models",
        "doctor",
        "completion",
    ]
    assert {line.split()[0] for line in listed.splitlines() if line.startswith("    ") and line[4] != " "} == {
        *commands
    }
    for command in commands:
        assert f"    {command} " in listed
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: truetune {command} ")


def test_a_config_with_several_mistakes_names_them_all_with_their_lines(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "model:\n  name_or_path: x\nadapter:\n  r: abc\ntraining:\n  learnig_rate: 1e-4\ndata: {path: a.jsonl}\n"
    )
    done = truetune("train", str(config), "num_epochz=3")
    assert done.returncode == 2
    assert "run.yaml:4" in done.stderr
    assert "adapter.r" in done.stderr
    assert "run.yaml:6" in done.stderr
    assert "did you mean" in done.stderr
    assert "learning_rate" in done.stderr
    assert "num_epochz" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("trian",), "train"),
        (("train", "--modle", "demo"), "--model"),
        (("generate", "nowhere", "--prompt", "x"), "run not found: nowhere"),
        (("train", "--model", "./nowhere", "--data", "x.jsonl"), "model not found"),
        (("inspect", "missing.jsonl", "--model", "demo"), "data file not found: missing.jsonl"),
        (("train", "--data", "x.jsonl"), "model"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong_without_a_traceback(
    words: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "x.jsonl", arithmetic_rows(1))
    done = truetune(*words, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_training_prints_words_to_stderr_and_the_result_to_stdout(trained: Path, tiny_base: Path, rows: Path) -> None:
    done = truetune("train", "--model", str(tiny_base), "--data", str(rows), "--output-dir", str(trained))
    assert done.returncode == 1
    assert done.stdout == ""
    assert "already holds a run" in done.stderr
    assert "hint: go on with --resume" in done.stderr


def test_settings_may_stand_before_and_after_options(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {{name_or_path: {tiny_base}}}\ndata: {{path: {rows}}}\n")
    words = ("seed=7", "--output-dir", str(tmp_path / "run"), "--resume", "auto", "max_steps=1", *SMALL)
    done = truetune("train", str(config), *words)
    assert done.returncode == 0, done.stderr
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "seed: 7" in saved
    assert "max_steps: 1" in saved


def test_generate_prints_one_json_document_and_nothing_else(trained: Path) -> None:
    done = truetune("generate", str(trained), "--prompt", "Add 1 and 2", "--max-new-tokens", "4", "--json")
    answer = json.loads(done.stdout)
    assert set(answer) == {"prompt_ids", "text", "stop_reason", "prompt_tokens", "answer_tokens"}
    assert bytes(token for token in answer["prompt_ids"] if token < 256).decode().endswith("Add 1 and 2\nassistant\n")


def test_chat_answers_each_line_of_a_pipe_and_asks_nothing(trained: Path) -> None:
    done = truetune("chat", str(trained), "--max-new-tokens", "2", stdin="hi\n\n/new\nhello\n")
    assert done.returncode == 0, done.stderr
    assert "> " not in done.stdout


def test_inspect_marks_the_learned_text(tiny_base: Path, rows: Path) -> None:
    done = truetune("inspect", str(rows), "--model", str(tiny_base), "--rows", "1")
    assert "«1<|im_end|>»" in done.stdout
    assert "sums.jsonl, line 1: " in done.stdout
    assert "2 learned" in done.stdout


def test_inspect_as_json_holds_ids_labels_and_spans(tiny_base: Path, rows: Path) -> None:
    done = truetune("inspect", str(rows), "--model", str(tiny_base), "--rows", "2", "--json")
    document = json.loads(done.stdout)
    assert len(document["rows"]) == 2
    assert document["rows"][1]["spans"] == ["3<|im_end|>"]


def test_check_names_each_finding_with_its_place_and_remedy_and_exits_1(tmp_path: Path) -> None:
    rows = [*arithmetic_rows(2), {"instruction": "Add", "output": None}, {"foo": 1}]
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    done = truetune("check", str(data))
    assert done.returncode == 1
    assert f"[empty-answer] {data}, line 3, field output: output is null" in done.stdout
    assert f"[unknown-format] {data}, line 4: fields are foo" in done.stdout
    assert "data.columns" in done.stdout
    assert "2 of 4 rows can be used" in done.stdout
    clean = truetune("check", str(write_jsonl(tmp_path / "b.jsonl", arithmetic_rows(2))))
    assert (clean.returncode, clean.stdout.splitlines()[-1]) == (0, "2 of 2 rows can be used")


def test_check_as_json_is_one_document_with_every_problem(tiny_base: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [*arithmetic_rows(2), {"text": 5}, {"foo": 1}])
    done = truetune("check", str(data), "--model", str(tiny_base), "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert (document["rows_read"], document["rows_kept"], document["rows_rejected"]) == (4, 3, 1)
    found = {problem["name"]: problem for problem in document["problems"]}
    assert found["unknown-format"]["where"] == {"path": str(data), "line": 4, "unit": "line"}
    assert found["unknown-format"]["severity"] == "error"
    assert found["number-as-text"]["severity"] == "note"
    assert set(found["number-as-text"]) >= {"code", "severity", "message", "where", "field", "hint"}
    assert document["stats"]["supervised_tokens"] > 0


def test_check_holds_the_rules_that_are_chosen_and_fails_at_the_severity_that_is_named(tmp_path: Path) -> None:
    rows = [*arithmetic_rows(12), {"instruction": "Who are you?", "output": "I am {{name}}."}]
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    plain = truetune("check", str(data))
    assert plain.returncode == 0
    assert f"TT205 [placeholder] {data}, line 13, field output: " in plain.stdout
    assert truetune("check", str(data), "--fail-on", "warning").returncode == 1
    left = truetune("check", str(data), "--fail-on", "warning", "--ignore", "TT205,TT1")
    assert (left.returncode, "TT205" in left.stdout) == (0, False)
    (tmp_path / "a.jsonl.ttignore").write_text("13 placeholder # it is filled when it is served\n")
    assert truetune("check", str(data), "--fail-on", "warning").returncode == 0
    wrong = truetune("check", str(data), "--select", "placeholders")
    assert (wrong.returncode, "did you mean placeholder?" in wrong.stderr) == (2, True)


def test_check_writes_sarif_and_a_page_beside_its_report(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [*arithmetic_rows(3), {"instruction": "a", "output": ""}])
    sarif, page = tmp_path / "out" / "a.sarif", tmp_path / "out" / "a.html"
    done = truetune("check", str(data), "--json", "--sarif", str(sarif), "--html", str(page))
    assert done.returncode == 1
    assert "TT101" in {problem["code"] for problem in json.loads(done.stdout)["problems"]}
    assert "TT101" in {result["ruleId"] for result in json.loads(sarif.read_text())["runs"][0]["results"]}
    assert "TT101" in page.read_text()


def test_sarif_that_cannot_be_written_is_an_error_behind_the_report(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(3))
    done = truetune("check", str(data), "--json", "--sarif", str(tmp_path))
    assert done.returncode == 1
    assert json.loads(done.stdout)["rows_read"] == 3
    assert f"error: {tmp_path} cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rule_explains_itself_and_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    page = truetune("check", "--explain", "TT205")
    assert page.returncode == 0
    assert page.stdout.startswith("# TT205 placeholder")
    assert truetune("check", "--explain", "placeholder").stdout == page.stdout
    assert "TT401  duplicate-rows" in truetune("check", "--explain", "all").stdout
    assert truetune("check", "--explain", "TT999").returncode == 2


def test_checking_rows_without_a_model_imports_nothing_heavy(tmp_path: Path) -> None:
    assert imported_by(("check", str(write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(3))))) == set()


def test_prepare_says_where_the_rows_lie_and_training_finds_them(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    words = (str(rows), "--model", str(tiny_base), "--json")
    first, again = (json.loads(truetune("prepare", *words).stdout) for _ in range(2))
    assert first == again
    assert (Path(first["path"]) / "tokens.arrow").is_file()
    assert first["stats"]["train_rows"] == 12


def test_a_hub_id_that_cannot_be_reached_is_said_at_once_with_its_right_name() -> None:
    started = time.monotonic()
    done = truetune("check", "databricks/dolly-15k")
    assert done.returncode == 1
    assert "databricks/databricks-dolly-15k" in done.stderr
    assert time.monotonic() - started < 10


def test_init_writes_a_config_with_reasons_that_trains(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    made = truetune("init", str(rows), "--model", str(tiny_base), "-o", str(config))
    assert made.returncode == 0, made.stderr
    text = config.read_text()
    assert "12 of 12 rows usable" in text
    assert "learning_rate: 0.0005" in text
    assert "guide's range" in text
    refused = truetune("init", str(rows), "--model", str(tiny_base), "-o", str(config))
    assert refused.returncode == 2
    done = truetune("train", str(config), "--output-dir", str(tmp_path / "run"), "max_steps=1")
    assert done.returncode == 0, done.stderr


def test_doctor_reports_versions_and_precision_and_nothing_is_wrong_here() -> None:
    done = truetune("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, report["problems"]
    facts, libraries = report["facts"], {each["name"]: each for each in report["libraries"]}
    assert facts["trl"] == libraries["trl"]["installed"]
    assert facts["precision"] in ("bf16", "fp32", "fp16")
    assert int(facts["threads"]) <= int(facts["usable_threads"])
    assert float(facts["fp32 matmul"].split()[0].replace(",", "")) > 1
    assert {each["severity"] for each in report["problems"]} <= {"note"}


def test_the_demo_shows_both_models_and_leaves_a_run_to_talk_to(tmp_path: Path) -> None:
    """Of a tiny model in the place of the real one, which test_real trains."""
    command = warm.truetune("demo", "--output-dir", tmp_path / "demo", "max_steps=2")
    environment = stand_in(tmp_path / "cache")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "base model" in done.stdout
    assert "exact match on 40 held-out requests: 0% before" in done.stdout
    assert f"truetune chat {tmp_path / 'demo'}" in done.stdout
    assert json.loads((tmp_path / "demo" / "run.json").read_text())["steps"] == 2


def test_ctrl_c_saves_a_checkpoint_and_the_run_can_be_resumed(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("--model", str(tiny_base), "--data", str(rows), "--output-dir", str(folder), *SMALL)
    command = warm.truetune("train", *words, "num_train_epochs=3000")
    # `auto` packs so long a run; what it decided must hold when fewer epochs are left.
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        wait_for(lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size > 0)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "stopped"
    assert record["stopped_by"] == "SIGINT"
    stopped_at = record["steps"]
    assert (folder / "checkpoints" / f"checkpoint-{stopped_at}" / "trainer_state.json").exists()
    again = truetune("train", *words, f"num_train_epochs={stopped_at + 2}", "--resume")
    assert again.returncode == 0, again.stderr
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["steps"] == record["total_steps"] > stopped_at


def wait_for(condition: "object", seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


def test_a_tracker_that_would_ask_for_a_login_is_refused_at_once(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    words = ("train", "--model", str(tiny_base), "--data", str(rows), "report_to=wandb")
    command = [sys.executable, "-m", "truetune", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**clean, "HOME": str(tmp_path)}, check=False
    )
    assert done.returncode == 1
    assert "WANDB_API_KEY" in done.stderr
    assert "offline" in done.stderr


def test_tensorboard_gets_the_metrics(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("--model", str(tiny_base), "--data", str(rows), "--output-dir", str(folder), "report_to=tensorboard")
    done = truetune("train", *words, "max_steps=2", *SMALL)
    assert done.returncode == 0, done.stderr
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((folder / "tensorboard").rglob("events*")).parent))
    events.Reload()
    written = [event.value for event in events.Scalars("train/loss")]
    logged = [
        json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert written == pytest.approx(logged)


def test_a_name_or_a_row_that_no_encoding_has_is_told_by_its_escape(tmp_path: Path) -> None:
    """As another system's archives unpack here: é in Latin-1."""
    folder = tmp_path / "rows"
    folder.mkdir()
    data = write_jsonl(folder / os.fsdecode(b"caf\xe9.jsonl"), [*arithmetic_rows(2), {"text": "a"}])
    data.write_text(data.read_text() + '{"prompt": "\\ud800", "completion": "a"}\n')
    done = truetune("check", str(folder), "--json")
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert report["rows_read"] == 4
    assert [problem["where"]["path"] for problem in report["problems"] if problem["name"] == "broken-text"] == [
        str(data)
    ]
    for words in (
        ("check", str(folder)),
        ("inspect", str(folder), "--model", "none"),
        ("init", str(folder), "--model", "demo"),
    ):
        assert "Traceback" not in truetune(*words, cwd=tmp_path).stderr
