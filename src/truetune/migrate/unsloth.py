"""Unsloth's YAML: the options of its command line, flat or in sections (model, data, training, lora, logging)."""

from collections.abc import Iterator, Mapping
from typing import Any

from truetune.config.names import Fallback
from truetune.migrate import hugging_face, trl
from truetune.migrate.datasets import template_of
from truetune.migrate.outcomes import (
    OFF,
    Default,
    Leave,
    Outcome,
    Rule,
    Set,
    Tool,
    each,
    harmless,
    left,
    only,
    rules,
    to,
)

SECTIONS = ("model", "data", "training", "lora", "logging")
_VISION = harmless("only text is trained on")


def flat(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without its sections: `training.max_steps` is `max_steps`, unless that is there as well."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        if key in SECTIONS and isinstance(value, Mapping) and value:
            for inner, said in value.items():
                found[f"{key}.{inner}" if inner in found or inner in document else str(inner)] = said
        else:
            found[key] = value
    return found


def _local(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("data.path", value[0] if isinstance(value, list) and len(value) == 1 else value)


def _zero_is_none(name: str, none: Any) -> Rule:
    def rule(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
        if value in (0, -1):
            yield Leave(OFF, matters=False)
        else:
            yield Set(name, value)
            if none:
                yield Set(*none)

    return rule


def _completions(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("data.train_on", "assistant" if value else "all")


def _format(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    match value:
        case "auto":
            yield Leave("the form is found row by row", matters=False)
        case "alpaca":
            yield Set("data.template", "alpaca")
        case "chatml" | "sharegpt" | "chat":
            yield Set("data.format", "chat")
        case _:
            yield Leave("data.format takes auto, instruction, chat and completion")


def _template(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield from template_of("Unsloth", value)


def _training_type(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("adapter.method", {"qlora": "lora"}.get(str(value), value))
    if value == "qlora":
        yield Set("model.load_in_4bit", Fallback(True))


def _full(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("adapter.method", "full") if value else Leave(OFF, matters=False)


def _random_state(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    if "seed" in document and document["seed"] != value:
        yield Leave("adapter, order and split have one seed here: training.seed")
    else:
        yield Set("training.seed", value)


_SAVING = left("merging and exporting are commands of their own")

RULES: dict[str, Rule] = rules(
    hugging_face.RULES,
    {
        "model": to("model.name_or_path"),
        "local_dataset": _local,
        "format_type": _format,
        "chat_template": _template,
        "training_type": _training_type,
        "full_finetuning": _full,
        "batch_size": to("training.per_device_train_batch_size"),
        "max_steps": _zero_is_none("training.max_steps", None),
        "save_steps": _zero_is_none("checkpoints.save_steps", ("checkpoints.save_strategy", "steps")),
        "eval_steps": _zero_is_none("evaluation.eval_steps", ("evaluation.eval_strategy", "steps")),
        "train_on_completions": _completions,
        "train_on_responses_only": _completions,
        "random_seed": to("training.seed"),
        "random_state": _random_state,
        "r": to("adapter.r"),
        "use_loftq": left("LoftQ is not supported: set adapter.init_lora_weights"),
        "loftq_config": left("LoftQ is not supported: set adapter.init_lora_weights"),
        "use_rslora": to("adapter.use_rslora"),
        "vision_all_linear": _VISION,
        "raw_text_file": to("data.path"),
        "chunk_size": left("a row of text is taken whole: see data.overlong"),
        "stride": left("a row of text is taken whole: see data.overlong"),
        "enable_wandb": hugging_face.tracker("wandb"),
        "enable_tensorboard": hugging_face.tracker("tensorboard"),
        "tensorboard_dir": to("logging.logging_dir"),
        "wandb_token": left("log in with: wandb login"),
        "hf_token": left("log in with: hf auth login"),
        "fast_inference": harmless("it belongs to answering, not to training"),
        "use_exact_model_name": harmless("the named model is always the one that is loaded"),
        "load_in_16bit": only(True, otherwise="see model.dtype"),
        "dataset_num_proc": to("data.num_proc"),
    },
    each(
        _VISION,
        "finetune_vision_layers",
        "finetune_language_layers",
        "finetune_attention_modules",
        "finetune_mlp_modules",
    ),
    each(
        _SAVING,
        *("save_model", "save_method", "save_path", "save_gguf", "quantization", "quantization_method"),
        *("push_model", "push_gguf", "hub_path"),
    ),
)


def defaults(_: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Default]:
    """Unsloth's defaults: LoRA of rank 16 on seven layers over a 4-bit base, 2,048 tokens."""
    yield Default("adapter.method", "lora", "Unsloth's default")
    if settings.get("adapter.method", "lora") == "lora":
        yield from adapter_defaults()
        yield Default("model.load_in_4bit", True, "Unsloth's default")
    yield Default("data.max_length", 2048, "Unsloth's default")
    yield from trl.text_defaults("TRL's trainer")
    yield Default("data.test_size", 0, "Unsloth holds no rows out unless it is asked to")
    yield Default("training.per_device_train_batch_size", 2, "Unsloth's default")
    yield Default("training.gradient_accumulation_steps", 4, "Unsloth's default")
    yield Default("training.learning_rate", 2e-4, "Unsloth's default")
    yield Default("training.warmup_steps", 5, "Unsloth's default")
    yield Default("training.weight_decay", 0.01, "Unsloth's default")
    yield Default("training.seed", 3407, "Unsloth's default")
    yield from hugging_face.schedule("transformers")
    yield from hugging_face.rhythm("Unsloth")


def adapter_defaults() -> Iterator[Default]:
    """Those of FastLanguageModel.get_peft_model."""
    seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    yield Default("adapter.r", 16, "Unsloth's default")
    yield Default("adapter.lora_alpha", 16.0, "Unsloth's default")
    yield Default("adapter.target_modules", seven, "Unsloth's default")


def refusals(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Kinds of training that Unsloth has and truetune has not."""
    kind = str(document.get("training_type") or "lora").lower()
    if kind not in ("lora", "qlora", "full"):
        yield "training_type", f"{kind}: LoRA or all weights are trained, on answers"


UNSLOTH = Tool("unsloth", "Unsloth", RULES, defaults, refusals)
