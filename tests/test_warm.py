"""A command in a warm process is the command in a process of its own, but for what is loaded already."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import warm

TOLD = """
import json, os, signal, sys
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
signals = [repr(signal.getsignal(number)) for number in numbers]
streams = [(s.encoding, s.errors, s.isatty(), s.line_buffering) for s in (sys.stdin, sys.stdout, sys.stderr)]
environment = {name: os.environ[name] for name in ("TRUETUNE_CACHE", "HOME", "PATH")}
read = sys.stdin.read()
print(json.dumps([sys.argv, os.getcwd(), environment, read, signals, streams, sys.path, __name__, sys.executable]))
print("to stderr", file=sys.stderr)
sys.exit(3)
"""


def ended(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    given = {"capture_output": True, "text": True, "check": False, "timeout": 120, **options}
    return subprocess.run(command, **given)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("kind", ["-c", "script", "-P"])
def test_it_has_the_arguments_streams_signals_and_places_of_a_process_of_its_own(kind: str, tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(TOLD)
    words = {"-c": ["-c", TOLD], "script": [str(tmp_path / "told.py")], "-P": ["-P", "-c", TOLD]}[kind]
    environment = {**os.environ, "TRUETUNE_CACHE": str(tmp_path)}
    found, expected = (
        ended([*start, *words, "a b", "--c"], cwd=tmp_path, env=environment, input="ü\n")
        for start in (warm.python(), [sys.executable])
    )
    assert (found.returncode, found.stderr) == (expected.returncode, expected.stderr) == (3, "to stderr\n")
    assert json.loads(found.stdout) == json.loads(expected.stdout)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_a_signal_ends_it_and_its_status_tells_so(number: signal.Signals, tmp_path: Path) -> None:
    sleeping = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    with subprocess.Popen(warm.python("-c", sleeping), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(timeout=30) == -number
    end = time.monotonic() + 30
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_interrupt_is_an_exception_in_it() -> None:
    waiting = "import time\ntry: print(1, flush=True); time.sleep(100)\nexcept KeyboardInterrupt: exit(7)"
    with subprocess.Popen(warm.python("-c", waiting), stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"1\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 7


def test_an_error_is_told_as_ever() -> None:
    done = ended(warm.python("-c", "raise KeyError('x')"))
    assert done.returncode == 1
    assert done.stderr.endswith("KeyError: 'x'\n")


def test_what_the_libraries_would_have_read_otherwise_has_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "shadowing").mkdir()
    (tmp_path / "shadowing" / "torch.py").touch()
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "helper.py").write_text("NAME = 'helper'\n")
    path = os.environ.get("PYTHONPATH", "")
    warm.truetune()  # Its environment is known from now on.

    def loaded(program: str = "import sys; print('torch' in sys.modules)", **environment: str) -> str:
        return ended(warm.python("-c", program), env={**warm.environment(), **environment}).stdout.strip()

    assert loaded() == loaded(TRUETUNE_CACHE=str(tmp_path), COLUMNS="80") == "True"
    changed = os.environ.items() ^ warm.environment().items()
    assert loaded(**os.environ) == "True", f"whatever has run in this process before, and left {sorted(changed)}"
    assert loaded(KMP_DUPLICATE_LIB_OK="True", WANDB_MODE="offline") == "True"
    assert loaded(HF_HOME=str(tmp_path)) == loaded(OMP_NUM_THREADS="") == "False"
    threads = "import sys; print('torch' in sys.modules); import torch; print(torch.get_num_threads())"
    assert loaded(threads, OMP_NUM_THREADS="3").split() == ["True", "3"]
    assert loaded(PYTHONPATH=os.pathsep.join([str(tmp_path / "shadowing"), path])) == "False"
    beside = os.pathsep.join(filter(None, [str(tmp_path / "beside"), path]))
    assert (
        loaded("import helper, sys; print(helper.NAME, 'torch' in sys.modules)", PYTHONPATH=beside) == "helper True"
    )
