"""A training script as a document: the arguments of the calls that say how it trains, with a rule for each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from truetune.config.names import ALIASES, REFUSED
from truetune.config.schema import setting_names
from truetune.errors import ConfigError
from truetune.migrate import hugging_face, trl, unsloth
from truetune.migrate.call_kinds import Kind
from truetune.migrate.calls import LORA_CONFIG, UNSLOTH_LORA, kind_of
from truetune.migrate.outcomes import Default, Outcome, Rule, Set, Tool, harmless, left, to
from truetune.migrate.values import is_read
from truetune.migrate.walk import Call, Walk, walk_script

_REFUSED = {
    **dict.fromkeys(
        ("DPOTrainer", "DPOConfig", "KTOTrainer", "KTOConfig", "ORPOTrainer", "ORPOConfig"), "preference tuning"
    ),
    **dict.fromkeys(("CPOTrainer", "CPOConfig", "BCOTrainer", "BCOConfig"), "preference tuning"),
    **dict.fromkeys(
        ("GRPOTrainer", "GRPOConfig", "PPOTrainer", "PPOConfig", "RLOOTrainer", "RLOOConfig"),
        "reinforcement learning",
    ),
    **dict.fromkeys(("RewardTrainer", "RewardConfig", "PRMTrainer"), "reward models"),
    **dict.fromkeys(("GKDTrainer", "GKDConfig"), "distillation"),
    **dict.fromkeys(("UnslothVisionDataCollator",), "models that see"),
}
_REFUSED_MODELS = {
    **dict.fromkeys(("FastVisionModel", "AutoModelForVision2Seq", "AutoModelForImageTextToText"), "models that see"),
    "AutoModelForSequenceClassification": "classifiers",
    "AutoModelForTokenClassification": "classifiers",
    "AutoModelForSeq2SeqLM": "encoder-decoder models",
}
_OURS = {name.rpartition(".")[2]: name for name in setting_names()}


@dataclass(frozen=True, slots=True)
class Script:
    """The script's document: values and lines by key, with a tool whose rules are made for just these keys."""

    values: Mapping[str, Any]
    lines: Mapping[str, int]
    tool: Tool
    because: tuple[str, ...]


@dataclass(slots=True)
class _Found:
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)


def read_script(text: str, *, name: str) -> Script:
    """The script as a document. Nothing of it is run. ConfigError if it is no Python, or trains nothing."""
    walk = walk_script(text, name=name)
    refused = list(_refusals(walk, name))
    if refused:
        raise ConfigError(
            "\n".join(refused), hint="truetune trains on answers (supervised fine-tuning), and nothing else"
        )
    found = _Found()
    for call in walk.calls:
        if kind := kind_of(call, walk):
            _add(call, kind, found)
    for variable, value, line in walk.environment:
        _add_variable(variable, value, line, found)
    if not found.values:
        raise ConfigError(
            f"{name}: no call that trains a model was found",
            hint="a script that calls SFTTrainer, TrainingArguments, LoraConfig or FastLanguageModel is expected",
        )
    tool = Tool("script", "the script", found.rules, partial(_defaults, found), lambda _: (), shares_names=False)
    because = tuple(dict.fromkeys(found.kinds))
    return Script(_with_skipped(found, walk), found.lines, tool, because)


def _refusals(walk: Walk, name: str) -> Iterator[str]:
    for call in walk.calls:
        kind = _REFUSED.get(call.name)
        if call.name == "from_pretrained":
            kind = _REFUSED_MODELS.get(call.receiver.rpartition(".")[2])
        if kind:
            yield f"{name}:{call.line}: {call.receiver or call.name}: {kind} is not supported"


def _with_skipped(found: _Found, walk: Walk) -> dict[str, Any]:
    """Branches that a constant rules out, as a key of their own, so that they are told."""
    for line in walk.skipped:
        key = f"line {line}"
        found.values[key], found.lines[key] = "a branch", line
        found.rules[key] = left("a constant of the script rules this branch out", matters=False)
    return found.values


# --- calls into keys --------------------------------------------------------------------------------------


