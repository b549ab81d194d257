"""Has the warm process run `python WORDS` as if it ran here: `client.py SOCKET WORDS`.

Descriptors, directory, environment and ignored signals go there; signals are passed on; the exit status comes back.
"""

import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def main(place: str, words: list[str]) -> None:
    ignored = [number for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN]
    request = {"words": words, "directory": os.getcwd(), "environment": dict(os.environ), "ignored": ignored}
    text = json.dumps(request).encode()
    link = socket.socket(socket.AF_UNIX)
    link.connect(place)
    socket.send_fds(link, [len(text).to_bytes(8, "big")], [0, 1, 2])
    link.sendall(text)
    for number in set(PASSED_ON) - set(ignored):
        signal.signal(number, lambda heard, _: link.sendall(bytes([heard])))
    answer = link.makefile("rb").readline().decode().strip()
    if answer == "fresh":
        os.execv(sys.executable, [sys.executable, *words])
    if not answer:
        sys.exit(f"the warm process is gone: {os.path.join(os.path.dirname(place), 'log')}")
    end(int(answer))


def end(status: int) -> None:
    """As the process there ended: with its status, or by its signal."""
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


main(sys.argv[1], sys.argv[2:])
