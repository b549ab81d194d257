"""What `auto` chooses, with its reason, and when a learning rate of the user's own is warned of."""

import math
from typing import Any, Literal

import pytest

from truetune.planning.hyperparameters import (
    BILLION,
    learning_rate,
    learning_rate_warning,
    optimizer,
)


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
