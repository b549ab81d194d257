"""How torch's process groups end, also where another process neither answers nor dies."""

import atexit
import logging
import os
import sys
from contextlib import suppress
from typing import Any

from truetune.errors import BackendError


def disconnect() -> None:
    """Leaves them: whoever waits for a sum hears of it."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def abort() -> None:
    """Ends what NCCL waits for. Nothing ends a wait of gloo's (torch 2.13)."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.group.WORLD is not None:
        with suppress(RuntimeError):
            dist.group.WORLD.abort()


def leave_behind(work: Any) -> None:
    """Has the process end without gloo's threads, which work at a sum that a halted process will never join.

    They would be waited for as soon as `work` or the group is freed, or at exit.
    """
    import torch.distributed as dist

    atexit.register(_end, work, dist.group.WORLD)


def _end(*_: Any) -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(BackendError.exit_status)
