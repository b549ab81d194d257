"""A process of its own, which trains with W&B online against a server on loopback, and says what came of it as JSON.

W&B's client keeps the environment that it saw first, so that one process is either online or offline.
"""

import json
import os
import sys
from typing import Any

from transformers import TrainerCallback

import truetune
from heard import FAST, Heard
from truetune.training.trackers import tracker_places
from wandb_server import WandbServer, running_wandb_server

SHORT = {**FAST, "packing": False, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}


class Vanishing(TrainerCallback):
    """Takes the server away behind step 2."""

    def __init__(self, server: WandbServer) -> None:
        self._server = server

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 2:
            self._server.shutdown()
            self._server.server_close()


def train(settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    heard = Heard()
    run = truetune.train(**settings, listener=heard, report_to="wandb", report_rows=0, project="p", **SHORT, **more)
    places = tracker_places(run.directory)
    return {"status": run.status, "steps": len(run.losses), "places": places, "heard": heard.lines}


def main(base: str, rows: str, folder: str) -> None:
    settings = {"model": base, "data": rows, "save_strategy": "steps", "save_steps": 2}
    with running_wandb_server() as server:
        os.environ["WANDB_BASE_URL"] = server.url
        kept = train({**settings, "output_dir": f"{folder}/kept"}, max_steps=2)
        again = train({**settings, "output_dir": f"{folder}/kept"}, max_steps=4, resume="newest")
        runs, lines = list(server.runs), list(server.lines)
        lost = train({**settings, "output_dir": f"{folder}/lost"}, max_steps=6, callbacks=[Vanishing(server)])
    told = {"kept": kept, "again": again, "lost": lost, "runs": runs, "lines": lines, "url": server.url}
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
