"""Runs in Unsloth's process: trains a few steps and prints, as JSON, what only that process can know."""

import json
import sys
from pathlib import Path
from typing import Any

from truetune.training.unsloth import _open_session

lines: list[dict[str, Any]] = []


def main(base: str, rows: str, folder: str) -> None:
    from truetune.listener import LogListener

    session = _open_session(listener=LogListener(), write_metrics=lines.append)
    import torch

    from tiny_runs import LORA, TOKENIZER, job
    from truetune.data.store import StoredRows
    from truetune.model.load import ModelOptions
    from truetune.model.source import ModelSource
    from truetune.training.session import Destination, ModelRequest, Tracking, TrainingRows

    source = ModelSource("base", base)
    loaded = session.load(ModelRequest(source, ModelOptions("float32", "cpu"), LORA, 7, 256, False))
    where = Path(folder)
    batches: list[dict[str, Any]] = []
    stored = StoredRows.open(Path(rows))
    settings = job(where / "checkpoints", num_train_epochs=2, is_padding_free=loaded.isolates)
    session.train(settings, TrainingRows(stored, stored[:4], TOKENIZER), Tracking(where), ())
    session.save(Destination(where / "adapter", "org/base", None, (260,)))
    engine = session._engine
    for batch in engine.get_train_dataloader():
        batches.append({name: value.tolist() for name, value in batch.items()})
    with torch.no_grad():
        logits = session._model(input_ids=torch.arange(1, 9).unsqueeze(0)).logits[0].tolist()
    losses = [line["loss"] for line in lines if "loss" in line]
    from truetune.training.computing import Computing  # Behind Unsloth, whose trainer it then builds on.

    trainer = Computing.__bases__[0].__module__
    print(json.dumps({"losses": losses, "batches": batches, "logits": logits, "trainer": trainer}), file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
