"""Axolotl's YAML. Names and defaults: its config reference, src/axolotl/utils/schemas and core/builders/base.py."""

from collections.abc import Iterator, Mapping
from typing import Any

from truetune.migrate import hugging_face
from truetune.migrate.axolotl_keys import KEYS
from truetune.migrate.axolotl_rows import chat_template, datasets, jinja, validation_rows
from truetune.migrate.outcomes import Default, Leave, Outcome, Rule, Set, Tool, only, rules, to

_PREFERENCE = "preference tuning and reinforcement learning are not supported"


def _adapter(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    match value:
        case "lora":
            yield Set("adapter.method", "lora")
        case "qlora":
            yield Set("adapter.method", "lora")
            if document.get("load_in_4bit") is None:
                yield Set("model.load_in_4bit", True)
        case _:
            yield Leave(f"{value} adapters are not supported: LoRA is trained in its place")


def _batch_size(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    """Axolotl: gradient_accumulation_steps is batch_size over micro_batch_size where it is not set."""
    micro = document.get("micro_batch_size") or 1
    if document.get("gradient_accumulation_steps"):
        yield Leave("it is micro_batch_size × gradient_accumulation_steps, which are set", matters=False)
    elif isinstance(value, int) and isinstance(micro, int) and value >= micro:
        yield Set("training.gradient_accumulation_steps", value // micro)
    else:
        yield Leave("it cannot be divided by micro_batch_size")


def _per_epoch(kind: str) -> Rule:
    """Axolotl turns n times an epoch into a share of all steps: 1 / (n × num_epochs)."""
    strategy, steps = {
        "eval": ("evaluation.eval_strategy", "evaluation.eval_steps"),
        "save": ("checkpoints.save_strategy", "checkpoints.save_steps"),
    }[kind]

    def rule(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
        times = float(value) * float(document.get("num_epochs") or 1)
        if document.get(f"{kind}_steps"):
            yield Leave(f"{kind}_steps is set as well: one of them counts")
        elif value == 1:
            yield Set(strategy, "epoch")
        elif times > 1:
            yield Set(strategy, "steps")
            yield Set(steps, round(1 / times, 6))
        else:
            yield Set(strategy, "no")

    return rule


def _steps(kind: str) -> Rule:
    section = {"eval": "evaluation", "save": "checkpoints"}[kind]

    def rule(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
        if value:
            yield Set(f"{section}.{kind}_steps", value)
            yield Set(f"{section}.{kind}_strategy", "steps")
        else:
            yield Leave("zero: it asks for nothing", matters=False)

    return rule


def _strategy(kind: str) -> Rule:
    section = {"eval": "evaluation", "save": "checkpoints"}[kind]

    def rule(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
        if document.get(f"{kind}_steps") and value != "steps":
            yield Leave(f"{kind}_steps is set, and wins")
        else:
            yield Set(f"{section}.{kind}_strategy", value)

    return rule


def _wandb_project(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    """Axolotl reports to Weights & Biases wherever a project is named."""
    yield Set("logging.project", value)
    if document.get("wandb_mode") != "disabled":
        yield Set("logging.report_to", _trackers(document))


_SWITCHES = {
    "use_wandb": "wandb",
    "use_tensorboard": "tensorboard",
    "use_trackio": "trackio",
    "use_mlflow": "mlflow",
    "use_comet": "comet_ml",
}


def _trackers(document: Mapping[str, Any]) -> str | list[str]:
    """All that a document turns on; W&B where only an empty project names it."""
    named = document.get("wandb_project") and document.get("wandb_mode") != "disabled"
    asked = [name for switch, name in _SWITCHES.items() if document.get(switch) is True]
    asked = ["wandb", *asked] if named and "wandb" not in asked else asked
    return asked if len(asked) > 1 else next(iter(asked), "wandb")


def _tracker(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    if value is True:
        yield Set("logging.report_to", _trackers(document))
    else:
        yield Leave("off: it asks for nothing", matters=False)


def _modules(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    if document.get("lora_target_linear"):
        yield Leave("lora_target_linear takes all linear layers", matters=False)
    else:
        yield from hugging_face.RULES["lora_target_modules"](value, document)


def _overlong(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    known = {"drop": "drop", "truncate": "truncate", "raise": "error"}
    yield Set("data.overlong", known.get(str(value), value))


def _peft(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    if isinstance(value, Mapping) and value.get("loftq_config"):
        yield Leave("LoftQ is not supported: set adapter.init_lora_weights")
    else:
        yield Leave("how the base is quantised is said by model.load_in_4bit and load_in_8bit")


# --- the tool ---------------------------------------------------------------------------------------------

RULES: dict[str, Rule] = rules(
    hugging_face.RULES,
    KEYS,
    {
        "adapter": _adapter,
        "batch_size": _batch_size,
        "datasets": datasets,
        "test_datasets": validation_rows,
        "evals_per_epoch": _per_epoch("eval"),
        "saves_per_epoch": _per_epoch("save"),
        "eval_steps": _steps("eval"),
        "save_steps": _steps("save"),
        "eval_strategy": _strategy("eval"),
        "evaluation_strategy": _strategy("eval"),
        "save_strategy": _strategy("save"),
        "wandb_project": _wandb_project,
        **dict.fromkeys(_SWITCHES, _tracker),
        "lora_target_modules": _modules,
        "chat_template": chat_template,
        "chat_template_jinja": jinja,
        "excess_length_strategy": _overlong,
        "bfloat16": hugging_face.bf16,
        "float16": hugging_face.fp16,
        "peft": _peft,
        "shuffle_merged_datasets": only(True, otherwise="rows are always shuffled, by training.seed"),
        "dataset_num_proc": to("data.num_proc"),
    },
)


def defaults(document: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Default]:
    """Axolotl's defaults: one row at a time, cosine, an epoch, 512 tokens, no validation."""
    if "adapter.method" not in settings:
        yield Default("adapter.method", "full", "Axolotl trains all weights where adapter is empty")
    elif not document.get("lora_target_linear") and not document.get("lora_target_modules"):
        yield hugging_face.PEFT_TARGETS
    yield Default("data.max_length", 512, "Axolotl's default of sequence_len")
    yield Default("data.packing", False, "Axolotl's default of sample_packing")
    yield (
        Default("data.test_size", 0, "Axolotl's default of val_set_size")
        if not document.get("test_datasets")
        else Default("evaluation.eval_strategy", "epoch", "Axolotl validates the rows of test_datasets")
    )
    yield Default("training.num_train_epochs", 1.0, "Axolotl's default")
    yield Default("training.per_device_train_batch_size", 1, "Axolotl's default")
    yield Default("training.gradient_accumulation_steps", 1, "Axolotl's default")
    yield Default("training.lr_scheduler_type", "cosine", "Axolotl's default")
    yield Default("training.warmup_ratio", 0.03, "Axolotl's default; there it is at most 100 steps")
    yield Default("training.weight_decay", 0.0, "Axolotl's default")
    yield Default("training.seed", 42, "Axolotl's default")
    if not settings.get("data.test_size") and not settings.get("data.validation_path"):
        yield Default("evaluation.eval_strategy", "no", "no rows are validated")
    yield Default("checkpoints.save_strategy", "epoch", "Axolotl's default")
    yield Default("checkpoints.save_total_limit", 4, "Axolotl's default")


def refusals(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Methods that Axolotl has and truetune has not."""
    for key, kind in (
        ("rl", document.get("rl")),
        ("reward_model", "reward models"),
        ("process_reward_model", "reward models"),
    ):
        if document.get(key):
            yield f"{key}", f"{kind}: {_PREFERENCE}"
    if document.get("pretraining_dataset"):
        yield (
            "pretraining_dataset",
            "pretraining on a stream of text is not supported; rows with a text field are learned whole",
        )
    if document.get("image_size") or document.get("image_resize_algorithm"):
        yield "image_size", "models that see are not supported: only text is trained on"


AXOLOTL = Tool("axolotl", "Axolotl", RULES, defaults, refusals)
