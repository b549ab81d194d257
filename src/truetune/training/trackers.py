"""W&B, TensorBoard and Trackio: checked before anything loads, since a run must not end at its first report."""

import netrc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from truetune.errors import BackendError

_WANDB = "https://api.wandb.ai"


def require_trackers(report_to: Sequence[str]) -> None:
    """BackendError if a tracker's package is missing, or W&B would ask for a login."""
    for tracker in report_to:
        if not _is_importable(tracker):
            raise BackendError(
                f"logging.report_to: {tracker} is not installed", hint=f"run: pip install 'truetune[{tracker}]'"
            )
    if "wandb" in report_to and not _wandb_is_ready():
        raise BackendError(
            "logging.report_to: wandb has no login, and would ask for one",
            hint="set WANDB_API_KEY or run `wandb login`; or set WANDB_MODE=offline to log to files only",
        )


@contextmanager
def tracker_environment(*, run: Path, logging_dir: str | None, project: str | None) -> Iterator[None]:
    """While it lasts, the trackers' files lie in the run's directory, unless the user says otherwise.

    transformers 5 takes the folders and the project's name from the environment only.
    """
    before = dict(os.environ)
    os.environ["TENSORBOARD_LOGGING_DIR"] = logging_dir or str(run / "tensorboard")
    os.environ.setdefault("WANDB_DIR", str(run.absolute()))
    if project:
        os.environ["WANDB_PROJECT"] = os.environ["TRACKIO_PROJECT"] = project
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _is_importable(package: str) -> bool:
    """True for a module or package; a bare folder of that name, such as W&B's own wandb/ of logs, is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def _wandb_is_ready() -> bool:
    """Asks where the client itself looks, in its order: mode, environment, netrc."""
    environment = os.environ
    if environment.get("WANDB_MODE") in {"offline", "disabled", "dryrun"}:
        return True
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL") or _WANDB).netloc
    try:
        return netrc.netrc(environment.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
