"""A process that has loaded the libraries and forks for each command that a client asks for:
`server.py DESCRIPTOR FILE`, where the file is Python that loads them.

The child takes over the client's descriptors, directory, environment, arguments and ignored signals, and then does
what the interpreter does of `-m`, `-c` or a script. What a fresh process would do otherwise:
the libraries read their part of the environment here. So a client whose environment differs in more than READ_LATE
(and the number of threads, which can be set anew), or whose PYTHONPATH would shadow what is loaded, is told to start
a fresh process.
"""

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
READ_LATE = (
    *("COLUMNS", "HF_TOKEN", "LINES", "OLDPWD", "PWD", "PYTEST_", "SHLVL", "TERM", "TRUETUNE_", "WARM_PYTHON", "_"),
    # Set by libraries in a process that has trained, as the tests' own has.
    *("ACCELERATE_", "CUBLAS_WORKSPACE_CONFIG", "KMP_DUPLICATE_LIB_OK", "TOKENIZERS_PARALLELISM"),
    *("CUDA_VISIBLE_DEVICES", "TORCHINDUCTOR_CACHE_DIR"),
    # Of trackers, which are loaded when a training asks for them.
    *("MLFLOW_", "TRACKIO_", "WANDB_"),
    # Said by launchers, and asked for when processes look for each other.
    *("GROUP_", "LOCAL_", "MASTER_", "RANK", "ROLE_", "SLURM_", "TORCHELASTIC_", "TORCH_NCCL_", "WORLD_SIZE"),
)
"""The beginnings of names that no library reads as it loads."""
THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Request:
    words: list[str]
    directory: str
    environment: dict[str, str]
    ignored: list[int]
    descriptors: list[int]


@dataclass(frozen=True, eq=False)
class Running:
    """A command: the process that runs it, and the client that waits for it."""

    link: socket.socket
    pid: int
    pidfd: int


def main(descriptor: int, libraries: str) -> None:
    given, lifeline = dict(os.environ), os.dup(0)
    with suppress(ValueError):
        sys.path.remove(str(Path(__file__).parent))
    from truetune.environment import set_environment

    set_environment()
    runpy.run_path(libraries)
    assert threading.active_count() == 1, "a process with threads cannot be forked"
    gc.freeze()
    for finalizer in [*weakref.finalize._registry]:  # type: ignore[attr-defined]
        finalizer.atexit = False  # torch would take each of its operations out of the library one by one.
    request = Server(socket.socket(fileno=descriptor), lifeline, given).serve()
    if request is not None:
        # What truetune has set as the libraries were loaded, it would have set in a fresh process, too.
        set_here = {name: value for name, value in os.environ.items() if name not in given}
        become(request, set_here, loaded_path=given.get("PYTHONPATH", ""))
        end(status_of(request.words))


# --- the parent -------------------------------------------------------------------------------------------


class Server:
    """Forks for each request, passes signals on to its process, and tells its client how that ended."""

    def __init__(self, listening: socket.socket, lifeline: int, environment: Mapping[str, str]) -> None:
        self._listening, self._lifeline, self._environment = listening, lifeline, environment
        self._selector = selectors.DefaultSelector()
        self._running: set[Running] = set()
        self._selector.register(lifeline, selectors.EVENT_READ)
        self._selector.register(listening, selectors.EVENT_READ, self._accept)

    def serve(self) -> Request | None:
        """The request, in the process that is to run it; None here, once the other end of the lifeline is gone."""
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    for command in self._running:
                        os.kill(command.pid, signal.SIGKILL)
                    return None
                if (request := key.data()) is not None:
                    return request

    def _accept(self) -> Request | None:
        link, _ = self._listening.accept()
        request = received(link)
        if request is None or not is_alike(request.environment, self._environment):
            with suppress(OSError):
                link.sendall(b"fresh\n")
            link.close()
            close(request)
            return None
        if not (pid := os.fork()):
            self._leave(link)
            return request
        close(request)
        command = Running(link, pid, os.pidfd_open(pid))
        self._running.add(command)
        self._selector.register(link, selectors.EVENT_READ, lambda: self._hear(command))
        self._selector.register(command.pidfd, selectors.EVENT_READ, lambda: self._tell(command))
        return None

    def _leave(self, link: socket.socket) -> None:
        """In the child: what is the parent's is closed."""
        self._selector.close()
        for each in (link, self._listening, *(command.link for command in self._running)):
            each.close()
        for descriptor in (self._lifeline, *(command.pidfd for command in self._running)):
            os.close(descriptor)

    def _hear(self, command: Running) -> None:
        """Signals for the process; where its client has been killed, so is it."""
        if command not in self._running:
            return
        try:
            numbers = command.link.recv(64)
        except ConnectionError:
            numbers = b""
        if not numbers:
            self._selector.unregister(command.link)
        for number in numbers or [signal.SIGKILL]:
            os.kill(command.pid, number)

    def _tell(self, command: Running) -> None:
        _, status = os.waitpid(command.pid, 0)
        with suppress(OSError):
            command.link.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        self._running.remove(command)
        self._selector.unregister(command.pidfd)
        os.close(command.pidfd)
        with suppress(KeyError):
            self._selector.unregister(command.link)
        command.link.close()


