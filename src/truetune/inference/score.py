"""The loss of a model on each row's answers, by itself and without training."""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from truetune.data.examples import IGNORED, Tokenized


def row_losses(model: Any, rows: Iterable[Tokenized]) -> Iterator[float]:
    """For each row the mean cross-entropy of its learned tokens, in nats, in float32.

    A row is read by itself, and logits are computed for the learned places alone.
    """
    import torch

    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    for row in rows:
        labels = torch.tensor(row.labels[1:], device=model.device)
        places = torch.nonzero(labels != IGNORED).flatten()
        ids = torch.tensor([row.input_ids[:-1]], device=model.device)
        chosen = {"logits_to_keep": places} if keeps else {}
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False, **chosen).logits[0]
        logits = logits if keeps else logits[places]
        yield float(torch.nn.functional.cross_entropy(logits.float(), labels[places]))
