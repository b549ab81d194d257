"""What a run will do, decided before any weight loads: sequences, steps, and every `auto` with its reason."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from truetune.config.schema import Config, is_named, value_of, with_values
from truetune.data.examples import Packed, Tokenized
from truetune.data.packing import PackedRows, pack
from truetune.data.store import StoredRows
from truetune.environment import usable_threads
from truetune.errors import BackendError
from truetune.listener import Listener
from truetune.model.hardware import lacks_compiler
from truetune.pipeline.deployment import serving_warnings
from truetune.pipeline.machine import Machine
from truetune.pipeline.prepare import PreparedDataset
from truetune.pipeline.strategy import strategy_choice
from truetune.pipeline.workload import DEFAULT_ROWS, Longest, memory_of, memory_of_files, trained_weights
from truetune.pipeline.zero import settled
from truetune.planning import hyperparameters as rules
from truetune.planning.compilation import LongRun, compilation
from truetune.planning.disk import checkpoints_at_once, run_bytes
from truetune.planning.doubts import Settings, doubts
from truetune.planning.hyperparameters import Choice, gradient_checkpointing
from truetune.planning.memory import Memory
from truetune.planning.rhythm import times
from truetune.planning.rules import Situation
from truetune.planning.timing import Amount
from truetune.training.schedule import ACCUMULATION, Lengths, Schedule, is_worth_packing, schedule


@dataclass(frozen=True, slots=True)
class RunPlan:
    """`config` has no `auto` left and trains the same run again; `choices` say why each became what it is.

    `advice` is what the rules say of settings left at their defaults, `warnings` what is out of the usual, or takes
    care where it is deployed. By estimate, `memory` is what the device holds at the peak, `disk_bytes` what
    checkpoints and trained weights take at most. `amount` is what it computes, `deepspeed` what DeepSpeed is told.
    """

    config: Config
    sequences: Sequence[Tokenized | Packed]
    steps: Schedule
    choices: tuple[Choice, ...]
    advice: tuple[Choice, ...]
    warnings: tuple[str, ...]
    longest: Longest
    memory: Memory
    amount: Amount
    disk_bytes: int
    deepspeed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_packed(self) -> bool:
        return isinstance(self.sequences, PackedRows)

    @property
    def reasons(self) -> tuple[Choice, ...]:
        """Why settings that nobody named are what they are; where the rules advise otherwise, that too."""
        return tuple(_reason(self.config, advice) for advice in self.advice)

    @property
    def settings(self) -> tuple[Choice, ...]:
        """Every setting that is not the user's own, with its reason."""
        return (*self.choices, *self.reasons)


def plan_run(config: Config, *, machine: Machine, prepared: PreparedDataset, given: Config | None = None) -> RunPlan:
    """The plan of a run on these rows. The trainer follows it to the step.

    `given` is the config as the user gave it, where `config` has more set.
    """
    given, situation = given or config, _situation(config, machine, prepared)
    config, by_rows = _decided(config, _by_rows(config, situation))
    lengths = _lengths(config, machine)
    sequences = _sequences(config, prepared, lengths)
    is_packed = isinstance(sequences, PackedRows)
    trained, validated = tokens_of_rows(prepared.train), tokens_of_rows(prepared.validation)
    longest = Longest(
        row=max(trained),
        sequence=prepared.report.stats["max_length"] if is_packed else max(trained),
        validation=max(validated, default=0),
    )
    config, by_processes = _decided(config, strategy_choice(config, machine, longest))
    count = prepared.of_all(len(sequences))
    config, by_memory = _decided(config, _batch(config, machine, longest, schedule(count, lengths)))
    steps = schedule(count, _lengths(config, machine))
    amount = _amount(config, steps, tokens=prepared.of_all(sum(trained)), evaluated=sum(validated))
    amount = _with_answers(amount, config, prepared)
    situation = replace(
        situation,
        epochs=steps.total_steps / steps.steps_per_epoch,
        steps_per_epoch=steps.steps_per_epoch,
        total_steps=steps.total_steps,
    )
    config, by_steps = _decided(config, _by_steps(config, machine, steps, situation, is_packed=is_packed))
    config, by_machine = _decided(config, _by_machine(config, machine, longest, amount))
    choices = (*by_rows, *by_processes, *by_memory, *by_steps, *by_machine)
    resolved = _resolved(config, machine)
    zero = settled(resolved, machine, steps)
    memory = memory_of(resolved, machine, longest)
    served = serving_warnings(resolved, machine.facts, machine.shape)
    return RunPlan(
        config=resolved,
        sequences=sequences,
        steps=steps,
        choices=choices,
        advice=tuple(_advice(given, resolved, situation, steps, {choice.name for choice in choices})),
        warnings=(*doubts(_usual_settings(resolved, steps), situation), *served, *(zero.notes if zero else ())),
        deepspeed=zero.document if zero else {},
        longest=longest,
        memory=memory,
        amount=amount,
        disk_bytes=_disk_bytes(resolved, amount, memory_of_files(resolved, machine, longest)),
    )


