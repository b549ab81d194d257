"""`truetune init`: a complete config for these rows and this model, each value with its reason."""

from collections.abc import Iterator

from truetune.config.schema import Config
from truetune.listener import Listener
from truetune.pipeline.commented import commented_config
from truetune.pipeline.machine import Machine, ask_machine
from truetune.pipeline.plan import RunPlan, plan_run
from truetune.pipeline.prepare import PreparedDataset, prepare_rows


def initial_config(config: Config, *, listener: Listener) -> str:
    """The config as YAML, every `auto` decided for these rows, with comments. Loads no weights."""
    machine = ask_machine(config, listener)
    prepared = prepare_rows(
        config, tokenizer=machine.tokenizer, context_length=machine.facts.context_length, listener=listener
    )
    plan = plan_run(config, machine=machine, prepared=prepared)
    head = "".join(f"# {line}".rstrip() + "\n" for line in _head(prepared, plan, machine))
    return f"{head}\n{commented_config(plan.config, plan.choices)}"


def _head(prepared: PreparedDataset, plan: RunPlan, machine: Machine) -> Iterator[str]:
    """What the run is of, takes and needs, and how to start it."""
    report, stats, steps = prepared.report, prepared.report.stats, plan.steps
    yield (
        f"{report.rows_kept} of {report.rows_read} rows usable: {stats['tokens']:,} tokens, "
        f"{stats['supervised_tokens']:,} learned, the longest row {stats['longest_row_tokens']} tokens."
    )
    yield (
        f"{stats['train_rows']} rows to train, {stats['validation_rows']} to validate: {steps.total_steps} steps of "
        f"{steps.effective_batch_size} {'packs of rows' if plan.is_packed else 'rows'}."
    )
    free = "" if machine.free_memory is None else f" of {_gigabytes(machine.free_memory)} free"
    yield f"Memory: about {_gigabytes(plan.memory.peak)} at the peak on {machine.device}{free}, by estimate."
    yield ""
    yield "truetune plan FILE      tells what the run will take; truetune find-lr FILE measures a learning rate"
    yield "truetune train FILE     trains; a setting may follow, and wins: learning_rate=1e-4"
    yield "Editors complete and check this file after `truetune schema > truetune.schema.json` if its first line is"
    yield "    # yaml-language-server: $schema=truetune.schema.json"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
