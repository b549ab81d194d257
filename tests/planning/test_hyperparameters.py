"""What `auto` chooses, with its reason, and when a learning rate of the user's own is warned of."""

import math
from dataclasses import replace
from typing import Any, Literal

import pytest

from truetune.planning.hyperparameters import (
    BILLION,
    early_stopping_patience,
    eval_steps,
    eval_strategy,
    gradient_accumulation_steps,
    learning_rate,
    learning_rate_warning,
    load_best_model_at_end,
    lora_alpha,
    num_train_epochs,
    optimizer,
    rank,
    recommendations,
    save_steps,
    save_strategy,
    weight_decay,
)
from truetune.planning.rules import Situation


@pytest.mark.parametrize(
    ("billions", "rate", "source"),
    [
        (0.135, 5e-4, "guide's range for models under 1B"),
        (0.99, 5e-4, "guide's range for models under 1B"),
        (1.0, 5e-4, "1-3B"),
        (3.2, 5e-4, "1-3B"),
        (4.0, 3e-4, "4-9B"),
        (8.0, 3e-4, "4-9B"),
        (70.0, 3e-4, "27B and above"),
    ],
)
def test_a_lora_learning_rate_follows_the_size_and_names_its_source(
    billions: float, rate: float, source: str
) -> None:
    choice = learning_rate(method="lora", parameters=int(billions * BILLION), is_quantized=False)
    assert choice.value == rate
    assert source in choice.reason
    assert f"{billions:.2g}B parameters" in choice.reason
    assert choice.name == "training.learning_rate"


@pytest.mark.parametrize(("billions", "rate"), [(0.5, 2e-4), (7.0, 2e-4), (13.0, 2e-4), (14.0, 1e-4), (65.0, 1e-4)])
def test_a_quantised_base_gets_qloras_learning_rate(billions: float, rate: float) -> None:
    choice = learning_rate(method="lora", parameters=int(billions * BILLION), is_quantized=True)
    assert choice.value == rate
    assert "QLoRA" in choice.reason


@pytest.mark.parametrize(("billions", "rate"), [(0.135, 5e-5), (2.0, 5e-5), (8.0, 3e-5)])
def test_full_fine_tuning_gets_a_tenth_of_loras(billions: float, rate: float) -> None:
    choice = learning_rate(method="full", parameters=int(billions * BILLION), is_quantized=False)
    assert choice.value == pytest.approx(rate)
    assert "a tenth of LoRA's" in choice.reason


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("billions", [0.001, 0.135, 1, 3, 7, 8, 13, 32, 70, 405])
@pytest.mark.parametrize("is_quantized", [True, False])
def test_no_choice_of_ours_is_one_we_warn_of(
    method: Literal["lora", "full"], billions: float, is_quantized: bool
) -> None:
    parameters = int(billions * BILLION)
    value = learning_rate(method=method, parameters=parameters, is_quantized=is_quantized).value
    assert isinstance(value, float)
    assert learning_rate_warning(method=method, value=value, parameters=parameters) is None


@pytest.mark.parametrize(
    ("method", "value", "billions", "words"),
    [
        ("full", 2e-4, 7, ("learning rate 0.0002 is above", "full fine-tuning", "1e-06 to 5e-05", "5e-5 to 2e-4")),
        ("full", 2e-4, 0.135, ("above", "1e-06 to 0.0001", "1e-4 to 5e-4")),
        ("full", 1e-7, 7, ("below", "1e-06")),
        ("lora", 1e-6, 7, ("learning rate 1e-06 is below", "LoRA", "5e-05 to 0.001", "5e-5 to 2e-4")),
        ("lora", 3e-3, 3, ("above", "0.001", "1e-4 to 2e-4")),
        ("lora", 3e-3, 70, ("above", "1e-5 to 1e-4")),
    ],
)
def test_g22_a_rate_far_outside_is_warned_of_with_the_range_and_the_guides(
    method: Literal["lora", "full"], value: float, billions: float, words: tuple[str, ...]
) -> None:
    warning = learning_rate_warning(method=method, value=value, parameters=int(billions * BILLION))
    assert warning
    assert all(word in warning for word in words)


