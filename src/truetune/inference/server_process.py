"""A server in a process of its own: started, waited for, and ended with this process."""

import errno
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from truetune.errors import BackendError, ConfigError
from truetune.inference.server_child import PATIENCE
from truetune.inference.servers import Command
from truetune.listener import Listener

_PROGRAM = "from truetune.inference.server_child import main; main()"
_USUAL_PORT = 8000
_LONGEST_START = 3600.0
"""Seconds: the largest models come over slow networks, and one that never comes must end a script all the same."""
_LINES = 8


class ServerProcess:
    """A running server; what it prints goes to the file `log`. It ends when this process does, however that ends."""

    def __init__(self, command: Command, *, log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        asked = {
            "command": [*command.program, *command.arguments],
            "folder": command.folder and str(command.folder),
            "environment": dict(command.environment),
        }
        with log.open("wb") as printed:
            # A session of its own: Ctrl-C in a terminal reaches truetune alone, which then ends the server in order.
            # -P: a folder in the working directory must not stand for a library.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=printed,
                start_new_session=True,
            )
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()

    @property
    def status(self) -> int | None:
        """Its exit status, once it has ended."""
        return self._process.poll()

    def wait_until(self, is_ready: Callable[[], bool], listener: Listener) -> None:
        """Returns once `is_ready`. BackendError with the server's last words if it ends before."""
        began = time.monotonic()
        while not is_ready():
            if (status := self.status) is not None:
                raise self.failure(status)
            seconds = int(time.monotonic() - began)
            if seconds > _LONGEST_START:
                raise BackendError(f"the server was not ready within {seconds:,} s", hint=f"its output: {self.log}")
            listener.progress(_STAGE, seconds, None)
            time.sleep(0.2)
        listener.progress(_STAGE, 1, 1)

    def wait(self) -> int:
        """Its exit status, when it ends."""
        return self._process.wait()

    def ask_to_end(self) -> None:
        """Has it end in order, or by force after ten seconds, and does not wait for it."""
        assert self._process.stdin
        self._process.stdin.close()

    def end(self) -> None:
        """Ends it, if it has not ended, and waits for it."""
        self.ask_to_end()
        try:
            self._process.wait(timeout=PATIENCE + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def failure(self, status: int) -> BackendError:
        """That it has ended by itself, with the last lines of its log."""
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        told = "\n".join(lines[-_LINES:]) or "it said nothing"
        how = f"exit status {status}" if status <= 128 else f"signal {status - 128}"
        return BackendError(f"the server has ended by itself ({how}):\n{told}", hint=f"its output: {self.log}")


_STAGE = "starting the server"


def choose_port(host: str, port: int | None, *, usual: int = _USUAL_PORT) -> int:
    """A port of `host` that is free: the one asked for, the usual one or, with 0 or where that is taken, any.

    ConfigError where the one asked for is taken, or `host` is no address of this machine.
    """
    if port is None:
        return usual if _bound(host, usual) else choose_port(host, 0)
    found = _bound(host, port)
    if found is None:
        raise ConfigError(f"port {port} of {host} is taken", hint="stop what listens there, or take any: --port 0")
    return found


def _bound(host: str, port: int) -> int | None:
    """The port, tried; None if it is taken. A connection that was just closed does not take it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"{host} is no address: {error.strerror}", hint="127.0.0.1, or 0.0.0.0 for all") from error
    with socket.socket(family, kind, protocol) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(address)
            tried.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            raise ConfigError(f"nothing can listen at {host}:{port}: {error.strerror}") from error
        return int(tried.getsockname()[1])
