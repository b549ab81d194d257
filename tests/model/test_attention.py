"""Whether samples that stand end to end stay apart is found out by trying, on the model itself."""

from pathlib import Path

import pytest
import torch

from conftest import tiny_model
from tiny_runs import ISOLATING, LEAKING, architecture
from truetune.model.attention import isolates_samples
from truetune.model.load import ModelOptions, load_model
from truetune.model.source import resolve_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ISOLATING)
def test_g17_these_architectures_keep_samples_apart(name: str, dtype: torch.dtype) -> None:
    assert isolates_samples(architecture(name).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", LEAKING)
def test_g17_these_let_samples_see_each_other_and_are_found_out(name: str, dtype: torch.dtype) -> None:
    assert not isolates_samples(architecture(name).to(dtype))


def test_g17_an_attention_that_was_told_to_ignore_positions_is_found_out() -> None:
    model = tiny_model()
    forward = model.forward
    model.forward = lambda position_ids, **inputs: forward(**inputs)
    assert not isolates_samples(model)


def test_g17_a_model_whose_forward_takes_no_positions_cannot_keep_samples_apart() -> None:
    model = tiny_model()
    forward = model.forward
    model.forward = lambda input_ids, use_cache: forward(input_ids=input_ids, use_cache=use_cache)
    assert not isolates_samples(model)


def test_g17_a_model_in_which_nothing_shows_through_either_way_is_not_trusted() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert not isolates_samples(model)


def test_g17_the_outliers_of_int8_which_span_a_batch_are_no_leak(tiny_base: Path) -> None:
    model = load_model(resolve_model(str(tiny_base)), ModelOptions("float32", "cpu", "8bit"))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "layernorm" in name:
                value.fill_(5.0)  # many activations beyond the outlier threshold of 6
    layers = [module for module in model.modules() if type(module).__name__ == "Linear8bitLt"]
    assert {layer.state.threshold for layer in layers} == {6.0}
    assert isolates_samples(model)
    assert {layer.state.threshold for layer in layers} == {6.0}


def test_g17_a_4_bit_base_keeps_samples_apart(tiny_base: Path) -> None:
    assert isolates_samples(load_model(resolve_model(str(tiny_base)), ModelOptions("float32", "cpu", "4bit")))


def test_the_probe_leaves_the_model_as_it_was() -> None:
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    isolates_samples(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
