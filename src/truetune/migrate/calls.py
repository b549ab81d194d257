"""The calls of a training script that say how a model is trained, and what their arguments mean here."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from truetune.config.names import Fallback
from truetune.migrate import hugging_face, trl
from truetune.migrate.call_kinds import LOG_IN, MADE, ROW_WORK, TOKENIZER, TRAINERS, Kind, formatted_by
from truetune.migrate.datasets import template_of
from truetune.migrate.outcomes import OFF, Leave, Outcome, Rule, Set, each, harmless, left, only, rules, to
from truetune.migrate.row_calls import row_call
from truetune.migrate.walk import Call, Walk

_ARGUMENTS = ("SFTConfig", "TrainingArguments", "UnslothTrainingArguments", "Seq2SeqTrainingArguments")
_MODEL_CLASSES = ("FastLanguageModel", "FastModel")


def kind_of(call: Call, walk: Walk) -> Kind | None:
    """How a call is read, if it says how a model is trained."""
    match call.name:
        case "from_pretrained":
            return _loading(call)
        case "get_peft_model" if call.receiver:
            return UNSLOTH_LORA
        case "init" if call.receiver == "wandb":
            return _WANDB
        case "train" if not (call.positional or call.keywords):
            return None
        case name if name in TRAINERS:
            given = str(call.keywords.get("formatting_func"))
            own = {**_TRAINER.rules, "formatting_func": formatted_by(given, call, walk)}
            return replace(_TRAINER, name=name, rules=own)
        case _:
            return row_call(call, walk) or _KINDS.get(call.name)


def _loading(call: Call) -> Kind | None:
    owner = call.receiver.rpartition(".")[2]
    if owner in _MODEL_CLASSES:
        return _UNSLOTH_MODEL
    if owner.endswith(("ForCausalLM", "AutoModel")) and owner != "AutoPeftModelForCausalLM":
        return _PLAIN_MODEL
    if owner in ("PeftModel", "AutoPeftModelForCausalLM"):
        return _PEFT_MODEL
    if "Tokenizer" in owner or owner == "AutoProcessor":
        return Kind(
            f"{owner}.from_pretrained",
            dict.fromkeys([*call.keywords, "name"], TOKENIZER),
            ("name",),
            frozenset({*call.keywords, "name"}),
        )
    return None


# --- their rules ------------------------------------------------------------------------------------------


def _seed(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("training.seed", Fallback(value))


def _answers_alone(__: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("data.train_on", "assistant")


def _trainers_model(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    """A name that TRL's trainer loads by itself, or a model that was made before."""
    if isinstance(value, str):
        yield Set("model.name_or_path", value)
    else:
        yield Leave("it is what the script made before", matters=False)


