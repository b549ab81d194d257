"""What each setting should be, from rules.toml: a value, and the reason with number, source and limit.

What hangs on what: rows, then epochs, the batch (the schedule), the rank by learned tokens, the learning rate by
size, the warm-up.
"""

from dataclasses import dataclass
from typing import Literal

from truetune.figures import byte_size, short_count
from truetune.planning.memory import Memory
from truetune.planning.rules import Rule, Situation, Value, bounds_for, guide_range, rule_for

BILLION = 1_000_000_000
_SPARE = 1.25
"""How much more than its estimate a run may take."""
_SWEPT_ROWS, _SWEPT_BATCH = 100_000, 128
"""What the public sweep of learning rates read, and how many rows a step."""
_FORMULA = {"Llama": 0.781, "Qwen": 0.0775}
"""Exponents of tinker-cookbook's formula for LoRA: 5e-4 · (2000 / hidden size) ^ exponent; of no use under 1B."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting's value with its reason: number, source and limit. `evidence` is what more is known."""

    name: str
    value: Value
    reason: str
    evidence: str = ""


# --- the adapter ------------------------------------------------------------------------------------------


def rank(situation: Situation) -> Choice:
    """The LoRA rank for so many rows, doubled until its weights can hold what is learned in a pass."""
    rule = _rule("adapter.r", situation)
    usual = {bound.measure: bound for bound in bounds_for(situation)}
    r, weights = int(rule.value), situation.rank_weights
    if weights is None:
        return _choice(rule, r, f"{situation.rows:,} rows, {_size(situation)}")
    held = usual["tokens_a_weight"].high * weights
    least = r
    while held * r < situation.learned_tokens and r < usual["r"].high:
        r *= 2
    raised = f", raised from {least}" if r > least else ""
    learned = short_count(situation.learned_tokens)
    holds = f"its {short_count(r * weights)} weights hold {short_count(held * r)} tokens, here {learned}"
    return _choice(rule, r, f"{situation.rows:,} rows, {_size(situation)}{raised}", holds)


def lora_alpha(r: int) -> Choice:
    """The guide's alpha, with what it makes of updates at this rank."""
    rule = _constant("adapter.lora_alpha")
    return _choice(rule, rule.value, f"updates are multiplied by {float(rule.value) / r:g}, alpha / r")


def target_modules() -> Choice:
    """All linear layers."""
    return _plain("adapter.target_modules", "every linear layer")


def lora_dropout(situation: Situation) -> Choice:
    """No dropout."""
    return _plain("adapter.lora_dropout", f"{situation.rows:,} rows")


# --- training ---------------------------------------------------------------------------------------------