@pytest.mark.parametrize(
    ("method", "value", "billions"),
    [("lora", 5e-5, 7), ("lora", 1e-3, 7), ("lora", 2e-4, 0.1), ("full", 5e-5, 7), ("full", 1e-4, 0.5)],
)
def test_a_usual_rate_is_not_warned_of(method: Literal["lora", "full"], value: float, billions: float) -> None:
    assert learning_rate_warning(method=method, value=value, parameters=int(billions * BILLION)) is None


def test_a_learning_rate_tells_both_sides_and_how_far_its_evidence_reaches() -> None:
    choice = learning_rate(
        method="lora", parameters=8 * BILLION, is_quantized=False, rows=900, rows_a_step=8, hidden=4096
    )
    assert "the guide: 5e-5 to 2e-4" in choice.reason
    assert "100k rows of one set, batch 128, far from your 900 rows: try 1e-4 and 1e-3 too" in choice.reason
    assert "at r=16 the guide's 1e-4 cost 1.5 to 2.7 % of the loss" in choice.evidence
    assert "8 ask for 7e-05" in choice.evidence
    assert "2.9e-04 (Llama)" in choice.evidence
    many = learning_rate(method="lora", parameters=8 * BILLION, is_quantized=False, rows=100_000)
    assert "far from" not in many.reason


RUN = Situation("lora", 8 * BILLION, 270, 16_000, validation_rows=30, rank_weights=2_600_000)


@pytest.mark.parametrize(
    ("rows", "billions", "r"),
    [
        (100, 0.1, 16), (9_999, 70, 16), (10_000, 3.2, 64), (10_000, 4, 32), (99_999, 9, 32), (99_999, 27, 16),
        (100_000, 70, 64),
    ],
)  # fmt: skip
def test_the_rank_follows_rows_and_size(rows: int, billions: float, r: int) -> None:
    choice = rank(replace(RUN, rows=rows, parameters=int(billions * BILLION)))
    assert choice.value == r
    assert f"{rows:,} rows, {billions:.2g}B parameters: " in choice.reason


@pytest.mark.parametrize(("learned", "r"), [(32_000, 16), (32_001, 32), (128_000, 64), (10_000_000, 256)])
def test_the_rank_is_raised_until_two_bits_a_weight_hold_the_learned_tokens(learned: int, r: int) -> None:
    choice = rank(replace(RUN, learned_tokens=learned, rank_weights=1000))
    assert choice.value == r
    assert ("raised from 16" in choice.reason) == (r > 16)
    assert f"its {r},000 weights hold {2 * r},000 tokens" in choice.reason


def test_a_chosen_rank_is_even_so_that_an_orthogonal_start_can_halve_it() -> None:
    rows, learned = (1, 33, 9_999, 10_000, 100_000, 10**7), (1, 40_000, 10**7, 10**12)
    situations = (
        replace(RUN, rows=each, parameters=size, learned_tokens=tokens, rank_weights=1000)
        for each in rows
        for size in (10**6, 5 * BILLION, 70 * BILLION)
        for tokens in learned
    )
    assert all(int(rank(each).value) % 2 == 0 for each in situations)


def test_without_an_adapters_weights_the_rank_is_that_of_the_table() -> None:
    choice = rank(replace(RUN, learned_tokens=10**9, rank_weights=None))
    assert choice.value == 16
    assert "weights hold" not in choice.reason


def test_alphas_reason_is_what_it_multiplies_updates_by() -> None:
    assert "multiplied by 0.25, alpha / r" in lora_alpha(64).reason


