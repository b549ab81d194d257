"""`truetune init`: a complete config for these rows and this model, each value with its reason."""

from collections.abc import Mapping

from truetune.config.load import dump_config, fields
from truetune.config.schema import Config
from truetune.listener import Listener
from truetune.pipeline.machine import ask_machine
from truetune.pipeline.plan import plan_run
from truetune.pipeline.prepare import prepare_rows

_COLUMN = 44


def initial_config(config: Config, *, listener: Listener) -> str:
    """The config as YAML, every `auto` decided for these rows, with comments. Loads no weights."""
    machine = ask_machine(config, listener)
    prepared = prepare_rows(
        config, tokenizer=machine.tokenizer, context_length=machine.facts.context_length, listener=listener
    )
    plan = plan_run(config, machine=machine, prepared=prepared)
    reasons = {name: description for name, _, description, _ in fields()}
    reasons |= {choice.name: choice.reason for choice in plan.choices}
    report, stats = prepared.report, prepared.report.stats
    head = (
        f"# {report.rows_kept} of {report.rows_read} rows usable: {stats['tokens']:,} tokens, "
        f"{stats['supervised_tokens']:,} learned, the longest row {stats['longest_row_tokens']} tokens.\n"
        f"# {stats['train_rows']} rows to train, {stats['validation_rows']} to validate: "
        f"{plan.steps.total_steps} steps of {plan.steps.effective_batch_size} sequences.\n"
    )
    return head + _commented(dump_config(plan.config), reasons)


def _commented(text: str, reasons: Mapping[str, str]) -> str:
    """The YAML with each setting's reason behind it."""
    section, lines = "", []
    for line in text.splitlines():
        key = line.partition(":")[0]
        if not line.startswith(" "):
            section = key
        name = key if not line.startswith(" ") else f"{section}.{key.strip()}"
        reason = reasons.get(name)
        lines.append(f"{line:<{_COLUMN}}  # {reason}" if reason else line)
    return "\n".join(lines) + "\n"