def decided_without_rows(config: Config, machine: Machine, longest: Longest) -> tuple[Config, tuple[Choice, ...]]:
    """The config with what can be decided before rows are known, as for a few; and those decisions' reasons."""
    few = Situation(config.adapter.method, machine.parameters, 0, 0, is_quantized=machine.quantization != "none")
    config, by_rows = _decided(config, _by_rows(config, few))
    lengths = _lengths(config, machine)
    config, by_processes = _decided(config, strategy_choice(config, machine, longest))
    config, by_memory = _decided(config, _batch(config, machine, longest, schedule(1_000, lengths)))
    if config.training.gradient_accumulation_steps == "auto":
        config = with_values(config, {"training.gradient_accumulation_steps": ACCUMULATION})
    config, by_machine = _decided(config, _by_machine(config, machine, longest, Amount(0, 0, 0, 0, 0)))
    known = ("training.torch_compile", "training.num_train_epochs", "adapter.r")
    choices = (*by_rows, *by_processes, *by_memory, *by_machine)
    return _resolved(config, machine), tuple(choice for choice in choices if choice.name not in known)


# --- what is decided, in the order in which one hangs on the other ------------------------------------------


def _decided(config: Config, choices: Iterator[Choice]) -> tuple[Config, tuple[Choice, ...]]:
    """The config with what was chosen for its settings, and the choices."""
    made = tuple(choices)
    return with_values(config, {choice.name: choice.value for choice in made}), made


def _by_rows(config: Config, situation: Situation) -> Iterator[Choice]:
    if config.training.num_train_epochs == "auto":
        yield rules.num_train_epochs(situation)
    if config.adapter.method == "lora" and config.adapter.r == "auto":
        yield rules.rank(situation)


