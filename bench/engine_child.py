"""What bench/engine.py and bench/levers.py run in processes of their own: preparation, ceiling, each training.

    python bench/engine_child.py TASK REQUEST.json ANSWER.json

Nothing heavy is imported before a task starts. A contestant is a function from a `Trial` to a `Measure`; one more is
one more entry of `CONTESTANTS`.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from engine_llamafactory import train_with_llamafactory
from engine_rows import ceiling, prepare
from engine_trl import EXTRA, TRL
from engine_truetune import LEVERS, train_with_truetune
from trial import Measure, Trial, Workload

TRUETUNE: dict[str, Callable[[Trial], Measure]] = {
    "truetune": train_with_truetune,
    **{name: partial(train_with_truetune, lever=lever) for name, lever in LEVERS.items()},
}
CONTESTANTS = {**TRL, **EXTRA, **TRUETUNE, "llamafactory": train_with_llamafactory}


def train(request: dict[str, Any]) -> dict[str, Any]:
    trial = Trial(**{**request, "workload": Workload(**request["workload"])})
    return asdict(CONTESTANTS[trial.contestant](trial))


def set_environment(contestant: str | None) -> None:
    """Before torch loads: for truetune what its own command sets, and for all that idle threads sleep."""
    if contestant in TRUETUNE:
        from truetune.environment import set_environment as set_truetunes

        set_truetunes()
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "prepare": prepare,
    "ceiling": ceiling,
    "train": train,
}


def main(task: str, request_file: str, answer: str) -> None:
    request = json.loads(Path(request_file).read_text("utf-8"))
    set_environment(request.get("contestant"))
    Path(answer).write_text(json.dumps(TASKS[task](request)), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
