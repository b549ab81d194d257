"""`truetune init`: a complete config for these rows and this model, each value with its reason."""

import textwrap
from collections.abc import Iterable, Iterator

from truetune.config.contradictions import contradictions
from truetune.config.schema import Config, is_named, with_values
from truetune.figures import byte_size, duration
from truetune.listener import Listener
from truetune.pipeline.backends import settle
from truetune.pipeline.check import prepare_for
from truetune.pipeline.commented import WIDTH, commented_config
from truetune.pipeline.duration import reckoned_duration
from truetune.pipeline.machine import Machine, ask_machine
from truetune.pipeline.plan import RunPlan, plan_run
from truetune.pipeline.prepare import PreparedDataset
from truetune.planning.hyperparameters import Choice

_OF_THE_BEST = ("evaluation.load_best_model_at_end", "evaluation.early_stopping_patience")
"""Settings that ask evaluations and checkpoints for one rhythm."""


def initial_config(config: Config, *, listener: Listener) -> str:
    """The config as YAML, with comments: what the user gave, and for the rest what the rules advise for these rows.

    Loads no weights.
    """
    machine = ask_machine(config, listener)
    given = settle(config, backend=machine.backend, device=machine.device, listener=listener)
    prepared = prepare_for(machine, given, source=None, formatting=None, listener=listener)
    by_rows = _left_to_the_rows(given)
    advice = plan_run(by_rows, machine=machine, prepared=prepared, given=given).advice
    # The figures in its comments are those of the config that is written.
    plan = plan_run(_advised(by_rows, advice), machine=machine, prepared=prepared, given=given)
    head = "".join(f"# {line}".rstrip() + "\n" for line in _head(prepared, plan, machine))
    return f"{head}\n{commented_config(plan.config, plan.settings)}"


def _left_to_the_rows(given: Config) -> Config:
    """The config with the rank and the passes for the rows to choose, where the user named none."""
    names = ("training.num_train_epochs", *(["adapter.r"] if given.adapter.method == "lora" else []))
    return with_values(given, {name: "auto" for name in names if not is_named(given, name)})


def _advised(config: Config, advice: Iterable[Choice]) -> Config:
    """The config as advised, but for advice that what the user gave contradicts."""
    values = {choice.name: choice.value for choice in advice}
    of_the_best = {name: values.pop(name) for name in _OF_THE_BEST if name in values}
    for together in (values, of_the_best):
        changed = with_values(config, together)
        config = config if any(contradictions(changed)) else changed
    return config


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
    free = "" if machine.free_memory is None else f" of {byte_size(machine.free_memory, digits=2)} free"
    yield f"Memory: about {byte_size(plan.memory.peak, digits=2)} at the peak on {machine.device}{free}, by estimate."
    if reckoned := reckoned_duration(plan, machine, prepared):
        yield f"Time: {_time(reckoned.total)}, a rough estimate; truetune plan FILE --probe measures it."
    for warning in plan.warnings:
        yield from textwrap.wrap(f"Warning: {warning}", WIDTH - 2, subsequent_indent="  ")
    yield ""
    yield "truetune plan FILE      tells what the run will take; truetune find-lr FILE measures a learning rate"
    yield "truetune train FILE     trains; a setting may follow, and wins: learning_rate=1e-4"
    yield "Editors complete and check this file after `truetune schema > truetune.schema.json` if its first line is"
    yield "    # yaml-language-server: $schema=truetune.schema.json"


def _time(seconds: float) -> str:
    return "under a minute" if seconds < 60 else duration(seconds)