def _add(call: Call, kind: Kind, found: _Found) -> None:
    """The call's arguments as keys `SFTConfig.learning_rate`, each with its rule."""
    number = found.kinds.count(kind.name)
    prefix = f"{kind.name}[{number + 1}]" if number else kind.name
    found.kinds.append(kind.name)
    given = {**dict(zip(_positions(kind, call), call.positional, strict=False)), **call.keywords}
    for name, value in given.items():
        key = f"{prefix}.{name}" if name else prefix
        found.values[key] = value
        found.lines[key] = call.lines.get(name, call.line)
        found.rules[key] = _bound(_rule(name, value, kind), given)
    if not given:
        found.values[prefix], found.lines[prefix] = "()", call.line
        found.rules[prefix] = kind.rules.get("", harmless("it takes no arguments"))


def _positions(kind: Kind, call: Call) -> list[str]:
    return [*kind.order, *(f"argument {index + 1}" for index in range(len(kind.order), len(call.positional)))]


def _bound(rule: Rule, given: Mapping[str, Any]) -> Rule:
    """The rule with the call's own arguments as its document."""
    return lambda value, _: rule(value, given)


def _rule(name: str, value: Any, kind: Kind) -> Rule:
    if name in kind.objects:
        return kind.rules.get(name, harmless("it is what the script made before"))
    if not is_read(value):
        return left(_computed(name))
    if name in kind.rules:
        return kind.rules[name]
    return _shared(name) if kind.shares_names else left("unknown argument")


def _computed(name: str) -> str:
    target = _OURS.get(name) or (ALIASES[name].target if name in ALIASES else None)
    return f"the script computes it: set {target}" if target else "the script computes it"


def _shared(name: str) -> Rule:
    """The names that truetune's own config takes."""
    if name in _OURS:
        return to(_OURS[name])
    if name in ALIASES:
        return _aliased(name)
    return left(REFUSED.get(name, "unknown argument"))


def _aliased(name: str) -> Rule:
    alias = ALIASES[name]

    def rule(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
        said = alias.translate(value)
        yield Set(alias.target, said)

    return rule


def _add_variable(variable: str, value: Any, line: int, found: _Found) -> None:
    key = f"os.environ.{variable}"
    known = {
        "WANDB_PROJECT": "logging.project",
        "WANDB_NAME": "logging.run_name",
        "TENSORBOARD_LOGGING_DIR": "logging.logging_dir",
    }
    found.values[key], found.lines[key] = value, line
    found.rules[key] = (
        to(known[variable]) if variable in known and is_read(value) else left("set it where truetune runs")
    )


# --- defaults ---------------------------------------------------------------------------------------------


def _defaults(found: _Found, _: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Default]:
    """What the script's libraries do where it says nothing."""
    kinds = set(found.kinds)
    uses_unsloth_lora, uses_peft = UNSLOTH_LORA.name in kinds, LORA_CONFIG.name in kinds
    if uses_unsloth_lora or uses_peft or "adapter.init_from" in settings:
        yield Default("adapter.method", "lora", "the script makes an adapter")
    else:
        yield Default("adapter.method", "full", "the script makes no adapter: all weights are trained")
    if uses_unsloth_lora:
        yield from unsloth.adapter_defaults()
    elif uses_peft:
        yield Default("adapter.r", 8, "PEFT's default")
        yield Default("adapter.lora_alpha", 8.0, "PEFT's default")
        yield hugging_face.PEFT_TARGETS
    if kinds & {"Trainer"}:
        yield Default(
            "data.train_on", "all", "transformers' trainer learns whole texts, unless the script masks them"
        )
        yield Default("data.packing", False, "transformers' trainer does not pack")
    else:
        yield from trl.text_defaults("TRL's trainer")
    if "train_test_split" not in kinds and "data.validation_path" not in settings:
        yield Default("data.test_size", 0, "the script holds no rows out")
    tool, rate = ("SFTConfig", 2e-5) if "SFTConfig" in kinds else ("TrainingArguments", 5e-5)
    yield from hugging_face.schedule(tool, learning_rate=rate)
    yield from hugging_face.rhythm(tool)
