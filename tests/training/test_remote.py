"""A training in another process: what comes of it, what is heard meanwhile, and how either process ends."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import warm
from heard import Heard
from tiny_runs import LORA, ROWS, TOKENIZER, job, scored
from truetune.data.store import RowWriter, StoredRow, StoredRows, row_batch
from truetune.errors import BackendError
from truetune.model.fixtures import FILE, FixedPrompt
from truetune.model.load import ModelOptions
from truetune.model.source import ModelSource
from truetune.training.remote import RemoteSession
from truetune.training.session import Destination, ModelRequest, Session, Tracking, TrainingRows, TrlSession

PLAIN = "from truetune.training.session import TrlSession as open_session"


def program(opens: str = PLAIN) -> str:
    """A process that answers with the session that `opens` makes."""
    lines = (
        "from truetune.training.remote import answer_requests",
        textwrap.dedent(opens),
        "answer_requests(open_session)",
    )
    return "\n".join(lines)


def request(base: Path, **changes: Any) -> ModelRequest:
    source = ModelSource("base", str(base))
    return ModelRequest(source, ModelOptions("float32", "cpu", **changes), LORA, 1, 256, False)


@pytest.fixture
def stored(tmp_path: Path) -> StoredRows:
    writer = RowWriter(tmp_path)
    writer.write(row_batch([StoredRow(row, n, n, 0, n) for n, row in enumerate(ROWS)]))
    writer.close()
    return StoredRows.open(tmp_path)


def run(session: Session, base: Path, rows: StoredRows, folder: Path, **changes: Any) -> Any:
    """The result of a training, what was saved of it, and the saved adapter's tensors."""
    try:
        loaded = session.load(request(base))
        result = session.train(
            job(folder / "checkpoints", is_padding_free=loaded.isolates, **changes),
            TrainingRows(rows, rows[:4], TOKENIZER, scored(rows[:3], folder / "answers")),
            Tracking(folder),
            (),
        )
        prompts = tuple(FixedPrompt(tuple(row.input_ids[:30]), "a row") for row in rows[:3])
        destination = Destination(
            folder / "adapter", "org/base", None, (260,), prompts=prompts[:1], row_prompts=prompts[1:]
        )
        saved = session.save(destination)
    finally:
        session.close()
    return result, saved, load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(autouse=True)
def warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process need not load the libraries."""
    monkeypatch.setattr(sys, "executable", warm.executable())


def test_a_training_elsewhere_is_the_training_here_to_the_bit(
    tiny_base: Path, stored: StoredRows, tmp_path: Path
) -> None:
    lines: dict[str, list[Any]] = {"here": [], "there": []}
    here, there = Heard(), Heard()
    local = TrlSession(here, lines["here"].append)
    remote = RemoteSession(program(), log=tmp_path / "log", listener=there, write_metrics=lines["there"].append)
    changes = {"eval_strategy": "epoch", "num_train_epochs": 2}
    expected, saved, tensors = run(local, tiny_base, stored, tmp_path / "here", **changes)
    found, saved_there, others = run(remote, tiny_base, stored, tmp_path / "there", **changes)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert (found.steps, found.final_loss, found.eval_loss) == (12, expected.final_loss, expected.eval_loss)
    assert [line.get("loss") for line in lines["there"]] == [line.get("loss") for line in lines["here"]]
    assert there.lines == here.lines
    assert [line.get("eval_exact_match") for line in lines["there"]] == [
        line.get("eval_exact_match") for line in lines["here"]
    ]
    for step in (0, 6, 12):
        one, other = (
            (tmp_path / place / "answers" / f"step-{step}.jsonl").read_text() for place in ("here", "there")
        )
        assert one == other
        assert one.count("\n") == 3
    assert saved_there == saved
    assert len(saved.row_fixtures.fixtures) == 2
    answers = [(tmp_path / place / "adapter" / FILE).read_text() for place in ("here", "there")]
    assert answers[0] == answers[1]
    assert len(json.loads(answers[0])["fixtures"]) == 1
    assert "step 12 of 12" in there.lines


def test_an_error_of_ours_is_raised_here_as_it_was_there(tmp_path: Path) -> None:
    remote = RemoteSession(program(), log=tmp_path / "log", listener=Heard(), write_metrics=print)
    with pytest.raises(BackendError, match="cannot load the model") as error:
        remote.load(request(tmp_path / "missing"))
    remote.close()
    assert error.value.hint
    assert "Traceback" in (tmp_path / "log").read_text()


def test_any_other_error_is_told_in_a_line_and_kept_whole_in_the_log(tmp_path: Path) -> None:
    opens = """
        def open_session(**_):
            print("printed by a library")
            raise MemoryError("CUDA out of memory")
    """
    remote = RemoteSession(program(opens), log=tmp_path / "log", listener=Heard(), write_metrics=print)
    with pytest.raises(BackendError, match="MemoryError: CUDA out of memory") as error:
        remote.load(request(tmp_path))
    remote.close()
    assert str(tmp_path / "log") in str(error.value.hint)
    assert "printed by a library" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("ends", "manner"),
    [("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL: memory may have run out"), ("os._exit(3)", "exit status 3")],
)
def test_a_process_that_dies_is_told_with_its_log(ends: str, manner: str, tmp_path: Path) -> None:
    opens = f"import os, signal\ndef open_session(**_):\n    {ends}"
    remote = RemoteSession(program(opens), log=tmp_path / "log", listener=Heard(), write_metrics=print)
    with pytest.raises(BackendError, match=manner):
        remote.load(request(tmp_path))
    remote.close()


STUCK = """
    import time
    def open_session(**_):
        print(os.getpid(), file=open(PLACE, "w"))
        time.sleep(300)
"""
DRIVER = """
    import sys
    from pathlib import Path
    from truetune.listener import LogListener
    from truetune.training.remote import RemoteSession
    place = Path(sys.argv[1])
    program = f"import os; PLACE = {str(place / 'pid')!r}\\n" + sys.argv[2]
    RemoteSession(program, log=place / "log", listener=LogListener(), write_metrics=print).load(None)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_is_left_when_this_one_ends(how: signal.Signals, tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path), program(STUCK)], stderr=subprocess.PIPE
    )
    _until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    child = int((tmp_path / "pid").read_text())
    driver.send_signal(how)
    _, printed = driver.communicate(timeout=30)
    _until(lambda: not _is_running(child))
    assert driver.returncode == -how or (how == signal.SIGINT and b"KeyboardInterrupt" in printed)


def _until(holds: Any) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def _is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{number}/stat").read_text().rpartition(")")[2]
