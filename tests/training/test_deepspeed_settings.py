"""A DeepSpeed config beside a run's settings: "auto" takes the run's values, and what contradicts them is refused."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from truetune.errors import BackendError, ConfigError
from truetune.training.deepspeed_settings import PRESETS, RunSettings, require_deepspeed, settle

RUN = RunSettings(
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,
    num_processes=3,
    max_grad_norm=1.0,
    learning_rate=1e-4,
    weight_decay=0.01,
    adam_betas=(0.9, 0.999),
    adam_epsilon=1e-8,
    optim="adamw_torch_fused",
    lr_scheduler_type="constant_with_warmup",
    warmup_steps=5,
    total_steps=50,
    precision="bf16",
    hidden=64,
)

HUGGING_FACE: dict[str, Any] = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
    },
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "none", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
"""The example for ZeRO 3 in transformers' documentation."""


def _with(name: str, value: Any, document: Mapping[str, Any] = HUGGING_FACE) -> dict[str, Any]:
    """A copy of the document with this value behind a dotted key."""
    copied = json.loads(json.dumps(document))
    *above, last = name.split(".")
    node = copied
    for step in above:
        node = node.setdefault(step, {})
    node[last] = value
    return copied


def _refusal(document: Mapping[str, Any], run: RunSettings = RUN) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        settle(document, run)
    return caught.value


def test_auto_takes_the_run_s_own_values() -> None:
    document = settle(HUGGING_FACE, RUN).document
    assert document["train_micro_batch_size_per_gpu"] == 2
    assert document["gradient_accumulation_steps"] == 4
    assert document["gradient_clipping"] == 1.0
    assert "auto" not in json.dumps(document)


def test_sizes_that_are_auto_follow_the_model_s_width_as_in_transformers() -> None:
    zero = settle(HUGGING_FACE, RUN).document["zero_optimization"]
    assert zero["reduce_bucket_size"] == 64 * 64
    assert zero["stage3_prefetch_bucket_size"] == int(0.9 * 64 * 64)
    assert zero["stage3_param_persistence_threshold"] == 640


def test_what_deepspeed_s_own_settings_say_is_passed_on_as_it_is() -> None:
    document = settle(_with("zero_optimization.stage3_max_live_parameters", 12345), RUN).document
    assert document["zero_optimization"]["stage3_max_live_parameters"] == 12345
    assert document["zero_optimization"]["sub_group_size"] == 1e9
    assert document["zero_optimization"]["offload_optimizer"] == {"device": "none", "pin_memory": True}


def test_optimizer_and_schedule_are_the_run_s_and_do_not_reach_deepspeed() -> None:
    document = settle(HUGGING_FACE, RUN).document
    assert not {"optimizer", "scheduler", "train_batch_size"} & document.keys()
    assert document["communication_data_type"] == "fp32"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_config_of_its_stage(name: str) -> None:
    assert settle(PRESETS[name], RUN).stage == int(name[-1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_micro_batch_size_per_gpu", 2),
        ("gradient_accumulation_steps", 4),
        ("train_batch_size", 24),
        ("gradient_clipping", 1),
        ("optimizer.params.lr", 0.0001),
        ("optimizer.params.betas", [0.9, 0.999]),
        ("optimizer.type", "Adam"),
        ("scheduler.params.warmup_num_steps", 5),
        ("bf16.enabled", True),
        ("fp16.enabled", False),
    ],
)
def test_a_value_that_is_the_run_s_own_is_taken(name: str, value: Any) -> None:
    assert settle(_with(name, value), RUN).stage == 3


