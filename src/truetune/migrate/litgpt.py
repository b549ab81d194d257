"""LitGPT's YAML for finetune_lora, finetune_full. Names: config_hub/finetune, litgpt/args.py, litgpt/data."""

from collections.abc import Iterator, Mapping
from typing import Any

from truetune.migrate import hugging_face
from truetune.migrate.datasets import template_of
from truetune.migrate.outcomes import (
    Default,
    Leave,
    Note,
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

_LAYERS = {
    "lora_query": ("q_proj",),
    "lora_key": ("k_proj",),
    "lora_value": ("v_proj",),
    "lora_projection": ("o_proj",),
    "lora_mlp": ("gate_proj", "up_proj", "down_proj"),
    "lora_head": ("lm_head",),
}
_ON = ("lora_query", "lora_value")
_OPTIMIZERS = {"adamw": "adamw_torch", "pagedadamw": "paged_adamw_32bit", "sgd": "sgd", "adagrad": "adagrad"}
_PRECISIONS = {"bf16-true": "bf16", "bf16-mixed": "bf16", "32-true": "fp32", "16-mixed": "fp16", "16-true": "fp16"}
_SECTIONS = ("train", "eval", "data", "optimizer", "log")


def flat(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with dotted keys: train.epochs, data.init_args.json_path."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        if key in _SECTIONS and isinstance(value, Mapping) and value:
            found |= {f"{key}.{name}": inner for name, inner in _dotted(value)}
        else:
            found[key] = value
    return found


def _dotted(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from ((f"{name}.{below}", said) for below, said in _dotted(inner))
        else:
            yield str(name), inner


def _checkpoint(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    """LitGPT keeps a hub's model under checkpoints/<org>/<name>, in a form of its own."""
    parts = str(value).rstrip("/").split("/")
    if "checkpoints" in parts[:-2]:
        yield Set("model.name_or_path", "/".join(parts[-2:]))
        yield Note(f"checkpoint_dir: {value} holds LitGPT's own format; the model of that name on the hub is taken")
    else:
        yield Set("model.name_or_path", value)


def _layer(_: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    """LitGPT names layers by what they do; all its switches together are the targets."""
    chosen = [name for key, names in _LAYERS.items() if document.get(key, key in _ON) for name in names]
    if chosen:
        yield Set("adapter.target_modules", chosen)
    else:
        yield Leave("no layer is left to adapt")


def _quantize(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    match str(value):
        case "bnb.nf4" | "bnb.nf4-dq":
            yield Set("model.load_in_4bit", True)
        case "bnb.fp4" | "bnb.fp4-dq":
            yield Set("model.load_in_4bit", True)
            yield Note(f"quantize: {value} is NF4 here")
        case "bnb.int8-training" | "bnb.int8":
            yield Set("model.load_in_8bit", True)
        case _:
            yield Leave("a frozen base is stored in 4 or 8 bits")


def _precision(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    known = _PRECISIONS.get(str(value))
    yield Set("training.precision", known) if known else Leave("training.precision takes auto, bf16, fp16 and fp32")
    if value == "bf16-true" and not document.get("quantize"):
        yield Set("model.dtype", "bfloat16")


def _devices(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    match value:
        case 1:
            yield Leave("one process is the default", matters=False)
        case int():
            yield Set("training.num_processes", value)
        case _:
            yield Leave("start it with torchrun, one process a device")


def _accumulation(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    """LitGPT: global_batch_size over devices, over micro_batch_size."""
    devices = document.get("devices") if isinstance(document.get("devices"), int) else 1
    each_device = int(value) // (devices or 1)
    micro = int(document.get("train.micro_batch_size") or 1)
    if each_device < micro:
        yield Leave("it is smaller than train.micro_batch_size")
        return
    yield Set("training.gradient_accumulation_steps", each_device // micro)
    yield Note(
        f"train.global_batch_size: {value} is {each_device // micro} batches of {micro} a step and device. LitGPT "
        "takes the mean over each batch's own tokens first; here all tokens of a step weigh the same"
    )


def _warmup_fraction(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    """A share of an epoch there, of the run here."""
    epochs = float(document.get("train.epochs") or 5)
    yield Set("training.warmup_ratio", round(float(value) / epochs, 6))
    yield Note("train.lr_warmup_fraction is a share of an epoch in LitGPT, and of the whole run here")


def _save_interval(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("checkpoints.save_steps", value)
    yield Set("checkpoints.save_strategy", "steps")


def _eval_interval(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("evaluation.eval_steps", value)
    yield Set("evaluation.eval_strategy", "steps")


def _logger(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    match value:
        case "csv":
            yield Leave("metrics.jsonl is always written", matters=False)
        case str() if value in hugging_face.TRACKERS:
            yield Set("logging.report_to", value)
        case _:
            yield Leave(f"logging.report_to takes {', '.join(hugging_face.TRACKERS)}")


def _data_class(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    kind = str(value).rpartition(".")[2]
    if kind == "JSON":
        yield Leave("json_path says where the rows are", matters=False)
    else:
        yield Leave(f"LitGPT's {kind} fetches rows by itself: name their file or hub id in data.path")


def _mask_prompt(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("data.train_on", "assistant" if value else "all")


def _prompt_style(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield from template_of("LitGPT", value)


def _optimizer(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    name = str(value).rpartition(".")[2].lower()
    if name not in _OPTIMIZERS:
        yield Leave(f"training.optim has no {value}")
    elif name == "adamw" and document.get("quantize"):
        yield Set("training.optim", "paged_adamw_32bit")
    else:
        yield Set("training.optim", _OPTIMIZERS[name])


def _betas(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    match value:
        case [first, second]:
            yield Set("training.adam_beta1", first)
            yield Set("training.adam_beta2", second)
        case _:
            yield Leave("two numbers are expected")


_GENERATED = harmless("validation measures the loss, and generates nothing")
_ARGS = "optimizer.init_args"

RULES: dict[str, Rule] = rules(
    each(_layer, *_LAYERS),
    each(to("training.learning_rate"), "train.learning_rate", f"{_ARGS}.lr"),
    each(to("training.weight_decay"), "train.weight_decay", f"{_ARGS}.weight_decay"),
    each(_optimizer, "optimizer", "optimizer.class_path"),
    each(_data_class, "data", "data.class_path"),
    each(left("the optimizer takes no further arguments here"), f"{_ARGS}.amsgrad", f"{_ARGS}.momentum"),
    {
        "checkpoint_dir": _checkpoint,
        "out_dir": to("output_dir"),
        "precision": _precision,
        "quantize": _quantize,
        "devices": _devices,
        "num_nodes": only(1, otherwise="start it with torchrun on each machine"),
        "lora_r": to("adapter.r"),
        "lora_alpha": to("adapter.lora_alpha"),
        "lora_dropout": to("adapter.lora_dropout"),
        "seed": to("training.seed"),
        "logger_name": _logger,
        "access_token": left("log in with: hf auth login"),
        "resume": left("a run goes on with: truetune train run.yaml --resume auto"),
        "train.global_batch_size": _accumulation,
        "train.micro_batch_size": to("training.per_device_train_batch_size"),
        "train.epochs": to("training.num_train_epochs"),
        "train.max_steps": to("training.max_steps"),
        "train.max_tokens": left("set training.max_steps or num_train_epochs"),
        "train.max_time": left("set training.max_steps or num_train_epochs"),
        "train.max_seq_length": to("data.max_length"),
        "train.lr_warmup_steps": to("training.warmup_steps"),
        "train.lr_warmup_fraction": _warmup_fraction,
        "train.max_norm": to("training.max_grad_norm"),
        "train.min_lr": harmless("LitGPT's fine-tuning does not read it: cosine falls to zero in both"),
        "train.tie_embeddings": left("the model's config says whether embeddings are tied"),
        "train.save_interval": _save_interval,
        "train.log_interval": to("logging.logging_steps"),
        "train.beta1": to("training.adam_beta1"),
        "train.beta2": to("training.adam_beta2"),
        "eval.interval": _eval_interval,
        "eval.max_new_tokens": _GENERATED,
        "eval.evaluate_example": _GENERATED,
        "eval.max_iters": harmless("all validation rows are measured, whatever their number"),
        "eval.initial_validation": harmless("validation always runs once before the first step"),
        "eval.final_validation": harmless("validation runs at the end as evaluation.eval_strategy says"),
        "data.json_path": to("data.path"),
        "data.init_args.json_path": to("data.path"),
        "data.init_args.mask_prompt": _mask_prompt,
        "data.init_args.val_split_fraction": to("data.test_size"),
        "data.init_args.test_split_fraction": to("data.test_size"),
        "data.init_args.prompt_style": _prompt_style,
        "data.init_args.ignore_index": only(-100, otherwise="tokens that are not learned are marked by -100"),
        "data.init_args.seed": harmless("adapter, order and split have one seed here: training.seed"),
        "data.init_args.num_workers": harmless("batches are made from prepared tokens, without loader processes"),
        "data.init_args.download_dir": harmless("hub ids are kept in Hugging Face's own cache"),
        "data.init_args.include_multiturn_conversations": harmless("a conversation is learned whole"),
        f"{_ARGS}.betas": _betas,
        f"{_ARGS}.eps": to("training.adam_epsilon"),
        "log.project": to("logging.project"),
        "log.run": to("logging.run_name"),
        "log.group": left("set it in the environment: WANDB_RUN_GROUP"),
        "generate": harmless("it belongs to answering, not to training"),
    },
)


def _is_lora(document: Mapping[str, Any]) -> bool:
    return any(key.startswith("lora_") for key in document) or bool(document.get("quantize"))


def defaults(document: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Default]:
    """LitGPT's defaults: LoRA of rank 8 on queries and values, 5 epochs of 16 rows a step, cosine, no clipping."""
    tool = "LitGPT's default"
    if _is_lora(document):
        yield Default("adapter.method", "lora", "the file has LitGPT's LoRA settings")
        yield Default("adapter.r", 8, tool)
        yield Default("adapter.lora_alpha", 16.0, tool)
        yield Default("adapter.lora_dropout", 0.05, tool)
        yield Default(
            "adapter.target_modules", ["q_proj", "v_proj"], f"{tool}: queries and values, as Llama names them"
        )
    else:
        yield Default("adapter.method", "full", "the file has no LoRA settings, as for finetune_full")
    yield Default("data.train_on", "all", f"{tool}: prompts are learned too")
    yield Default("data.template", "alpaca", f"{tool} of prompt_style")
    yield Default("data.overlong", "truncate", "LitGPT cuts longer rows")
    yield Default("data.packing", False, "LitGPT does not pack")
    yield Default("data.test_size", 0.05, f"{tool} for one file")
    yield Default("training.num_train_epochs", 5.0, tool)
    yield Default("training.per_device_train_batch_size", 1, tool)
    micro = settings.get("training.per_device_train_batch_size", 1)
    accumulated = max(1, 16 // micro) if isinstance(micro, int) else 1
    yield Default("training.gradient_accumulation_steps", accumulated, f"{tool}: 16 rows a step")
    yield Default("training.learning_rate", 1e-3, "AdamW's default, which LitGPT takes")
    yield Default("training.weight_decay", 0.01, "AdamW's default, which LitGPT takes")
    yield Default("training.lr_scheduler_type", "cosine", "LitGPT's schedule")
    yield Default("training.warmup_steps", 100, tool)
    yield Default("training.max_grad_norm", 0.0, "LitGPT does not clip unless it is asked to")
    yield Default("training.seed", 1337, tool)
    yield Default("evaluation.eval_strategy", "steps", tool)
    yield Default("evaluation.eval_steps", 100 if _is_lora(document) else 600, tool)
    yield Default("checkpoints.save_strategy", "steps", tool)
    yield Default("checkpoints.save_steps", 1000, tool)
    yield Default("checkpoints.save_total_limit", None, "LitGPT keeps all")


def refusals(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """LitGPT's pretraining and its other adapters."""
    for key in ("initial_checkpoint_dir", "tokenizer_dir", "model_name"):
        if document.get(key):
            yield key, "a key of litgpt pretrain: pretraining is not supported"
            return


LITGPT = Tool("litgpt", "LitGPT", RULES, defaults, refusals, shares_names=False)
