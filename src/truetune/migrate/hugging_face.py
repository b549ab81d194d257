"""The names of transformers' TrainingArguments, which TRL, LLaMA-Factory, Unsloth and training scripts share."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from truetune.config.kinds import Tracker
from truetune.config.names import Fallback
from truetune.migrate.outcomes import (
    OFF,
    Default,
    Leave,
    Note,
    Outcome,
    Rule,
    Set,
    each,
    harmless,
    left,
    only,
    rules,
)

TRACKERS: tuple[str, ...] = get_args(Tracker)
_ATTENTION = "attention is chosen on the machine, and checked on the model"
_LOADING = "batches are made from prepared tokens, without loader processes"
_ENGINES = "start several processes (training.num_processes); training.strategy: auto shares a model out that must be"
_HUB = "nothing is sent to a hub while it trains"
_CACHE = "prepared rows are kept in a cache of truetune's own"
_FASTER = "what makes a step faster is chosen by truetune, and proved on the model"
_SCHEDULE = "schedules take no arguments here"


def precision(value: Any, document: Mapping[str, Any], *, of: str) -> Iterator[Outcome]:
    """bf16 and fp16 together: what is on wins, and auto gives way to it."""
    match str(value).lower(), of:
        case "auto", _:
            yield Set("training.precision", Fallback("auto"))
        case (("true" | "full" | "1"), "fp16") if str(document.get("bf16")).lower() in ("true", "full"):
            yield Leave("bf16 is on as well, and is used")
        case (("true" | "full" | "1"), _):
            yield Set("training.precision", of)
        case _:
            yield Leave(OFF, matters=False)


def bf16(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    return precision(value, document, of="bf16")


def fp16(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    return precision(value, document, of="fp16")


def warmup_steps(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    """transformers 5: a number below 1 is a share; zero leaves the word to warmup_ratio."""
    number = _number(value)
    if number is None:
        yield Leave("training.warmup_steps takes a whole number")
    elif 0 < number < 1:
        yield Set("training.warmup_ratio", number)
    elif number == 0 and document.get("warmup_ratio"):
        yield Leave("zero leaves it to warmup_ratio", matters=False)
    else:
        yield Set("training.warmup_steps", number)


def warmup_ratio(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    steps = _number(document.get("warmup_steps")) or 0
    if steps > 0:
        yield Leave("warmup_steps is set, and wins")
    else:
        yield Set("training.warmup_ratio", value)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def report_to(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    named = [str(name) for name in (value if isinstance(value, list) else str(value).split(","))]
    known = [name.strip() for name in named if name.strip() in (*TRACKERS, "none")]
    others = [name.strip() for name in named if name.strip() not in known]
    if others and not known:
        yield Leave(f"{', '.join(others)}: logging.report_to takes {', '.join(TRACKERS)} and none")
        return
    if others:
        yield Note(f"report_to: {', '.join(others)} is left out; logging.report_to takes {', '.join(TRACKERS)}")
    yield Set("logging.report_to", known if len(known) > 1 else known[0])


def tracker(name: str) -> Rule:
    """A switch that turns a tracker on."""

    def rule(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
        yield Set("logging.report_to", name) if value is True else Leave(OFF, matters=False)

    return rule


def targets(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    """LoRA's targets: all, a list, or names with commas between them."""
    match value:
        case "all" | "all-linear" | "all_linear" | ["all-linear"] | ["all"]:
            yield Set("adapter.target_modules", "all-linear")
        case str() if "," in value:
            yield Set("adapter.target_modules", [name.strip() for name in value.split(",")])
        case _:
            yield Set("adapter.target_modules", value)


