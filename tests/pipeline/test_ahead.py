"""Work done ahead in a process of its own: piece by piece, with its errors, and never longer than its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from truetune.errors import BackendError, DataError
from truetune.pipeline.ahead import ahead_of
from truetune.pipeline.workers import dealt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="work is done ahead on Linux alone")


def until(is_so: object, *, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not is_so():  # type: ignore[operator]
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_pieces_are_done_one_by_one_in_one_process_of_their_own(tmp_path: Path) -> None:
    def work(number: int) -> None:
        (tmp_path / str(number)).write_text(str(os.getpid()))

    with ahead_of(work) as ahead:
        ahead.begin(0)
        assert until((tmp_path / "0").exists)  # Nobody has to wait for it to be done.
        ahead.result()
        assert not (tmp_path / "1").exists()
        ahead.begin(1)
        ahead.result()
    (worker,) = {(tmp_path / name).read_text() for name in ("0", "1")}
    assert int(worker) != os.getpid()
    assert not is_running(int(worker))


def test_an_error_is_known_without_a_wait_and_raised_where_its_piece_is_needed() -> None:
    def work(number: int) -> None:
        if number:
            raise DataError("broken", hint="mend it")

    with ahead_of(work) as ahead:
        ahead.begin(0)
        ahead.result()
        assert not ahead.has_failed
        ahead.begin(1)
        assert until(lambda: ahead.has_failed)
        with pytest.raises(DataError, match="broken") as caught:
            ahead.result()
        assert caught.value.hint == "mend it"


def test_an_error_of_ours_comes_with_the_place_in_the_code() -> None:
    with ahead_of(lambda number: 1 // number) as ahead:  # type: ignore[arg-type, return-value]
        ahead.begin(0)
        with pytest.raises(RuntimeError, match=r"(?s)test_ahead\.py.*ZeroDivisionError"):
            ahead.result()


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_died_is_an_error_and_no_wait_for_ever(number: int) -> None:
    def work(each: int) -> None:
        if each == number:
            os._exit(9)

    def do(each: int) -> None:
        ahead.begin(each)
        ahead.result()

    with ahead_of(work) as ahead:
        for each in range(number):
            do(each)
        with pytest.raises(BackendError, match=r"died \(exit status 9\)") as caught:
            do(number)
        with pytest.raises(BackendError, match="died"):
            do(number + 1)
    assert "shuffle_buffer_size" in str(caught.value.hint)


def test_signals_that_stop_a_training_do_not_end_the_work_behind_it(tmp_path: Path) -> None:
    def work(_: int) -> None:
        (tmp_path / "worker").write_text(str(os.getpid()))
        assert until((tmp_path / "signalled").exists)

    with ahead_of(work) as ahead:
        ahead.begin(0)
        assert until(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text())
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(int((tmp_path / "worker").read_text()), number)
        (tmp_path / "signalled").touch()
        ahead.result()


def test_processes_of_the_work_s_own_end_with_it(tmp_path: Path) -> None:
    def busy(number: int, count: int) -> object:
        (tmp_path / str(number)).write_text(str(os.getpid()))
        time.sleep(60)
        yield number

    with ahead_of(lambda _: [*dealt(busy, processes=2)] and None) as ahead:  # type: ignore[arg-type]
        ahead.begin(0)
        assert until(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("0", "1")))
    workers = [int((tmp_path / name).read_text()) for name in ("0", "1")]
    assert not any(map(is_running, workers))


def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Whatever it is at, since it holds the locks that it was forked with."""
    program = (
        "import os, pathlib, time\n"
        "from truetune.pipeline.ahead import ahead_of\n"
        f"file = pathlib.Path({str(tmp_path / 'worker')!r})\n"
        "with ahead_of(lambda _: (file.write_text(str(os.getpid())), time.sleep(60))) as ahead:\n"
        "    ahead.begin(0)\n"
        "    ahead.result()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    worker = tmp_path / "worker"
    assert until(lambda: worker.exists() and worker.read_text())
    parent.kill()
    parent.wait()
    assert until(lambda: not is_running(int(worker.read_text())), seconds=10)


def test_where_no_process_can_be_forked_a_piece_is_done_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truetune.pipeline.ahead.sys.platform", "darwin")
    done: list[int] = []
    with ahead_of(done.append) as ahead:
        ahead.begin(3)
        assert done == []
        assert not ahead.has_failed
        ahead.result()
    assert done == [3]
