"""Slices side by side: two at a time, each on its share of the cores, and the same sums whatever comes first."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Barrier, current_thread, main_thread
from typing import Any

import pytest
import torch

from conftest import tiny_model
from tiny_runs import LORA, ROWS, Trained, row
from truetune.model.adapter import add_adapter
from truetune.model.side_by_side import obstacle, side_by_side
from truetune.training import computing, trl
from truetune.training.room import Room

SGD: dict[str, Any] = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


# --- two at a time ----------------------------------------------------------------------------------------


def test_two_are_computed_at_a_time_and_results_come_in_order() -> None:
    meeting = Barrier(2, timeout=30)

    def compute(piece: int) -> int:
        meeting.wait()
        time.sleep(0.05 if piece % 2 == 0 else 0)
        return 10 * piece

    assert list(side_by_side(compute, range(6))) == [0, 10, 20, 30, 40, 50]


def test_each_has_half_of_the_threads_and_the_caller_all_of_them_again() -> None:
    threads = list(side_by_side(lambda _: torch.get_num_threads(), range(4)))
    assert threads == [2, 2, 2, 2]
    assert torch.get_num_threads() == 4


def test_a_single_piece_is_computed_by_the_caller_on_all_threads() -> None:
    def compute(_: int) -> tuple[bool, int]:
        return current_thread() is main_thread(), torch.get_num_threads()

    assert list(side_by_side(compute, [1])) == [(True, 4)]
    assert list(side_by_side(compute, [1, 2], workers=1)) == [(True, 4)] * 2
    assert list(side_by_side(compute, [])) == []


def test_an_error_comes_once_nothing_is_computed_any_more() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def compute(piece: int) -> int:
        begun.append(piece)
        if piece == 0:
            raise MemoryError("no room")
        time.sleep(0.2)
        ended.append(piece)
        return piece

    with pytest.raises(MemoryError, match="no room"):
        list(side_by_side(compute, range(20)))
    assert sorted(begun) == [0, *sorted(ended)]
    assert len(begun) < 5
    assert torch.get_num_threads() == 4


# --- what cannot be ---------------------------------------------------------------------------------------


def adapted(**changes: Any) -> Any:
    return add_adapter(tiny_model(hidden_size=64, intermediate_size=256), replace(LORA, r=1, **changes), seed=1)


def test_a_plain_adapter_s_slices_can_be_computed_side_by_side() -> None:
    assert obstacle(adapted()) is None


def test_on_one_thread_they_cannot() -> None:
    torch.set_num_threads(1)
    assert "threads" in str(obstacle(adapted()))


def test_a_full_fine_tuning_would_hold_two_whole_gradients() -> None:
    assert "gradient" in str(obstacle(tiny_model()))


def test_dropout_draws_random_numbers_in_whatever_order_threads_come() -> None:
    assert "random" in str(obstacle(adapted(lora_dropout=0.1)))
    by_configuration = adapted()
    by_configuration.base_model.model.model.layers[0].self_attn.attention_dropout = 0.1
    assert "random" in str(obstacle(by_configuration))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_hang_on_the_longest_sample_so_far_are_one_state_for_all(kind: str) -> None:
    model = adapted()
    model.base_model.model.model.rotary_emb.rope_type = kind
    assert "longest sample" in str(obstacle(model))


def test_other_people_s_code_may_keep_anything_between_calls() -> None:
    model = adapted()
    model.base_model.model.model.extra = type("Theirs", (torch.nn.Module,), {"__module__": "modeling_theirs"})()
    assert "Theirs is code" in str(obstacle(model))


def test_quantised_weights_are_computed_one_slice_at_a_time() -> None:
    model = adapted()
    model.is_quantized = True
    assert "quantised" in str(obstacle(model))


# --- in a training ----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Slices of 60 tokens: how many there were each time that they were computed side by side."""
    counts: list[int] = []

    def spied(compute: Any, pieces: Any, *, workers: int) -> Any:
        if workers > 1:
            counts.append(len(pieces))
        return side_by_side(compute, pieces, workers=workers)

    monkeypatch.setattr(computing, "TOKENS", {"cpu": 60})
    monkeypatch.setattr(computing, "side_by_side", spied)
    return counts


