"""The engine's invariants, on tiny real models in fp32: batches, packing and accumulation change nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model
from tiny_runs import C1, C2, LORA, ROWS, TOKENIZER, Trained, columns, job, row, token_losses, trained_weights
from truetune.config.kinds import OPTIMIZERS, SCHEDULERS
from truetune.data.collate import collate, collate_padded
from truetune.data.examples import IGNORED
from truetune.data.packing import pack
from truetune.listener import LogListener
from truetune.model.adapter import add_adapter
from truetune.training.monitor import MetricsCallback
from truetune.training.trl import build_engine, train


def test_g17_packed_losses_equal_unpacked_ones_in_any_order() -> None:
    model = tiny_model().eval()
    alone = torch.cat([token_losses(model, collate(columns([each]))) for each in (C1, C2)])
    (packed,) = pack([C1, C2], max_length=64)
    batch = collate(columns([packed]))
    assert len(packed.input_ids) == 50
    assert batch["position_ids"][0].tolist() == [*range(25), *range(25)]
    assert alone.numel() == 7
    in_pack = token_losses(model, batch)
    assert torch.allclose(in_pack, alone, atol=1e-5) or torch.allclose(
        in_pack, torch.cat([alone[3:], alone[:3]]), atol=1e-5
    )
    swapped = token_losses(model, collate(columns([C2, C1])))
    assert torch.allclose(swapped, torch.cat([alone[3:], alone[:3]]), atol=1e-5)


def test_rows_end_to_end_give_the_losses_of_padded_rows() -> None:
    model = tiny_model().eval()
    free = token_losses(model, collate(columns(ROWS[:4])))
    padded = token_losses(model, collate_padded(columns(ROWS[:4]), pad_token_id=258))
    assert torch.allclose(free, padded, atol=1e-5)


@pytest.mark.parametrize(("batch", "accumulation"), [(1, 4), (2, 2)])
def test_g19_accumulation_equals_a_larger_batch(tmp_path: Path, batch: int, accumulation: int) -> None:
    settings = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    whole = Trained(tmp_path / "a", ROWS, per_device_train_batch_size=4, **settings)
    parts = Trained(
        tmp_path / "b", ROWS, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, **settings
    )
    assert parts.logged("loss") == pytest.approx(whole.logged("loss"), rel=1e-5)
    assert parts.logged("grad_norm") == pytest.approx(whole.logged("grad_norm"), rel=1e-5)
    assert torch.allclose(parts.weights(), whole.weights(), rtol=1e-5, atol=1e-7)


def test_g19_the_loss_is_the_mean_over_supervised_tokens_not_over_rows(tmp_path: Path) -> None:
    rows = [C1, row("hi", "b" * 40)]
    trained = Trained(tmp_path, rows, learning_rate=1e-9)
    model = tiny_model().eval()
    losses = torch.cat([token_losses(model, collate(columns([each]))) for each in rows])
    assert losses.numel() == 3 + 41
    assert trained.logged("loss") == pytest.approx([float(losses.mean())], rel=1e-5)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("is_padding_free", [False, True])
def test_a_row_s_weight_scales_its_loss_and_nobody_else_s(
    tmp_path: Path, is_packed: bool, is_padding_free: bool
) -> None:
    rows = [replace(C1, weight=0.25), replace(row("hi", "b" * 40), weight=2.0)]
    batch: Any = pack(rows, max_length=200) if is_packed else rows
    if is_packed and not is_padding_free:
        pytest.skip("packs are never padded")
    trained = Trained(tmp_path, batch, learning_rate=1e-9, is_padding_free=is_padding_free)
    model = tiny_model().eval()
    losses = [each.weight * token_losses(model, collate(columns([each]))) for each in rows]
    assert trained.logged("loss") == pytest.approx([float(torch.cat(losses).mean())], rel=1e-5)


def test_scores_from_all_logits_are_those_of_supervised_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose parts prove nothing is scored from all its logits: loss, accuracy and validation are the same."""
    rows = [replace(each, weight=1.0 + index % 2) for index, each in enumerate(ROWS)]

    def lines(folder: str) -> list[dict[str, Any]]:
        settings = {"validation": ROWS[:4], "eval_strategy": "epoch", "num_train_epochs": 2}
        return Trained(tmp_path / folder, rows, **settings).lines

    fused = lines("fused")
    monkeypatch.setattr("truetune.training.computing.provable_head", lambda _: None)
    assert len(fused) == 15
    for line, other in zip(fused, lines("logits"), strict=True):
        for name in ("loss", "mean_token_accuracy", "eval_loss", "eval_mean_token_accuracy", "grad_norm"):
            assert line.get(name) == (pytest.approx(other[name], rel=1e-4) if name in other else None)


