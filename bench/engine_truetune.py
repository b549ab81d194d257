"""truetune as a contestant of bench/engine.py, and with each of the levers that bench/levers.py pulls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from trial import LEARNING_RATE, LORA, SEED, Measure, Trial, watch_of

# What can be changed about a training.


@dataclass(frozen=True)
class Lever:
    """A change to truetune's defaults: its settings, or one of its functions by its full name, with another for it.

    If it `accumulates`, the rows of a step go through one by one. `keeps_losses` is False where it trains something
    else, or rounds otherwise. It needs the package `needs`, and CUDA if it `needs_cuda`.
    """

    says: str
    settings: dict[str, Any] = field(default_factory=dict)
    replaces: str = ""
    by: Callable[..., Any] | None = None
    accumulates: bool = False
    keeps_losses: bool = True
    needs: str | None = None
    needs_cuda: bool = False

    def applied(self) -> Any:
        """A context in which the function is another."""
        return replaced(self.replaces, self.by) if self.by else nullcontext()


@contextmanager
def replaced(target: str, by: Callable[..., Any]) -> Iterator[None]:
    """The function is another in here. RuntimeError if it was never called: the lever was connected to nothing."""
    was_called = False

    def ours(*args: Any, **options: Any) -> Any:
        nonlocal was_called
        was_called = True
        return by(*args, **options)

    with patch(target, ours):
        yield
    if not was_called:
        raise RuntimeError(f"{target} was replaced, but is not what truetune calls")


def in_slices_of(tokens: int) -> Callable[..., Any]:
    def cut(batch: Any, _: int | None) -> Any:
        from truetune.model.slices import slices

        return slices(batch, tokens)

    return cut


def own_attention(model: Any) -> bool:
    """The model's own, with a dense mask that keeps samples apart."""
    from truetune.model.attention import isolates_samples

    return isolates_samples(model)


SLICES = "truetune.training.computing.slices"

LEVERS = {
    "checkpointing": Lever("gradient checkpointing", {"training.gradient_checkpointing": True}),
    "offloading": Lever("activations in the CPU's memory", {"training.activation_offloading": True}, needs_cuda=True),
    "adamw_8bit": Lever(
        "optimizer states in 8 bits", {"training.optim": "adamw_8bit"}, keeps_losses=False, needs="bitsandbytes"
    ),
    "paged_adamw_8bit": Lever(
        "the same, paged where there is CUDA",
        {"training.optim": "paged_adamw_8bit"},
        keeps_losses=False,
        needs="bitsandbytes",
    ),
    "4bit": Lever("base in 4 bits", {"model.load_in_4bit": True}, keeps_losses=False, needs="bitsandbytes"),
    "8bit": Lever("base in 8 bits", {"model.load_in_8bit": True}, keeps_losses=False, needs="bitsandbytes"),
    "loss-whole": Lever(
        "supervised tokens' logits at once, not some words at a time",
        replaces="truetune.model.loss.words_at_a_time",
        by=lambda *_: 1 << 40,
    ),
    "logits-whole": Lever(
        "the model's own logits, of all tokens",
        replaces="truetune.training.computing.provable_head",
        by=lambda _: None,
    ),
    "slices-none": Lever("a batch at once", replaces=SLICES, by=lambda batch, _: [batch]),
    "slices-1024": Lever("1,024 tokens at a time", replaces=SLICES, by=in_slices_of(1024)),
    "slices-512": Lever("512 tokens at a time", replaces=SLICES, by=in_slices_of(512)),
    "slices-alone": Lever(
        "one slice at a time, on all cores",
        replaces="truetune.training.computing.obstacle",
        by=lambda _: "on request",
    ),
    "accumulation": Lever("one sequence at a time, accumulated", accumulates=True),
    "compiled": Lever("layers compiled", {"training.torch_compile": True}, keeps_losses=False),
    "blocks-own": Lever(
        "the model's own norms and MLPs", replaces="truetune.model.fused_blocks.fuse_blocks", by=lambda _: 0
    ),
    "lora-peft": Lever(
        "PEFT's own LoRA layers",
        replaces="truetune.model.adapter._compute_at_once",
        by=lambda _config, _model: None,
    ),
    "mask-dense": Lever(
        "the model's own attention, with a dense mask",
        replaces="truetune.model.attention.fit_attention",
        by=own_attention,
    ),
    "full": Lever("all weights trained", {"adapter.method": "full"}, keeps_losses=False),
}

# The training.


def train_with_truetune(trial: Trial, lever: Lever = Lever("truetune's defaults")) -> Measure:
    """truetune as a run has it, from its config to its session's training: whatever is left to `auto` it decides."""
    with lever.applied():
        return trained(trial, lever)


def trained(trial: Trial, lever: Lever) -> Measure:
    from truetune.config.load import load_config
    from truetune.data.examples import Packed
    from truetune.listener import LogListener
    from truetune.pipeline.backends import open_session
    from truetune.pipeline.job import train_job
    from truetune.pipeline.machine import ask_machine, model_request
    from truetune.pipeline.plan import plan_run
    from truetune.training.session import Tracking, TrainingRows

    folder, listener, watch = Path(trial.data).parent, LogListener(), watch_of(trial)
    sequences = [Packed(**sequence) for step in trial.steps() for sequence in step]
    config = load_config(None, settings=truetune_settings(trial) | changes(lever, trial)).config
    machine = ask_machine(config, listener, has_callbacks=True)
    learned = sum(label != -100 for sequence in sequences for label in sequence.labels)
    stats = {"max_length": trial.workload.max_length, "supervised_tokens": learned}
    report = SimpleNamespace(stats=stats, rows_kept=len(sequences))
    rows = SimpleNamespace(train=sequences, validation=[], report=report, of_all=int)
    plan = plan_run(config, machine=machine, prepared=rows)  # type: ignore[arg-type]
    session = open_session(
        machine.backend,
        device=machine.device,
        directory=folder,
        listener=listener,
        write_metrics=[].append,
    )
    model = session.load(model_request(plan.config, machine, max_length=trial.workload.max_length))
    job = train_job(
        plan, machine=machine, checkpoints=folder / "truetune", is_padding_free=model.isolates, resume_from=None
    )
    session.train(job, TrainingRows(sequences, [], machine.tokenizer), Tracking(folder), [watch])
    session.close()
    return watch.measure(trial.warmup)


def truetune_settings(trial: Trial) -> dict[str, Any]:
    """What must be equal for all contestants; the rest is truetune's own."""
    return {
        "model.name_or_path": trial.model,
        "model.device": trial.device,
        "data.max_length": trial.workload.max_length,
        "data.packing": False,  # They are packs already.
        **{f"adapter.{name}": float(value) if name == "lora_alpha" else value for name, value in LORA.items()},
        "training.precision": trial.precision,
        "training.per_device_train_batch_size": trial.workload.batch,
        "training.gradient_accumulation_steps": 1,
        "training.max_steps": len(trial.steps()),
        "training.learning_rate": LEARNING_RATE,
        "training.lr_scheduler_type": "constant",
        "training.warmup_steps": 0,
        "training.weight_decay": 0.0,
        "training.max_grad_norm": 1.0,
        "training.optim": "adamw_torch_fused",
        "training.seed": SEED,
        "evaluation.eval_strategy": "no",
        "checkpoints.save_strategy": "no",
        "logging.logging_steps": 1,
    }


def changes(lever: Lever, trial: Trial) -> dict[str, Any]:
    if not lever.accumulates:
        return lever.settings
    one_by_one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": trial.workload.batch}
    return lever.settings | {f"training.{name}": value for name, value in one_by_one.items()}