def trained(folder: Path, rows: Any = ROWS, **changes: Any) -> Trained:
    options: dict[str, Any] = {"model": adapted(), "per_device_train_batch_size": 6, "num_train_epochs": 2}
    return Trained(folder, rows, **(options | changes))


def test_side_by_side_a_training_ends_at_the_weights_of_one_slice_after_the_other(
    tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"validation": ROWS[:5], "eval_strategy": "epoch", "per_device_eval_batch_size": 5}
    shared = trained(tmp_path / "shared", **options, **SGD)
    times = len(asked)
    assert times > 4  # The steps, and evaluations.
    assert min(asked) > 2
    monkeypatch.setattr(computing, "obstacle", lambda _: "none of it")
    alone = trained(tmp_path / "alone", **options, **SGD)
    assert len(asked) == times
    for name in ("loss", "grad_norm", "mean_token_accuracy", "supervised_tokens", "num_tokens"):
        assert shared.logged(name) == pytest.approx(alone.logged(name), rel=1e-5)
    assert shared.result.eval_loss == pytest.approx(alone.result.eval_loss, rel=1e-5)
    assert torch.allclose(shared.weights(), alone.weights(), rtol=1e-5, atol=1e-7)


def test_whichever_slice_is_done_first_the_bits_are_the_same(
    tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(tmp_path / "first")
    compute_loss = trl.Engine.compute_loss

    def late(self: Any, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        time.sleep(0.02 * (inputs["input_ids"].sum().item() % 3))
        return compute_loss(self, model, inputs, *args, **options)

    monkeypatch.setattr(trl.Engine, "compute_loss", late)
    again = trained(tmp_path / "again")
    assert asked
    assert torch.equal(first.weights(), again.weights())


def test_resumed_it_ends_at_the_same_bits(tmp_path: Path, asked: list[int]) -> None:
    whole = trained(tmp_path / "whole", save_strategy="steps", save_steps=2)
    resumed = trained(tmp_path / "resumed", resume_from=whole.job.output_dir / "checkpoint-2")
    assert asked
    assert resumed.result.steps == whole.result.steps == 4
    assert torch.equal(resumed.weights(), whole.weights())


def test_a_long_sample_has_all_cores_and_no_other_slice_beside_it(tmp_path: Path, asked: list[int]) -> None:
    rows = [row("q", "a" * 80), row("q", "b" * 20), row("q", "c" * 20)]
    assert len(rows[0].input_ids) > 1.5 * 60
    trained(tmp_path, rows, per_device_train_batch_size=3, num_train_epochs=1)
    assert asked == []


def test_what_is_computed_twice_is_not_computed_side_by_side(tmp_path: Path, asked: list[int]) -> None:
    trained(tmp_path / "checkpointing", gradient_checkpointing=True, max_steps=1)
    assert asked == []


def test_without_room_for_two_slices_they_are_computed_one_by_one_before_they_are_cut() -> None:
    def batch(tokens: int) -> dict[str, torch.Tensor]:
        positions = torch.arange(tokens) % 10
        return {"input_ids": torch.zeros(1, tokens, dtype=torch.long), "position_ids": positions.unsqueeze(0)}

    room = Room(40, can_be_cut=True, workers=2)
    assert room.give_way([batch(80)], model=None) == "1 slice at a time instead of 2"
    assert room.give_way([batch(80)], model=None) == "about 20 tokens at a time instead of 40"
    # Of a batch that is one slice anyway, its tokens are what there is to save.
    room = Room(40, can_be_cut=True, workers=2)
    assert room.give_way([batch(40)], model=None) == "about 20 tokens at a time instead of 40"


def test_a_step_that_runs_out_of_memory_side_by_side_is_computed_again_to_the_same_gradient(
    tmp_path: Path, asked: list[int]
) -> None:
    expected = trained(tmp_path / "whole", **SGD)
    model, failures = adapted(), []

    def fail_once(layer: Any, *_: Any) -> None:
        if layer.training and len(asked) == 6 and not failures:
            failures.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.base_model.model.model.layers[-1].register_forward_pre_hook(fail_once)
    run = trained(tmp_path / "again", model=model, **SGD)
    assert failures
    (warning,) = run.heard.warnings
    assert "1 slice at a time instead of 2" in warning
    assert run.logged("loss") == pytest.approx(expected.logged("loss"), rel=1e-5)
    assert torch.allclose(run.weights(), expected.weights(), rtol=1e-5, atol=1e-7)
