"""The names people know from TRL, Axolotl, LLaMA-Factory, Unsloth and the guide, and what they are called here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from truetune.config.schema import SourceConfig

SKIP = object()
"""What a translation returns for a value that leaves our default as it is."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """What a translation returns for a value that gives way to any other beside it."""

    value: Any


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of `target`; `translate` turns its value into ours, or raises ValueError with the reason."""

    target: str
    translate: Callable[[Any], Any] = lambda value: value


def _when_true(result: Any) -> Callable[[Any], Any]:
    """True means `result`, "auto" stays auto, false says nothing."""

    def translate(value: Any) -> Any:
        match value:
            case True:
                return result
            case False | None:
                return SKIP
            case "auto":
                return "auto"
            case _:
                raise ValueError(f"must be true, false or auto (got {value!r})")

    return translate


def _choose(when_true: Any, when_false: Any) -> Callable[[Any], Any]:
    """False only says what is not wanted, so that another name may say what is."""

    def translate(value: Any) -> Any:
        match value:
            case True:
                return when_true
            case False:
                return Fallback(when_false)
            case None:
                return SKIP
            case _:
                raise ValueError(f"must be true or false (got {value!r})")

    return translate


_SOURCE = tuple(SourceConfig.model_fields)
_SOURCE_NAMES = {"name": "subset", "data_name": "subset"}


def _places(value: Any) -> Any:
    """Axolotl's and TRL's lists of data sets: paths, or mappings with a path."""
    match value:
        case list() | Mapping():
            places = [_place(entry) for entry in (value if isinstance(value, list) else [value])]
            return places[0] if len(places) == 1 and isinstance(places[0], str) else places
        case _:
            return value


def _place(entry: Any) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    named = {_SOURCE_NAMES.get(str(name), str(name)): value for name, value in entry.items()}
    if unknown := [name for name in named if name not in _SOURCE]:
        raise ValueError(f"{unknown[0]} is not read here; of a data set, {', '.join(_SOURCE)} are")
    return named["path"] if list(named) == ["path"] else named


def _method(value: Any) -> Any:
    if value == "qlora":
        raise ValueError("qlora is adapter.method: lora with model.load_in_4bit: true")
    return value


def _text_column(value: Any) -> Any:
    return SKIP if value in ("text", None) else {value: "text"} if isinstance(value, str) else value


def _targets(value: Any) -> Any:
    match value:
        case "all" | True:
            return "all-linear"
        case str() if "," in value:
            return [name.strip() for name in value.split(",")]
        case _:
            return value


def _pissa_steps(value: Any) -> Any:
    """LLaMA-Factory's -1 is the whole SVD."""
    return SKIP if value in (None, -1) else f"pissa_niter_{value}"


def _aliases(target: str, *names: str, translate: Callable[[Any], Any] = lambda value: value) -> dict[str, Alias]:
    return dict.fromkeys(names, Alias(target, translate))


