"""Settings that must be equal give one trajectory; what is read, counted and logged is what happened."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model
from tiny_runs import C1, C2, ISOLATING, LEAKING, LORA, ROWS, Trained, architecture, columns, row, token_losses
from truetune.data.collate import collate, collate_padded
from truetune.data.examples import IGNORED, Packed, Tokenized
from truetune.data.packing import pack
from truetune.model.adapter import add_adapter
from truetune.runs.checkpoints import untimed

SGD = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


def adapted(*, dropout: float = 0.0) -> Any:
    return add_adapter(tiny_model(), replace(LORA, r=2, lora_dropout=dropout), seed=1)


# --- one loss, however the rows are laid out ----------------------------------------------------------------


@pytest.mark.parametrize("name", ISOLATING)
def test_g17_on_every_architecture_packed_losses_equal_those_of_each_row_alone(name: str) -> None:
    model = architecture(name)
    alone = [token_losses(model, collate(columns([each]))) for each in ROWS[:4]]
    together = token_losses(model, collate(columns(ROWS[:4])))
    backwards = token_losses(model, collate(columns(ROWS[3::-1])))
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert torch.allclose(backwards, torch.cat(alone[::-1]), atol=1e-5)


@pytest.mark.parametrize("name", [*ISOLATING, *LEAKING])
def test_padding_changes_no_loss_on_any_architecture(name: str) -> None:
    model = architecture(name)
    alone = torch.cat([token_losses(model, collate_padded(columns([each]), pad_token_id=258)) for each in ROWS[:4]])
    padded = token_losses(model, collate_padded(columns(ROWS[:4]), pad_token_id=258))
    assert torch.allclose(padded, alone, atol=1e-5)


@pytest.mark.parametrize("name", [*ISOLATING, *LEAKING])
def test_the_engines_first_loss_is_the_models_own_on_every_architecture(name: str, tmp_path: Path) -> None:
    """Soft-capped, scaled and biased heads included; a mixture's router loss comes on top."""
    lays_out = partial(collate_padded, pad_token_id=258) if name in LEAKING else collate
    expected = float(token_losses(architecture(name), lays_out(columns(ROWS[:3]))).mean())
    trained = Trained(
        tmp_path,
        ROWS[:3],
        model=architecture(name).train(),
        per_device_train_batch_size=3,
        learning_rate=1e-9,
        is_padding_free=name not in LEAKING,
        validation=ROWS[:3],
        eval_strategy="epoch",
    )
    routers = getattr(trained.model.config, "router_aux_loss_coef", 0.0) * 4
    assert trained.logged("loss")[0] == pytest.approx(expected, abs=1e-4 + routers)
    assert trained.lines[0]["eval_loss"] == pytest.approx(expected, abs=1e-4)


def test_g17_a_pack_hides_the_first_token_of_each_sample_from_the_sample_before_it() -> None:
    learned_whole = [Tokenized(each.input_ids, list(each.input_ids)) for each in (C1, C2)]
    packed = Packed(
        learned_whole[0].input_ids + learned_whole[1].input_ids,
        learned_whole[0].labels + learned_whole[1].labels,
        [25, 25],
    )
    labels = collate(columns([packed]))["labels"][0].tolist()
    assert [place for place, label in enumerate(labels) if label == IGNORED] == [0, 25]


def test_packed_and_unpacked_rows_train_to_the_same_weights(tmp_path: Path) -> None:
    packs = pack(ROWS, max_length=10_000)
    assert len(packs) == 1
    packed = Trained(tmp_path / "a", packs, per_device_train_batch_size=1, **SGD)
    unpacked = Trained(tmp_path / "b", ROWS, per_device_train_batch_size=12, **SGD)
    padded = Trained(tmp_path / "c", ROWS, per_device_train_batch_size=12, is_padding_free=False, **SGD)
    for other in (unpacked, padded):
        assert packed.logged("loss") == pytest.approx(other.logged("loss"), rel=1e-5)
        assert packed.logged("grad_norm") == pytest.approx(other.logged("grad_norm"), rel=1e-5)
        assert torch.allclose(packed.weights(), other.weights(), rtol=1e-5, atol=1e-7)
        assert packed.result.tokens == other.result.tokens
        assert packed.result.supervised_tokens == other.result.supervised_tokens


