"""Which tool a config belongs to, told from its keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truetune.config.schema import SECTIONS
from truetune.errors import ConfigError

MARKS: Mapping[str, frozenset[str]] = {
    "axolotl": frozenset(
        {
            *("base_model", "sequence_len", "adapter", "micro_batch_size", "num_epochs", "sample_packing"),
            *("val_set_size", "lora_target_linear", "pad_to_sequence_len", "train_on_inputs", "special_tokens"),
            *("flash_attention", "evals_per_epoch", "saves_per_epoch", "dataset_prepared_path", "wandb_watch"),
            *("lora_model_dir", "eval_sample_packing", "rl", "excess_length_strategy", "tokenizer_type"),
        }
    ),
    "llamafactory": frozenset(
        {
            *("stage", "finetuning_type", "template", "cutoff_len", "lora_rank", "lora_target", "dataset_dir"),
            *("quantization_bit", "neat_packing", "preprocessing_num_workers", "overwrite_cache", "plot_loss"),
            *("max_samples", "train_on_prompt", "mask_history", "val_size", "flash_attn", "pure_bf16"),
        }
    ),
    "trl": frozenset(
        {
            *("dataset_name", "use_peft", "dataset_config", "dataset_train_split", "dataset_test_split"),
            *("assistant_only_loss", "completion_only_loss", "max_length", "lora_task_type", "packing_strategy"),
            *("chat_template_path", "model_init_kwargs", "use_bnb_nested_quant", "dataset_streaming", "padding_free"),
            *("test_split_size", "lora_r", "attn_implementation", "eos_token"),
        }
    ),
    "unsloth": frozenset(
        {
            *("model_name", "local_dataset", "format_type", "training_type", "train_on_completions", "random_seed"),
            *("random_state", "use_loftq", "loftq_config", "full_finetuning", "enable_wandb", "max_seq_length"),
            *("push_gguf", "save_gguf", "finetune_language_layers", "vision_all_linear", "use_rslora"),
        }
    ),
    "litgpt": frozenset(
        {
            *("checkpoint_dir", "out_dir", "lora_query", "lora_key", "lora_value", "lora_projection", "lora_mlp"),
            *("lora_head", "quantize", "logger_name", "num_nodes", "train.global_batch_size", "data.class_path"),
            *("train.micro_batch_size", "eval.interval", "devices"),
        }
    ),
}
"""Keys that tell a tool from the others."""

TOOLS = (*MARKS, "script")

_JOB = frozenset({"training_file", "training_files", "hyperparameters", "n_epochs", "fine_tuned_model"})
"""What a request to a hosted service holds, or its answer."""
_OF_A_JOB = "its file is trained on here, with a model of yours: truetune train --model M --data FILE n_epochs=3"


@dataclass(frozen=True, slots=True)
class Detected:
    """The tool, and the keys that tell it."""

    tool: str
    because: tuple[str, ...]


def detect(document: Mapping[str, Any]) -> Detected:
    """The tool whose own keys the document has most of. ConfigError with the candidates where it cannot be told."""
    keys = _keys(document)
    found = {tool: sorted(keys & marks) for tool, marks in MARKS.items()}
    order = sorted(found, key=lambda tool: -len(found[tool]))
    first, second = order[0], order[1]
    if _is_ours(document):
        raise ConfigError("this is a config of truetune's own", hint="use it as it is: truetune train FILE")
    if not found[first] and keys & _JOB:
        raise ConfigError("this is a job of a hosted service", hint=_OF_A_JOB)
    if len(found[first]) == len(found[second]):
        likely = [tool for tool in order if found[tool] and len(found[tool]) == len(found[first])]
        raise ConfigError(_unclear(likely, found), hint=f"say which: --from {' or '.join(likely or MARKS)}")
    return Detected(first, tuple(found[first]))


def _keys(document: Mapping[str, Any]) -> set[str]:
    nested = {f"{key}.{inner}" for key, value in document.items() if isinstance(value, Mapping) for inner in value}
    sections = {str(inner) for key in ("data", "training", "lora") for inner in _mapping(document.get(key))}
    return {*document, *nested, *sections}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_ours(document: Mapping[str, Any]) -> bool:
    model = document.get("model")
    return isinstance(model, Mapping) and "name_or_path" in model and set(document) <= {*SECTIONS, "output_dir"}


def _unclear(likely: Sequence[str], found: Mapping[str, Sequence[str]]) -> str:
    if not likely:
        return "no tool has these keys: it cannot be told whose config this is"
    told = "; ".join(f"{tool} by {', '.join(found[tool])}" for tool in likely)
    return f"several tools have these keys: {told}"