def _batch(config: Config, machine: Machine, longest: Longest, steps: Schedule) -> Iterator[Choice]:
    """The most rows at a time that fit, of those that divide the effective batch; and the accumulation with them."""
    if config.training.per_device_train_batch_size != "auto":
        return
    rows = DEFAULT_ROWS * steps.gradient_accumulation_steps
    fitting = (size for size in range(rows, 1, -1) if rows % size == 0 and _fits(config, machine, longest, size))
    size = next(fitting, 1)
    reason = f"the most that fit into what is free, of the divisors of the {rows} rows of a step on a device"
    yield Choice("training.per_device_train_batch_size", size, reason)
    yield Choice("training.gradient_accumulation_steps", rows // size, f"keeps {rows} rows a step on a device")


def _fits(config: Config, machine: Machine, longest: Longest, size: int) -> bool:
    sized = with_values(config, {"training.per_device_train_batch_size": size})
    memory = memory_of(sized, machine, longest)
    return machine.free_memory is None or rules.leaves_room(memory, machine.free_memory)


def _by_steps(
    config: Config, machine: Machine, steps: Schedule, situation: Situation, *, is_packed: bool
) -> Iterator[Choice]:
    training, accumulation = config.training, steps.gradient_accumulation_steps
    if training.gradient_accumulation_steps == "auto":
        yield rules.gradient_accumulation_steps(situation, accumulation)
    if training.learning_rate == "auto":
        yield rules.learning_rate(
            method=config.adapter.method,
            parameters=machine.parameters,
            is_quantized=machine.quantization != "none",
            rows=situation.rows,
            rows_a_step=situation.rows_a_step,
            hidden=situation.hidden,
        )
    if config.data.packing == "auto":
        reason = "at least 100 steps remain" if is_packed else "packed, the rows would make under 100 steps"
        yield Choice("data.packing", is_packed, reason)


def _by_machine(config: Config, machine: Machine, longest: Longest, amount: Amount) -> Iterator[Choice]:
    training = config.training
    if training.backend == "auto":
        yield Choice("training.backend", machine.backend, machine.backend_reason)
    if training.optim == "auto":
        yield rules.optimizer()
    checkpoints = training.gradient_checkpointing
    if checkpoints == "auto":
        kept, checkpointed = (memory_of(config, machine, longest, checkpointing=each) for each in (False, True))
        choice = gradient_checkpointing(kept, checkpointed, free=machine.free_memory)
        checkpoints = bool(choice.value)
        yield choice
    if training.torch_compile == "auto" and training.strategy in ("fsdp", "deepspeed"):
        yield Choice("training.torch_compile", False, "layers that are put together as they compute are not compiled")
    elif training.torch_compile == "auto":
        yield compilation(_long_run(config, machine, amount, checkpoints=checkpoints))


def _advice(
    given: Config, resolved: Config, situation: Situation, steps: Schedule, decided: set[str]
) -> Iterator[Choice]:
    """What the rules say of settings that nobody named and nothing decided."""
    adapter, training = resolved.adapter, resolved.training
    recommended = rules.recommendations(
        situation,
        accumulation=steps.gradient_accumulation_steps,
        r=int(adapter.r) if adapter.method == "lora" else None,
        rate=float(training.learning_rate),
    )
    replaced = {"training.warmup_ratio"} if training.warmup_steps is not None else set()
    for advice in recommended:
        if not is_named(given, advice.name) and advice.name not in decided | replaced:
            yield advice


def _reason(config: Config, advice: Choice) -> Choice:
    """The advice where the config follows it, else what it has instead."""
    value = value_of(config, advice.name)
    if value == advice.value:
        return advice
    return replace(advice, value=value, reason=f"the default; {advice.value} is advised: {advice.reason}")


# --- the figures behind it ----------------------------------------------------------------------------------


def _situation(config: Config, machine: Machine, prepared: PreparedDataset) -> Situation:
    rows, held_out, is_lora = len(prepared.train), len(prepared.validation), config.adapter.method == "lora"
    at_one = with_values(config, {"adapter.r": 1, "adapter.modules_to_save": ()})
    return Situation(
        method=config.adapter.method,
        parameters=machine.parameters,
        rows=prepared.of_all(rows),
        learned_tokens=prepared.of_all(
            round(prepared.report.stats["supervised_tokens"] * rows / max(1, rows + held_out))
        ),
        validation_rows=held_out,
        is_quantized=machine.quantization != "none",
        hidden=machine.shape.hidden,
        rank_weights=trained_weights(at_one, machine) if is_lora else None,
    )


def _lengths(config: Config, machine: Machine) -> Lengths:
    training = config.training
    size = training.per_device_train_batch_size
    return Lengths(
        per_device_train_batch_size=DEFAULT_ROWS if size == "auto" else size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        num_train_epochs=float(training.num_train_epochs),
        max_steps=training.max_steps,
        warmup_steps=training.warmup_steps if training.warmup_steps is not None else training.warmup_ratio,
        num_processes=machine.num_processes,
    )


def _amount(config: Config, steps: Schedule, *, tokens: int, evaluated: int) -> Amount:
    """What the run computes, of so many tokens a pass and so many an evaluation."""
    evaluation, saving = config.evaluation, config.checkpoints
    total, an_epoch = steps.total_steps, steps.steps_per_epoch
    evaluations = times(
        evaluation.eval_strategy, every=evaluation.eval_steps, total_steps=total, steps_per_epoch=an_epoch
    )
    return Amount(
        steps=total,
        tokens=round(tokens * total / an_epoch),
        evaluations=evaluations + 1 if evaluations and evaluated else 0,  # And one at the start.
        evaluation_tokens=evaluated,
        checkpoints=times(saving.save_strategy, every=saving.save_steps, total_steps=total, steps_per_epoch=an_epoch),
    )


def _with_answers(amount: Amount, config: Config, prepared: PreparedDataset) -> Amount:
    """The amount with what answers take at each evaluation, if they are as long as what a row learns on the average.

    Their rows are read once more for it.
    """
    evaluation, report, held = config.evaluation, prepared.report, len(prepared.validation)
    rows = min(evaluation.generate or 0, held)
    learned = min(evaluation.generate_max_new_tokens, report.stats["supervised_tokens"] / max(1, report.rows_kept))
    read = amount.evaluation_tokens * rows // max(1, held)
    return replace(amount, evaluation_tokens=amount.evaluation_tokens + read, answer_tokens=round(rows * learned))


def _disk_bytes(config: Config, amount: Amount, memory: Memory) -> int:
    limit = config.checkpoints.save_total_limit
    if limit is not None and config.evaluation.load_best_model_at_end:
        limit = max(2, limit)  # The newest and the best stay.
    return run_bytes(memory, checkpoints=checkpoints_at_once(amount.checkpoints, limit=limit))


def _usual_settings(config: Config, steps: Schedule) -> Settings:
    adapter, training = config.adapter, config.training
    return Settings(
        learning_rate=float(training.learning_rate),
        num_train_epochs=steps.total_steps / steps.steps_per_epoch,
        warmup_steps=steps.warmup_steps,
        weight_decay=training.weight_decay,
        r=int(adapter.r) if adapter.method == "lora" else 16,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=adapter.target_modules,
        use_rslora=adapter.use_rslora,
        stops_early=config.evaluation.early_stopping_patience is not None,
    )


def plan_without_packs(config: Config, machine: Machine, prepared: PreparedDataset, listener: Listener) -> RunPlan:
    """The plan for a loaded model that lets concatenated rows see each other. BackendError if they must be packed."""
    if config.data.packing is True:
        raise BackendError(
            "data.packing: this model's attention lets packed samples see each other",
            hint="set data.packing to false: its rows are then padded instead",
        )
    listener.warn("this model does not keep concatenated rows apart: rows are padded instead")
    return plan_run(with_values(config, {"data.packing": False}), machine=machine, prepared=prepared)


def keep_decisions(config: Config, before: Config, *, processes: int = 1, processes_before: int = 1) -> Config:
    """The config with what the run so far decided for each `auto`: more epochs must not repack the rows.

    In another number of processes the accumulation is the one that gives as many rows a step, if there is one.
    """
    names = (*(f"training.{leaf}" for leaf, _ in before.training), "data.packing", "adapter.r")
    anew = "training.strategy"  # It hangs on the number of processes, and changes nothing else.
    left = [name for name in names if name != anew and value_of(config, name) == "auto"]
    decided = {name: value for name in left if (value := value_of(before, name)) != "auto"}
    if "training.torch_compile" in left:
        decided.setdefault("training.torch_compile", False)  # A run of an older truetune, which compiled nothing.
    if (name := "training.gradient_accumulation_steps") in decided:
        accumulated, rest = divmod(decided[name] * processes_before, processes)
        decided[name] = decided[name] if rest else accumulated
    return with_values(config, decided)


def _sequences(config: Config, prepared: PreparedDataset, lengths: Lengths) -> Sequence[Tokenized | Packed]:
    """The training rows, packed where asked for, or where `auto` finds it worth while."""
    packing = config.data.packing
    if packing is False:
        return prepared.train
    packs = pack(prepared.train, max_length=prepared.report.stats["max_length"])
    return packs if packing is True or is_worth_packing(prepared.of_all(len(packs)), lengths) else prepared.train


def tokens_of_rows(rows: Sequence[Tokenized]) -> list[int]:
    """How many tokens each row has."""
    return list(map(int, rows.lengths)) if isinstance(rows, StoredRows) else [len(row.input_ids) for row in rows]


def _long_run(config: Config, machine: Machine, amount: Amount, *, checkpoints: bool) -> LongRun:
    are_adapters = config.adapter.method == "lora"
    return LongRun(
        tokens=amount.tokens,
        parameters=machine.parameters,
        are_adapters=are_adapters,
        device=machine.device,
        precision=machine.precision,
        threads=usable_threads(),
        backend=machine.backend,
        is_quantized=machine.quantization != "none",
        drops_out=are_adapters and config.adapter.lora_dropout > 0,
        checkpoints=checkpoints,
        num_processes=machine.num_processes,
        lacks=lacks_compiler(),
    )


def _resolved(config: Config, machine: Machine) -> Config:
    resolved: dict[str, str] = {"training.backend": machine.backend, "training.precision": machine.precision}
    if config.training.strategy == "auto":
        resolved["training.strategy"] = "ddp"  # Of one process, which has nobody to share with.
    return with_values(config, resolved)