ALIASES: dict[str, Alias] = {
    **_aliases("model.name_or_path", "model_name_or_path", "model_name", "base_model", "model", "pretrained_model"),
    **_aliases("model.revision", "revision", "model_revision", "revision_of_model"),
    **_aliases("data.revision", "dataset_revision"),
    **_aliases("data.split", "dataset_split", "train_split", "dataset_train_split"),
    **_aliases("data.subset", "dataset_config", "dataset_config_name"),
    **_aliases("data.num_proc", "dataset_num_proc", "preprocessing_num_workers", "dataset_processes"),
    **_aliases("data.response_marker", "response_template"),
    **_aliases("model.dtype", "torch_dtype", translate=lambda value: "auto" if value is None else value),
    **_aliases("model.device", "use_cpu", "no_cuda", translate=_when_true("cpu")),
    **_aliases("adapter.method", "finetuning_type", "adapter_type", translate=_method),
    **_aliases("adapter.r", "lora_r", "lora_rank", "rank"),
    **_aliases("adapter.lora_alpha", "alpha"),
    **_aliases("adapter.target_modules", "lora_target", "lora_target_modules", translate=_targets),
    **_aliases("adapter.target_modules", "lora_target_linear", translate=_when_true("all-linear")),
    **_aliases("adapter.bias", "lora_bias"),
    **_aliases("adapter.use_rslora", "peft_use_rslora"),
    **_aliases("adapter.use_dora", "peft_use_dora"),
    **_aliases("adapter.init_lora_weights", "peft_init_lora_weights"),
    **_aliases("adapter.init_lora_weights", "pissa_init", translate=_when_true(Fallback("pissa"))),
    **_aliases("adapter.init_lora_weights", "pissa_iter", translate=_pissa_steps),
    **_aliases("adapter.modules_to_save", "lora_modules_to_save", "additional_target"),
    **_aliases("adapter.target_parameters", "lora_target_parameters"),
    **_aliases("adapter.init_from", "adapter_name_or_path", "lora_model_dir", "from_checkpoint", "warm_start_from"),
    **_aliases("data.path", "dataset", "datasets", "dataset_name", "train_file", "training_file", translate=_places),
    **_aliases("data.path", "train_path", "data_path", translate=_places),
    **_aliases("data.columns", "dataset_text_field", translate=_text_column),
    **_aliases("data.max_length", "max_seq_length", "max_seq_len", "cutoff_len", "sequence_len", "model_max_length"),
    **_aliases("data.packing", "sample_packing", "neat_packing"),
    **_aliases("data.template", "chat_template", "chat_template_path"),
    **_aliases("data.validation_path", "validation_file", "eval_file", "validation_data"),
    **_aliases("data.test_size", "val_size", "val_set_size", "validation_split"),
    **_aliases("data.train_on", "assistant_only_loss", "completion_only_loss", translate=_choose("assistant", "all")),
    **_aliases("data.train_on", "train_on_inputs", "train_on_prompt", translate=_choose("all", "assistant")),
    **_aliases("training.backend", "use_unsloth", translate=_when_true("unsloth")),
    **_aliases("training.num_train_epochs", "n_epochs", "num_epochs", "epochs"),
    **_aliases(
        "training.per_device_train_batch_size",
        "per_device_batch_size",
        "micro_batch_size",
        "train_batch_size",
    ),
    **_aliases("training.gradient_accumulation_steps", "grad_accum", "gradient_accumulation"),
    **_aliases("training.learning_rate", "lr"),
    **_aliases("training.lr_scheduler_type", "lr_scheduler", "scheduler"),
    **_aliases("training.max_grad_norm", "gradient_clipping", "max_norm"),
    **_aliases("training.optim", "optimizer"),
    **_aliases(
        "training.gradient_checkpointing",
        "use_gradient_checkpointing",
        translate=lambda value: True if value == "unsloth" else value,
    ),
    **_aliases("training.torch_compile", "compile"),
    **_aliases("training.precision", "bf16", translate=_when_true("bf16")),
    **_aliases("training.precision", "fp16", translate=_when_true("fp16")),
    **_aliases("training.seed", "random_state", "data_seed"),
    **_aliases("training.num_processes", "num_gpus", "n_gpus", "world_size"),
    **_aliases("evaluation.eval_strategy", "evaluation_strategy"),
    **_aliases("evaluation.per_device_eval_batch_size", "eval_batch_size"),
    **_aliases("logging.project", "wandb_project", "tracker_project"),
    **_aliases("logging.run_name", "wandb_name", "wandb_run_id"),
}
"""Every accepted name that is not ours, by leaf."""

