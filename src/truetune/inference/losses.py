"""The loss of a model on each of many rows: by the token, many rows at a time, whatever the batches.

Rows are computed as training's evaluation computes them: end to end where the model keeps samples apart, the adapter
in one step with its base, the output layer at learned places only, two slices at a time on a CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truetune.data.examples import IGNORED, Tokenized

Progress = Callable[[int, int], None]

TOKENS_AT_A_TIME = {"cpu": 2048}
_ELSEWHERE = 16384


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Of each row, in order: the sum of its learned tokens' losses in nats, their number, and how many were top."""

    sums: NDArray[np.float64]
    tokens: NDArray[np.int64]
    correct: NDArray[np.int64]

    @property
    def loss(self) -> float:
        """Nats a learned token, over all rows."""
        return float(self.sums.sum() / max(1, self.tokens.sum()))

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.loss))

    @property
    def token_accuracy(self) -> float:
        """The share of learned tokens that the model thinks the likeliest."""
        return float(self.correct.sum() / max(1, self.tokens.sum()))

    @property
    def means(self) -> NDArray[np.float64]:
        """Each row's own loss, in nats a token."""
        means: NDArray[np.float64] = self.sums / np.maximum(self.tokens, 1)
        return means


def row_losses(
    model: Any,
    rows: Sequence[Tokenized],
    *,
    pad_token_id: int,
    tokens_at_a_time: int | None = None,
    progress: Progress | None = None,
) -> RowLosses:
    """Each row's loss, as the model stands (with its adapter, or inside `disable_adapter`).

    Rows' weights are left out. `tokens_at_a_time` changes speed and memory alone; where memory runs out, fewer are
    taken. A row without learned tokens has a loss of 0 over 0 tokens.
    """
    size = tokens_at_a_time or TOKENS_AT_A_TIME.get(model.device.type, _ELSEWHERE)
    found = np.zeros((3, len(rows)))
    done = 0
    with _ready(model) as scorer:
        for places in _batches([len(row.input_ids) for row in rows], size):
            found[:, places] = _scored(scorer, [rows[place] for place in places], pad_token_id)
            done += len(places)
            if progress is not None:
                progress(done, len(rows))
    return RowLosses(found[0], found[1].astype(np.int64), found[2].astype(np.int64))


@dataclass(frozen=True, slots=True)
class _Scorer:
    """`head` is the proven one, None where logits are taken whole; `isolates`: rows may stand end to end."""

    model: Any
    head: Any
    isolates: bool
    workers: int


@contextmanager
def _ready(model: Any) -> Iterator[_Scorer]:
    """The model with attention sample by sample, which it loses again: generation has its own."""
    from truetune.model.attention import fit_attention
    from truetune.model.fused_lora import as_trained, cast_once
    from truetune.model.loss import provable_head
    from truetune.model.side_by_side import WORKERS, obstacle

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, was_training = causal.config._attn_implementation, model.training
    learned = [each for each in model.parameters() if each.requires_grad]
    model.eval().requires_grad_(False)  # Without gradients nothing keeps slices from being computed side by side.
    try:
        isolates = fit_attention(causal)
        workers = WORKERS if model.device.type == "cpu" and obstacle(model) is None else 1
        with as_trained(model), cast_once(model):
            yield _Scorer(model, provable_head(model), isolates, workers)
    finally:
        if causal.config._attn_implementation != own:
            causal.set_attn_implementation(own)
        for each in learned:
            each.requires_grad_(True)
        model.train(was_training)


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Places of rows, the longest first, as many as `size` tokens hold when all are padded to the first."""
    held: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if held and (len(held) + 1) * lengths[held[0]] > size:
            yield held
            held = []
        held.append(place)
    if held:
        yield held


def _scored(scorer: _Scorer, rows: Sequence[Tokenized], pad_token_id: int) -> NDArray[np.float64]:
    """Loss, learned tokens and tokens predicted right of each row, (3, rows); fewer at a time if memory runs out."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    try:
        return _scored_at_once(scorer, rows, pad_token_id)
    except (RuntimeError, MemoryError) as error:
        if len(rows) == 1 or not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
    clear_device_cache(garbage_collection=True)
    half = len(rows) // 2
    return np.concatenate([_scored(scorer, part, pad_token_id) for part in (rows[:half], rows[half:])], axis=1)


def _scored_at_once(scorer: _Scorer, rows: Sequence[Tokenized], pad_token_id: int) -> NDArray[np.float64]:
    import torch

    from truetune.data.collate import collate, collate_padded
    from truetune.model.side_by_side import side_by_side

    def compute(part: Sequence[Tokenized]) -> NDArray[np.float64]:
        samples = [
            {"input_ids": row.input_ids, "labels": row.labels, "seq_lengths": [len(row.input_ids)]} for row in part
        ]
        batch = collate(samples) if scorer.isolates else collate_padded(samples, pad_token_id=pad_token_id)
        inputs = {name: value.to(scorer.model.device) for name, value in batch.items()}
        with torch.no_grad():
            log_probs, is_top1 = _next_tokens(scorer, inputs)
        counts = [len(row.labels) - 1 - row.labels[1:].count(IGNORED) for row in part]
        return _by_row(log_probs.double().cpu().numpy(), is_top1.cpu().numpy(), counts)

    parts = _even_parts(rows, scorer.workers)
    return np.concatenate(list(side_by_side(compute, parts, workers=scorer.workers)), axis=1)


def _even_parts(rows: Sequence[Tokenized], count: int) -> list[Sequence[Tokenized]]:
    size = -(-len(rows) // count)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _next_tokens(scorer: _Scorer, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """Log-probability of each learned token, and whether it is the likeliest, rows one behind the other."""
    from torch.nn.functional import cross_entropy

    labels = inputs["labels"][:, 1:]
    mask = labels != IGNORED
    targets = labels[mask]
    if scorer.head is not None:
        return scorer.head.log_probs(inputs, mask, targets)  # type: ignore[no-any-return]
    read = {name: value for name, value in inputs.items() if name != "labels"}
    logits = scorer.model(**read, use_cache=False).logits[:, :-1][mask].float()
    return -cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets


def _by_row(log_probs: Any, is_top1: Any, counts: Sequence[int]) -> NDArray[np.float64]:
    owner = np.repeat(np.arange(len(counts)), counts)
    sums = np.bincount(owner, weights=-log_probs, minlength=len(counts))
    correct = np.bincount(owner, weights=is_top1, minlength=len(counts))
    return np.stack([sums, np.asarray(counts, dtype=np.float64), correct])
