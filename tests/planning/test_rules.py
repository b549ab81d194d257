"""The rules behind settings: whole, used, and in agreement with what is warned of and with docs/settings.md."""

import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest

from truetune.planning.doubts import Settings, doubts
from truetune.planning.hyperparameters import BILLION, Choice, recommendations
from truetune.planning.rules import Bound, Condition, Rule, Situation, holds, known

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "settings.md"
RULES, BOUNDS, GUIDE = known().rules, known().bounds, known().guide
ONLY_SOMETIMES = {"evaluation.early_stopping_patience"}
"""Settings that are null where no rule holds."""


def situation(
    *, rows: int = 270, billions: float = 0.135, validation_rows: int = 30, epochs: float = 3, **more: object
) -> Situation:
    """A run on 8 rows a step of 60 learned tokens each, its adapter's weights those of SmolLM2's shape."""
    per_epoch = math.ceil(rows / 8)
    parameters = int(billions * BILLION)
    made = Situation(
        method="lora",
        parameters=parameters,
        rows=rows,
        learned_tokens=rows * 60,
        validation_rows=validation_rows,
        rank_weights=parameters // 440,
        epochs=epochs,
        steps_per_epoch=per_epoch,
        total_steps=math.ceil(per_epoch * epochs),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def grid() -> Iterator[Situation]:
    """Runs of both methods, of many sizes and rows, as the rules have them."""
    sizes = (0.001, 0.99, 1, 3.2, 4, 9.9, 13, 14, 27, 405)
    for billions, rows, method, is_quantized in itertools.product(
        sizes, (2, 3, 25, 270, 900, 9_999, 10_000, 30_000, 100_000, 400_000), ("lora", "full"), (True, False)
    ):
        validation = rows if rows == 3 else 0 if rows < 90 else min(1000, rows // 9)
        asked = situation(rows=rows, billions=billions, validation_rows=validation, method=method)
        asked = replace(asked, is_quantized=is_quantized and method == "lora", hidden=2048)
        epochs = chosen(asked)["training.num_train_epochs"].value
        yield situation(
            rows=rows,
            billions=billions,
            validation_rows=validation,
            epochs=float(epochs),
            method=method,
            is_quantized=asked.is_quantized,
            hidden=2048,
        )


def chosen(asked: Situation) -> dict[str, Choice]:
    return {choice.name: choice for choice in recommendations(asked, accumulation=4)}


def settings_of(asked: Situation) -> Settings:
    values = {name: choice.value for name, choice in chosen(asked).items()}
    return Settings(
        learning_rate=float(values["training.learning_rate"]),
        num_train_epochs=float(values["training.num_train_epochs"]),
        warmup_steps=round(float(values["training.warmup_ratio"]) * (asked.total_steps or 0)),
        weight_decay=float(values["training.weight_decay"]),
        r=int(values.get("adapter.r", 16)),
        lora_alpha=float(values.get("adapter.lora_alpha", 16)),
        lora_dropout=float(values.get("adapter.lora_dropout", 0)),
        target_modules=str(values.get("adapter.target_modules", "all-linear")),
        stops_early="evaluation.early_stopping_patience" in values,
    )


GRID = list(grid())


# --- the rules themselves ---------------------------------------------------------------------------------


def test_every_condition_names_what_a_situation_has() -> None:
    names = {field.name for field in fields(Situation)} | {"rows_a_step"}
    for entry in (*RULES, *BOUNDS, *GUIDE):
        assert set(entry.when) <= names, entry


@pytest.mark.parametrize("setting", sorted({rule.setting for rule in RULES} - ONLY_SOMETIMES))
def test_the_conditions_of_a_setting_leave_no_gap_and_do_not_overlap(setting: str) -> None:
    rules = [rule for rule in RULES if rule.setting == setting]
    for asked in corners([rule.when for rule in rules]):
        found = [rule for rule in rules if holds(rule.when, asked)]
        assert len(found) == 1, (setting, asked, found)


@pytest.mark.parametrize("measure", sorted({bound.measure for bound in BOUNDS} - {"any_dropout"}))
def test_what_is_usual_of_a_figure_is_said_once_for_every_size(measure: str) -> None:
    of_adapter = all(bound.when.get("method") == "lora" for bound in BOUNDS if bound.measure == measure)
    bounds = [bound for bound in BOUNDS if bound.measure == measure]
    for asked in corners([bound.when for bound in bounds]):
        if not of_adapter or asked.method == "lora":
            assert sum(holds(bound.when, asked) for bound in bounds) == 1, (measure, asked)


def test_the_guides_table_covers_every_size() -> None:
    for asked in corners([each.when for each in GUIDE]):
        assert sum(holds(each.when, asked) for each in GUIDE) == 1


def corners(conditions: list[Mapping[str, Condition]]) -> Iterator[Situation]:
    """A situation at, just below and between all the limits that these conditions name."""
    points: dict[str, set[float]] = {}
    for when in conditions:
        for name, condition in when.items():
            if isinstance(condition, tuple):
                finite = {each for each in condition if math.isfinite(each)}
                points.setdefault(name, set()).update(finite, {each - 1e-6 for each in finite if each}, {1e15})
    for values in itertools.product(*points.values()):
        for method, is_quantized in (("lora", True), ("lora", False), ("full", False)):
            asked = situation(method=method, is_quantized=is_quantized)
            yield replace(asked, **dict(zip(points, values, strict=True)))


def test_every_rule_is_chosen_somewhere() -> None:
    extra = [situation(rows=20, validation_rows=5, epochs=5.5), situation(rows=1800, epochs=1), situation(epochs=1)]
    seen = {(name, choice.reason) for asked in (*GRID, *extra) for name, choice in chosen(asked).items()}
    for rule in RULES:
        of_rule = [reason for name, reason in seen if name == rule.setting and rule.why in reason]
        assert any(rule.limit in reason for reason in of_rule), rule


def test_every_reason_is_one_line_with_a_number_a_source_and_a_limit() -> None:
    for choice in {choice for asked in GRID for choice in chosen(asked).values()}:
        of_setting = [rule for rule in RULES if rule.setting == choice.name]
        reason = choice.reason
        assert any(f"{rule.why} ({rule.source})" in reason and rule.limit in reason for rule in of_setting), choice
        assert any(character.isdigit() for character in reason), choice
        assert len(reason) <= 220, (len(reason), choice)
        assert "\n" not in reason


# --- what is warned of ------------------------------------------------------------------------------------


def test_no_choice_of_ours_is_one_we_warn_of() -> None:
    """But for what the data is: its rows, too few steps of them, and more tokens than the largest rank can hold."""
    for asked in GRID:
        settings = settings_of(asked)
        found = [each for each in doubts(settings, asked) if not each.startswith(("data: ", "training: "))]
        if settings.r == 256:
            found = [each for each in found if "learned tokens for each" not in each]
        assert not found, (asked, found)


def test_an_ordinary_run_on_300_rows_is_not_doubted() -> None:
    assert doubts(settings_of(situation()), situation()) == ()


DEFAULTS = Settings(learning_rate=3e-4, num_train_epochs=3, warmup_steps=3, weight_decay=0.01)
LARGE = situation(rows=5000, validation_rows=500, billions=8)


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"learning_rate": 2e-2}, {}, "learning rate 0.02 is above"),
        ({"learning_rate": 2e-4}, {"method": "full"}, "1e-06 to 5e-05"),
        ({"learning_rate": 2e-4}, {"method": "full", "parameters": 135_000_000}, "1e-06 to 0.0001"),
        ({}, {"rows": 54, "validation_rows": 0, "steps_per_epoch": 7}, "data: 54 rows; usual is 100 to 10,000"),
        ({}, {"rows": 20_000}, "data: 20,500 rows; usual is 100 to 10,000"),
        ({"num_train_epochs": 6}, {"validation_rows": 0}, "num_train_epochs: 6 without validation rows; usual is at"),
        ({"num_train_epochs": 6}, {}, "num_train_epochs: 6 without early stopping; usual is at most 5 (the guide"),
        ({}, {"total_steps": 99}, "training: 99 steps; usual is at least 100"),
        ({}, {"steps_per_epoch": 20}, "gradient_accumulation_steps: 250 rows a step; usual is at most 32 (trl"),
        ({"learning_rate": 3e-5}, {"steps_per_epoch": 20, "method": "full"}, "250 rows a step; usual is at most 128"),
        ({"warmup_steps": 500}, {"total_steps": 1000}, "warmup_ratio: 0.5 of the steps; usual is at most 0.2"),
        ({"weight_decay": 0.5}, {}, "weight_decay: 0.5; usual is at most 0.1 (ten times the guide's"),
        ({"lora_dropout": 0.3}, {}, "lora_dropout: 0.3; usual is at most 0.1 (qlora"),
        ({"lora_dropout": 0.05}, {}, "lora_dropout: 0.05 on over 1,000 rows; usual is at most 0"),
        ({"r": 2, "lora_alpha": 2}, {}, "adapter.r: 2; usual is 4 to 256"),
        ({"r": 8, "lora_alpha": 64}, {}, "lora_alpha: 8 times adapter.r; usual is 0.0625 to 4"),
        ({}, {"rank_weights": 1000}, "adapter.r: 18.8 learned tokens for each of the adapter's weights; usual is at"),
        (
            {"target_modules": ("q_proj", "model.layers.3.self_attn.v_proj")},
            {},
            "0 layers outside attention; usual is",
        ),
    ],
)
def test_what_is_unusual_is_told_with_value_range_source_and_remedy(
    changes: dict[str, object], where: dict[str, object], words: str
) -> None:
    found = doubts(replace(DEFAULTS, **changes), replace(LARGE, **where))  # type: ignore[arg-type]
    assert [line for line in found if words in line], found
    assert all("\n" not in line and ("): " in line) for line in found)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({}, {}),
        ({"num_train_epochs": 12, "stops_early": True}, {}),
        ({"lora_dropout": 0.1}, {"rows": 900}),
        ({"r": 256, "lora_alpha": 16}, {}),
        ({"r": 256, "lora_alpha": 8, "use_rslora": True}, {}),
        ({"target_modules": ("q_proj", "down_proj")}, {}),
        ({"target_modules": r".*\.q_proj"}, {}),
        ({"r": 1, "lora_dropout": 0.9, "learning_rate": 3e-5}, {"method": "full"}),
        ({"warmup_steps": 1}, {"rows": 100, "total_steps": 100}),
    ],
)
def test_what_is_usual_is_passed_over(changes: dict[str, object], where: dict[str, object]) -> None:
    assert doubts(replace(DEFAULTS, **changes), replace(LARGE, **where)) == ()  # type: ignore[arg-type]


