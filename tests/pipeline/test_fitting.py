"""What makes a run fit: the cheapest changes, and none too many. The machine's free memory is made up."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from transformers import LlamaConfig

from truetune.config.load import load_config
from truetune.config.schema import Config
from truetune.listener import LogListener
from truetune.pipeline.fitting import Change, fitting_changes, settings_of
from truetune.pipeline.machine import Machine, Place, ask_machine
from truetune.pipeline.workload import Longest, memory_of

LONGEST = Longest(row=900, sequence=900)
LENGTHS = list(range(1, 901))
CHEAPEST_FIRST = (
    "training.gradient_checkpointing",
    "training.optim",
    "model.load_in_4bit",
    "training.per_device_train_batch_size",
    "data.max_length",
)


def decided(**settings: Any) -> Config:
    """A config as a plan leaves it: nothing is automatic."""
    given = {
        "model.name_or_path": "base",
        "gradient_checkpointing": False,
        "optim": "adamw_torch_fused",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 3,
        **settings,
    }
    return load_config(settings=given).config


LORA, FULL = decided(r=256), decided(**{"adapter.method": "full"})


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A GPU beside a Llama of some hundred million weights, of which there is the configuration alone."""
    folder = tmp_path_factory.mktemp("base")
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "vocab_size": 32_000}
    LlamaConfig(**sizes, architectures=["LlamaForCausalLM"], dtype="bfloat16").save_pretrained(folder)
    config = decided(**{"model.name_or_path": str(folder)})
    place = Place("a card", 10**12, has_native_bf16=True)
    return ask_machine(config, LogListener(), place=place, with_tokenizer=False)


def changed(config: Config, machine: Machine, settings: dict[str, Any]) -> tuple[Config, Machine, Longest]:
    """The run with these settings, put together by other means than the code under test."""
    config = load_config(settings={**_flat(config), **settings}).config
    quantization = "4bit" if config.model.load_in_4bit else "none"
    limit = settings.get("data.max_length", LONGEST.row)
    return config, replace(machine, quantization=quantization), Longest(limit, limit)


def _flat(config: Config) -> dict[str, Any]:
    names = ("gradient_checkpointing", "optim", "per_device_train_batch_size", "gradient_accumulation_steps")
    training = {f"training.{name}": getattr(config.training, name) for name in names}
    return {
        "model.name_or_path": "base",
        "adapter.method": config.adapter.method,
        "adapter.r": config.adapter.r,
        **training,
    }


def peak(config: Config, machine: Machine, settings: dict[str, Any]) -> int:
    return memory_of(*changed(config, machine, settings)).peak


def changes_for(
    config: Config, machine: Machine, free: int, lengths: Sequence[int] = LENGTHS
) -> tuple[Change, ...] | None:
    return fitting_changes(config, replace(machine, free_memory=free), LONGEST, lengths)


def shares(config: Config, machine: Machine) -> list[int]:
    """Free memories from all that the run takes down to a twentieth of it."""
    most = memory_of(config, machine, LONGEST).peak
    return [most * share // 60 for share in range(60, 2, -1)]


@pytest.mark.parametrize("config", [LORA, FULL], ids=["lora", "full"])
def test_what_is_proposed_fits_and_no_change_may_be_left_out(config: Config, machine: Machine) -> None:
    found = {free: changes_for(config, machine, free) for free in shares(config, machine)}
    proposed = {free: changes for free, changes in found.items() if changes}
    assert len({tuple(settings_of(changes)) for changes in proposed.values()}) >= 4
    for free, changes in proposed.items():
        settings = settings_of(changes)
        assert peak(config, machine, settings) <= free
        for change in changes:
            fewer = {name: value for name, value in settings.items() if name not in change.settings}
            assert peak(config, machine, fewer) * 1.1 > free, (free, settings, change)
        assert sum(change.saves for change in changes) == peak(config, machine, {}) - peak(config, machine, settings)


@pytest.mark.parametrize("config", [LORA, FULL], ids=["lora", "full"])
def test_the_dearest_change_never_gets_cheaper_as_memory_gets_less(config: Config, machine: Machine) -> None:
    found = [changes_for(config, machine, free) for free in shares(config, machine)]
    lost = [None if changes is None else "data.max_length" in settings_of(changes) for changes in found]
    assert lost == sorted(lost, key=[False, True, None].index)
    quantized = [bool(changes) and "model.load_in_4bit" in settings_of(changes) for changes in found if changes]
    assert quantized == sorted(quantized)
    for changes in filter(None, found):
        names = [next(iter(change.settings)) for change in changes]
        assert names == sorted(names, key=CHEAPEST_FIRST.index)
        assert all(change.costs for change in changes)


def test_a_batch_keeps_its_rows_a_step_and_checkpointing_comes_next(machine: Machine) -> None:
    config = decided(r=8, per_device_train_batch_size=1)
    with_it = peak(config, machine, {"training.gradient_checkpointing": True})
    [only] = changes_for(config, machine, round(with_it * 1.11)) or ()
    assert only.settings == {"training.gradient_checkpointing": True}
    assert only.saves == peak(config, machine, {}) - with_it
    small = decided(r=8)
    halved = {"training.per_device_train_batch_size": 4, "training.gradient_accumulation_steps": 6}
    [batch] = changes_for(small, machine, round(peak(small, machine, halved) * 1.11)) or ()
    assert batch.settings == halved


def test_shorter_rows_are_counted_as_they_are_lost(machine: Machine) -> None:
    found = [changes_for(LORA, machine, free) for free in shares(LORA, machine)]
    [*_, last] = next(changes for changes in found if changes and "data.max_length" in settings_of(changes))
    limit = last.settings["data.max_length"]
    assert last.costs.startswith(f"{900 - limit:,} of 900 rows are longer")
    assert 64 <= limit < 900


def test_a_run_that_fits_needs_nothing_and_nothing_helps_where_the_base_alone_does_not_fit(machine: Machine) -> None:
    most = memory_of(LORA, machine, LONGEST).peak
    assert changes_for(LORA, machine, most) == ()
    assert fitting_changes(LORA, replace(machine, free_memory=None), LONGEST, LENGTHS) == ()
    assert changes_for(LORA, machine, 50_000_000) is None
    assert changes_for(FULL, machine, 50_000_000) is None


def test_all_weights_are_never_quantised_to_train_them(machine: Machine) -> None:
    found = [changes_for(FULL, machine, free) for free in shares(FULL, machine)]
    assert not any("model.load_in_4bit" in settings_of(changes) for changes in filter(None, found))
    assert any("training.optim" in settings_of(changes) for changes in filter(None, found))
