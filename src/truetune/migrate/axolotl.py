"""Axolotl's YAML. Names and defaults: its config reference, src/axolotl/utils/schemas and core/builders/base.py."""

from collections.abc import Iterator, Mapping
from typing import Any

from truetune.migrate import hugging_face
from truetune.migrate.axolotl_rows import chat_template, datasets, jinja, validation_rows
from truetune.migrate.outcomes import Default, Leave, Outcome, Rule, Set, Tool, each, harmless, left, only, rules, to

_KERNELS = harmless("fused layers are chosen by truetune, and proved on the model")
_TOKENIZER = left("tokenizer and architecture are the model's own", matters=False)
_INTERNAL = harmless("it belongs to Axolotl's own machinery")
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
        "wandb_run_id": left("the tracker numbers its runs"),
        "wandb_entity": left("set it in the environment: WANDB_ENTITY"),
        "wandb_mode": left("set it in the environment: WANDB_MODE"),
        "special_tokens": left("the stop token comes from the template, and nothing is padded"),
        "added_tokens_overrides": left("the tokenizer is the model's own"),
        "lora_fan_in_fan_out": harmless("PEFT sets it by the kind of layer"),
        "peft_layers_to_transform": left("every layer gets an adapter: name the modules in adapter.target_modules"),
        "peft_layers_pattern": left("every layer gets an adapter: name the modules in adapter.target_modules"),
        "peft_layer_replication": left("layers are not replicated"),
        "loftq_config": left("LoftQ is not supported"),
        "gptq": left("GPTQ models are not trained: use model.load_in_4bit"),
        "relora": left("ReLoRA is not supported: LoRA is trained in its place"),
        "unfrozen_parameters": left("training parts of a model is not supported: see adapter.modules_to_save"),
        "lr_groups": left("every module learns at training.learning_rate"),
        "embedding_lr": left("every module learns at training.learning_rate"),
        "embedding_lr_scale": left("every module learns at training.learning_rate"),
        "shuffle_merged_datasets": only(True, otherwise="rows are always shuffled, by training.seed"),
        "dataset_exact_deduplication": left(
            "equal rows are told and kept: truetune check DATA --fix OUT leaves them out"
        ),
        "min_sample_len": left("short rows are kept"),
        "eval_sequence_len": left("validation rows are as long as data.max_length allows"),
        "curriculum_sampling": left("rows are always shuffled, by training.seed"),
        "loss_watchdog_threshold": harmless("a loss that is not a number ends the run by itself"),
        "loss_watchdog_patience": harmless("a loss that is not a number ends the run by itself"),
        "sequence_parallel_degree": left("one row stays on one device"),
        "context_parallel_size": left("one row stays on one device"),
        "tensor_parallel_size": left("a layer stays on one device"),
        "default_system_message": left("the system text comes from the row, or from the template"),
        "fix_untrained_tokens": left("the model's embeddings are not changed before training"),
        "resize_token_embeddings_to_32x": left("the model's embeddings keep their size"),
        "shrink_embeddings": left("the model's embeddings keep their size"),
        "mean_resizing_embeddings": left("the model's embeddings keep their size"),
        "overrides_of_model_config": left("the model's config is taken as it is"),
        "model_config": left("the model's config is taken as it is"),
        "overrides_of_model_kwargs": left("models are loaded in truetune's own way"),
        "model_kwargs": left("models are loaded in truetune's own way"),
        "bnb_config_kwargs": left("4-bit weights are NF4, double quantised"),
        "plugins": left("Axolotl's plugins are its own; what makes a step faster is chosen by truetune"),
        "torchdistx_path": _INTERNAL,
        "fp8": left("training.precision takes bf16, fp16 and fp32"),
        "float32": left("set training.precision: fp32"),
        "auto_resume_from_checkpoints": left("a run goes on with: truetune train run.yaml --resume auto"),
        "optim_target_modules": left("GaLore and its kin are not supported"),
        "use_pose": left("PoSE is not supported"),
        "qat": left("quantisation-aware training is not supported"),
        "quantization": left("quantisation-aware training is not supported"),
        "neftune_noise_alpha": left("noise on the embeddings (NEFTune) is not supported"),
        "noisy_embedding_alpha": left("noise on the embeddings (NEFTune) is not supported"),
        "max_prompt_len": harmless("it belongs to reinforcement learning"),
        "push_dataset_to_hub": left("nothing is sent to a hub"),
        "do_causal_lm_eval": left("validation measures the loss"),
        "do_bench_eval": left("validation measures the loss"),
        "merge_lora": harmless("merging is a command of its own"),
        "merge_method": harmless("merging is a command of its own"),
        "shuffle_before_merging_datasets": harmless("rows are always shuffled, by training.seed"),
        "streaming": left("rows are prepared once and memory-mapped; data.streaming is for more than a disk holds"),
        "chat_template_kwargs": left("the template gets no arguments of its own: see data.thinking"),
        "eot_tokens": left("where an answer ends is found from the template: check with truetune inspect"),
        "dataset_num_proc": to("data.num_proc"),
        "use_ray": left("Ray is not supported"),
        "use_otel_metrics": left("logging.report_to takes the trackers that transformers knows"),
        "rope_scaling": left("the model's context is taken as it is"),
        "max_packed_sequence_len": left("set data.max_length and data.packing"),
        "deepcompile": left("DeepSpeed is not set up"),
        "model_quantization_config": left("frozen weights are stored as model.load_in_4bit and load_in_8bit say"),
        "model_quantization_config_kwargs": left(
            "frozen weights are stored as model.load_in_4bit and load_in_8bit say"
        ),
        "peft_autocast_adapter_dtype": left("an adapter is trained in float32"),
        "peft_ensure_weight_tying": left("tied weights stay as the model has them"),
        "gradient_checkpointing_kwargs": left("how checkpoints are recomputed is chosen by truetune", matters=False),
    },
    each(
        _TOKENIZER,
        "model_type",
        "type_of_model",
        "tokenizer_type",
        "tokenizer_use_fast",
        "tokenizer_legacy",
        "tokenizer_use_mistral_common",
        "tokenizer_save_jinja_files",
        "processor_type",
        "base_model_config",
        "base_model_ignore_patterns",
        "cls_model_config",
        "is_falcon_derived_model",
        "is_llama_derived_model",
        "is_mistral_derived_model",
        "is_qwen_derived_model",
    ),
    each(left("the tokenizer is the model's own"), "tokenizer_config"),
    each(
        hugging_face.ATTENTION,
        "flash_attention",
        "sdp_attention",
        "xformers_attention",
        "flex_attention",
        "eager_attention",
        "sage_attention",
        "attn_implementation",
        "s2_attention",
        "flash_optimum",
    ),
    each(
        _KERNELS,
        "flash_attn_cross_entropy",
        "flash_attn_rms_norm",
        "flash_attn_fuse_qkv",
        "flash_attn_fuse_mlp",
        "lora_mlp_kernel",
        "lora_qkv_kernel",
        "lora_o_kernel",
        "lora_embedding_kernel",
        "unsloth_cross_entropy_loss",
        "unsloth_lora_mlp",
        "unsloth_lora_qkv",
        "unsloth_lora_o",
        "unsloth_rms_norm",
        "unsloth_rope",
        "cut_cross_entropy",
        "chunked_cross_entropy",
        "liger_rope",
        "liger_rms_norm",
        "liger_glu_activation",
        "liger_layer_norm",
        "liger_fused_linear_cross_entropy",
    ),
    each(
        harmless("packing is truetune's own, and packed rows do not see each other"),
        "eval_sample_packing",
        "pad_to_sequence_len",
        "sample_packing_group_size",
        "sample_packing_bin_size",
        "sample_packing_sequentially",
        "sample_packing_eff_est",
        "sample_packing_mp_start_method",
        "streaming_multipack_buffer_size",
        "multipack_real_batches",
        "batch_flattening",
        "total_num_tokens",
        "total_supervised_tokens",
    ),
    each(
        _INTERNAL,
        "strict",
        "dataset_prepared_path",
        "dataset_keep_in_memory",
        "dataset_shard_num",
        "dataset_shard_idx",
        "skip_prepare_dataset",
        "is_preprocess",
        "preprocess_iterable",
        "gc_steps",
        "profiler_steps",
        "profiler_steps_start",
        "eval_table_size",
        "eval_max_new_tokens",
        "eval_causal_lm_metrics",
        "hf_use_auth_token",
        "lora_on_cpu",
        "qlora_sharded_model_loading",
        "wandb_watch",
        "wandb_log_model",
        "save_first_step",
        "device",
        "ddp",
        "max_memory",
        "gpu_memory_limit",
        "axolotl_config_path",
        "experimental_skip_move_to_device",
        "num_dataset_shards_to_save",
        "ray_run_name",
        "ray_num_workers",
        "resources_per_worker",
        "gradio_title",
        "gradio_share",
        "gradio_server_name",
        "gradio_server_port",
        "gradio_max_new_tokens",
        "gradio_temperature",
        "bench_dataset",
        "bench_split",
        "heads_k_stride",
        "ring_attn_func",
        "tiled_mlp",
        "tiled_mlp_num_shards",
        "tiled_mlp_use_original_mlp",
        "chunked_cross_entropy_num_chunks",
        "flex_attn_compile_kwargs",
        "llama4_linearized_experts",
        "include_tkps",
        "debug",
        "trl",
        "vllm",
    ),
    each(
        left("set it where the other tracker is used"),
        "mlflow_tracking_uri",
        "mlflow_experiment_name",
        "mlflow_run_name",
        "hf_mlflow_log_artifacts",
        "comet_api_key",
        "comet_workspace",
        "comet_project_name",
        "comet_experiment_key",
        "comet_mode",
        "comet_online",
        "comet_experiment_config",
        "otel_metrics_host",
        "otel_metrics_port",
        "trackio_project_name",
        "trackio_run_name",
    ),
    each(left("cosine falls to zero here"), "cosine_min_lr_ratio", "cosine_constant_lr_ratio", "lr_div_factor"),
    each(left("the warm-up is a line"), "lr_quadratic_warmup"),
    each(left("CAME and other optimizers of three betas are not supported"), "adam_beta3", "adam_epsilon2"),
    each(
        left("set training.num_processes; training.strategy: auto shares out a model that is too large for one"),
        "fsdp_version",
        "fsdp_final_state_dict_type",
        "dp_shard_size",
        "dp_replicate_size",
    ),
    each(
        harmless("it belongs to preference tuning, and rl is not set"),
        *(
            "dpo_beta",
            "rl_beta",
            "orpo_alpha",
            "rpo_alpha",
            "simpo_gamma",
            "cpo_alpha",
            "dpo_use_weighting",
            "num_labels",
        ),
        *("kto_desirable_weight", "kto_undesirable_weight", "dpo_use_logits_to_keep"),
    ),
    each(
        harmless("it belongs to pretraining, and pretraining_dataset is not set"),
        *("pretrain_multipack_buffer_size", "pretrain_multipack_attn", "pretraining_sample_concatenation"),
    ),
    each(left("PoSE is not supported"), "pose_split_on_token_ids", "pose_max_context_len", "pose_num_chunks"),
    each(left("Dion is not supported"), "dion_lr", "dion_momentum", "dion_rank_fraction", "dion_rank_multiple_of"),
    each(
        left("relora is not supported"),
        "relora_steps",
        "relora_prune_ratio",
        "relora_prune_method",
        "relora_cpu_offload",
    ),
    each(
        left("jagged restarts are not supported"),
        "jagged_restart_steps",
        "jagged_restart_warmup_steps",
        "jagged_restart_anneal_steps",
    ),
    each(left("LISA is not supported"), "lisa_n_layers", "lisa_step_interval", "lisa_layers_attribute"),
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
