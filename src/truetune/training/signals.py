"""The signals that ask a run to stop."""

import signal

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Ctrl-C, a scheduler's end, its warning before that (SLURM's --signal=USR1), a terminal that closes."""


def stopping() -> list[signal.Signals]:
    """Those that this system has, and that nobody has this process ignore, as nohup does."""
    there = [signal.Signals[name] for name in _NAMES if hasattr(signal, name)]
    return [number for number in there if signal.getsignal(number) is not signal.SIG_IGN]
