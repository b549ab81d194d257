"""The process's environment: what torch, oneDNN and transformers read when they load, and never again.

Nothing heavy is imported here, so that it can be set first.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from truetune.cgroups import cpu_quota
from truetune.launched import adopt_launcher, cores_of_task, processes_here

_PASSIVE = "PASSIVE"
_QUIET = {
    "TOKENIZERS_PARALLELISM": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "WANDB_SILENT": "true",
}


def set_environment() -> None:
    """Everything for a process of truetune's own; the user's values win."""
    set_computing()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # The libraries' notes to their own developers: renamed arguments, optional kernels.
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def libraries_heard() -> Iterator[None]:
    """While it lasts, libraries say what `set_environment` has them keep to themselves: somebody keeps it.

    transformers asks the environment once, when it loads.
    """
    bitsandbytes = logging.getLogger("bitsandbytes")
    name, level = "TRANSFORMERS_VERBOSITY", bitsandbytes.level
    verbosity = os.environ.get(name)
    if verbosity == _QUIET[name]:
        os.environ[name] = "warning"
    bitsandbytes.setLevel(logging.NOTSET)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("default", category=FutureWarning)
            yield
    finally:
        bitsandbytes.setLevel(level)
        if verbosity is not None:
            os.environ[name] = verbosity


def set_computing() -> None:
    """How threads wait and how many there are; the user's values win.

    Nothing once torch is loaded, which would not see it: what stands in the environment is what torch works by.
    """
    adopt_launcher()
    if "torch" in sys.modules:
        return
    os.environ.setdefault("OMP_WAIT_POLICY", _PASSIVE)
    # Every length of sample and slice has primitives of its own, some megabytes each, and oneDNN keeps 1,024 of them:
    # gigabytes. Two slices at a time of different lengths use about 40: with 32 a step takes half as long again.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "48")
    # ideep, by which torch calls oneDNN in bf16, holds 1,024 more of its own: the demo's run grew by a third in 100
    # steps. With 1, 8 and 32 it keeps its size and its speed.
    os.environ.setdefault("LRU_CACHE_CAPACITY", "32")
    # torch counts the cores it may run on, and not the time that a container is granted on them.
    if (threads := usable_threads()) < visible_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def visible_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_threads() -> int:
    """How many threads the process can run at once: with more, a container's are halted in turn.

    Of several processes that a launcher started on this machine each has its share, or what SLURM gave it.
    """
    cores = min(visible_cores(), int(cpu_quota() or visible_cores()))
    own = cores_of_task()
    return max(1, min(cores, own) if own else cores // processes_here())


def spinning_threads() -> str | None:
    """What is wrong with how threads wait, and its remedy; None if they sleep."""
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == _PASSIVE:
        return None
    # 38.9 s against 0.78 s for one loop on two cores, of which another process used some.
    return (
        f"OMP_WAIT_POLICY is {policy or 'not set'}, so that waiting threads spin: where anything else runs, training "
        "may take ten times as long; set OMP_WAIT_POLICY=PASSIVE before torch is imported"
    )
