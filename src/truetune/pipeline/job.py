"""A plan as the job of an engine, which knows no config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truetune.pipeline.machine import Machine
from truetune.pipeline.plan import RunPlan
from truetune.training.job import TrainJob


def train_job(
    plan: RunPlan,
    *,
    machine: Machine,
    checkpoints: Path,
    is_padding_free: bool,
    resume_from: Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> TrainJob:
    """The engine's job for a plan."""
    config = plan.config
    training, evaluation, saving = config.training, config.evaluation, config.checkpoints
    return TrainJob(
        output_dir=checkpoints,
        num_train_epochs=float(training.num_train_epochs),
        max_steps=training.max_steps,
        per_device_train_batch_size=int(training.per_device_train_batch_size),
        per_device_eval_batch_size=evaluation.per_device_eval_batch_size or int(training.per_device_train_batch_size),
        gradient_accumulation_steps=plan.steps.gradient_accumulation_steps,
        learning_rate=float(training.learning_rate),
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=plan.steps.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=training.optim,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        gradient_checkpointing=bool(training.gradient_checkpointing),
        activation_offloading=training.activation_offloading,
        torch_compile=bool(training.torch_compile),
        precision=machine.precision,
        device=machine.device,
        seed=training.seed,
        eval_strategy=evaluation.eval_strategy,
        eval_steps=evaluation.eval_steps,
        load_best_model_at_end=evaluation.load_best_model_at_end,
        early_stopping_patience=evaluation.early_stopping_patience,
        save_strategy=saving.save_strategy,
        save_steps=saving.save_steps,
        save_total_limit=saving.save_total_limit,
        logging_steps=config.logging.logging_steps,
        report_to=tuple(config.logging.report_to),
        run_name=config.logging.run_name,
        is_padding_free=is_padding_free,
        is_shuffled=not config.data.streaming,
        loraplus_lr_ratio=config.adapter.loraplus_lr_ratio,
        metric_for_best_model=evaluation.metric_for_best_model,
        resume_from=resume_from,
        identity=identity or {},
        num_processes=machine.num_processes,
        strategy="ddp" if training.strategy == "auto" else training.strategy,
        fsdp_cpu_offload=training.fsdp_cpu_offload,
        deepspeed=plan.deepspeed,
    )
