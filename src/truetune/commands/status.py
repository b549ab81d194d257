"""The exit status of what was stopped."""

import signal


def stopped_status(name: str | None) -> int:
    """A shell's status of what a signal has ended; 0 without one."""
    return 128 + signal.Signals[name] if name else 0
