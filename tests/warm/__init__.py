"""Python commands that start at once: forked from a process that has loaded torch and the other libraries.

Importing them takes a command most of its time. What runs behind the imports is what runs in a process of its own:
see server.py for what is the same and what is not. Where Linux' pidfd is missing, commands start as usual.
"""

import atexit
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
LIBRARIES = _HERE / "libraries.py"
# Tests may put `executable()` in its place.
_PYTHON = sys.executable


def python(*words: object, libraries: Path = LIBRARIES) -> list[str]:
    """The command line of `python WORDS`: `-m MODULE …`, `-c TEXT …` or a script. It may be killed and signalled.

    `libraries` is a file that loads them.
    """
    given = [*map(str, words)]
    if not hasattr(os, "pidfd_open"):
        return [_PYTHON, *given]
    # -I, -S: without site-packages the client starts in a tenth of the time.
    return [_PYTHON, "-I", "-S", str(_HERE / "client.py"), str(_socket(libraries)), *given]


def truetune(*words: object) -> list[str]:
    """The command line of `truetune WORDS`."""
    return python("-m", "truetune", *words)


@cache
def executable(libraries: Path = LIBRARIES) -> str:
    """A program for the place of sys.executable, so that what truetune starts itself starts at once, too.

    It takes that place in a process of `python` that finds it in its environment as WARM_PYTHON.
    """
    if not hasattr(os, "pidfd_open"):
        return _PYTHON
    path = _socket(libraries).with_name("python")
    path.write_text(f'#!/bin/sh\nexec {shlex.join(python(libraries=libraries))} "$@"\n')
    path.chmod(0o755)
    return str(path)


@cache
def environment() -> dict[str, str]:
    """That of the process which has loaded the libraries: this process's, as it was when that was started."""
    return {**os.environ}


@cache
def _socket(libraries: Path) -> Path:
    """Where the warm process with these libraries listens: started at the first call, it ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    with socket.socket(socket.AF_UNIX) as listening, (folder / "log").open("wb") as log:
        # It listens from now on: what connects waits until the libraries are loaded.
        listening.bind(str(folder / "socket"))
        listening.listen(64)
        process = subprocess.Popen(
            [_PYTHON, str(_HERE / "server.py"), str(listening.fileno()), str(libraries)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment(),
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
    atexit.register(_end, process, folder)
    return folder / "socket"


def _end(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    assert process.stdin
    process.stdin.close()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)
