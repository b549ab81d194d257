"""How several processes hold the model: decided by what a device has free, and refused where it cannot be done."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import arithmetic_rows, write_jsonl
from truetune.config.load import load_config
from truetune.config.schema import Config
from truetune.errors import BackendError, ConfigError
from truetune.listener import LogListener
from truetune.pipeline.job import train_job
from truetune.pipeline.machine import Machine, ask_machine
from truetune.pipeline.plan import decided_without_rows, keep_decisions
from truetune.pipeline.strategy import strategy_choice
from truetune.pipeline.workload import Longest, memory_of

LONGEST = Longest(64, 64)


@pytest.fixture
def given(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))
    rows = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(8))
    full = {"adapter.method": "full", "training.optim": "adamw_torch", "training.gradient_checkpointing": False}
    return {"model.name_or_path": str(tiny_base), "data.path": str(rows), "training.precision": "fp32", **full}


def _dotted(name: str) -> str:
    return name.replace("__", ".") if "__" in name else f"training.{name}"


def met(given: dict[str, Any], **settings: Any) -> tuple[Config, Machine]:
    """A config, and a machine of two processes, on GPUs of which nothing is known."""
    named = {_dotted(name): each for name, each in settings.items()}
    config = load_config({**given, "training.num_processes": 2, **named}).config
    return config, replace(ask_machine(config, LogListener()), device="cuda", free_memory=None)


def chosen(config: Config, machine: Machine) -> tuple[str, str] | None:
    (*choices,) = strategy_choice(config, machine, LONGEST)
    return (str(choices[0].value), choices[0].reason) if choices else None


def with_room(machine: Machine, config: Config, *, times: float) -> Machine:
    """The machine with so many times what training the whole model takes."""
    return replace(machine, free_memory=round(times * memory_of(config, machine, LONGEST).peak))


def test_a_model_that_fits_each_device_is_held_whole(given: dict[str, Any]) -> None:
    config, machine = met(given)
    strategy, reason = chosen(config, with_room(machine, config, times=1.3)) or ("", "")
    assert strategy == "ddp"
    assert "free on each device" in reason


def test_one_that_does_not_is_shared_out_and_told_with_both_figures(given: dict[str, Any]) -> None:
    config, machine = met(given)
    strategy, reason = chosen(config, with_room(machine, config, times=1.2)) or ("", "")
    assert strategy == "fsdp"
    assert reason.endswith("with the model shared out")


def test_what_cannot_be_shared_out_stays_whole_and_that_is_told(given: dict[str, Any]) -> None:
    config, machine = met(given, optim="adafactor")
    strategy, reason = chosen(config, with_room(machine, config, times=0.5)) or ("", "")
    assert strategy == "ddp"
    assert "fsdp cannot help (training.optim: adafactor looks at whole weights" in reason


def test_one_process_has_nothing_to_choose_and_several_have_as_asked(given: dict[str, Any]) -> None:
    config, machine = met(given)
    assert chosen(config, replace(machine, num_processes=1, free_memory=1)) is None
    decided, _ = decided_without_rows(config, replace(machine, num_processes=1), LONGEST)
    assert decided.training.strategy == "ddp"
    for asked in ("ddp", "fsdp"):
        config, machine = met(given, strategy=asked)
        assert chosen(config, machine) is None


def test_shares_in_the_cpus_memory_mean_fsdp(given: dict[str, Any]) -> None:
    config, machine = met(given, fsdp_cpu_offload=True)
    assert chosen(config, replace(machine, free_memory=10**15)) == ("fsdp", "training.fsdp_cpu_offload is its")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"torch_compile": True}, "training.torch_compile"),
        ({"activation_offloading": True}, "training.activation_offloading"),
        ({"optim": "adamw_8bit"}, "training.optim"),
        ({"precision": "fp16"}, "training.precision"),
        ({"backend": "unsloth"}, "training.backend"),
        ({"adapter__method": "lora", "adapter__init_lora_weights": "pissa"}, "adapter.init_lora_weights"),
        ({"adapter__method": "lora", "model__load_in_8bit": True}, "model.load_in_8bit"),
        ({"adapter__method": "lora", "adapter__target_parameters": ["experts"]}, "adapter.target_parameters"),
    ],
)
def test_what_does_not_go_with_fsdp_is_refused_with_the_config(
    given: dict[str, Any], settings: dict[str, Any], name: str
) -> None:
    with pytest.raises(ConfigError, match=f"training.strategy: fsdp does not go with {name}: "):
        met(given, strategy="fsdp", **settings)


def test_the_optimizer_of_an_adapter_may_be_any(given: dict[str, Any]) -> None:
    config, _ = met(given, adapter__method="lora", strategy="fsdp", optim="adafactor")
    assert config.training.strategy == "fsdp"


def test_offloading_without_shares_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"training.fsdp_cpu_offload needs training.strategy: fsdp"):
        met(given, strategy="ddp", fsdp_cpu_offload=True)


def test_what_only_the_machine_knows_is_refused_before_weights_load(given: dict[str, Any]) -> None:
    config, machine = met(given, strategy="fsdp")
    with pytest.raises(BackendError, match="fsdp cannot train this model: PyTorch shares nothing out on mps"):
        chosen(config, replace(machine, device="mps"))


def test_a_device_holds_its_share_and_what_is_at_hand(given: dict[str, Any]) -> None:
    whole, machine = met(given)
    shared, _ = met(given, strategy="fsdp")
    offloaded, _ = met(given, strategy="fsdp", fsdp_cpu_offload=True)
    parts = [memory_of(each, machine, LONGEST).parts for each in (whole, shared, offloaded)]
    assert [each["optimizer"] for each in parts] == [parts[0]["optimizer"], parts[0]["optimizer"] / 2, 0]
    assert [each["gradients"] for each in parts] == [parts[0]["gradients"], parts[0]["gradients"] // 2, 0]
    assert parts[0]["weights"] // 2 < parts[1]["weights"]
    assert parts[1]["weights"] - parts[2]["weights"] == parts[0]["weights"] // 2


def test_of_an_adapter_the_base_alone_is_shared_out(given: dict[str, Any]) -> None:
    lora = {"adapter__method": "lora", "training__gradient_checkpointing": False}
    whole, machine = met(given, **lora)
    shared, _ = met(given, strategy="fsdp", **lora)
    one, other = (memory_of(each, machine, LONGEST).parts for each in (whole, shared))
    for name in ("adapters", "gradients", "optimizer", "activations"):
        assert one[name] == other[name] > 0


def test_the_strategy_of_a_run_that_goes_on_is_decided_anew(given: dict[str, Any]) -> None:
    config, _ = met(given)
    before, _ = met(given, strategy="ddp")
    assert keep_decisions(config, before).training.strategy == "auto"


def test_a_job_has_the_strategy_of_its_plan(given: dict[str, Any], tmp_path: Path) -> None:
    from truetune.pipeline.check import prepare_for
    from truetune.pipeline.plan import plan_run

    config, machine = met(given, strategy="fsdp", fsdp_cpu_offload=True)
    prepared = prepare_for(machine, config, source=None, formatting=None, listener=LogListener())
    plan = plan_run(config, machine=machine, prepared=prepared)
    job = train_job(plan, machine=machine, checkpoints=tmp_path, is_padding_free=True)
    assert (job.strategy, job.fsdp_cpu_offload) == ("fsdp", True)


# --- DeepSpeed ----------------------------------------------------------------------------------------------


@pytest.fixture
def _has_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truetune.pipeline.zero.metadata_has", lambda package: True)


@pytest.mark.usefixtures("_has_deepspeed")
def test_deepspeed_s_settings_ask_for_deepspeed(given: dict[str, Any]) -> None:
    config, machine = met(given, deepspeed="zero2")
    assert chosen(config, machine) == ("deepspeed", "training.deepspeed is set")


@pytest.mark.usefixtures("_has_deepspeed")
@pytest.mark.parametrize(("times", "stage"), [(1.3, "zero2"), (0.5, "zero3")])
def test_without_settings_it_shares_out_weights_where_states_are_not_enough(
    given: dict[str, Any], times: float, stage: str
) -> None:
    config, machine = met(given, strategy="deepspeed")
    shared_out = memory_of(met(given, strategy="deepspeed", deepspeed="zero2")[0], machine, LONGEST).peak
    value, reason = chosen(config, replace(machine, free_memory=round(times * shared_out))) or ("", "")
    assert value == stage
    assert "with gradients and states shared out each device needs about" in reason


@pytest.mark.usefixtures("_has_deepspeed")
def test_the_plan_knows_what_zero_shares_out(given: dict[str, Any]) -> None:
    config, machine = met(given)
    whole, *shared = (
        memory_of(each, machine, LONGEST)
        for each in (config, *(met(given, strategy="deepspeed", deepspeed=stage)[0] for stage in ("zero2", "zero3")))
    )
    assert [each.optimizer for each in shared] == [whole.optimizer // 2] * 2
    assert [each.gradients for each in shared] == [whole.gradients // 2] * 2
    assert shared[0].weights == whole.weights


@pytest.mark.usefixtures("_has_deepspeed")
def test_a_mixture_is_refused_by_deepspeed(given: dict[str, Any]) -> None:
    config, machine = met(given, strategy="deepspeed")
    mixture = replace(machine, shape=replace(machine.shape, blocks="mixture"))
    with pytest.raises(BackendError, match="deepspeed cannot train this model"):
        chosen(config, mixture)