def received(link: socket.socket) -> Request | None:
    """What a client asks for; None if it went away."""
    header, descriptors, _, _ = socket.recv_fds(link, 8, 3)
    if len(header) < 8:
        return None
    text = link.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL)
    return Request(**json.loads(text), descriptors=descriptors)


def close(request: Request | None) -> None:
    for descriptor in request.descriptors if request else ():
        os.close(descriptor)


def is_alike(environment: Mapping[str, str], loaded_in: Mapping[str, str]) -> bool:
    """May a command of that environment run on what was loaded in this one?"""
    names = {name for name in {**environment, **loaded_in} if environment.get(name) != loaded_in.get(name)}
    # What truetune has set here is set already in what a command of ours starts.
    names -= {name for name in names if environment.get(name) == os.environ.get(name)}
    in_front = first_places(environment.get("PYTHONPATH", ""), loaded_in.get("PYTHONPATH", ""))
    can_be_set = {THREADS} if environment.get(THREADS, "1").isdigit() else set()
    is_late = all(name.startswith(READ_LATE) for name in names - {"PYTHONPATH"} - can_be_set)
    return is_late and in_front is not None and not any(map(shadows, in_front))


def first_places(path: str, loaded: str) -> list[str] | None:
    """The folders that this PYTHONPATH has before that one's; None where it is not that one but for them."""
    places, loaded_places = (list(filter(None, each.split(os.pathsep))) for each in (path, loaded))
    first = len(places) - len(loaded_places)
    return places[:first] if first >= 0 and places[first:] == loaded_places else None


def shadows(place: str) -> bool:
    """Does this folder hold what is loaded from elsewhere, or what Python itself imports as it starts?"""
    names = {each.name.partition(".")[0] for each in Path(place).iterdir()} if Path(place).is_dir() else set()
    return bool(names & {*sys.modules, "sitecustomize", "usercustomize"})


# --- the child --------------------------------------------------------------------------------------------


def become(request: Request, set_here: Mapping[str, str], *, loaded_path: str) -> None:
    """The process of the request, as Python has set it up."""
    os.setsid()
    for place, descriptor in enumerate(request.descriptors):
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.chdir(request.directory)
    threads = os.environ.get(THREADS)
    os.environ.clear()
    os.environ.update({**set_here, **request.environment})
    if (asked := os.environ.get(THREADS)) != threads:
        # torch takes all cores where nothing is said.
        sys.modules["torch"].set_num_threads(int(asked or len(os.sched_getaffinity(0))))
    sys.executable = request.environment.get("WARM_PYTHON", sys.executable)
    sys.path[:0] = first_places(request.environment.get("PYTHONPATH", ""), loaded_path) or []
    for number in SIGNALS:
        as_started = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request.ignored else as_started)
    sys.stdin, sys.stdout, sys.stderr = opened(sys.stdin, "r"), opened(sys.stdout, "w"), opened(sys.stderr, "w")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr


def opened(before: Any, mode: str) -> Any:
    """The standard stream anew: what it leads to is another file now."""
    place = before.fileno()
    stream: Any = open(place, mode, encoding=before.encoding, errors=before.errors, closefd=False)  # noqa: SIM115
    if mode == "w":
        is_told_by_line = before.line_buffering or stream.isatty()
        stream.reconfigure(line_buffering=is_told_by_line, write_through=before.write_through)
    return stream


def status_of(words: list[str]) -> int:
    """Runs `python WORDS`, and tells what is to be told of how it ended."""
    try:
        run(words)
    except SystemExit as error:
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
            return 1
        return error.code or 0
    except BaseException:  # noqa: BLE001 - told as the interpreter tells it
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def end(status: int) -> None:
    """As the interpreter ends, but that it does not take the loaded libraries apart, which takes a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status & 0xFF)


def run(words: list[str]) -> None:
    """What the interpreter does of `python WORDS`."""
    flags = set(takewhile(("-P", "-u").__contains__, words))
    is_safe = "-P" in flags
    if "-u" in flags:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    match words[len(flags) :]:
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            put_first(os.getcwd(), is_safe)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", text, *rest]:
            sys.argv = ["-c", *rest]
            put_first("", is_safe)
            sys.modules["__main__"] = program = ModuleType("__main__")
            exec(compile(text, "<string>", "exec"), vars(program))
        case [script, *rest]:
            sys.argv = [script, *rest]
            put_first(str(Path(script).resolve().parent), is_safe)
            runpy.run_path(script, run_name="__main__")


def put_first(place: str, is_safe: bool) -> None:
    if not is_safe:
        sys.path.insert(0, place)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