@pytest.mark.parametrize(
    ("name", "value", "setting"),
    [
        ("train_micro_batch_size_per_gpu", 8, "training.per_device_train_batch_size (2)"),
        ("gradient_accumulation_steps", 1, "training.gradient_accumulation_steps (4)"),
        ("train_batch_size", 8, "batch × accumulation × processes (24)"),
        ("gradient_clipping", 0.5, "training.max_grad_norm (1.0)"),
        ("bf16.enabled", False, "training.precision bf16"),
        ("fp16.enabled", True, "training.precision bf16"),
        ("optimizer.params.lr", 3e-5, "training.learning_rate (0.0001)"),
        ("optimizer.params.betas", [0.8, 0.999], "adam_beta1"),
        ("optimizer.params.eps", 1e-6, "training.adam_epsilon"),
        ("optimizer.params.weight_decay", 0, "training.weight_decay (0.01)"),
        ("optimizer.params.adam_w_mode", False, "AdamW"),
        ("optimizer.type", "Lion", "training.optim (adamw_torch_fused)"),
        ("scheduler.type", "WarmupDecayLR", "training.lr_scheduler_type (constant_with_warmup)"),
        ("scheduler.type", "OneCycle", "training.lr_scheduler_type"),
        ("scheduler.params.warmup_num_steps", 50, "training.warmup_ratio or warmup_steps (5)"),
        ("scheduler.params.total_num_steps", 49, "the run's steps (50)"),
        ("scheduler.params.warmup_type", "log", "the schedule (linear)"),
    ],
)
def test_a_value_that_contradicts_the_run_is_refused_by_its_key(name: str, value: Any, setting: str) -> None:
    error = _refusal(_with(name, value))
    assert error.message.startswith(f"training.deepspeed: {name} = {value} contradicts")
    assert setting in error.message
    assert "auto" in (error.hint or "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("amp", {"enabled": True, "opt_level": "O1"}),
        ("communication_data_type", "fp16"),
        ("activation_checkpointing", {"partition_activations": True}),
        ("curriculum_learning", {"enabled": True}),
        ("tensor_parallel", {"autotp_size": 2}),
        ("sequence_parallel_size", 2),
        ("wandb", {"enabled": True}),
        ("zero_optimization.zero_quantized_gradients", True),
        ("zero_optimization.zero_quantized_weights", True),
    ],
)
def test_what_would_train_another_run_is_refused(name: str, value: Any) -> None:
    assert _refusal(_with(name, value)).message.startswith(f"training.deepspeed: {name}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("amp", {"enabled": False}),
        ("communication_data_type", None),
        ("sequence_parallel_size", 1),
        ("zero_optimization.zero_quantized_gradients", False),
        ("tensorboard", {"enabled": False, "output_path": "x"}),
    ],
)
def test_what_is_off_is_not_refused_and_does_not_reach_deepspeed(name: str, value: Any) -> None:
    document: Any = settle(_with(name, value), RUN).document
    *above, last = name.split(".")
    for step in above:
        document = document[step]
    assert document.get(last) in (None, "fp32")


def test_all_problems_are_told_at_once() -> None:
    document = _with("gradient_clipping", 9, _with("train_batch_size", 7))
    assert len(_refusal(document).message.splitlines()) == 2


def test_a_key_that_deepspeed_does_not_know_is_told_with_a_suggestion() -> None:
    assert (
        "zero_optimisation: unknown key (did you mean zero_optimization?)"
        in _refusal({"zero_optimisation": {"stage": 2}}).message
    )


@pytest.mark.parametrize("stage", [None, 0, 4, "3"])
def test_a_config_that_splits_nothing_is_refused(stage: Any) -> None:
    assert "zero_optimization.stage" in _refusal({"zero_optimization": {"stage": stage}}).message


def test_fp16_is_refused() -> None:
    run = replace(RUN, precision="fp16")
    assert "use bf16 or fp32" in _refusal(PRESETS["zero2"], run).message


@pytest.mark.parametrize("optim", ["adafactor", "adamw_8bit", "paged_lion_32bit"])
def test_an_optimizer_that_needs_whole_weights_is_refused(optim: str) -> None:
    assert f"training.optim: {optim}" in _refusal(PRESETS["zero2"], replace(RUN, optim=optim)).message


def test_nvme_is_refused_and_cpu_is_not() -> None:
    name = "zero_optimization.offload_optimizer.device"
    assert "nvme" in _refusal(_with(name, "nvme")).message
    assert settle(_with(name, "cpu"), RUN).stage == 3


def test_a_size_that_cannot_be_auto_is_refused() -> None:
    assert (
        "stage3_max_live_parameters cannot be auto"
        in _refusal(_with("zero_optimization.stage3_max_live_parameters", "auto")).message
    )


def test_without_a_warm_up_the_single_step_that_transformers_writes_is_taken() -> None:
    run = replace(RUN, warmup_steps=0)
    assert settle(_with("scheduler.params.warmup_num_steps", 1), run).stage == 3


def test_a_schedule_that_rises_otherwise_than_deepspeed_s_own_is_told() -> None:
    assert "logarithm" in settle(HUGGING_FACE, RUN).notes[0]
    assert settle(_with("scheduler.params.warmup_type", "linear"), RUN).notes == ()


def test_the_given_config_is_left_as_it_was() -> None:
    before = json.dumps(HUGGING_FACE)
    settle(HUGGING_FACE, RUN)
    assert json.dumps(HUGGING_FACE) == before


def test_a_missing_package_is_told_with_its_install_line() -> None:
    with pytest.raises(BackendError) as caught:
        require_deepspeed(is_installed=False)
    assert "pip install 'truetune[deepspeed]'" in (caught.value.hint or "")
    require_deepspeed(is_installed=True)
