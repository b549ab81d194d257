"""Settings and data outside of what is usual: each a line with the value, the range, its source and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass

from truetune.planning.hyperparameters import learning_rate_warning
from truetune.planning.rules import Bound, Situation, bounds_for

ATTENTION = frozenset((
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "query_key_value", "query", "key", "value",
    "c_attn", "Wqkv", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj",
))  # fmt: skip
"""The last names of linear layers that belong to attention and to nothing else."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run that are held against what is usual, none of them `auto`."""

    learning_rate: float
    num_train_epochs: float
    warmup_steps: int
    weight_decay: float
    r: int = 16
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: str | Sequence[str] = "all-linear"
    use_rslora: bool = False
    stops_early: bool = False


def doubts(settings: Settings, situation: Situation) -> tuple[str, ...]:
    """A line for each setting outside of what is usual, and for the data; none where all are within."""
    method, parameters = situation.method, situation.parameters
    rate = learning_rate_warning(method=method, value=settings.learning_rate, parameters=parameters)
    found = {**_of_data(settings, situation), **_of_training(settings, situation)}
    if method == "lora":
        found |= _of_adapter(settings, situation)
    lines: dict[str, str] = {}
    for bound in bounds_for(situation):
        if bound.measure in found and not bound.holds(found[bound.measure]):
            lines.setdefault(bound.setting, _line(bound, found[bound.measure]))
    return (*([rate] if rate else []), *lines.values())


def _line(bound: Bound, value: float) -> str:
    return f"{bound.setting}: {_figure(value)}{bound.unit}; usual is {bound.range} ({bound.source}): {bound.advice}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _of_data(settings: Settings, situation: Situation) -> dict[str, float]:
    """Figures that the rows and the passes over them make."""
    rows = situation.rows + situation.validation_rows
    passes = settings.num_train_epochs
    if not situation.validation_rows:
        return {"rows": rows, "epochs_unvalidated": passes}
    return {"rows": rows} if settings.stops_early else {"rows": rows, "epochs_unstopped": passes}


def _of_training(settings: Settings, situation: Situation) -> dict[str, float]:
    found: dict[str, float] = {"weight_decay": settings.weight_decay}
    if situation.rows_a_step is not None:
        found["rows_a_step"] = situation.rows_a_step
    if situation.total_steps:
        found["total_steps"] = situation.total_steps
        # One step is never too many: of few steps it is more than any share.
        found["warmup_share"] = settings.warmup_steps / situation.total_steps if settings.warmup_steps > 1 else 0
    return found


def _of_adapter(settings: Settings, situation: Situation) -> dict[str, float]:
    found: dict[str, float] = {
        "r": settings.r,
        "lora_dropout": settings.lora_dropout,
        "any_dropout": settings.lora_dropout,
        "attention_only": 0 if _is_attention_only(settings.target_modules) else 1,
    }
    if not settings.use_rslora:
        found["scale"] = settings.lora_alpha / settings.r
    if situation.rank_weights:
        found["tokens_a_weight"] = situation.learned_tokens / (settings.r * situation.rank_weights)
    return found


def _is_attention_only(targets: str | Sequence[str]) -> bool:
    return not isinstance(targets, str) and all(name.rpartition(".")[2] in ATTENTION for name in targets)
