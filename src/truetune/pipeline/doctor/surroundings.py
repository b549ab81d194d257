"""The environment that changes runs: variables, the hub's place and token, the trackers' login. No secret is kept."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.pipeline.doctor.probes import Outcome

EMPTY = "(empty)"
_SECRET = "set (its value is not shown)"
_SECRETS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"})
_USER_INFO = re.compile(r"(?<=//)[^/@\s]+@")

VARIABLES: Mapping[str, str] = {
    "TRUETUNE_CACHE": "where truetune keeps prepared rows and converted models",
    "XDG_CACHE_HOME": "where caches lie that no other variable moves",
    "HF_HOME": "where the hub's client keeps models, data and the token",
    "HF_HUB_CACHE": "where it keeps models and data",
    "HF_ENDPOINT": "which hub is asked",
    "HF_HUB_OFFLINE": "1: the hub is never asked",
    "TRANSFORMERS_OFFLINE": "1: as HF_HUB_OFFLINE",
    "HF_TOKEN": "the hub's token",
    "HUGGING_FACE_HUB_TOKEN": "the same, an older name",
    "HF_TOKEN_PATH": "the file of the hub's token",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1: the token is not sent",
    "HF_HUB_DISABLE_XET": "1: files come without the hub's newer protocol",
    "HF_HUB_ENABLE_HF_TRANSFER": "an older client's fast downloads",
    "TRANSFORMERS_CACHE": "an older name of HF_HUB_CACHE",
    "HTTP_PROXY": "what requests go through",
    "HTTPS_PROXY": "what requests go through",
    "NO_PROXY": "which hosts are asked without it",
    "WANDB_MODE": "online, offline or disabled",
    "WANDB_API_KEY": "W&B's login",
    "WANDB_BASE_URL": "which W&B server is written to",
    "WANDB_DISABLED": "an older way to leave W&B out",
    "OMP_NUM_THREADS": "how many threads compute",
    "OMP_WAIT_POLICY": "PASSIVE: threads that wait sleep",
    "MKL_NUM_THREADS": "how many threads multiply matrices",
    "KMP_BLOCKTIME": "how long Intel's threads spin before they sleep",
    "ONEDNN_MAX_CPU_ISA": "which instructions oneDNN may use",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "how many primitives oneDNN keeps",
    "LRU_CACHE_CAPACITY": "how many of them torch keeps beside",
    "TOKENIZERS_PARALLELISM": "whether tokenizers use several threads",
    "CUDA_VISIBLE_DEVICES": "which GPUs torch sees",
    "CUDA_DEVICE_ORDER": "how they are counted",
    "CUDA_LAUNCH_BLOCKING": "1: the GPU is waited for at each step, slowly",
    "PYTORCH_CUDA_ALLOC_CONF": "how torch holds GPU memory",
    "PYTORCH_ALLOC_CONF": "the same, a newer name",
    "PYTORCH_ENABLE_MPS_FALLBACK": "1: what a Mac's GPU lacks is done by the CPU",
    "BNB_CUDA_VERSION": "which of its libraries bitsandbytes loads",
    "TORCHDYNAMO_DISABLE": "1: torch.compile does nothing",
    "ACCELERATE_MIXED_PRECISION": "accelerate's precision",
    "WORLD_SIZE": "how many processes a launcher started",
    "RANK": "which of them this is",
    "LOCAL_RANK": "which of them on this machine",
    "LD_PRELOAD": "libraries that are loaded before all others",
    "LD_LIBRARY_PATH": "where libraries are looked for first",
    "PYTHONPATH": "where Python looks for packages first",
}
"""What changes runs here, and how."""


@dataclass(frozen=True, slots=True)
class Hub:
    """The hub as its client sees it. `reachable` is None where it was not asked, and `answer` says why or how."""

    endpoint: str = "unknown"
    offline: bool = False
    reachable: bool | None = None
    answer: str = ""
    token_from: str | None = None
    token_is_sent: bool = True
    cache: str | None = None
    wandb_login: str = "none"

    def as_json(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "offline": self.offline,
            "reachable": self.reachable,
            "answer": self.answer,
            "token": self.token_from is not None,
            "token_from": self.token_from,
            "token_is_sent": self.token_is_sent,
            "cache": self.cache,
            "wandb_login": self.wandb_login,
        }

    def in_words(self) -> dict[str, str]:
        """The same for people."""
        asked = {True: "answers", False: "does not answer", None: "not asked"}[self.reachable]
        token = f"from {self.token_from}" if self.token_from else "none"
        return {
            "endpoint": self.endpoint,
            "state": f"{asked} ({self.answer})",
            "token": token if self.token_is_sent else f"{token}, and not sent (HF_HUB_DISABLE_IMPLICIT_TOKEN)",
            "cache": self.cache or "unknown",
            "W&B login": self.wandb_login,
        }


def variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of VARIABLES that are set, without secrets and without passwords in addresses."""
    spelled = {name: environment.get(name) or environment.get(name.lower(), "") for name in VARIABLES}
    if environment.get("CUDA_VISIBLE_DEVICES") == "":  # For CUDA that is another thing than not to be set.
        spelled["CUDA_VISIBLE_DEVICES"] = EMPTY
    return {name: _SECRET if name in _SECRETS else without_login(value) for name, value in spelled.items() if value}


def without_login(text: str) -> str:
    """The text, with user and password taken out of each address in it."""
    return _USER_INFO.sub("…@", text)


def hub_of(outcome: Outcome) -> Hub:
    """What the step `hub` found; where it failed, why."""
    login = _wandb_login()
    if not outcome.is_sound:
        reason = f"huggingface_hub cannot be used: {outcome.error}"
        token = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
        return Hub(answer=reason, token_from=token, wandb_login=login)
    facts = dict(outcome.facts)
    offline = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    facts["endpoint"] = without_login(facts["endpoint"])
    facts["answer"] = without_login(facts.get("answer", offline))
    return Hub(**facts, wandb_login=login)


def _wandb_login() -> str:
    """Where W&B's login comes from, or that none is needed; never what it is."""
    from truetune.errors import BackendError
    from truetune.training.trackers import require_trackers

    try:
        require_trackers(["wandb"])
    except BackendError as error:
        known = {"not installed": "not installed", "has no login": "none"}
        return next((said for words, said in known.items() if words in error.message), error.message)
    mode, names = os.environ.get("WANDB_MODE", ""), ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    if mode in {"offline", "disabled", "dryrun"}:
        return f"not needed (WANDB_MODE={mode})"
    return next((name for name in names if os.environ.get(name)), f"{os.environ.get('NETRC') or Path('~/.netrc')}")