@pytest.mark.parametrize(
    ("rows", "validation_rows", "epochs"),
    [
        (1, 0, 5), (4, 0, 5), (4, 1, 25), (10, 0, 5), (10, 2, 10), (25, 0, 4), (33, 0, 3), (34, 0, 3), (900, 100, 3),
        (8_333, 900, 3), (8_334, 900, 2), (12_500, 1000, 2), (12_501, 1000, 1), (1_000_000, 1000, 1),
    ],
)  # fmt: skip
def test_passes_are_three_more_over_a_handful_and_fewer_over_many(
    rows: int, validation_rows: int, epochs: float
) -> None:
    choice = num_train_epochs(replace(RUN, rows=rows, validation_rows=validation_rows))
    assert choice.value == epochs
    assert "openai-cookbook" in choice.reason
    assert "the guide" in choice.reason


def scheduled(epochs: float, steps_per_epoch: int, **more: Any) -> Situation:
    total = math.ceil(epochs * steps_per_epoch)
    return replace(RUN, epochs=epochs, steps_per_epoch=steps_per_epoch, total_steps=total, **more)


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "strategy", "steps", "saved"),
    [
        (3, 34, "epoch", 100, 500),
        (3, 500, "epoch", 100, 500),
        (3, 501, "steps", 150, 150),
        (2, 10_000, "steps", 2000, 2000),
        (1, 200, "epoch", 100, 500),
        (1, 201, "steps", 100, 100),
        (1, 3125, "steps", 310, 310),
    ],
)
def test_a_run_is_looked_at_and_saved_by_pass_or_about_ten_times(
    epochs: float, steps_per_epoch: int, strategy: str, steps: int, saved: int
) -> None:
    run = scheduled(epochs, steps_per_epoch)
    assert (eval_strategy(run).value, save_strategy(run).value) == (strategy, strategy)
    assert (eval_steps(run).value, save_steps(run).value) == (steps, saved)


def test_above_five_passes_the_best_weights_count_where_there_are_rows_to_tell_them_by() -> None:
    stopping = early_stopping_patience(scheduled(6, 10))
    assert stopping is not None
    assert stopping.value == 3
    assert load_best_model_at_end(scheduled(6, 10)).value is True
    assert load_best_model_at_end(scheduled(5, 10)).value is False
    assert early_stopping_patience(scheduled(5, 10)) is None
    assert load_best_model_at_end(scheduled(6, 10, validation_rows=0)).value is False
    assert early_stopping_patience(scheduled(6, 10, validation_rows=0)) is None


def test_the_batch_is_told_in_rows_and_the_decay_in_what_it_does() -> None:
    assert gradient_accumulation_steps(scheduled(3, 34), 4).reason.startswith("8 rows a step, 102 steps: ")
    # 2e-4 falling to 0 over 200 steps, times 0.01: 0.02 % of a weight.
    assert "by 0.0002 of itself in 200 steps" in weight_decay(scheduled(1, 200), 2e-4).reason


def test_alpha_and_decay_are_told_for_the_runs_own_rank_and_rate() -> None:
    told = {
        choice.name: choice.reason for choice in recommendations(scheduled(1, 200), accumulation=4, r=2, rate=1e-3)
    }
    assert "multiplied by 8, alpha / r" in told["adapter.lora_alpha"]
    assert "by 0.001 of itself" in told["training.weight_decay"]


def test_a_choice_that_hangs_on_the_schedule_is_not_made_before_it() -> None:
    with pytest.raises(ValueError, match="hangs on epochs"):
        eval_strategy(RUN)


def test_the_optimizer_needs_no_extra_package_and_steps_as_plain_adamw_does() -> None:
    """On the CPU, fused and plain AdamW give the same weights."""
    import torch

    choice = optimizer()
    assert choice.value == "adamw_torch_fused"
    results: list[Any] = []
    for fused in (True, False):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(50))
        adamw = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.01, fused=fused)
        for step in range(5):
            (weight * math.sin(step + 1)).square().sum().backward()
            adamw.step()
            adamw.zero_grad()
        results.append(weight.detach())
    assert torch.allclose(results[0], results[1], atol=1e-6)
