"""DeepSpeed's config beside a run's own settings: what has to agree, what is filled in, what cannot be had.

The names are those of Hugging Face's configs, in which "auto" takes the run's own value (transformers 5.24,
integrations/deepspeed.py; DeepSpeed 0.19, runtime/config.py). Nothing heavy is imported here.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from truetune.errors import BackendError, ConfigError

NAME = "training.deepspeed"

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "zero2": {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}},
    "zero3": {
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
        }
    },
}
"""ZeRO 2 splits gradients and the optimizer's state over the processes, ZeRO 3 the weights too."""

ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Optimizers that treat each number by itself: ZeRO gives them pieces of weights, of which the shape is lost."""

_STAGES = (1, 2, 3)
_NEVER = 1_000_000_000
_SCHEDULES = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
"""DeepSpeed's schedules, and what transformers calls them."""

_OURS = "is truetune's part"
_REFUSED: Mapping[str, str] = {
    "amp": "Apex is not supported: set training.precision",
    "torch_autocast": f"precision {_OURS}: set training.precision",
    "communication_data_type": "gradients are added up in fp32",
    "data_types": f"precision {_OURS}: set training.precision and model.dtype",
    "gradient_allreduce_op": "gradients are added up, not averaged",
    "sparse_gradients": "gradients are dense",
    "pipeline": "layers are not spread over devices in a row",
    "tensor_parallel": "a layer stays on one device, or is gathered there",
    "sequence_parallel_size": "a row stays on one device: packed rows would no longer be kept apart",
    "expert_parallel": "a mixture's experts stay with their layer",
    "activation_checkpointing": f"it {_OURS}: set training.gradient_checkpointing",
    "curriculum_learning": "rows are always shuffled, by training.seed",
    "data_efficiency": "rows are always shuffled, by training.seed",
    "progressive_layer_drop": "every layer is trained in every step",
    "compression_training": "weights are not compressed while they learn",
    "weight_quantization": "weights are not compressed while they learn",
    "quantize_training": "weights are not compressed while they learn",
    "sparse_attention": "attention is the model's own",
    "eigenvalue": "it belongs to quantised training",
    "elasticity": "a run goes on in another number of processes by --resume",
    "autotuning": "truetune plan says what fits",
    "hybrid_engine": "it belongs to reinforcement learning",
    "zero_optimization.zero_quantized_gradients": "rounded gradients would not add up to those of one process",
    "zero_optimization.zero_quantized_weights": "rounded weights are other weights",
    "zero_optimization.zero_quantized_nontrainable_weights": "set model.load_in_4bit for a base in few bits",
    "zero_optimization.zeropp_loco_param": "rounded gradients would not add up to those of one process",
    "zero_optimization.zenflow": "it takes steps with gradients of another step",
    "zero_optimization.mics_shard_size": "MiCS has not been tried",
    **dict.fromkeys(
        ("tensorboard", "wandb", "comet", "csv_monitor"), "trackers hear of it from truetune: logging.report_to"
    ),
}
"""Keys that would train another run, or do what truetune does; what is off, or null, is not refused."""

_REPLACED = ("optimizer", "scheduler", "fp16", "train_batch_size", "steps_per_print", *_REFUSED)
"""What does not reach DeepSpeed: it agrees with the run, which does it, or is off."""

