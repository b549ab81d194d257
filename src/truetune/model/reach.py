"""Whether the hub is there to be asked: found out once and within seconds, before its client waits for minutes."""

import threading
from functools import cache

from truetune.errors import first_line
from truetune.model.source import ModelSource

_PATIENCE = 10.0
"""Seconds for an answer, as the hub's own client gives it for a file that is in the cache."""


def is_out_of_reach(source: ModelSource) -> bool:
    """True of a hub's model where the hub is not to be asked: its files are in the cache, or cannot be had.

    The client (huggingface_hub 1.x) asks six times for each file that is not in the cache: 23 s for the first of them
    where names cannot be looked up, six minutes where nothing comes back.
    """
    return not source.is_local and why_away() is not None


def why_away() -> str | None:
    """Why the hub is not asked, in words; None if it is there."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to ask the hub"
    return _silence(constants.ENDPOINT)


@cache
def _silence(endpoint: str) -> str | None:
    """Why nothing answers there. Asked once: a network that comes back is found by the next command."""
    found = f"the hub at {endpoint} has not answered for {_PATIENCE:.0f} seconds"

    def ask() -> None:
        nonlocal found
        found = _asked(endpoint)

    # Looking up a name takes as long as the system will have it: a thread of its own can be left behind.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    return found or None


def _asked(endpoint: str) -> str:
    """Why nothing answers; nothing if something does."""
    from huggingface_hub.utils import get_session

    try:
        status = get_session().head(endpoint, timeout=_PATIENCE).status_code
    except Exception as error:  # noqa: BLE001 - httpx' errors, and those of whatever client stands in for it
        return f"the hub at {endpoint} cannot be reached: {first_line(error)}"
    is_there = status < 500 and status != 407
    return "" if is_there else f"the hub at {endpoint} answers with HTTP {status}"
