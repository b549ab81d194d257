"""The rules behind settings: read from rules.toml, and matched to a situation."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

Method = Literal["lora", "full"]
Value = float | int | str | bool
Condition = str | bool | tuple[float, float]


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a run; None is what is not known yet.

    `rows` are training rows, `learned_tokens` those of a pass, `rank_weights` an adapter's weights at rank 1.
    `epochs` and the steps are known once a schedule is made: a pass has `steps_per_epoch` of the `total_steps`.
    """

    method: Method
    parameters: int
    rows: int
    learned_tokens: int
    validation_rows: int = 0
    is_quantized: bool = False
    hidden: int | None = None
    rank_weights: int | None = None
    epochs: float | None = None
    steps_per_epoch: int | None = None
    total_steps: int | None = None

    @property
    def rows_a_step(self) -> int | None:
        """The effective batch in rows, packed ones counted each; None before the schedule is known."""
        return None if self.steps_per_epoch is None else round(self.rows / self.steps_per_epoch)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a setting is where `when` holds, and whose claim that is.

    `value` is the setting's; with `examples` so many passes as read that many rows, at most `most` of them; with
    `parts` the run's length over that, at least `value`. `tries` are worth a run of their own.
    """

    setting: str
    value: Value
    why: str
    source: str
    limit: str
    when: Mapping[str, Condition]
    guide: str = ""
    evidence: str = ""
    tries: tuple[float, ...] = ()
    examples: int = 0
    most: int = 0
    parts: int = 0


@dataclass(frozen=True, slots=True)
class Bound:
    """What is usual of a measured figure, whose claim that is, and what to do outside of it."""

    measure: str
    setting: str
    source: str
    advice: str
    when: Mapping[str, Condition]
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def range(self) -> str:
        """The range in words: at most 0.1."""
        match math.isfinite(self.low), math.isfinite(self.high):
            case True, True:
                return f"{self.low:,g} to {self.high:,g}"
            case True, False:
                return f"at least {self.low:,g}"
            case _:
                return f"at most {self.high:,g}"


@dataclass(frozen=True, slots=True)
class GuideRange:
    """The fine-tuning guide's own range of a setting, in its words."""

    setting: str
    range: str
    when: Mapping[str, Condition]


@dataclass(frozen=True, slots=True)
class Rules:
    """All that rules.toml holds."""

    rules: tuple[Rule, ...]
    bounds: tuple[Bound, ...]
    guide: tuple[GuideRange, ...]


@cache
def known() -> Rules:
    """The package's rules."""
    text = resources.files("truetune.planning").joinpath("rules.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    return Rules(
        tuple(Rule(**_entry(each)) for each in tables["rule"]),
        tuple(Bound(**_entry(each)) for each in tables["bound"]),
        tuple(GuideRange(**_entry(each)) for each in tables["guide"]),
    )


def rule_for(setting: str, situation: Situation) -> Rule | None:
    """The rule of a setting that holds here; None where none does. ValueError if it needs what is not known yet."""
    return next((rule for rule in known().rules if rule.setting == setting and holds(rule.when, situation)), None)


def bounds_for(situation: Situation) -> tuple[Bound, ...]:
    """What is usual here, of every figure."""
    return tuple(bound for bound in known().bounds if holds(bound.when, situation))


def guide_range(setting: str, situation: Situation) -> str:
    """The guide's range of a setting at this size."""
    return next(each.range for each in known().guide if each.setting == setting and holds(each.when, situation))


def holds(when: Mapping[str, Condition], situation: Situation) -> bool:
    """True if all conditions do."""
    return all(_is_met(name, condition, situation) for name, condition in when.items())


def _is_met(name: str, condition: Condition, situation: Situation) -> bool:
    found = getattr(situation, name)
    if found is None:
        raise ValueError(f"a rule hangs on {name}, which is not known yet")
    match condition:
        case (low, high):
            return bool(low <= found < high)
        case _:
            return bool(found == condition)


def _entry(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of TOML with its lists as tuples."""
    when = {name: tuple(each) if isinstance(each, list) else each for name, each in table.get("when", {}).items()}
    plain = {name: tuple(each) if isinstance(each, list) else each for name, each in table.items()}
    return {**plain, "when": when}
