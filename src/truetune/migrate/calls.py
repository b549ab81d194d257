"""The calls of a training script that say how a model is trained, and what their arguments mean here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truetune.config.names import Fallback
from truetune.migrate import hugging_face, trl
from truetune.migrate.datasets import SLICED, is_sliced, template_of
from truetune.migrate.formatting import template_of_function
from truetune.migrate.outcomes import OFF, Leave, Outcome, Rule, Set, each, harmless, left, only, rules, to
from truetune.migrate.walk import Call, Walk

_TRAINERS = ("SFTTrainer", "UnslothTrainer", "Trainer")
_ARGUMENTS = ("SFTConfig", "TrainingArguments", "UnslothTrainingArguments", "Seq2SeqTrainingArguments")
_MODEL_CLASSES = ("FastLanguageModel", "FastModel")
_FILES = ("json", "csv", "parquet", "text", "arrow")
_MADE = harmless("it is what the script made before")
_TOKENIZER = harmless("the tokenizer comes with the model")


@dataclass(frozen=True, slots=True)
class Kind:
    """A call that says how a model is trained: its rules by argument, and the names of what stands without one.

    `objects` are arguments whose value is a thing of the script's own, which needs no reading.
    """

    name: str
    rules: Mapping[str, Rule]
    order: Sequence[str] = ()
    objects: frozenset[str] = frozenset()
    shares_names: bool = False


# --- which calls ------------------------------------------------------------------------------------------


def kind_of(call: Call, walk: Walk) -> Kind | None:
    """How a call is read, if it says how a model is trained."""
    match call.name:
        case "from_pretrained":
            return _loading(call)
        case "get_peft_model" if call.receiver:
            return UNSLOTH_LORA
        case "load_dataset":
            return _load_dataset(call, walk)
        case "map":
            return _mapping(call, walk)
        case "from_list" | "from_dict" | "from_pandas" | "from_generator" if call.receiver.endswith("Dataset"):
            return Kind(
                f"Dataset.{call.name}", _ANY_ROWS, ("mapping",), frozenset({"mapping", "data", "df", "generator"})
            )
        case "init" if call.receiver == "wandb":
            return _WANDB
        case "train" if not (call.positional or call.keywords):
            return None
        case "filter" | "select" | "take" if _is_rows(call):
            return Kind(call.name, {call.name: _KEPT}, (call.name,), frozenset({call.name, *call.keywords}))
        case "shuffle" if _is_rows(call):
            return Kind("shuffle", {"seed": _ONE_SEED, "buffer_size": _ONE_SEED}, ("seed",))
        case "rename_column":
            return Kind("rename_column", _renamed(call), ("original_column_name", "new_column_name"))
        case "SFTTrainer" | "UnslothTrainer" | "Trainer":
            return Kind(
                call.name, {**_TRAINER.rules, **_formatting(call, walk)}, _TRAINER.order, _TRAINER.objects, True
            )
        case _:
            return _KINDS.get(call.name)


def _is_rows(call: Call) -> bool:
    return any(word in call.receiver.lower() for word in ("data", "ds", "train", "eval", "rows"))


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
            dict.fromkeys([*call.keywords, "name"], _TOKENIZER),
            ("name",),
            frozenset({*call.keywords, "name"}),
        )
    return None


def _load_dataset(call: Call, walk: Walk) -> Kind:
    """load_dataset: training rows, or validation rows where the trainer is given them as such."""
    given = {**dict(zip(("path", "name"), call.positional, strict=False)), **call.keywords}
    validates = any(
        other.name in _TRAINERS and str(other.keywords.get("eval_dataset")) == call.result and call.result
        for other in walk.calls
    )
    files = given.get("data_files")
    if validates:
        rule = (
            to("data.validation_path")
            if isinstance(files, str)
            else left("name the file of validation rows in data.validation_path")
        )
        own = {
            **dict.fromkeys(given, harmless("validation rows are read as the training rows are")),
            "data_files": rule,
        }
        if not isinstance(files, str):
            own["path"] = rule
        return Kind("load_dataset", own, ("path", "name"))
    return Kind("load_dataset", {**_DATASET_REST, **_training_rows(given)}, ("path", "name"))


def _training_rows(given: Mapping[str, Any]) -> dict[str, Rule]:
    files, split = given.get("data_files"), given.get("split")
    named_files = files if isinstance(files, dict) else {"train": files}
    files, others = named_files.get("train"), {name: path for name, path in named_files.items() if name != "train"}
    if given.get("path") in _FILES:
        place: Any = files
    else:
        words = {"path": given.get("path"), "subset": given.get("name"), "revision": given.get("revision")}
        words |= {"split": None if is_sliced(split) else split, "data_files": files}
        entry = {name: value for name, value in words.items() if isinstance(value, str)}
        place = (
            entry["path"]
            if list(entry) == ["path"] or (entry.keys() == {"path", "split"} and split == "train")
            else [entry]
        )
    rule = to("data.path", convert=lambda _: place)
    own: dict[str, Rule] = dict.fromkeys(("path", "name", "revision"), rule)
    own["split"] = left(SLICED) if is_sliced(split) else rule
    own["data_files"] = _files_rule(place, others)
    return own


def _files_rule(place: Any, others: Mapping[str, Any]) -> Rule:
    """The files: those of training are data.path; one of validation is data.validation_path."""

    def rule(*_: Any) -> Iterator[Outcome]:
        if place is not None:
            yield Set("data.path", place)
        held_out = [path for name, path in others.items() if name in ("validation", "test", "eval", "valid")]
        if held_out and isinstance(held_out[0], str):
            yield Set("data.validation_path", held_out[0])
        if place is None and not held_out:
            yield Leave("name the files in data.path")

    return rule


def _mapping(call: Call, walk: Walk) -> Kind | None:
    given = call.positional[0] if call.positional else call.keywords.get("function")
    function = walk.functions.get(str(given)) or walk.lambdas.get(str(given))
    if function is None and not _is_rows(call):
        return None
    own = rules({"function": _function_rule(function, call)}, each(_ROW_WORK, *_MAP_REST))
    return Kind("map", own, ("function",), frozenset({"function", "fn_kwargs", *_MAP_REST}))


def _function_rule(function: Any, call: Call) -> Rule:
    def rule(*_: Any) -> Iterator[Outcome]:
        if function is None:
            yield Leave("the function is not in the script: see data.template, or pass formatting= in Python")
        else:
            yield from template_of_function(function, call.names)

    return rule


def _formatting(call: Call, walk: Walk) -> dict[str, Rule]:
    given = str(call.keywords.get("formatting_func"))
    return {"formatting_func": _function_rule(walk.functions.get(given) or walk.lambdas.get(given), call)}


def _renamed(call: Call) -> dict[str, Rule]:
    given = [*call.positional, *call.keywords.values()]
    if len(given) == 2 and all(isinstance(name, str) for name in given):
        rule = to("data.columns", convert=lambda _: {given[0]: given[1]})
    else:
        rule = left("name the fields in data.columns")
    return dict.fromkeys(("original_column_name", "new_column_name"), rule)


# --- their rules ------------------------------------------------------------------------------------------

_KEPT = left("rows are chosen in the script: write those that are kept to a file")
_ONE_SEED = harmless("adapter, order and split have one seed here: training.seed")
_ROW_WORK = harmless("rows are prepared in truetune's own way")
_MAP_REST = (
    "batched",
    "batch_size",
    "num_proc",
    "remove_columns",
    "desc",
    "load_from_cache_file",
    "with_indices",
    "writer_batch_size",
)
_LOG_IN = left("log in with: hf auth login")
_ANY_ROWS = dict.fromkeys(
    ("mapping", "data", "df", "generator"),
    left("rows are made in the script: write them to a file, or give them to truetune.train"),
)


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
    each(_LOG_IN, "token", "use_auth_token"),
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
    {"model_id": to("adapter.init_from"), "is_trainable": harmless("it is trained"), "model": _MADE},
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
    "model": _MADE,
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
        "tokenizer": _TOKENIZER,
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
        "dataset_batch_size": _ROW_WORK,
        "max_seq_length": to("data.max_length"),
        "args": _MADE,
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
_DATASET_REST: dict[str, Rule] = {
    **each(_LOG_IN, "token", "use_auth_token"),
    **each(
        harmless("rows are kept in truetune's own cache"),
        "cache_dir",
        "num_proc",
        "keep_in_memory",
        "download_mode",
        "verification_mode",
    ),
    "streaming": left("rows are prepared once and memory-mapped; data.streaming is for more than a disk holds"),
    "trust_remote_code": left("loading scripts are not run"),
    "field": to("data.field"),
    "data_dir": left("name the files in data.data_files"),
    "delimiter": left("the kind of a file is told by its name: .csv or .tsv"),
    "features": left("values stay as the file spells them"),
}
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
    "train_test_split": Kind(
        "train_test_split",
        {
            "test_size": to("data.test_size"),
            "seed": _ONE_SEED,
            "shuffle": harmless("rows are held out by their text, which is stable"),
            "train_size": left("set data.test_size"),
        },
        ("test_size",),
    ),
    "train_on_responses_only": Kind(
        "train_on_responses_only",
        {
            "response_part": _answers_alone,
            "instruction_part": harmless("answers are found by the template"),
            "num_proc": _ROW_WORK,
            "trainer": _MADE,
        },
        ("trainer",),
        frozenset({"trainer"}),
    ),
    "DataCollatorForCompletionOnlyLM": Kind(
        "DataCollatorForCompletionOnlyLM",
        {
            "response_template": _answers_alone,
            "instruction_template": harmless("answers are found by the template"),
            "tokenizer": _TOKENIZER,
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
            "tokenizer": _TOKENIZER,
        },
        ("tokenizer",),
        frozenset({"tokenizer"}),
    ),
    "set_seed": Kind("set_seed", {"seed": _seed}, ("seed",)),
    "rename_columns": Kind("rename_columns", {"column_mapping": to("data.columns")}, ("column_mapping",)),
    "remove_columns": Kind(
        "remove_columns", {"column_names": _ROW_WORK}, ("column_names",), frozenset({"column_names"})
    ),
    "train": Kind("train", {"resume_from_checkpoint": _resume}, ("resume_from_checkpoint",)),
    "save_pretrained": _told("save_pretrained", _SAVING, "save_directory"),
    "save_model": _told("save_model", _SAVING, "output_dir"),
    "save_pretrained_merged": _told("save_pretrained_merged", _EXPORT, "save_directory", "tokenizer"),
    "save_pretrained_gguf": _told("save_pretrained_gguf", _EXPORT, "save_directory", "tokenizer"),
    "push_to_hub": _told("push_to_hub", _EXPORT, "repo_id"),
    "push_to_hub_merged": _told("push_to_hub_merged", _EXPORT, "repo_id", "tokenizer"),
    "push_to_hub_gguf": _told("push_to_hub_gguf", _EXPORT, "repo_id", "tokenizer"),
}
