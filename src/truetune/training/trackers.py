"""W&B, TensorBoard and Trackio: checked before anything loads, since a run must not end at its first report."""

import netrc
import os
from collections.abc import Sequence
from pathlib import Path

from truetune.errors import BackendError
from truetune.model.source import metadata_has

_WANDB_HOST = "api.wandb.ai"


def require_trackers(report_to: Sequence[str]) -> None:
    """BackendError if a tracker's package is missing, or W&B would ask for a login."""
    for tracker in report_to:
        if not metadata_has(tracker):
            raise BackendError(
                f"logging.report_to: {tracker} is not installed", hint=f"run: pip install 'truetune[{tracker}]'"
            )
    if "wandb" in report_to and not _wandb_is_ready():
        raise BackendError(
            "logging.report_to: wandb has no login, and would ask for one",
            hint="set WANDB_API_KEY or run `wandb login`; or set WANDB_MODE=offline to log to files only",
        )


def set_environment(*, tensorboard: Path, project: str | None) -> None:
    """transformers 5 takes the TensorBoard folder and the project's name from the environment only."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(tensorboard)
    if project:
        os.environ["WANDB_PROJECT"] = os.environ["TRACKIO_PROJECT"] = project


def _wandb_is_ready() -> bool:
    if os.environ.get("WANDB_MODE") in {"offline", "disabled", "dryrun"} or os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(_WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False