def test_a_setting_that_is_unusual_twice_is_told_once() -> None:
    found = doubts(replace(DEFAULTS, lora_dropout=0.3, r=2, lora_alpha=2), replace(LARGE, rank_weights=1000))
    assert [line.partition(":")[0] for line in found] == ["adapter.lora_dropout", "adapter.r"]


# --- where they stand -------------------------------------------------------------------------------------


def test_the_rules_come_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "planning/*.toml" in project["tool"]["setuptools"]["package-data"]["truetune"]


def test_the_page_of_settings_shows_every_rule_and_nothing_else() -> None:
    shown = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert shown == [*map(rule_row, RULES), *map(bound_row, BOUNDS)]


def rule_row(rule: Rule) -> str:
    why = f"{rule.why}; the guide: {rule.guide}" if rule.guide else rule.why
    value = str(rule.value).lower() if isinstance(rule.value, bool) else f"{rule.value}"
    cells = (f"`{rule.setting}`", in_words(rule.when), value, why, rule.source, rule.limit)
    return f"| {' | '.join(cells)} |"


def bound_row(bound: Bound) -> str:
    usual = f"{bound.range}{bound.unit}"
    return f"| {' | '.join((f'`{bound.setting}`', in_words(bound.when), usual, bound.source, bound.advice))} |"


def in_words(when: Mapping[str, Condition]) -> str:
    return ", ".join(clause(name.replace("_", " "), condition) for name, condition in when.items()) or "always"


def clause(name: str, condition: Condition) -> str:
    match condition:
        case bool(is_so):
            return "quantised" if is_so else "not quantised"
        case str(text):
            return text
        case (low, high) if high == math.inf:
            return f"{name} from {amount(low)}"
        case (low, high):
            return f"{name} under {amount(high)}" if not low else f"{name} {amount(low)} to under {amount(high)}"


def amount(count: float) -> str:
    return f"{count / BILLION:g}B" if count >= BILLION else f"{count:,g}" if count < 100_000 else f"{count:,.0f}"