REFUSED: dict[str, str] = {
    "batch_size": "it counts rows a device, or rows a step, by tool: set per_device_train_batch_size and "
    "gradient_accumulation_steps",
    "learning_rate_multiplier": "it multiplies a base rate that only the service knew: set learning_rate",
    "suffix": "it names a model on a service: here a run is named by its directory, --output-dir (output_dir)",
    "n_evals": "set evaluation.eval_strategy: epoch, or evaluation.eval_steps",
    "n_checkpoints": "set checkpoints.save_strategy: epoch, or checkpoints.save_steps",
    "train_dataset": "rows are named in data.path; in Python they are data=",
    "eval_dataset": "validation rows are read from a file: name it in data.validation_path",
    "tokenizer": "the tokenizer comes with the model: set data.template to change its prompts",
    "processing_class": "the tokenizer comes with the model: set data.template to change its prompts",
    "resume_from_checkpoint": "a config says what a run is, not whether it goes on: give --resume, --resume "
    "auto or --resume PATH; in Python, resume_from_checkpoint=",
    "enable_jit_checkpoint": "SIGTERM, SIGINT and SIGUSR1 write a checkpoint by themselves",
    "overwrite_output_dir": "replacing a run is said on the command line: --overwrite",
    "greater_is_better": "it follows from evaluation.metric_for_best_model: less of eval_loss, more of any metric",
    "predict_with_generate": "set evaluation.generate to the number of validation rows to answer",
    "label_smoothing_factor": "it is not supported: the loss is plain cross-entropy",
    "loraplus_lr_embedding": "embeddings learn at learning_rate: set loraplus_lr_ratio for the update matrices",
    "pissa_convert": "an adapter that starts in the base's weights is always saved as plain LoRA",
    **dict.fromkeys(
        ("new_tokens", "tokens", "add_tokens", "new_special_tokens", "additional_special_tokens", "resize_vocab"),
        "tokens are not added here: add them to the base's tokenizer, resize its embeddings, save both, and train "
        "those with adapter.modules_to_save: [embed_tokens, lm_head]",
    ),
    "trainable_token_indices": "single rows are not trained here: set adapter.modules_to_save: [embed_tokens]",
    "peft_trainable_token_indices": "single rows are not trained here: set adapter.modules_to_save: [embed_tokens]",
    "loftq_config": "LoftQ is not supported: set adapter.init_lora_weights",
    "eva_config": "EVA is not supported: set adapter.init_lora_weights",
    "corda_config": "CorDA is not supported: set adapter.init_lora_weights",
    "formatting_func": "pass formatting= to truetune.train, in Python",
}
"""Names that mean something we do elsewhere, or not at all, with the reason."""

_FOUND = "which is found by itself: leave format out"

REFUSED_VALUES: dict[str, dict[str, str]] = {
    "data.template": dict.fromkeys(
        (
            "chatml",
            "llama3",
            "llama-3",
            "llama-2",
            "mistral",
            "qwen",
            "qwen2.5",
            "qwen3",
            "gemma",
            "phi-3",
            "vicuna",
            "zephyr",
        ),
        "is what another tool calls the template of a model: leave template out, and the model's own is used",
    ),
    "data.format": {
        **dict.fromkeys(
            ("sharegpt", "chatml", "openai", "messages", "conversation"), f"is a spelling of chat, {_FOUND}"
        ),
        **dict.fromkeys(("alpaca", "instruct", "qa"), f"is a spelling of instruction, {_FOUND}"),
        **dict.fromkeys(("csv", "json", "jsonl", "parquet", "txt"), f"is a kind of file, {_FOUND}"),
    },
    "adapter.init_lora_weights": {
        "eva": "starts from the model's activations on data, which are not collected here: use pissa or default",
        "corda": "starts from the model's activations on data, which are not collected here: use pissa or default",
        "lora_ga": "starts from gradients on data, which are not collected here: use pissa or default",
        "loftq": "quantises the base in its own way, which no saved adapter carries: use model.load_in_4bit",
        "mica": "trains one of the two factors only, which nothing here has proved: use pissa or default",
        "false": "starts from noise, which PEFT has for its own tests: use default",
    },
    "logging.report_to": {
        "all": "would start whatever is installed, here this and there that: name them (wandb, tensorboard …)",
    },
}
"""Values other tools know and we do not take, with the reason; by setting."""
