"""What trackers need, asked before anything loads: a run must not end at its first report, nor wait for a login."""

import configparser
import netrc
import os
import re
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from truetune.errors import BackendError

_WANDB = "https://api.wandb.ai"
OFFLINE = {"offline", "disabled", "dryrun"}
"""The modes in which W&B asks no server."""
_PORTS = {"http": 80, "https": 443}
_PATIENCE = 3.0
"""Seconds for a server to take a connection."""


@dataclass(frozen=True, slots=True)
class _Needs:
    """A tracker's modules, what pip installs, and the login it would ask for: any of these variables or files."""

    modules: tuple[str, ...]
    install: str
    variables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    remedy: str = ""


# As the callbacks of transformers 5.24 have it, and the clients' own documentation.
_NEEDS = {
    "tensorboard": _Needs(("tensorboard",), "'truetune[tensorboard]'"),
    "wandb": _Needs(("wandb",), "'truetune[wandb]'"),
    "trackio": _Needs(("trackio",), "'truetune[trackio]'"),
    "azure_ml": _Needs(("azureml.core",), "azureml-sdk"),
    "clearml": _Needs(
        ("clearml",),
        "clearml",
        ("CLEARML_API_ACCESS_KEY", "CLEARML_CONFIG_FILE", "CLEARML_OFFLINE_MODE"),
        ("~/clearml.conf",),
        "run `clearml-init`, or set CLEARML_API_ACCESS_KEY; with CLEARML_OFFLINE_MODE=1 none is needed",
    ),
    "codecarbon": _Needs(("codecarbon",), "codecarbon"),
    "comet_ml": _Needs(
        ("comet_ml",),
        "comet-ml",
        ("COMET_API_KEY", "COMET_START_ONLINE", "COMET_CONFIG"),
        ("~/.comet.config",),
        "set COMET_API_KEY, or COMET_START_ONLINE=0 to log to files only",
    ),
    "dagshub": _Needs(
        ("dagshub", "mlflow"),
        "dagshub mlflow",
        ("MLFLOW_TRACKING_URI",),
        remedy="set MLFLOW_TRACKING_URI to the repository's, which ends in .mlflow",
    ),
    "dvclive": _Needs(("dvclive",), "dvclive"),
    "flyte": _Needs(("flytekit",), "flytekit"),
    "kubeflow": _Needs(
        (),
        "",
        ("KUBEFLOW_TRAINER_SERVER_URL",),
        remedy="Kubeflow sets KUBEFLOW_TRAINER_SERVER_URL in a TrainJob; elsewhere leave kubeflow out",
    ),
    "mlflow": _Needs(("mlflow",), "mlflow"),
    "neptune": _Needs(
        ("neptune",),
        "neptune",
        ("NEPTUNE_API_TOKEN", "NEPTUNE_MODE"),
        remedy="set NEPTUNE_API_TOKEN and NEPTUNE_PROJECT, or NEPTUNE_MODE=offline",
    ),
    "swanlab": _Needs(
        ("swanlab",),
        "swanlab",
        ("SWANLAB_API_KEY", "SWANLAB_MODE"),
        ("~/.swanlab/.netrc",),
        "set SWANLAB_API_KEY, or SWANLAB_MODE=local to log to files only",
    ),
}


def require_trackers(report_to: Sequence[str], *, logging_dir: str | None = None) -> None:
    """BackendError if a tracker's package or login is missing, or its folder cannot be written.

    No client is imported for it, nothing is read from standard input and no server is asked: it takes no time.
    """
    for tracker in report_to:
        _require_installed(tracker, _NEEDS[tracker])
        _require_login(tracker, _NEEDS[tracker])
    if "wandb" in report_to:
        _require_wandb()
    if "tensorboard" in report_to:
        _require_writable("logging.logging_dir", logging_dir)


def require_reachable(report_to: Sequence[str]) -> None:
    """BackendError if a tracker's server takes no connection within seconds."""
    for tracker in report_to:
        address, remedy = _server(tracker)
        if address and not _answers(urlsplit(address)):
            host = urlsplit(address).hostname
            raise BackendError(f"logging.report_to: {tracker}: {host} does not answer", hint=remedy)


def _require_installed(tracker: str, needs: _Needs) -> None:
    if not all(map(_is_importable, needs.modules)):
        raise BackendError(f"logging.report_to: {tracker} is not installed", hint=f"run: pip install {needs.install}")


def _is_importable(package: str) -> bool:
    """True for a module or package; a bare folder of that name, such as W&B's own wandb/ of logs, is none."""
    try:
        spec = find_spec(package)
    except ModuleNotFoundError:  # Of azureml.core, where there is no azureml.
        return False
    return spec is not None and spec.origin is not None


