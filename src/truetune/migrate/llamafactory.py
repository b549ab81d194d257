"""LLaMA-Factory's YAML and JSON. Names and defaults: its src/llamafactory/hparams and data/README.md."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from truetune.migrate import hugging_face
from truetune.migrate.datasets import CHATS, ROLE_SPELLINGS, Places, template_of
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

INFO = "dataset_info.json"
_STAGES = {
    "pt": "pretraining is not supported; rows with a text field are learned whole",
    "rm": "reward models are not supported",
    "ppo": "reinforcement learning is not supported",
    "dpo": "preference tuning is not supported",
    "kto": "preference tuning is not supported",
}
_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "messages",
    "system": "system",
    "tools": "tools",
}
_MEDIA = ("images", "videos", "audios")


# --- data sets by name ------------------------------------------------------------------------------------


def dataset_rule(info: Mapping[str, Any] | None, folder: Path) -> Rule:
    """`dataset: a,b` through dataset_info.json, or with a remedy where that file is not there."""

    def rule(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
        names = _names(value)
        missing = [name for name in names if name not in (info or {})]
        if info is None or missing:
            where = f"{document.get('dataset_dir') or 'data'}/{INFO}"
            why = f"{where} was not found" if info is None else f"{where} has no {', '.join(missing)}"
            yield Leave(f"{why}: name the files in data.path")
            return
        entries = [info[name] for name in names]
        if refused := [reason for entry in entries if (reason := _refused(entry))]:
            yield Leave(refused[0])
            return
        places = Places([_place(entry, folder) for entry in entries])
        yield Set("data.path", places.value)
        yield from _columns(entries)

    return rule


def _names(value: Any) -> list[str]:
    named = value if isinstance(value, list) else str(value).split(",")
    return [str(name).strip() for name in named]


def _refused(entry: Mapping[str, Any]) -> str | None:
    if entry.get("ranking"):
        return "a preference set (ranking: true) is not trained on"
    if entry.get("script_url") and not entry.get("file_name"):
        return "loading scripts are not run: name the files in data.path"
    if media := [name for name in _MEDIA if name in (entry.get("columns") or {})]:
        return f"it holds {media[0]}, and only text is trained on"
    return None


def _place(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    if "hf_hub_url" in entry:
        place = {"path": entry["hf_hub_url"], "subset": entry.get("subset"), "split": entry.get("split")}
    else:
        path = (folder / str(entry.get("file_name") or entry.get("ms_hub_url") or "")).as_posix()
        place = {"path": path, "split": entry.get("split")}
    return {name: value for name, value in place.items() if value}


def _columns(entries: list[Mapping[str, Any]]) -> Iterator[Outcome]:
    """The fields that have other names than ours, and the ways in which turns are spelled."""
    renamed: dict[str, str] = {}
    for entry in entries:
        for slot, name in (entry.get("columns") or {}).items():
            ours = _COLUMNS.get(slot)
            if ours and name and name != ours and not (ours == "messages" and name in CHATS):
                renamed[str(name)] = ours
        roles = [value for tag, value in (entry.get("tags") or {}).items() if tag.endswith("_tag")]
        keys = {"role", "content", "from", "value"}
        if unknown := [role for role in roles if str(role).lower() not in ROLE_SPELLINGS | keys]:
            yield Note(
                f"tags: {', '.join(map(str, unknown))} are no spellings that are known here; rename them in the file"
            )
    if renamed:
        yield Set("data.columns", renamed)


# --- keys -------------------------------------------------------------------------------------------------


def _quantization_bit(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    match value:
        case 4 | "4":
            yield Set("model.load_in_4bit", True)
        case 8 | "8":
            yield Set("model.load_in_8bit", True)
        case _:
            yield Leave("a frozen base is stored in 4 or 8 bits")


def _template(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield from template_of("LLaMA-Factory", value)
    if value != "alpaca":
        yield Note("instruction and input are joined by a line break in LLaMA-Factory, and by a blank line here")


def _when_on(name: str, said: Any) -> Rule:
    def rule(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
        yield Set(name, said) if value is True else Leave("off: it asks for nothing", matters=False)

    return rule


def _packing(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    if value is True and not document.get("neat_packing"):
        yield Note(
            "packing: packed rows see each other in LLaMA-Factory (unless neat_packing is true), and never here"
        )
    if value is False and document.get("neat_packing"):
        yield Leave("neat_packing is true, and packs")
    else:
        yield Set("data.packing", value)


def table(info: Mapping[str, Any] | None, folder: Path) -> dict[str, Rule]:
    """The rules, with what dataset_info.json says, whose files lie in `folder`."""
    return rules(_RULES, {"dataset": dataset_rule(info, folder)})


_METHOD = left("the method is not supported: LoRA or all weights are trained")
_PROCESSOR = harmless("only text is trained on")

_RULES: dict[str, Rule] = rules(
    hugging_face.RULES,
    {
        "stage": only("sft", otherwise="truetune trains on answers", reason="truetune trains on answers"),
        "finetuning_type": to("adapter.method"),
        "quantization_bit": _quantization_bit,
        "quantization_method": only("bitsandbytes", "bnb", otherwise="the frozen base is stored by bitsandbytes"),
        "quantization_type": only("nf4", otherwise="4-bit weights are NF4"),
        "double_quantization": only(True, otherwise="4-bit weights are double quantised"),
        "quantization_device_map": harmless("the model is placed by truetune"),
        "template": _template,
        "dataset_dir": harmless("it is where dataset_info.json is looked for, and part of data.path"),
        "eval_dataset": left("name the file of validation rows in data.validation_path"),
        "mask_history": _when_on("data.train_on", "last_turn"),
        "packing": _packing,
        "pure_bf16": _when_on("training.precision", "bf16"),
        "disable_gradient_checkpointing": _when_on("training.gradient_checkpointing", False),
        "use_unsloth_gc": _when_on("training.gradient_checkpointing", True),
        "flash_attn": hugging_face.ATTENTION,
        "max_samples": left("all rows are taken: shorten the file, or set training.max_steps"),
        "streaming": left("rows are prepared once and memory-mapped; data.streaming is for more than a disk holds"),
        "buffer_size": harmless("rows are shuffled whole"),
        "mix_strategy": only("concat", otherwise="weigh the places instead: data.path: [{path: …, weight: 2}]"),
        "interleave_probs": left("weigh the places instead: data.path: [{path: …, weight: 2}]"),
        "tool_format": left("tools are written by the model's chat template"),
        "default_system": left("the system text comes from the row, or from the template"),
        "enable_thinking": only(True, otherwise="see data.thinking"),
        "ignore_pad_token_for_loss": harmless("nothing is padded"),
        "eval_num_beams": left("validation measures the loss"),
        "eval_on_each_dataset": left("validation rows are one set"),
        "predict_with_generate": left("validation measures the loss"),
        "rope_scaling": left("the model's context is taken as it is"),
        "shift_attn": left("S² attention is not supported"),
        "mixture_of_depths": left("mixture of depths is not supported"),
        "moe_aux_loss_coef": left("a router's loss is weighed as the model's config says"),
        "resize_vocab": left("the model's embeddings keep their size"),
        "add_tokens": left("tokens are not added here: add them to the base's tokenizer, and resize its embeddings"),
        "add_special_tokens": left(
            "tokens are not added here: add them to the base's tokenizer, and resize its embeddings"
        ),
        "new_special_tokens": left(
            "tokens are not added here: add them to the base's tokenizer, and resize its embeddings"
        ),
        "split_special_tokens": left("see data.control_tokens"),
        "upcast_layernorm": left("norms are computed as the model does"),
        "upcast_lmhead_output": left("the loss is computed in float32 as it is", matters=False),
        "train_from_scratch": left("a trained base is expected"),
        "create_new_adapter": left("one adapter is trained: merge the first into the base, or go on from it"),
        "adapter_folder": left("name the adapter's own folder in adapter.init_from"),
        "disable_shuffling": left("rows are always shuffled, by training.seed"),
        "early_stopping_steps": hugging_face.early_stopping,
        "use_swanlab": hugging_face.tracker("swanlab"),
        "swanlab_project": to("logging.project"),
        "swanlab_run_name": to("logging.run_name"),
        "compute_accuracy": harmless("the accuracy of learned tokens is always logged"),
        "use_dft_loss": left("the loss is plain cross-entropy"),
        "use_llama_pro": _METHOD,
        "use_fast_tokenizer": harmless("fast tokenizers are always used"),
        "enable_liger_kernel": harmless("fused layers are chosen by truetune, and proved on the model"),
        "use_reentrant_gc": harmless("how checkpoints are recomputed is chosen by truetune"),
        "ray_run_name": left("Ray is not supported"),
        "use_v1_kernels": harmless("fused layers are chosen by truetune, and proved on the model"),
        "new_special_tokens_config": left("tokens are not added here: add them to the base's tokenizer"),
        "tokenized_path": harmless("prepared rows are kept in a cache of truetune's own"),
        "media_dir": harmless("only text is trained on"),
        "fp8": left("training.precision takes bf16, fp16 and fp32"),
        "batch_size": left("set per_device_train_batch_size and gradient_accumulation_steps"),
    },
    each(
        left("an optimizer that is not supported: see training.optim"),
        "use_galore",
        "use_apollo",
        "use_badam",
        "use_adam_mini",
        "use_muon",
        "use_mca",
        "use_kt",
    ),
    each(
        harmless("it belongs to a method that is off"),
        *("galore_target", "galore_rank", "galore_update_interval", "galore_scale", "galore_proj_type"),
        *(
            "apollo_target",
            "apollo_rank",
            "apollo_update_interval",
            "apollo_scale",
            "badam_mode",
            "badam_update_ratio",
        ),
        *("badam_start_block", "badam_switch_mode", "badam_switch_interval", "badam_mask_mode", "badam_verbose"),
        *("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules", "galore_layerwise"),
        *("oft_rank", "oft_block_size", "oft_target", "module_dropout"),
        *("pref_beta", "pref_loss", "pref_ftx", "dpo_label_smoothing", "kto_chosen_weight", "kto_rejected_weight"),
        *("ppo_score_norm", "ppo_target", "ref_model", "reward_model", "simpo_gamma", "pref_bco_weight", "ld_alpha"),
        *("ppo_buffer_size", "ppo_epochs", "ppo_whiten_rewards", "ref_model_adapters", "ref_model_quantization_bit"),
        *("reward_model_adapters", "reward_model_quantization_bit", "reward_model_type"),
        *("apollo_proj", "apollo_proj_type", "apollo_scale_type", "apollo_layerwise", "apollo_scale_front"),
        *("kt_optimize_rule", "cpu_infer", "chunk_size", "mode", "kt_maxlen", "kt_use_cuda_graph", "kt_mode"),
        *("kt_force_think", "fp8_backend", "fp8_enable_fsdp_float8_all_gather", "init_special_tokens"),
        *("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"),
    ),
    each(
        _PROCESSOR,
        *("image_max_pixels", "image_min_pixels", "image_do_pan_and_scan", "crop_to_patches", "video_max_pixels"),
        *("video_min_pixels", "video_fps", "video_maxlen", "use_audio_in_video", "audio_sampling_rate"),
    ),
    each(
        harmless("it says how answers are generated, not how a model is trained"),
        *(
            "max_new_tokens",
            "max_length",
            "temperature",
            "top_p",
            "top_k",
            "do_sample",
            "num_beams",
            "repetition_penalty",
        ),
        *("infer_backend", "infer_dtype", "vllm_maxlen", "vllm_gpu_util", "vllm_enforce_eager", "offload_folder"),
        *("use_kv_cache", "skip_special_tokens", "length_penalty", "vllm_max_lora_rank", "vllm_config"),
        *("sglang_maxlen", "sglang_mem_fraction", "sglang_tp_size", "sglang_config", "sglang_lora_backend"),
    ),
    each(
        left("exporting is a command of its own"),
        *("export_dir", "export_size", "export_device", "export_legacy_format", "export_hub_model_id"),
        *("export_quantization_bit", "export_quantization_dataset", "export_quantization_nsamples"),
        *("export_quantization_maxlen",),
    ),
    each(
        harmless("it changes what is printed, not what is trained"),
        *("plot_loss", "print_param_status", "include_effective_tokens_per_second", "disable_version_checking"),
    ),
    each(
        left("set it where SwanLab is used: it reads its own variables"),
        *("swanlab_workspace", "swanlab_mode", "swanlab_api_key"),
        *("swanlab_logdir", "swanlab_lark_webhook_url", "swanlab_lark_secret"),
    ),
    each(left("log in with: hf auth login"), "hf_hub_token", "ms_hub_token", "om_hub_token"),
)


def defaults(_: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Default]:
    """LLaMA-Factory's defaults: LoRA of rank 8 on all layers, alpha twice the rank, 2,048 tokens, no validation."""
    tool = "LLaMA-Factory"
    yield Default("adapter.method", "lora", f"{tool}'s default")
    if settings.get("adapter.method", "lora") == "lora":
        rank = settings.get("adapter.r", 8)
        yield Default("adapter.r", 8, f"{tool}'s default")
        yield Default(
            "adapter.lora_alpha", float(rank * 2) if rank != "auto" else 16.0, f"{tool}'s default: twice the rank"
        )
        yield Default("adapter.target_modules", "all-linear", f"{tool}'s default")
    yield Default("data.max_length", 2048, f"{tool}'s default of cutoff_len")
    yield Default("data.overlong", "truncate", f"{tool} cuts longer rows")
    yield Default("data.packing", False, f"{tool}'s default")
    yield Default("data.test_size", 0, f"{tool}'s default of val_size")
    yield from hugging_face.schedule(tool)
    yield from hugging_face.rhythm(tool)


def refusals(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Stages and methods that LLaMA-Factory has and truetune has not."""
    stage = str(document.get("stage") or "sft")
    if stage in _STAGES:
        yield "stage", f"{stage}: {_STAGES[stage]}"
    if document.get("finetuning_type") in ("freeze", "oft"):
        yield "finetuning_type", f"{document['finetuning_type']}: LoRA or all weights are trained"


def llamafactory(info: Mapping[str, Any] | None, folder: Path = Path("data")) -> Tool:
    """The tool, with the document of dataset_info.json (None: it was not found) and the folder that it lies in."""
    return Tool("llamafactory", "LLaMA-Factory", table(info, folder), defaults, refusals)