def test_g19_one_row_of_3_and_one_of_41_tokens_weigh_by_their_tokens_however_they_are_batched(tmp_path: Path) -> None:
    rows = [C1, row("hi", "b" * 40)]
    assert [each.supervised for each in rows] == [3, 41]
    together = Trained(tmp_path / "a", rows, per_device_train_batch_size=2, **SGD)
    apart = Trained(tmp_path / "b", rows, per_device_train_batch_size=1, gradient_accumulation_steps=2, **SGD)
    assert together.result.steps == apart.result.steps == 1
    for name in ("loss", "grad_norm"):
        assert apart.logged(name) == pytest.approx(together.logged(name), rel=1e-5)
    assert torch.allclose(apart.weights(), together.weights(), rtol=1e-5, atol=1e-8)


def test_g19_eight_rows_at_once_equal_eight_times_one(tmp_path: Path) -> None:
    rows = [*ROWS, *ROWS[:4]]
    eight = Trained(tmp_path / "a", rows, per_device_train_batch_size=8, num_train_epochs=2, **SGD)
    ones = Trained(
        tmp_path / "b",
        rows,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        num_train_epochs=2,
        **SGD,
    )
    assert eight.result.steps == ones.result.steps == 4
    assert ones.logged("loss") == pytest.approx(eight.logged("loss"), rel=1e-5)
    assert ones.logged("grad_norm") == pytest.approx(eight.logged("grad_norm"), rel=1e-5)
    assert torch.allclose(ones.weights(), eight.weights(), rtol=1e-5, atol=1e-7)


def test_g19_a_model_that_takes_no_loss_arguments_weighs_by_tokens_too(tmp_path: Path) -> None:
    """Gemma 3n and 4 say so of themselves, and Trainer then averages the micro-batches."""

    def model() -> Any:
        built = tiny_model()
        built.accepts_loss_kwargs = False
        return built

    rows = [C1, row("hi", "b" * 40)]
    together = Trained(tmp_path / "a", rows, model=model(), per_device_train_batch_size=2, **SGD)
    apart = Trained(
        tmp_path / "b", rows, model=model(), per_device_train_batch_size=1, gradient_accumulation_steps=2, **SGD
    )
    assert apart.logged("loss") == pytest.approx(together.logged("loss"), rel=1e-5)
    assert torch.allclose(apart.weights(), together.weights(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("is_padding_free", [True, False])
def test_the_eval_loss_does_not_depend_on_layout_or_batch_size(tmp_path: Path, is_padding_free: bool) -> None:
    found = [
        Trained(
            tmp_path / str(batch),
            ROWS[:1],
            validation=ROWS,
            eval_strategy="epoch",
            per_device_eval_batch_size=batch,
            learning_rate=0.0,
            is_padding_free=is_padding_free,
        ).result.eval_loss
        for batch in (1, 5)
    ]
    truth = float(torch.cat([token_losses(tiny_model().eval(), collate(columns([each]))) for each in ROWS]).mean())
    assert found == pytest.approx([truth, truth], rel=1e-6)


def test_g20_bf16_computes_in_bf16_and_keeps_what_trains_in_fp32(tmp_path: Path) -> None:
    base = tiny_model().to(torch.bfloat16)
    model = add_adapter(base, LORA, seed=1)
    exact = Trained(tmp_path / "fp32", ROWS, model=add_adapter(tiny_model(), LORA, seed=1))
    rounded = Trained(tmp_path / "bf16", ROWS, model=model, precision="bf16", validation=ROWS, eval_strategy="epoch")
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    assert rounded.logged("loss") == pytest.approx(exact.logged("loss"), rel=5e-3)
    assert rounded.logged("loss") != exact.logged("loss")
    assert rounded.result.eval_loss is not None
    assert all(torch.isfinite(value).all() for value in model.parameters())


# --- resumed = uninterrupted --------------------------------------------------------------------------------


def test_g24_a_resumed_run_reads_the_rows_and_takes_the_steps_of_the_uninterrupted_one(tmp_path: Path) -> None:
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 8}
    whole = Trained(tmp_path, ROWS, model=adapted(dropout=0.2), **settings)
    resumed = Trained(tmp_path, ROWS, model=adapted(dropout=0.2), resume_from=tmp_path / "checkpoint-8", **settings)
    assert whole.result.steps == resumed.result.steps == 12
    everything = sorted(tuple(each.input_ids) for each in ROWS)
    assert sorted(whole.read()[:12]) == sorted(whole.read()[12:]) == everything
    assert whole.read()[:12] != whole.read()[12:]  # shuffled anew
    assert resumed.read()[-8:] == whole.read()[16:]
    assert [*map(untimed, resumed.lines)] == [*map(untimed, whole.lines[8:])]
    assert torch.equal(resumed.weights(), whole.weights())


def test_g24_with_accumulation_dropout_and_evaluation_it_is_still_bit_for_bit_the_same(tmp_path: Path) -> None:
    settings = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 3,
        "save_strategy": "steps",
        "save_steps": 5,
        "logging_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "validation": ROWS[:3],
    }
    whole = Trained(tmp_path, ROWS, model=adapted(dropout=0.3), **settings)
    resumed = Trained(tmp_path, ROWS, model=adapted(dropout=0.3), resume_from=tmp_path / "checkpoint-5", **settings)
    assert whole.result.steps == 12
    assert torch.equal(resumed.weights(), whole.weights())
    assert resumed.result.eval_loss == whole.result.eval_loss
    # Step 5 is logged because it was saved, so that the averages of both runs start there.
    assert [line["step"] for line in whole.lines if "loss" in line] == [1, 4, 5, 8, 10, 12]
    assert resumed.logged("loss") == whole.logged("loss")[3:]
    assert resumed.logged("num_tokens") == whole.logged("num_tokens")[3:]


