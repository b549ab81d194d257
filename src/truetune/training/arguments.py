"""What TRL's trainer is told of a job."""

from trl import SFTConfig

from truetune.training.job import TrainJob
from truetune.training.room import CHECKPOINTING


def sft_arguments(job: TrainJob, *, has_validation: bool) -> SFTConfig:
    """Every value explicit: SFTConfig's own defaults differ from TrainingArguments' and from the guide's."""
    evaluates = has_validation and job.eval_strategy != "no"
    keeps_best = evaluates and job.load_best_model_at_end
    return SFTConfig(
        output_dir=str(job.output_dir),
        num_train_epochs=job.num_train_epochs,
        max_steps=job.max_steps,
        per_device_train_batch_size=job.per_device_train_batch_size,
        per_device_eval_batch_size=job.per_device_eval_batch_size,
        # Every process sees all batches of a step (training/world.py).
        gradient_accumulation_steps=job.gradient_accumulation_steps * job.num_processes,
        learning_rate=job.learning_rate,
        lr_scheduler_type=job.lr_scheduler_type,
        warmup_steps=job.warmup_steps,
        weight_decay=job.weight_decay,
        max_grad_norm=job.max_grad_norm,
        optim=job.optim,
        adam_beta1=job.adam_beta1,
        adam_beta2=job.adam_beta2,
        adam_epsilon=job.adam_epsilon,
        bf16=job.precision == "bf16",
        fp16=job.precision == "fp16",
        use_cpu=job.device == "cpu",
        seed=job.seed,
        data_seed=job.seed,
        train_sampling_strategy="random" if job.is_shuffled else "sequential",
        eval_strategy=job.eval_strategy if evaluates else "no",
        eval_steps=job.eval_steps,
        eval_on_start=evaluates and job.resume_from is None,
        save_strategy=job.save_strategy,
        save_steps=job.save_steps,
        save_total_limit=None,  # Engine rotates, and Trainer must not remove anything.
        load_best_model_at_end=keeps_best,
        metric_for_best_model=job.metric_for_best_model if evaluates else None,
        greater_is_better=job.metric_for_best_model != "eval_loss" if evaluates else None,
        logging_steps=job.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to="none",
        run_name=job.run_name,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=job.device == "cuda",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        padding_free=False,
        activation_offloading=job.activation_offloading,
        **{
            CHECKPOINTING: job.gradient_checkpointing,
            f"{CHECKPOINTING}_kwargs": {"use_reentrant": False} if job.gradient_checkpointing else None,
        },
    )
