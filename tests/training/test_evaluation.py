"""Evaluation costs no memory that grows with the set, and its numbers are the set's."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import tiny_model
from tiny_runs import ROWS, Trained, columns, token_losses
from truetune.data.collate import collate
from truetune.data.examples import IGNORED, Tokenized

MIB = 1 << 20


@contextmanager
def peak_growth() -> Iterator[SimpleNamespace]:
    """How many bytes the process grew by at most, within the block."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    found = SimpleNamespace(bytes=0)
    before, is_over = resident(), threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            found.bytes = max(found.bytes, resident() - before)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        is_over.set()
        watcher.join()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc")
def test_g21_evaluating_a_set_takes_no_more_memory_than_a_few_batches(tmp_path: Path) -> None:
    """All logits would be 655 MB, those of one batch are 33 MB."""
    row = Tokenized(list(range(1, 257)), [IGNORED, *range(2, 257)])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    trained = Trained(
        tmp_path,
        ROWS[:1],
        model=tiny_model(vocab_size=32_000, **sizes),
        validation=[row] * 20,
        eval_strategy="steps",
        eval_steps=1000,
        per_device_eval_batch_size=1,
    )
    with peak_growth() as growth:
        trained.engine.evaluate()
    assert growth.bytes < 8 * 33 * MIB


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc")
def test_g21_ten_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    """One batch's logits are 8 MB, and those of 60 rows 490: the room for four batches is the sampling's noise."""
    row = Tokenized(list(range(1, 129)), [IGNORED, *range(2, 129)])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, grown = tiny_model(vocab_size=16_000, **sizes), []
    settings = {"model": model, "eval_strategy": "steps", "eval_steps": 1000, "per_device_eval_batch_size": 1}
    for rows in (6, 6, 60):  # The first evaluation also loads what the others find.
        trained = Trained(tmp_path / str(rows), ROWS[:1], validation=[row] * rows, **settings)
        with peak_growth() as growth:
            trained.engine.evaluate()
        grown.append(growth.bytes)
    assert grown[2] <= 1.15 * max(grown[1], 4 * 8 * MIB)


def test_g21_no_logits_are_returned_for_anyone_to_keep(tmp_path: Path) -> None:
    trained = Trained(tmp_path, ROWS[:2], validation=ROWS, eval_strategy="epoch")
    loader = trained.engine.get_eval_dataloader()
    output = trained.engine.evaluation_loop(loader, "evaluation")
    assert output.predictions is None
    assert output.label_ids is None
    assert output.num_samples == len(ROWS)


def test_evaluation_moves_no_weight_and_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    quiet = Trained(tmp_path / "a", ROWS)
    evaluated = Trained(tmp_path / "b", ROWS, validation=ROWS[:3], eval_strategy="steps", eval_steps=1)
    assert torch.equal(evaluated.weights(), quiet.weights())
    assert evaluated.logged("loss") == quiet.logged("loss")


def test_evaluation_is_without_dropout_and_training_with_it_again_afterwards(tmp_path: Path) -> None:
    model = tiny_model(attention_dropout=0.5)
    modes: list[tuple[bool, bool]] = []
    model.model.layers[0].register_forward_hook(
        lambda layer, *_: modes.append((layer.training, torch.is_grad_enabled()))
    )
    Trained(tmp_path, ROWS[:4], model=model, validation=ROWS[:2], eval_strategy="steps", eval_steps=1)
    proof = [(False, False)] * 3  # Of the output layer, before the first step.
    assert modes == [*proof, (False, False), (True, True), (False, False), (True, True), (False, False)]


def test_eval_metrics_are_token_means(tmp_path: Path) -> None:
    trained = Trained(tmp_path, ROWS[:1], validation=ROWS, eval_strategy="epoch", learning_rate=0.0)
    line = next(line for line in trained.lines if "eval_loss" in line)
    model = tiny_model().eval()
    right = total = 0
    for each in ROWS:
        batch = collate(columns([each]))
        labels = batch.pop("labels")[0, 1:]
        right += int((model(**batch).logits[0, :-1].argmax(-1) == labels).sum())
        total += int((labels != IGNORED).sum())
    assert line["eval_supervised_tokens"] == total
    assert line["eval_mean_token_accuracy"] == pytest.approx(right / total)


BEST_IS_NOT_LAST: dict[str, Any] = {
    "num_train_epochs": 6,
    "learning_rate": 0.3,
    "max_grad_norm": 100.0,
    "lr_scheduler_type": "constant",
    "validation": ROWS[2:],
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
}
"""A run that overshoots: one of its earlier checkpoints has the lowest validation loss."""


def test_the_best_model_is_the_one_of_the_lowest_eval_loss(tmp_path: Path) -> None:
    trained = Trained(
        tmp_path,
        ROWS[:2],
        **BEST_IS_NOT_LAST,
    )
    losses = {line["step"]: line["eval_loss"] for line in trained.lines if "eval_loss" in line}
    best = min((step for step in losses if step), key=losses.__getitem__)
    assert trained.result.best_eval_loss == losses[best]
    assert losses[best] < losses[max(losses)]
    kept = torch.cat([token_losses(trained.model.eval(), collate(columns([each]))) for each in ROWS[2:]])
    assert float(kept.mean()) == pytest.approx(losses[best], rel=1e-5)


def test_early_stopping_logs_the_step_it_stopped_at(tmp_path: Path) -> None:
    trained = Trained(
        tmp_path,
        ROWS[:4],
        num_train_epochs=30,
        learning_rate=0.5,
        max_grad_norm=100.0,
        validation=ROWS[4:],
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        early_stopping_patience=1,
        logging_steps=1000,
    )
    assert trained.result.steps < 60
    assert trained.lines[-1]["step"] == trained.result.steps
    assert max(line["step"] for line in trained.lines if "loss" in line) == trained.result.steps


def test_without_validation_rows_nothing_is_evaluated_whatever_was_asked(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"eval_strategy": "epoch", "load_best_model_at_end": True, "save_strategy": "epoch"}
    trained = Trained(tmp_path, ROWS, **settings, early_stopping_patience=2)
    assert trained.result.eval_loss is None
    assert trained.result.steps == 6


def test_g22_the_last_step_is_saved_and_evaluated_at_any_rhythm(tmp_path: Path) -> None:
    rhythm: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    trained = Trained(tmp_path, ROWS, validation=ROWS[:2], logging_steps=100, **rhythm)
    assert trained.result.steps == 6
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert [line["step"] for line in trained.lines if "eval_loss" in line] == [0, 4, 6]
    assert trained.lines[-1]["eval_loss"] == trained.result.eval_loss


@pytest.mark.parametrize("limit", [1, 2])
def test_g23_the_best_and_the_newest_checkpoint_survive_rotation(tmp_path: Path, limit: int) -> None:
    trained = Trained(
        tmp_path,
        ROWS[:2],
        **BEST_IS_NOT_LAST,
        save_total_limit=limit,
    )
    losses = {line["step"]: line["eval_loss"] for line in trained.lines if line.get("eval_loss") and line["step"]}
    best = min(losses, key=losses.__getitem__)
    assert best != 6
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-6"}
