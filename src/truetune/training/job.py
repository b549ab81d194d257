"""What the engine is asked to do, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Strategy = Literal["no", "steps", "epoch"]


@dataclass(frozen=True, slots=True)
class TrainJob:
    """Every setting of a training run, resolved: nothing is `auto` any more.

    `warmup_steps` counts steps, or is a share of all steps when below 1; `eval_steps` and `save_steps` likewise.
    `device` and `precision` are those of model.hardware. `max_steps` -1 leaves the length to the epochs. `identity`
    is what a checkpoint says of the run that it belongs to. `metric_for_best_model` is logged at each evaluation, as
    eval_loss is, of which less is better; of all others it is more. Batch and accumulation are those of each of the
    `num_processes`, which hold the model together by the `strategy` (training/strategies.py); `deepspeed` is what
    DeepSpeed is told (training/deepspeed_settings.py).
    """

    output_dir: Path
    num_train_epochs: float
    max_steps: int
    per_device_train_batch_size: int
    per_device_eval_batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    lr_scheduler_type: str
    warmup_steps: float
    weight_decay: float
    max_grad_norm: float
    optim: str
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    gradient_checkpointing: bool
    precision: Literal["fp32", "bf16", "fp16"]
    device: Literal["cpu", "cuda", "mps"]
    seed: int
    eval_strategy: Strategy
    eval_steps: float
    load_best_model_at_end: bool
    early_stopping_patience: int | None
    save_strategy: Strategy
    save_steps: float
    save_total_limit: int | None
    logging_steps: int
    report_to: tuple[str, ...]
    run_name: str | None
    is_padding_free: bool
    activation_offloading: bool = False
    torch_compile: bool = False
    is_shuffled: bool = True
    loraplus_lr_ratio: float | None = None
    metric_for_best_model: str = "eval_loss"
    resume_from: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    num_processes: int = 1
    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    fsdp_cpu_offload: bool = False
    deepspeed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """`tokens_per_second` counts real tokens over step time, without the first step, evaluation and saving.

    `peak_memory_bytes` is the process's peak resident memory, on CUDA the allocator's peak. `stopped_by` names the
    signal that ended the run early. `best_metric` is the best value of `metric_for_best_model`, and `best_step` where
    it was reached, if checkpoints are saved; all are None where nothing was evaluated.
    """

    steps: int
    final_loss: float | None
    eval_loss: float | None
    best_eval_loss: float | None
    tokens: int
    supervised_tokens: int
    tokens_per_second: float | None
    seconds: float
    peak_memory_bytes: int
    stopped_by: str | None
    metric_for_best_model: str | None = None
    best_metric: float | None = None
    best_step: int | None = None