_KNOWN = (
    *("zero_optimization", "bf16", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("gradient_clipping", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "wall_clock_breakdown"),
    *("prescale_gradients", "gradient_predivide_factor", "memory_breakdown", "dump_state", "comms_logger"),
    *("flops_profiler", "aio", "checkpoint", "disable_allgather", "log_level", "timers", "dataloader_drop_last"),
    *(name for name in _REPLACED if "." not in name),
)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run has decided of that which a DeepSpeed config may say too. `hidden` is the width of the model."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_processes: int
    max_grad_norm: float
    learning_rate: float
    weight_decay: float
    adam_betas: tuple[float, float]
    adam_epsilon: float
    optim: str
    lr_scheduler_type: str
    warmup_steps: int
    total_steps: int
    precision: str
    hidden: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What DeepSpeed is told, without an "auto", and what differs from DeepSpeed's own ways in words."""

    document: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def stage(self) -> int:
        """ZeRO's."""
        return int(self.document["zero_optimization"]["stage"])


def require_deepspeed(*, is_installed: bool) -> None:
    """BackendError, before anything loads, without the package."""
    if not is_installed:
        raise BackendError(
            "training.strategy: deepspeed needs DeepSpeed, which is not installed",
            hint="run: pip install 'truetune[deepspeed]', or set training.strategy to auto",
        )


def settle(given: Mapping[str, Any], run: RunSettings) -> Settled:
    """DeepSpeed's config for the run. ConfigError with a line for each key that contradicts it, or is not known."""
    if problems := [*_unknown(given), *_refused(given), *_disagreeing(given, run), *_unfit(given, run)]:
        raise ConfigError("\n".join(f"{NAME}: {problem}" for problem in problems), hint=_remedy(problems))
    return Settled(_filled(given, run), tuple(_notes(given)))


def _remedy(problems: Sequence[str]) -> str | None:
    return 'write "auto" there, or leave it out: it takes the run\'s own value' if _differs(problems) else None


def _differs(problems: Sequence[str]) -> bool:
    return any(" contradicts " in problem for problem in problems)


# --- what cannot be had -----------------------------------------------------------------------------------


def _unknown(given: Mapping[str, Any]) -> Iterator[str]:
    """DeepSpeed itself passes over keys that it does not know."""
    for name in given:
        if name not in _KNOWN:
            close = difflib.get_close_matches(name, _KNOWN, n=1)
            yield f"{name}: unknown key" + (f" (did you mean {close[0]}?)" if close else "")


def _refused(given: Mapping[str, Any]) -> Iterator[str]:
    for name, reason in _REFUSED.items():
        if _is_on(_at(given, name)):
            yield f"{name}: {reason}"


def _is_on(value: Any) -> bool:
    """True of what asks for something: not of false, null, zero, nothing, or a section that is not enabled."""
    match value:
        case Mapping():
            return bool(value) and value.get("enabled", True) is not False
        case int() | float() if not isinstance(value, bool):
            return value > 1
        case _:
            return bool(value)


def _unfit(given: Mapping[str, Any], run: RunSettings) -> Iterator[str]:
    """What agrees with the run, and cannot be done all the same."""
    stage = _at(given, "zero_optimization.stage")
    if stage not in _STAGES:
        said = "is missing" if stage is None else f"is {stage}"
        yield f"zero_optimization.stage {said}: 1, 2 or 3 split something, training.strategy: ddp nothing"
    if run.precision == "fp16":
        yield "training.precision is fp16, which DeepSpeed scales in its own way: use bf16 or fp32"
    if run.optim not in ELEMENTWISE:
        yield f"training.optim: {run.optim} needs whole weights, and ZeRO gives it pieces: use {ELEMENTWISE[0]}"
    for part in ("offload_optimizer", "offload_param"):
        if _at(given, f"zero_optimization.{part}.device") == "nvme":
            yield f"zero_optimization.{part}.device: nvme has not been tried: use cpu"


# --- what has to agree ------------------------------------------------------------------------------------


def _agreements(run: RunSettings) -> Iterator[tuple[str, Any, str]]:
    """A key of DeepSpeed's, the run's own value, and where that comes from."""
    batch, accumulated = run.per_device_train_batch_size, run.gradient_accumulation_steps
    yield "train_micro_batch_size_per_gpu", batch, "training.per_device_train_batch_size"
    yield "gradient_accumulation_steps", accumulated, "training.gradient_accumulation_steps"
    yield "train_batch_size", batch * accumulated * run.num_processes, "batch × accumulation × processes"
    yield "gradient_clipping", run.max_grad_norm, "training.max_grad_norm"
    yield "bf16.enabled", run.precision == "bf16", f"training.precision {run.precision}"
    yield "fp16.enabled", run.precision == "fp16", f"training.precision {run.precision}"
    yield "optimizer.params.lr", run.learning_rate, "training.learning_rate"
    yield "optimizer.params.betas", list(run.adam_betas), "training.adam_beta1 and adam_beta2"
    yield "optimizer.params.eps", run.adam_epsilon, "training.adam_epsilon"
    yield "optimizer.params.weight_decay", run.weight_decay, "training.weight_decay"
    yield "optimizer.params.adam_w_mode", True, "AdamW"
    yield "scheduler.params.warmup_min_lr", 0, "the schedule"
    yield "scheduler.params.warmup_max_lr", run.learning_rate, "training.learning_rate"
    # DeepSpeed takes no warm-up of 0 steps; transformers writes 1 then.
    yield "scheduler.params.warmup_num_steps", max(1, run.warmup_steps), "training.warmup_ratio or warmup_steps"
    yield "scheduler.params.total_num_steps", run.total_steps, "the run's steps"
    yield "scheduler.params.warmup_type", "linear", "the schedule"


def _disagreeing(given: Mapping[str, Any], run: RunSettings) -> Iterator[str]:
    for name, own, source in _agreements(run):
        said = _at(given, name)
        if said is not None and not _is_same(said, own):
            yield f"{name} = {said} contradicts {source} ({own})"
    kind = _at(given, "optimizer.type")
    if kind is not None and not (str(kind).lower() in ("adam", "adamw") and run.optim.startswith("adamw_torch")):
        yield f"optimizer.type = {kind} contradicts training.optim ({run.optim})"
    schedule = _at(given, "scheduler.type")
    if schedule is not None and _SCHEDULES.get(str(schedule)) != run.lr_scheduler_type:
        yield f"scheduler.type = {schedule} contradicts training.lr_scheduler_type ({run.lr_scheduler_type})"


def _is_same(said: Any, own: Any) -> bool:
    match said:
        case "auto":
            return True
        case list() | tuple():
            return isinstance(own, list) and len(said) == len(own) and all(map(_is_same, said, own))
        case bool() | str():
            return bool(said == own)
        case int() | float() if isinstance(own, int | float) and not isinstance(own, bool):
            return math.isclose(said, own, rel_tol=1e-9)
        case _:
            return False


def _notes(given: Mapping[str, Any]) -> Iterator[str]:
    if _at(given, "scheduler.type") is not None and _at(given, "scheduler.params.warmup_type") is None:
        yield f"{NAME}: scheduler: the rate rises in a line, where DeepSpeed's own rises by a logarithm"


# --- what DeepSpeed is told -------------------------------------------------------------------------------


def _filled(given: Mapping[str, Any], run: RunSettings) -> dict[str, Any]:
    """The given config with the run's values for each "auto", and what the engine here needs."""
    kept = {name: deepcopy(value) for name, value in given.items() if name not in _REPLACED}
    zero = {
        name: value
        for name, value in kept["zero_optimization"].items()
        if f"zero_optimization.{name}" not in _REFUSED
    }
    return {
        **kept,
        "zero_optimization": {name: _sized(name, value, run) for name, value in zero.items()},
        "train_micro_batch_size_per_gpu": run.per_device_train_batch_size,
        "gradient_accumulation_steps": run.gradient_accumulation_steps,
        "gradient_clipping": run.max_grad_norm,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "communication_data_type": "fp32",
        # The optimizer is the run's own: DeepSpeed would insist on one that it has tested, or compiled.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": _NEVER,
    }


def _sized(name: str, value: Any, run: RunSettings) -> Any:
    """transformers' sizes for "auto", by the model's width."""
    if value != "auto":
        return value
    square = run.hidden * run.hidden
    sizes = {
        "reduce_bucket_size": square,
        "allgather_bucket_size": square,
        "stage3_prefetch_bucket_size": int(0.9 * square),
        "stage3_param_persistence_threshold": 10 * run.hidden,
    }
    if name not in sizes:
        raise ConfigError(f"{NAME}: zero_optimization.{name} cannot be auto", hint=f"of it, {', '.join(sizes)} can")
    return sizes[name]


def _at(given: Mapping[str, Any], name: str) -> Any:
    """The value behind a dotted key; None if there is none."""
    node: Any = given
    for step in name.split("."):
        node = node.get(step) if isinstance(node, Mapping) else None
    return node