def _chat_template(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield from template_of("Unsloth", value)


def _gc_on(__: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("training.gradient_checkpointing", True)


def _full(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("adapter.method", "full") if value is True else Leave(OFF, matters=False)


def _resume(__: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Leave("a run goes on with: truetune train run.yaml --resume, or --resume auto")


_MODEL_RULES: dict[str, Rule] = rules(
    each(to("model.name_or_path"), "model_name", "pretrained_model_name_or_path", "name"),
    each(hugging_face.dtype, "dtype", "torch_dtype"),
    each(LOG_IN, "token", "use_auth_token"),
    each(
        harmless("models are loaded, and placed, in truetune's own way"),
        *("device_map", "cache_dir", "low_cpu_mem_usage", "attn_implementation", "use_cache", "local_files_only"),
        *("fast_inference", "gpu_memory_utilization", "use_exact_model_name", "max_lora_rank", "fix_tokenizer"),
        *("use_safetensors", "offload_folder", "use_flash_attention_2", "disable_log_stats", "float8_kv_cache"),
    ),
    {
        "max_seq_length": to("data.max_length"),
        "load_in_4bit": to("model.load_in_4bit"),
        "load_in_8bit": to("model.load_in_8bit"),
        "load_in_16bit": only(True, False, otherwise="see model.dtype"),
        "full_finetuning": _full,
        "trust_remote_code": to("model.trust_remote_code"),
        "revision": to("model.revision"),
        "quantization_config": harmless("its own arguments say how"),
        "rope_scaling": left("the model's context is taken as it is"),
        "use_gradient_checkpointing": hugging_face.checkpointing,
        "random_state": _seed,
    },
)
_UNSLOTH_MODEL = Kind("FastLanguageModel.from_pretrained", _MODEL_RULES, ("model_name",), frozenset())
_PLAIN_MODEL = Kind(
    "from_pretrained", _MODEL_RULES, ("pretrained_model_name_or_path",), frozenset({"quantization_config"})
)
_PEFT_MODEL = Kind(
    "PeftModel.from_pretrained",
    {"model_id": to("adapter.init_from"), "is_trainable": harmless("it is trained"), "model": MADE},
    ("model", "model_id"),
    frozenset({"model"}),
)

_LORA_RULES: dict[str, Rule] = {
    "r": to("adapter.r"),
    "target_modules": hugging_face.targets,
    "task_type": only("CAUSAL_LM", otherwise="language models are trained, and nothing else"),
    "inference_mode": only(False, otherwise="it is trained"),
    "peft_type": only("LORA", otherwise="LoRA adapters are trained"),
    "use_gradient_checkpointing": hugging_face.checkpointing,
    "random_state": _seed,
    "max_seq_length": to("data.max_length"),
    "loftq_config": only(None, {}, [], otherwise="LoftQ is not supported: set adapter.init_lora_weights"),
    "fan_in_fan_out": harmless("PEFT sets it by the kind of layer"),
    "temporary_location": harmless("nothing is put aside"),
    "model": MADE,
    **each(
        left("every layer gets the same adapter: name the modules in adapter.target_modules"),
        *(
            "layers_to_transform",
            "layers_pattern",
            "rank_pattern",
            "alpha_pattern",
            "exclude_modules",
            "megatron_config",
        ),
        *("layer_replication", "lora_bias", "qat_scheme"),
    ),
    **each(
        harmless("only text is trained on"),
        *("finetune_vision_layers", "finetune_language_layers", "finetune_attention_modules", "finetune_mlp_modules"),
    ),
}
UNSLOTH_LORA = Kind(
    "FastLanguageModel.get_peft_model", _LORA_RULES, ("model",), frozenset({"model"}), shares_names=True
)
LORA_CONFIG = Kind("LoraConfig", _LORA_RULES, ("task_type",), shares_names=True)

_ARGUMENT_RULES: dict[str, Rule] = rules(
    hugging_face.RULES,
    {
        name: trl.RULES[name]
        for name in (
            *(
                "assistant_only_loss",
                "completion_only_loss",
                "model_init_kwargs",
                "chat_template_path",
                "eos_token",
                "pad_token",
            ),
            *(
                "truncation_mode",
                "shuffle_dataset",
                "packing_strategy",
                "padding_free",
                "pad_to_multiple_of",
                "eval_packing",
            ),
            *("loss_type", "router_aux_loss_coef", "dataset_kwargs"),
        )
    },
    {
        "embedding_learning_rate": left("every module learns at training.learning_rate"),
        "dataset_num_proc": to("data.num_proc"),
        "tokenizer": TOKENIZER,
    },
)
_TRAINER = Kind(
    "SFTTrainer",
    {
        **_ARGUMENT_RULES,
        "model": _trainers_model,
        "callbacks": harmless("what they are is told of each by itself"),
        "compute_metrics": left("validation measures the loss, and the accuracy of learned tokens"),
        "preprocess_logits_for_metrics": left("validation measures the loss, and the accuracy of learned tokens"),
        "optimizers": left("the optimizer is chosen by training.optim"),
        "data_collator": harmless("batches are made by truetune; what is learned is said by data.train_on"),
        "infer_schema": harmless("rows are read one by one"),
        "dataset_batch_size": ROW_WORK,
        "max_seq_length": to("data.max_length"),
        "args": MADE,
    },
    ("model", "args"),
    frozenset(
        {
            *(
                "model",
                "args",
                "train_dataset",
                "eval_dataset",
                "tokenizer",
                "processing_class",
                "peft_config",
                "callbacks",
            ),
            *("data_collator", "compute_metrics", "preprocess_logits_for_metrics", "optimizers", "formatting_func"),
        }
    ),
    shares_names=True,
)
_WANDB = Kind(
    "wandb.init",
    {
        "project": to("logging.project"),
        "name": to("logging.run_name"),
        **each(
            left("set it in the environment of Weights & Biases"),
            "entity",
            "group",
            "tags",
            "mode",
            "dir",
            "notes",
            "job_type",
            "id",
            "resume",
        ),
        "config": harmless("a run's settings are sent by themselves"),
    },
    (),
    frozenset({"config"}),
)
_QUANTIZED = Kind(
    "BitsAndBytesConfig",
    {
        "load_in_4bit": to("model.load_in_4bit"),
        "load_in_8bit": to("model.load_in_8bit"),
        "bnb_4bit_quant_type": only("nf4", otherwise="4-bit weights are NF4"),
        "bnb_4bit_use_double_quant": only(True, otherwise="4-bit weights are double quantised"),
        "bnb_4bit_compute_dtype": harmless("training.precision says how it computes"),
        "bnb_4bit_quant_storage": harmless("how 4-bit weights are stored is chosen by truetune"),
        "llm_int8_threshold": left("the threshold is bitsandbytes' own"),
        "llm_int8_skip_modules": left("which layers are stored in 8 bits is chosen by truetune"),
    },
    (),
    frozenset({"bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"}),
)
_SAVING = harmless("the adapter is saved in the run's directory, loaded again and compared")
_EXPORT = left("merging and exporting are commands of their own")


def _told(name: str, rule: Rule, *order: str) -> Kind:
    """A call whose every argument has one answer."""
    words = (
        "save_directory",
        "repo_id",
        "save_method",
        "token",
        "quantization_method",
        "tokenizer",
        "private",
        "push_to_hub",
        "maximum_memory_usage",
        "output_dir",
        "safe_serialization",
    )
    known = (*order, *words)
    return Kind(name, dict.fromkeys((*known, ""), rule), order, frozenset(known))


_KINDS: dict[str, Kind] = {
    **{
        name: Kind(name, _ARGUMENT_RULES, ("output_dir",), frozenset({"tokenizer"}), shares_names=True)
        for name in _ARGUMENTS
    },
    "LoraConfig": LORA_CONFIG,
    "BitsAndBytesConfig": _QUANTIZED,
    "get_peft_model": Kind("get_peft_model", {}, ("model", "peft_config"), frozenset({"model", "peft_config"})),
    "prepare_model_for_kbit_training": Kind(
        "prepare_model_for_kbit_training",
        {
            "use_gradient_checkpointing": hugging_face.checkpointing,
            "gradient_checkpointing_kwargs": hugging_face.RULES["gradient_checkpointing_kwargs"],
        },
        ("model",),
        frozenset({"model"}),
    ),
    "gradient_checkpointing_enable": Kind(
        "gradient_checkpointing_enable",
        {"": _gc_on, "gradient_checkpointing_kwargs": _gc_on},
        (),
        frozenset({"gradient_checkpointing_kwargs"}),
    ),
    "train_on_responses_only": Kind(
        "train_on_responses_only",
        {
            "response_part": _answers_alone,
            "instruction_part": harmless("answers are found by the template"),
            "num_proc": ROW_WORK,
            "trainer": MADE,
        },
        ("trainer",),
        frozenset({"trainer"}),
    ),
    "DataCollatorForCompletionOnlyLM": Kind(
        "DataCollatorForCompletionOnlyLM",
        {
            "response_template": _answers_alone,
            "instruction_template": harmless("answers are found by the template"),
            "tokenizer": TOKENIZER,
            "mlm": harmless("answers are learned"),
        },
        ("response_template",),
        frozenset({"tokenizer", "response_template"}),
    ),
    "EarlyStoppingCallback": Kind(
        "EarlyStoppingCallback",
        {
            "early_stopping_patience": hugging_face.early_stopping,
            "early_stopping_threshold": left("any improvement counts"),
        },
        ("early_stopping_patience",),
    ),
    "get_chat_template": Kind(
        "get_chat_template",
        {
            "chat_template": _chat_template,
            "mapping": harmless("turns are found by their usual names"),
            "map_eos_token": harmless("the stop token comes from the template"),
            "tokenizer": TOKENIZER,
        },
        ("tokenizer",),
        frozenset({"tokenizer"}),
    ),
    "set_seed": Kind("set_seed", {"seed": _seed}, ("seed",)),
    "train": Kind("train", {"resume_from_checkpoint": _resume}, ("resume_from_checkpoint",)),
    "save_pretrained": _told("save_pretrained", _SAVING, "save_directory"),
    "save_model": _told("save_model", _SAVING, "output_dir"),
    "save_pretrained_merged": _told("save_pretrained_merged", _EXPORT, "save_directory", "tokenizer"),
    "save_pretrained_gguf": _told("save_pretrained_gguf", _EXPORT, "save_directory", "tokenizer"),
    "push_to_hub": _told("push_to_hub", _EXPORT, "repo_id"),
    "push_to_hub_merged": _told("push_to_hub_merged", _EXPORT, "repo_id", "tokenizer"),
    "push_to_hub_gguf": _told("push_to_hub_gguf", _EXPORT, "repo_id", "tokenizer"),
}