def dtype(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("model.dtype", "auto" if str(value) in ("None", "null") else value)


def checkpointing(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    """true, false, or Unsloth's own kinds, which are true."""
    match value:
        case "unsloth" | "true" | "True":
            yield Set("training.gradient_checkpointing", True)
        case "none" | "None":
            yield Set("training.gradient_checkpointing", False)
        case "offload" | "offload_disk":
            yield Note("gradient_checkpointing: offload is checkpointing on the device here")
            yield Set("training.gradient_checkpointing", True)
        case _:
            yield Set("training.gradient_checkpointing", value)


def text_field(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    if value == "text":
        yield Leave("texts are found by that name", matters=False)
    else:
        yield Set("data.columns", {value: "text"})


def max_steps(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    number = _number(value)
    yield Set("training.max_steps", -1 if number == 0 else value)


def early_stopping(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("evaluation.early_stopping_patience", value)


def deepspeed(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    """A path, or what stands in the file; off where it is false."""
    if value in (False, "None", "none"):
        yield Leave(OFF, matters=False)
        return
    yield Note("deepspeed: what its config says of batches, rates and precision must be as here, or auto")
    yield Set("training.deepspeed", value)


def _best_metric(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Leave("the validation loss decides", matters=str(value) not in ("eval_loss", "loss"))


ATTENTION = harmless(_ATTENTION)

RULES: dict[str, Rule] = rules(
    {
        "bf16": bf16,
        "fp16": fp16,
        "warmup_steps": warmup_steps,
        "warmup_ratio": warmup_ratio,
        "report_to": report_to,
        "max_steps": max_steps,
        "dtype": dtype,
        "torch_dtype": dtype,
        "gradient_checkpointing": checkpointing,
        "use_gradient_checkpointing": checkpointing,
        "target_modules": targets,
        "lora_target": targets,
        "lora_target_modules": targets,
        "dataset_text_field": text_field,
        "metric_for_best_model": _best_metric,
        "greater_is_better": harmless("the validation loss decides, and less of it is better"),
        "activation_checkpointing": checkpointing,
        "group_by_length": harmless("rows of a batch are joined, not padded: nothing is won by equal lengths"),
        "train_sampling_strategy": only("random", otherwise="rows are shuffled, by training.seed"),
        "deepspeed": deepspeed,
        "fsdp": left(f"FSDP: {_ENGINES}"),
        "fsdp_config": left(f"FSDP: {_ENGINES}"),
        "fsdp_transformer_layer_cls_to_wrap": left(f"FSDP: {_ENGINES}"),
        "parallelism_config": left(_ENGINES),
        "accelerator_config": left(_ENGINES),
        "neftune_noise_alpha": left("noise on the embeddings (NEFTune) is not supported"),
        "optim_args": left("the optimizer takes no further arguments here"),
        "optim_target_modules": left("GaLore and its kin are not supported: the optimizer takes all that is trained"),
        "lr_scheduler_kwargs": left(_SCHEDULE),
        "auto_find_batch_size": left(
            "a step that does not fit is computed in smaller parts, with the same result", matters=False
        ),
        "full_determinism": left("a run with one seed repeats itself on one machine as it is", matters=False),
        "bf16_full_eval": harmless("validation computes as training does"),
        "fp16_full_eval": harmless("validation computes as training does"),
        "eval_on_start": harmless("validation always runs once before the first step"),
        "eval_delay": left("validation begins with the run"),
        "logging_strategy": only("steps", otherwise="lines are logged by steps: set logging.logging_steps"),
        "logging_first_step": harmless("the first and the last step are always logged"),
        "prediction_loss_only": harmless("validation keeps no logits"),
        "save_only_model": left("a checkpoint always holds what a resumed run needs"),
        "save_safetensors": harmless("weights are always saved as safetensors"),
        "restore_callback_states_from_checkpoint": left("a resumed run is restored whole", matters=False),
        "ignore_data_skip": left("a resumed run always goes on with the row it stopped at"),
        "do_train": harmless("truetune train trains"),
        "do_eval": harmless("evaluation.eval_strategy says when it validates"),
        "do_predict": left("predicting is a command of its own"),
        "remove_unused_columns": harmless("fields that nothing reads are left where they are"),
    },
    each(harmless(_ATTENTION), "attn_implementation", "attention_implementation", "use_cache"),
    each(harmless(_FASTER), "tf32", "use_liger_kernel", "liger_kernel_config", "torch_compile_backend"),
    each(harmless(_FASTER), "torch_compile_mode", "torch_empty_cache_steps", "gradient_checkpointing_kwargs"),
    each(harmless(_FASTER), "activation_checkpointing_kwargs", "average_tokens_across_devices", "use_kernels"),
    each(
        harmless(_LOADING),
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_drop_last",
        "dataloader_multiprocessing_context",
        "dataloader_in_order",
        "length_column_name",
        "label_names",
    ),
    each(
        harmless("processes find each other as torchrun has set them up"),
        "ddp_timeout",
        "ddp_backend",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
        "local_rank",
        "device_map",
        "low_cpu_mem_usage",
    ),
    each(
        left(_HUB),
        "push_to_hub",
        "hub_model_id",
        "hub_strategy",
        "hub_token",
        "hub_private_repo",
        "hub_always_push",
        "hub_revision",
        "push_to_hub_model_id",
        "push_to_hub_organization",
        "push_to_hub_token",
    ),
    each(
        harmless("it changes what is printed, not what is trained"),
        "disable_tqdm",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "logging_nan_inf_filter",
        "skip_memory_metrics",
        "include_num_input_tokens_seen",
        "include_tokens_per_second",
        "debug",
        "save_on_each_node",
    ),
    each(
        harmless("the validation loss is a mean over all tokens, whatever the batch"),
        "eval_accumulation_steps",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "batch_eval_metrics",
        "include_for_metrics",
        "include_inputs_for_metrics",
    ),
    each(
        left("Trackio keeps its project under logging.project"),
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
    ),
    each(
        harmless(_CACHE),
        "overwrite_cache",
        "cache_dir",
        "preprocessing_batch_size",
        "dataset_batch_size",
        "data_cache_dir",
    ),
    each(left("the tokenizer is the model's own"), "use_fast_tokenizer", "tokenizer_name"),
)


def schedule(tool: str, *, learning_rate: float = 5e-5) -> Iterator[Default]:
    """What transformers does where a config is silent: batch 8, no accumulation, 5e-5 falling in a line, no decay."""
    own = f"default of {tool}"
    yield Default("training.num_train_epochs", 3.0, own)
    yield Default("training.per_device_train_batch_size", 8, own)
    yield Default("training.gradient_accumulation_steps", 1, own)
    yield Default("training.learning_rate", learning_rate, own)
    yield Default("training.lr_scheduler_type", "linear", own)
    yield Default("training.warmup_steps", 0, f"{own}: no warm-up")
    yield Default("training.weight_decay", 0.0, own)
    yield Default("training.seed", 42, own)


def rhythm(tool: str, *, save_strategy: str = "steps") -> Iterator[Default]:
    """When transformers validates and saves: never, and every 500 steps, keeping all."""
    yield Default("evaluation.eval_strategy", "no", f"{tool} does not validate unless it is asked to")
    yield Default("checkpoints.save_strategy", save_strategy, f"default of {tool}")
    yield Default("checkpoints.save_total_limit", None, f"{tool} keeps all")


PEFT_TARGETS = Default(
    "adapter.target_modules",
    ["q_proj", "v_proj"],
    "PEFT's choice for Llama, Mistral and their like where none is named; all-linear usually learns more",
)