def num_train_epochs(situation: Situation) -> Choice:
    """Three passes; more over a handful of rows, fewer over many. Above five only with validation rows."""
    rule = _rule("training.num_train_epochs", situation)
    passes = float(rule.value)
    if rule.examples:
        passes = float(max(1, min(rule.most, rule.examples // max(1, situation.rows))))
    if not situation.validation_rows:
        passes = min(passes, *(each.high for each in bounds_for(situation) if each.measure == "epochs_unvalidated"))
    return _choice(rule, passes, f"{situation.rows:,} rows, {situation.validation_rows:,} to validate")


def gradient_accumulation_steps(situation: Situation, value: int) -> Choice:
    """The schedule's accumulation, with the batch in rows and the steps that it makes."""
    rule = _rule("training.gradient_accumulation_steps", situation)
    return _choice(rule, value, f"{situation.rows_a_step:,} rows a step, {situation.total_steps:,} steps")


def learning_rate(
    *,
    method: Literal["lora", "full"],
    parameters: int,
    is_quantized: bool,
    rows: int | None = None,
    rows_a_step: int | None = None,
    hidden: int | None = None,
) -> Choice:
    """The learning rate for a model of so many parameters; the rest only tells how far its evidence reaches."""
    situation = Situation(method, parameters, rows or 0, 0, is_quantized=is_quantized)
    rule = _rule("training.learning_rate", situation)
    kind = "LoRA" if method == "lora" else "full fine-tuning"
    evidence, limit, beside = [rule.evidence], rule.limit, ""
    if method == "lora" and not is_quantized:
        evidence += [_by_batch(float(rule.value), rows_a_step), _by_formula(parameters, hidden)]
        limit += f", far from your {rows:,} rows" if rows and rows < _SWEPT_ROWS / 2 else ""
    if method == "lora" and parameters >= BILLION:
        beside = f"; the guide: {guide_range(rule.setting, situation)}"
    tries = " and ".join(f"{each:.0e}".replace("e-0", "e-") for each in rule.tries)
    reason = f"{kind}, {_size(situation)}: {rule.why} ({rule.source}){beside}; {limit}: try {tries} too"
    return Choice(rule.setting, rule.value, reason, "; ".join(filter(None, evidence)))


def _by_batch(value: float, rows_a_step: int | None) -> str:
    if rows_a_step is None:
        return ""
    scaled = value * (rows_a_step / _SWEPT_BATCH) ** 0.5
    return (
        f"measured at {_SWEPT_BATCH} rows a step; if the rate goes with the root of the batch (tinker-cookbook, "
        f"hyperparams.md), {rows_a_step} ask for {scaled:.1g}"
    )


def _by_formula(parameters: int, hidden: int | None) -> str:
    if hidden is None or parameters < BILLION:
        return ""
    found = " or ".join(f"{5e-4 * (2000 / hidden) ** power:.1e} ({name})" for name, power in _FORMULA.items())
    return f"by tinker-cookbook's older formula for hidden size {hidden}: {found}"


def lr_scheduler_type(situation: Situation) -> Choice:
    """A linear fall to zero."""
    return _plain("training.lr_scheduler_type", f"falls to 0 over {situation.total_steps:,} steps")


def warmup_ratio(situation: Situation) -> Choice:
    """The guide's 3 %, with the steps that are."""
    rule = _constant("training.warmup_ratio")
    return _choice(rule, rule.value, f"{round(float(rule.value) * (situation.total_steps or 0)):,} steps")


def weight_decay(situation: Situation, rate: float) -> Choice:
    """The guide's decay, with how much it shrinks a weight over a run whose rate falls from this one to zero."""
    rule = _constant("training.weight_decay")
    shrunk = float(rule.value) * rate * (situation.total_steps or 0) / 2
    return _choice(rule, rule.value, f"shrinks a weight by {shrunk:.2g} of itself in {situation.total_steps:,} steps")


def max_grad_norm() -> Choice:
    """The norm that gradients are clipped to."""
    rule = _constant("training.max_grad_norm")
    return _choice(rule, rule.value, f"clipped to {rule.value:g}")


# --- evaluation and checkpoints ---------------------------------------------------------------------------


def eval_strategy(situation: Situation) -> Choice:
    """After each pass; by steps where a pass is long, or the only one."""
    rule = _rule("evaluation.eval_strategy", situation)
    return _choice(rule, rule.value, f"{_schedule(situation)}, {situation.validation_rows:,} rows to validate")


def eval_steps(situation: Situation) -> Choice:
    """The steps between evaluations, where they go by steps: about ten in a run, at least 100 apart."""
    rule = _constant("evaluation.eval_steps")
    steps = int(rule.value)
    if eval_strategy(situation).value == "steps":
        steps = max(steps, 10 * round((situation.total_steps or 0) / rule.parts / 10))
    return _choice(rule, steps, f"{situation.total_steps:,} steps")


def load_best_model_at_end(situation: Situation) -> Choice:
    """Above five passes over validated rows the best weights are taken, else the last."""
    rule = _rule("evaluation.load_best_model_at_end", situation)
    return _choice(rule, bool(rule.value) and situation.validation_rows > 0, _passes(situation))


def early_stopping_patience(situation: Situation) -> Choice | None:
    """The evaluations to wait for a better one, above five passes over validated rows; None elsewhere."""
    rule = rule_for("evaluation.early_stopping_patience", situation)
    return _choice(rule, rule.value, _passes(situation)) if rule and situation.validation_rows else None


def save_strategy(situation: Situation) -> Choice:
    """In the rhythm of the evaluations, so that the best weights can be kept."""
    rule = _rule("checkpoints.save_strategy", situation)
    return _choice(rule, rule.value, _schedule(situation))


def save_steps(situation: Situation) -> Choice:
    """The steps between checkpoints, where they go by steps: those between evaluations."""
    rule = _constant("checkpoints.save_steps")
    is_by_steps = save_strategy(situation).value == "steps"
    steps = eval_steps(situation).value if is_by_steps else rule.value
    return _choice(rule, steps, f"{situation.total_steps:,} steps")


def save_total_limit() -> Choice:
    """How many checkpoints are kept."""
    return _plain("checkpoints.save_total_limit", "3 kept")


# --- all of them ------------------------------------------------------------------------------------------


def recommendations(
    situation: Situation, *, accumulation: int, r: int | None = None, rate: float | None = None
) -> tuple[Choice, ...]:
    """What the rules say of every setting here. The situation's epochs and steps must be known.

    `r` and `rate` are the run's own where they are not the rules': alpha and decay are told for them.
    """
    advised = learning_rate(
        method=situation.method,
        parameters=situation.parameters,
        is_quantized=situation.is_quantized,
        rows=situation.rows,
        rows_a_step=situation.rows_a_step,
        hidden=situation.hidden,
    )
    stopping = early_stopping_patience(situation)
    return (
        *(_adapter(situation, r) if situation.method == "lora" else ()),
        num_train_epochs(situation),
        gradient_accumulation_steps(situation, accumulation),
        advised,
        lr_scheduler_type(situation),
        warmup_ratio(situation),
        weight_decay(situation, float(advised.value) if rate is None else rate),
        max_grad_norm(),
        eval_strategy(situation),
        eval_steps(situation),
        load_best_model_at_end(situation),
        *([stopping] if stopping else []),
        save_strategy(situation),
        save_steps(situation),
        save_total_limit(),
    )


def _adapter(situation: Situation, r: int | None) -> tuple[Choice, ...]:
    advised = rank(situation)
    return advised, lora_alpha(int(advised.value) if r is None else r), target_modules(), lora_dropout(situation)


# --- what the machine decides -----------------------------------------------------------------------------


def gradient_checkpointing(kept: Memory, checkpointed: Memory, *, free: int | None) -> Choice:
    """Trades a third more compute for memory where a run that keeps its activations would not fit into what is free.

    A quarter is left over: the estimates are good to that.
    """
    name, needs = "training.gradient_checkpointing", f"needs about {byte_size(kept.peak, digits=2)}"
    if free is None:
        return Choice(name, False, f"{needs}; what is free is not known here")
    needs = f"{needs} of {byte_size(free, digits=2)} free"
    if leaves_room(kept, free):
        return Choice(name, False, needs)
    needs = f"{needs}, {byte_size(checkpointed.peak, digits=2)} with checkpointing"
    return Choice(name, True, needs if checkpointed.peak <= free else f"{needs}: it may run out of memory")


def leaves_room(memory: Memory, free: int) -> bool:
    """True if a quarter of the estimate is left over: the estimates are good to that."""
    return memory.peak * _SPARE <= free


def optimizer() -> Choice:
    """AdamW in one fused kernel: works after a plain install, on every device."""
    return Choice("training.optim", "adamw_torch_fused", "exact AdamW, fused; needs no extra package")


def learning_rate_warning(*, method: Literal["lora", "full"], value: float, parameters: int) -> str | None:
    """A warning for a learning rate far outside what is known to work, with the range, its source and the remedy."""
    situation = Situation(method, parameters, 0, 0)
    usual = next(bound for bound in bounds_for(situation) if bound.measure == "learning_rate")
    if usual.holds(value):
        return None
    kind = "LoRA" if method == "lora" else "full fine-tuning"
    side = "below" if value < usual.low else "above"
    return (
        f"learning rate {value:g} is {side} the usual range for {kind} at this size, {usual.low:g} to {usual.high:g} "
        f"(the guide's range for this size, meant for LoRA: {guide_range(usual.setting, situation)}; "
        f"{usual.source}): {usual.advice}"
    )


# --- reasons ----------------------------------------------------------------------------------------------


def _rule(setting: str, situation: Situation) -> Rule:
    rule = rule_for(setting, situation)
    if rule is None:
        raise ValueError(f"no rule for {setting} in {situation}")
    return rule


def _constant(setting: str) -> Rule:
    """The rule of a setting that is the same everywhere."""
    return _rule(setting, Situation("lora", 0, 0, 0))


def _plain(setting: str, figures: str) -> Choice:
    rule = _constant(setting)
    return _choice(rule, rule.value, figures)


def _choice(rule: Rule, value: Value, figures: str, end: str = "") -> Choice:
    """The value, with the figures that moved it, the claim, its source, what the guide says beside it, its limit."""
    last = f"; {end}" if end else ""
    reason = f"{figures}: {rule.why} ({rule.source}){_beside(rule)}; {rule.limit}{last}"
    return Choice(rule.setting, value, reason, rule.evidence)


def _beside(rule: Rule) -> str:
    return f"; the guide: {rule.guide}" if rule.guide else ""


def _size(situation: Situation) -> str:
    billions = situation.parameters / BILLION
    return f"{billions:.2g}B parameters" if billions < 100 else f"{billions:.0f}B parameters"


def _schedule(situation: Situation) -> str:
    return f"{situation.steps_per_epoch:,} steps a pass, {situation.total_steps:,} in all"


def _passes(situation: Situation) -> str:
    return f"{situation.epochs:g} passes, {situation.validation_rows:,} rows to validate"
