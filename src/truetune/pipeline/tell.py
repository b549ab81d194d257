"""What a training says of itself before its first step."""

from pathlib import Path

from truetune.figures import byte_size
from truetune.files import free_bytes
from truetune.listener import Listener
from truetune.pipeline.machine import Machine
from truetune.pipeline.plan import RunPlan
from truetune.training.session import LoadedModel


def tell_plan(plan: RunPlan, machine: Machine, directory: Path, listener: Listener) -> None:
    """The steps and what they are made of, what was chosen and why, and what to beware of."""
    steps, training = plan.steps, plan.config.training
    listener.say(
        f"{steps.total_steps} steps, {steps.steps_per_epoch} an epoch of {steps.micro_batches} batches a process"
        f"; {steps.effective_batch_size} sequences a step = {training.per_device_train_batch_size} per device x "
        f"{steps.gradient_accumulation_steps} accumulated x {machine.num_processes} processes"
        f"; {steps.warmup_steps} warm-up steps"
    )
    for choice in plan.choices:
        listener.say(f"{choice.name}: {choice.value} ({choice.reason})")
    for warning in plan.warnings:
        listener.warn(warning)
    _tell_disk(plan, directory, listener)


def tell_coverage(model: LoadedModel, machine: Machine, listener: Listener) -> None:
    """How much of the model is trained, and how much of it adapters reach."""
    share = model.trained_weights / model.weights
    listener.say(f"{model.trained_weights:,} of {model.weights:,} weights are trained ({share:.2%})")
    if model.reached_weights:
        reached = model.reached_weights / machine.parameters
        listener.say(f"adapters on {model.reached_weights:,} of the base's weights ({reached:.0%})")
    if model.missed_experts:
        listener.warn(
            f"adapter.target_modules: no adapter on the experts ({', '.join(model.missed_experts)}), which hold "
            "most of this model's weights; all-linear reaches them, or adapter.target_parameters"
        )


def _tell_disk(plan: RunPlan, directory: Path, listener: Listener) -> None:
    """Warns where the run's checkpoints will not fit."""
    free, needed = free_bytes(directory), plan.disk_bytes
    if free < needed:
        listener.warn(
            f"{directory}: checkpoints and weights will take about {byte_size(needed)}, and "
            f"{byte_size(free)} are free on its disk; a lower checkpoints.save_total_limit takes less"
        )