def _require_login(tracker: str, needs: _Needs) -> None:
    has_login = any(os.environ.get(name) for name in needs.variables)
    if needs.remedy and not has_login and not any(Path(file).expanduser().exists() for file in needs.files):
        raise BackendError(f"logging.report_to: {tracker} has no login here", hint=needs.remedy)


def _require_writable(setting: str, folder: str | None) -> None:
    """BackendError for a folder that is not there and cannot be made, or may not be written."""
    if not folder:
        return
    path = Path(folder).expanduser().absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written" if there.is_dir() else "is a file"
        raise BackendError(
            f"{setting}: {path} cannot be used: {there} {why}",
            hint="name a folder that you may write, or leave it out: the files then lie in the run's directory",
        )


# --- W&B, which would otherwise ask on the terminal -------------------------------------------------------


def _require_wandb() -> None:
    """Looks where the client itself looks: mode, environment, its files, netrc."""
    _require_writable("WANDB_DIR", os.environ.get("WANDB_DIR"))
    if wandb_setting("mode") in OFFLINE:
        return
    key, token = os.environ.get("WANDB_API_KEY"), os.environ.get("WANDB_IDENTITY_TOKEN_FILE")
    if key and token:
        raise BackendError(
            "logging.report_to: wandb takes WANDB_API_KEY or WANDB_IDENTITY_TOKEN_FILE, and both are set",
            hint="unset one of them",
        )
    if key and not _is_key(key):
        raise BackendError(
            f"logging.report_to: WANDB_API_KEY is no key of W&B's: {len(key)} characters, or wrong ones",
            hint="copy it whole (40 or more letters, digits and underscores); or set WANDB_MODE=offline to log to "
            "files only",
        )
    if not (key or token or wandb_setting("api_key") or _has_stored_login()):
        raise BackendError(
            "logging.report_to: wandb has no login, and would ask for one",
            hint="set WANDB_API_KEY or run `wandb login`; or set WANDB_MODE=offline to log to files only",
        )


def wandb_setting(name: str) -> str | None:
    """A setting of W&B's: its variable, else the files that `wandb offline` writes, the folder's first."""
    if value := os.environ.get(f"WANDB_{name.upper()}"):
        return value
    files = configparser.ConfigParser(interpolation=None)
    places = (
        os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb",
        Path(os.environ.get("WANDB_DIR") or ".", "wandb"),
    )
    with suppress(configparser.Error, OSError, UnicodeDecodeError):
        files.read(Path(place).expanduser() / "settings" for place in places)
    return files.get("default", name, fallback=None)


def _is_key(text: str) -> bool:
    """As wandb 0.31 checks it: 40 or more characters, behind a server's prefix and a dash if any; or a JWT."""
    secret = text.partition("-")[2] or text
    return bool(re.fullmatch(r"[\w-]{40,}", secret) or re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", text))


def _has_stored_login() -> bool:
    host = urlsplit(wandb_setting("base_url") or _WANDB).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


# --- servers ----------------------------------------------------------------------------------------------


def _server(tracker: str) -> tuple[str | None, str]:
    """The server that a tracker will talk to, and what to do without it; None where it writes files, or asks none."""
    environment = os.environ
    match tracker:
        case "wandb" if wandb_setting("mode") not in OFFLINE:
            remedy = "set WANDB_MODE=offline and send the run later with `wandb sync`; or mend WANDB_BASE_URL"
            return wandb_setting("base_url") or _WANDB, remedy
        case "mlflow" | "dagshub":
            remedy = "start the server, mend MLFLOW_TRACKING_URI, or set it to a folder (file:./mlruns)"
            return environment.get("MLFLOW_TRACKING_URI"), remedy
        case "trackio" if not environment.get("TRACKIO_SPACE_ID"):
            return environment.get(
                "TRACKIO_SERVER_URL"
            ), "start the server, or unset TRACKIO_SERVER_URL to log to files"
        case _:
            return None, ""


def _answers(address: SplitResult) -> bool:
    """True if the host takes a connection, or only a proxy could; names are looked up within the time, too."""
    host, port = address.hostname, address.port or _PORTS.get(address.scheme)
    if not host or not port or (address.scheme in getproxies() and not proxy_bypass(host)):
        return True
    taken = threading.Event()

    def knock() -> None:
        with suppress(OSError), socket.create_connection((host, port), timeout=_PATIENCE):
            taken.set()

    knocking = threading.Thread(target=knock, daemon=True)
    knocking.start()
    knocking.join(_PATIENCE)
    return taken.is_set()
