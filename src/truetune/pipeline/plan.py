"""What a run will do, decided before any weight loads: sequences, steps, and every `auto` with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.config.schema import AdapterConfig, Config
from truetune.data.examples import Packed, Tokenized
from truetune.data.packing import PackedRows, pack
from truetune.data.store import StoredRows
from truetune.environment import usable_threads
from truetune.errors import BackendError
from truetune.listener import Listener
from truetune.model.hardware import lacks_compiler
from truetune.pipeline.machine import Machine, stored_dtype
from truetune.pipeline.prepare import PreparedDataset
from truetune.planning.compilation import LongRun, compilation
from truetune.planning.disk import checkpoints_at_once, run_bytes
from truetune.planning.hyperparameters import (
    Choice,
    gradient_checkpointing,
    learning_rate,
    learning_rate_warning,
    optimizer,
)
from truetune.planning.memory import Memory, Workload, estimate, tokens_at_a_time
from truetune.training.job import TrainJob
from truetune.training.schedule import Lengths, Schedule, is_worth_packing, schedule


@dataclass(frozen=True, slots=True)
class RunPlan:
    """`config` has no `auto` left and trains the same run again; `choices` say why each became what it is.

    By estimate, `memory` is what the device holds at the peak, `disk_bytes` what checkpoints and trained weights take
    at most.
    """

    config: Config
    sequences: Sequence[Tokenized | Packed]
    steps: Schedule
    choices: tuple[Choice, ...]
    warning: str | None
    memory: Memory
    disk_bytes: int

    @property
    def is_packed(self) -> bool:
        return isinstance(self.sequences, PackedRows)


def plan_run(config: Config, *, machine: Machine, prepared: PreparedDataset) -> RunPlan:
    """The plan of a run on these rows. The trainer follows it to the step."""
    training = config.training
    lengths = Lengths(
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        warmup_steps=training.warmup_steps if training.warmup_steps is not None else training.warmup_ratio,
        num_processes=machine.num_processes,
    )
    sequences = _sequences(config, prepared, lengths)
    steps = schedule(len(sequences), lengths)
    is_packed = isinstance(sequences, PackedRows)
    tokens = _tokens_of_rows(prepared.train)
    work = _workload(config, machine, prepared, longest=max(tokens), is_packed=is_packed)
    total = round(sum(tokens) * steps.total_steps / steps.steps_per_epoch)
    choices = tuple(_choices(config, machine, steps, work, total, is_packed=is_packed))
    resolved = _resolved(config, choices, machine, is_packed=is_packed)
    rate = float(resolved.training.learning_rate)
    warning = learning_rate_warning(method=config.adapter.method, value=rate, parameters=machine.parameters)
    memory = estimate(machine.shape, work, checkpointing=bool(resolved.training.gradient_checkpointing))
    return RunPlan(resolved, sequences, steps, choices, warning, memory, _disk_bytes(resolved, steps, memory))


def _disk_bytes(config: Config, steps: Schedule, memory: Memory) -> int:
    saving = config.checkpoints
    checkpoints = checkpoints_at_once(
        saving.save_strategy,
        save_steps=saving.save_steps,
        limit=saving.save_total_limit,
        total_steps=steps.total_steps,
        steps_per_epoch=steps.steps_per_epoch,
    )
    return run_bytes(memory, checkpoints=checkpoints)


def plan_without_packs(config: Config, machine: Machine, prepared: PreparedDataset, listener: Listener) -> RunPlan:
    """The plan for a loaded model that lets concatenated rows see each other. BackendError if they must be packed."""
    if config.data.packing is True:
        raise BackendError(
            "data.packing: this model's attention lets packed samples see each other",
            hint="set data.packing to false: its rows are then padded instead",
        )
    listener.warn("this model does not keep concatenated rows apart: rows are padded instead")
    data = config.data.model_copy(update={"packing": False})
    return plan_run(config.model_copy(update={"data": data}), machine=machine, prepared=prepared)


def keep_decisions(config: Config, before: Config) -> Config:
    """The config with what the run so far decided for each `auto`: more epochs must not repack the rows."""
    decided = {
        name: value for name, value in before.training if getattr(config.training, name) == "auto" and value != "auto"
    }
    if config.training.torch_compile == "auto":
        decided.setdefault("torch_compile", False)  # A run of an older truetune, which compiled nothing.
    packing = before.data.packing if config.data.packing == "auto" else config.data.packing
    return config.model_copy(
        update={
            "training": config.training.model_copy(update=decided),
            "data": config.data.model_copy(update={"packing": packing}),
        }
    )


def _sequences(config: Config, prepared: PreparedDataset, lengths: Lengths) -> Sequence[Tokenized | Packed]:
    """The training rows, packed where asked for, or where `auto` finds it worth while."""
    packing = config.data.packing
    if packing is False:
        return prepared.train
    packs = pack(prepared.train, max_length=prepared.report.stats["max_length"])
    return packs if packing is True or is_worth_packing(len(packs), lengths) else prepared.train


def _workload(
    config: Config, machine: Machine, prepared: PreparedDataset, *, longest: int, is_packed: bool
) -> Workload:
    """What the run asks of memory."""
    from truetune.training.loss import words_at_a_time
    from truetune.training.side_by_side import WORKERS
    from truetune.training.slices import TOKENS

    adapter, training, shape = config.adapter, config.training, machine.shape
    is_lora = adapter.method == "lora"
    is_shared = machine.device == "cpu" and is_lora and machine.quantization == "none"
    tokens = tokens_at_a_time(
        limit=TOKENS.get(machine.device),
        workers=WORKERS if is_shared else 1,
        batch=training.per_device_train_batch_size,
        sequence=prepared.report.stats["max_length"] if is_packed else longest,
        longest=longest,
    )
    whole = len(adapter.modules_to_save) * shape.vocabulary * shape.hidden
    return Workload(
        device=machine.device,
        trained=shape.adapter_weights(adapter.r, adapter.target_modules) + whole if is_lora else shape.parameters,
        are_adapters=is_lora,
        adapter_rank=adapter.r if is_lora else 0,
        recomputes=machine.device == "cpu" and _is_plain(adapter),
        dtype=stored_dtype(config, machine.precision),
        quantization=machine.quantization,
        precision=machine.precision,
        optim=training.optim,
        offloads=training.activation_offloading,
        tokens=tokens,
        words=words_at_a_time(tokens, machine.device),
        longest=longest,
    )


def _is_plain(adapter: AdapterConfig) -> bool:
    """True of a LoRA on all linear layers whose every layer is computed in one step."""
    is_everywhere = adapter.target_modules == "all-linear"
    return adapter.method == "lora" and is_everywhere and not (adapter.lora_dropout or adapter.use_dora)


def _tokens_of_rows(rows: Sequence[Tokenized]) -> list[int]:
    return list(map(int, rows.lengths)) if isinstance(rows, StoredRows) else [len(row.input_ids) for row in rows]


def _long_run(config: Config, machine: Machine, work: Workload, tokens: int, *, checkpoints: bool) -> LongRun:
    return LongRun(
        tokens=tokens,
        parameters=machine.parameters,
        are_adapters=work.are_adapters,
        device=machine.device,
        precision=machine.precision,
        threads=usable_threads(),
        backend=machine.backend,
        is_quantized=machine.quantization != "none",
        drops_out=work.are_adapters and config.adapter.lora_dropout > 0,
        checkpoints=checkpoints,
        num_processes=machine.num_processes,
        lacks=lacks_compiler(),
    )


def _choices(
    config: Config, machine: Machine, steps: Schedule, work: Workload, tokens: int, *, is_packed: bool
) -> list[Choice]:
    """A decision for each setting left to `auto`; the run trains on so many tokens."""
    training = config.training
    checkpointing = gradient_checkpointing(
        estimate(machine.shape, work, checkpointing=False),
        estimate(machine.shape, work, checkpointing=True),
        free=machine.free_memory,
    )
    checkpoints = bool(
        checkpointing.value if training.gradient_checkpointing == "auto" else training.gradient_checkpointing
    )
    is_quantized = machine.quantization != "none"
    packing = "at least 100 steps remain" if is_packed else "packed, the rows would make under 100 steps"
    accumulation = f"gives {steps.total_steps} steps; starts from 4, lowered until a run has 50"
    decided = {
        "backend": Choice("training.backend", machine.backend, machine.backend_reason),
        "learning_rate": learning_rate(
            method=config.adapter.method, parameters=machine.parameters, is_quantized=is_quantized
        ),
        "gradient_accumulation_steps": Choice(
            "training.gradient_accumulation_steps", steps.gradient_accumulation_steps, accumulation
        ),
        "optim": optimizer(),
        "gradient_checkpointing": checkpointing,
        "torch_compile": compilation(_long_run(config, machine, work, tokens, checkpoints=checkpoints)),
    }
    choices = [choice for name, choice in decided.items() if getattr(training, name) == "auto"]
    return [*choices, Choice("data.packing", is_packed, packing)] if config.data.packing == "auto" else choices


def _resolved(config: Config, choices: Sequence[Choice], machine: Machine, *, is_packed: bool) -> Config:
    decided = {name: choice.value for choice in choices for section, _, name in [choice.name.partition(".")]}
    decided.pop("packing", None)
    training = config.training.model_copy(
        update={**decided, "backend": machine.backend, "precision": machine.precision}
    )
    data = config.data.model_copy(update={"packing": is_packed})
    return config.model_copy(update={"training": training, "data": data})


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
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=evaluation.per_device_eval_batch_size or training.per_device_train_batch_size,
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
        loraplus_lr_ratio=config.adapter.loraplus_lr_ratio,
        resume_from=resume_from,
        identity=identity or {},
    )