def test_a_resumed_runs_counts_are_those_of_the_whole_run(tmp_path: Path) -> None:
    settings = {"num_train_epochs": 2, "save_strategy": "epoch", "logging_steps": 5}
    whole = Trained(tmp_path, ROWS, model=adapted(), **settings)
    resumed = Trained(tmp_path, ROWS, model=adapted(), resume_from=tmp_path / "checkpoint-6", **settings)
    assert resumed.result.tokens == whole.result.tokens == 2 * sum(len(each.input_ids) for each in ROWS)
    assert resumed.result.supervised_tokens == whole.result.supervised_tokens
    assert resumed.result.final_loss == whole.result.final_loss


def test_g24_an_adapters_checkpoint_goes_on_from_the_adapter_it_saved(tmp_path: Path) -> None:
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 8, "learning_rate": 5e-2}
    whole = Trained(tmp_path, ROWS, model=adapted(), **settings)
    resumed = Trained(tmp_path, ROWS, model=adapted(), resume_from=tmp_path / "checkpoint-8", **settings)
    first = whole.logged("loss")[0]
    assert resumed.logged("loss")[0] < first - 0.1


# --- what is told -------------------------------------------------------------------------------------------


def test_the_listener_hears_every_step_with_its_loss(tmp_path: Path) -> None:
    trained = Trained(tmp_path, ROWS, gradient_accumulation_steps=2, logging_steps=1)
    heard = trained.heard.steps
    assert [(event.step, event.total_steps) for event in heard] == [(1, 3), (2, 3), (3, 3)]
    assert [event.loss for event in heard] == pytest.approx(trained.logged("loss"), rel=1e-6)
    assert [event.epoch for event in heard] == pytest.approx([1 / 3, 2 / 3, 1])
    assert heard[-1].seconds_left == 0


def test_the_accuracy_is_a_mean_over_tokens_since_the_last_line(tmp_path: Path) -> None:
    trained = Trained(tmp_path, ROWS[:4], logging_steps=2, learning_rate=0.0)
    model = tiny_model().eval()
    right = total = 0
    for each in ROWS[:4]:
        batch = collate(columns([each]))
        labels = batch.pop("labels")[0, 1:]
        guesses = model(**batch, use_cache=False).logits[0, :-1].argmax(-1)
        right += int((guesses == labels).sum())
        total += int((labels != IGNORED).sum())
    first, last = (line for line in trained.lines if "loss" in line)
    between = last["supervised_tokens"] - first["supervised_tokens"]
    counted = first["mean_token_accuracy"] * first["supervised_tokens"] + last["mean_token_accuracy"] * between
    assert last["supervised_tokens"] == total
    assert counted == pytest.approx(right)


def test_a_step_that_is_evaluated_or_saved_is_logged(tmp_path: Path) -> None:
    trained = Trained(
        tmp_path,
        ROWS,
        num_train_epochs=2,
        logging_steps=100,
        save_strategy="steps",
        save_steps=5,
        validation=ROWS[:2],
        eval_strategy="epoch",
    )
    assert [line["step"] for line in trained.lines if "loss" in line] == [1, 5, 6, 10, 12]
    assert [line["step"] for line in trained.lines if "eval_loss" in line] == [0, 6, 12]
