"""One of several processes that train on a stream: a run that is cut in two, and one whose rows break off."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import worlds

SETTINGS: dict[str, Any] = {
    **worlds.FAST,
    "streaming": True,
    "shuffle_buffer_size": 7,
    "save_strategy": "steps",
    "save_steps": 1,
}
STEPS, CUT = 8, 3
"""The steps of the run, of eight rows each, and those before the cut."""


def train(folder: Path, name: str, data: str, *, processes: int, **settings: Any) -> Any:
    import truetune

    return truetune.train(
        model=str(folder / "base"),
        data=str(folder / data),
        output_dir=folder / name,
        gradient_accumulation_steps=4 // processes,
        **{**SETTINGS, **settings},
    )


def main(names: dict[str, Any], folder: Path) -> None:
    import torch

    from truetune.errors import TruetuneError

    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    rank, size = int(names["RANK"]), int(names["WORLD_SIZE"])
    train(folder, "together", "rows.jsonl", processes=size, max_steps=CUT)
    train(folder, "together", "rows.jsonl", processes=size, max_steps=STEPS, resume="newest")
    try:
        train(folder, "broken", "broken.jsonl", processes=size, max_steps=STEPS)
    except TruetuneError as error:
        (folder / f"error-{rank}.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