def test_the_engine_trains_as_a_plain_pytorch_loop_does(tmp_path: Path) -> None:
    steps, warmup = 20, 4
    settings = job(tmp_path, per_device_train_batch_size=3, max_steps=steps, warmup_steps=warmup)
    engine = build_engine(
        settings, model=tiny_model(), tokenizer=TOKENIZER, train=ROWS, validation=(), listener=LogListener()
    )
    rows: list[dict[str, Any]] = []
    engine.data_collator = lambda batch: (rows.extend(batch), collate(batch))[1]
    lines: list[dict[str, Any]] = []
    train(engine, settings, metrics=MetricsCallback(lines.append))
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for step in range(steps):
        batch = collate_padded(rows[3 * step : 3 * step + 3], pad_token_id=258)
        labels = batch.pop("labels")
        logits = model(**batch).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = step / warmup if step < warmup else (steps - step) / (steps - warmup)
        optimizer.param_groups[0]["lr"] = 1e-2 * rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < losses[0]
    for ours, plain in zip(engine.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, plain, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3, 12])
def test_the_eval_loss_is_the_token_mean_for_every_batch_size(tmp_path: Path, batch: int) -> None:
    trained = Trained(
        tmp_path,
        ROWS[:2],
        validation=ROWS,
        eval_strategy="epoch",
        per_device_eval_batch_size=batch,
        learning_rate=1e-9,
    )
    model = tiny_model().eval()
    losses = torch.cat([token_losses(model, collate(columns([each]))) for each in ROWS])
    evaluated = [line for line in trained.lines if "eval_loss" in line]
    assert [line["step"] for line in evaluated] == [0, 1]
    assert evaluated[0]["eval_loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert evaluated[0]["eval_supervised_tokens"] == losses.numel()


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    off = Trained(tmp_path / "off", ROWS)
    on = Trained(tmp_path / "on", ROWS, gradient_checkpointing=True)
    assert on.logged("loss") == off.logged("loss")
    assert torch.equal(on.weights(), off.weights())


def test_gradient_checkpointing_reaches_every_layer_of_an_adapter(tmp_path: Path) -> None:
    model = add_adapter(tiny_model(), LORA, seed=1)
    Trained(tmp_path, ROWS, model=model, gradient_checkpointing=True)
    updates = {name: value for name, value in model.named_parameters() if "lora_B" in name}
    assert len(updates) == 2 * 7
    assert all(value.count_nonzero() for value in updates.values())


def test_g24_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(tmp_path: Path) -> None:
    def model() -> Any:
        return add_adapter(tiny_model(), replace(LORA, r=2, lora_dropout=0.2), seed=1)

    settings = {"num_train_epochs": 2, "save_strategy": "steps"}
    whole = Trained(tmp_path / "whole", ROWS, model=model(), **settings)
    assert whole.result.steps == 12
    resumed = Trained(
        tmp_path / "whole", ROWS, model=model(), resume_from=tmp_path / "whole" / "checkpoint-8", **settings
    )
    assert resumed.logged("loss") == whole.logged("loss")[8:]
    assert resumed.logged("learning_rate") == whole.logged("learning_rate")[8:]
    assert torch.equal(resumed.weights(), whole.weights())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_that_is_accepted_trains_here(tmp_path: Path, name: str) -> None:
    model = add_adapter(tiny_model(), LORA, seed=1)
    before = trained_weights(model)
    trained = Trained(tmp_path, ROWS, model=model, optim=name)
    assert not torch.equal(trained.weights(), before)
    assert trained.weights().isfinite().all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_that_is_accepted_trains_here(tmp_path: Path, name: str) -> None:
    rates = Trained(tmp_path, ROWS, lr_scheduler_type=name, warmup_steps=2).logged("learning_rate")
    assert len(rates) == 6
    assert all(0 <= rate <= 1e-2 for rate in rates)
    assert max(rates) > 0


def test_the_last_incomplete_group_is_a_step_and_every_row_is_trained(tmp_path: Path) -> None:
    trained = Trained(tmp_path, ROWS[:11], gradient_accumulation_steps=4)
    assert trained.result.steps == 2
    assert trained.result.tokens == sum(len(each.input_ids) for each in ROWS[:11])
    assert trained.result.supervised_tokens == sum(each.supervised for each in ROWS[:11])


def test_first_and_last_step_are_logged_at_any_rhythm_and_the_rate_counts_real_tokens(tmp_path: Path) -> None:
    trained = Trained(tmp_path, ROWS, logging_steps=4)
    assert [line["step"] for line in trained.lines] == [1, 4, 6]
    assert trained.result.final_loss == trained.logged("loss")[-1]
    assert trained.result.tokens_per_second
    assert trained.lines[-1]["num_tokens"] == sum(len(each.input_ids) for each in ROWS)


def test_padded_batches_count_no_padding(tmp_path: Path) -> None:
    trained = Trained(tmp_path, ROWS, is_padding_free=False)
    assert trained.result.tokens == sum(len(each.input_ids) for each in ROWS)
