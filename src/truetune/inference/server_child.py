"""The process between truetune and a server: whatever becomes of truetune, the server ends with it.

It is told a command as a line of JSON on its standard input, which truetune then holds open for as long as it lives.
"""

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress

PATIENCE = 10.0
"""Seconds that a server has to end by itself, once it is asked to."""


def main() -> None:
    """Starts the command, and ends with its status as a shell tells it: 128 and the number of a signal."""
    asked = json.loads(sys.stdin.buffer.readline())
    try:
        process = subprocess.Popen(
            asked["command"],
            cwd=asked["folder"],
            env={**os.environ, **asked["environment"]},
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        sys.exit(f"error: {asked['command'][0]} cannot be started: {error.strerror}")
    threading.Thread(target=_end_with_truetune, args=(process,), daemon=True).start()
    status = process.wait()
    os._exit(status if status >= 0 else 128 - status)


def _end_with_truetune(process: "subprocess.Popen[bytes]") -> None:
    sys.stdin.buffer.read()
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=PATIENCE)
        return
    process.kill()
