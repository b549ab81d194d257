"""The signals that ask a run to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Ctrl-C, a scheduler's end, its warning before that (SLURM's --signal=USR1), a terminal that closes."""


def stopping() -> list[signal.Signals]:
    """Those that this system has, and that nobody has this process ignore, as nohup does."""
    there = [signal.Signals[name] for name in _NAMES if hasattr(signal, name)]
    return [number for number in there if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def heard_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Signals to stop go to the handler in the block; outside the main thread they stay with whoever embeds us."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in stopping()} if is_main else {}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
