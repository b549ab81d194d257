"""The YAML of `trl sft --config`. Names and defaults: TRL 1.16's sft_config.py, model_config.py, scripts/utils.py."""

from collections.abc import Iterator, Mapping
from typing import Any

from truetune.config.names import Fallback
from truetune.migrate import hugging_face
from truetune.migrate.datasets import SLICED, Places, is_sliced
from truetune.migrate.outcomes import OFF, Default, Leave, Outcome, Rule, Set, Tool, harmless, left, only, rules, to

_OTHER_METHODS = {
    **dict.fromkeys(
        ("beta", "max_prompt_length", "max_completion_length", "ref_model_name_or_path"), "preference tuning"
    ),
    **dict.fromkeys(("desirable_weight", "undesirable_weight", "rpo_alpha", "simpo_gamma"), "preference tuning"),
    **dict.fromkeys(
        ("num_generations", "reward_model_name_or_path", "reward_model_path", "reward_funcs"),
        "reinforcement learning",
    ),
    **dict.fromkeys(("use_vllm", "vllm_mode", "center_rewards_coefficient"), "reinforcement learning"),
}
"""Keys of trl's other trainers, by what these do."""


def _use_peft(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Set("adapter.method", "lora" if value else "full")


def _lora_only(rule: Rule) -> Rule:
    """LoRA's settings are read where use_peft is true."""

    def narrowed(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
        if document.get("use_peft"):
            yield from rule(value, document)
        else:
            yield Leave("use_peft is off: TRL does not read it", matters=False)

    return narrowed


def _one_loss(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    """assistant_only_loss and completion_only_loss: either means that answers alone are learned."""
    match value:
        case True:
            yield Set("data.train_on", "assistant")
        case False:
            yield Set("data.train_on", Fallback("all"))
        case _:
            yield Leave(OFF, matters=False)


def _packing_strategy(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Leave("whole rows are packed, best fit first, and do not see each other", matters=value != "bfd")


def _template_path(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    if str(value).endswith(".jinja"):
        yield Set("data.template", value)
    else:
        yield Leave("save that tokenizer's template to a file that ends in .jinja, and name it in data.template")


def _is_taken(key: str, value: Any) -> bool:
    return isinstance(value, str) and not (key == "split" and is_sliced(value))


def _split(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    yield Leave(SLICED) if is_sliced(value) else Set("data.split", value)


def _datasets(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    known = ("path", "name", "data_files", "split")
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) and entry.get("path") for entry in value):
        yield Leave("a list of {path: …} is expected")
        return
    named = {"name": "subset"}
    places = Places(
        [{named.get(key, key): entry[key] for key in known if _is_taken(key, entry.get(key))} for entry in value]
    )
    for index, entry in enumerate(value):
        for key, inner in entry.items():
            place = f"datasets[{index}].{key}"
            if key in known and _is_taken(key, inner):
                yield Set("data.path", places.value, place)
            elif key == "split":
                yield Leave(SLICED, key=place)
            elif key == "fraction":
                yield Leave("weigh the place instead: data.path: [{path: …, weight: 2}]", key=place)
            elif inner not in (None, ""):
                yield Leave("it is no part of data.path here", key=place)


def _model_init(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    if not isinstance(value, Mapping):
        yield Leave("a mapping is expected")
        return
    for key, inner in value.items():
        place = f"model_init_kwargs.{key}"
        match key:
            case "torch_dtype" | "dtype":
                yield Set("model.dtype", inner, place)
            case "revision" | "trust_remote_code" | "load_in_4bit" | "load_in_8bit":
                yield Set(f"model.{key}", inner, place)
            case "attn_implementation" | "use_cache" | "device_map" | "use_kernels":
                yield Leave("chosen by truetune on the machine", matters=False, key=place)
            case _:
                yield Leave("models are loaded in truetune's own way", key=place)


_STOP = left("the stop token comes from the template: check with truetune inspect")

RULES: dict[str, Rule] = rules(
    hugging_face.RULES,
    {
        "use_peft": _use_peft,
        "lora_r": _lora_only(to("adapter.r")),
        "lora_alpha": _lora_only(to("adapter.lora_alpha")),
        "lora_dropout": _lora_only(to("adapter.lora_dropout")),
        "lora_target_modules": _lora_only(hugging_face.targets),
        "lora_target_parameters": _lora_only(to("adapter.target_parameters")),
        "lora_modules_to_save": _lora_only(to("adapter.modules_to_save")),
        "use_rslora": _lora_only(to("adapter.use_rslora")),
        "use_dora": _lora_only(to("adapter.use_dora")),
        "lora_task_type": only("CAUSAL_LM", otherwise="language models are trained, and nothing else"),
        "bnb_4bit_quant_type": only("nf4", otherwise="4-bit weights are NF4"),
        "use_bnb_nested_quant": only(True, otherwise="4-bit weights are double quantised"),
        "bnb_4bit_quant_storage": harmless("how 4-bit weights are stored is chosen by truetune"),
        "assistant_only_loss": _one_loss,
        "completion_only_loss": _one_loss,
        "datasets": _datasets,
        "dataset_train_split": _split,
        "dataset_test_split": left(
            "rows are held out by data.test_size, or stand in the file of data.validation_path"
        ),
        "dataset_streaming": left("prepared rows are memory-mapped; data.streaming is for more than a disk holds"),
        "streaming": left("prepared rows are memory-mapped; data.streaming is for more than a disk holds"),
        "test_split_size": to("data.test_size"),
        "chat_template_path": _template_path,
        "model_init_kwargs": _model_init,
        "dataset_kwargs": left("rows are prepared in truetune's own way"),
        "eos_token": _STOP,
        "pad_token": harmless("nothing is padded"),
        "truncation_mode": only("keep_start", otherwise="longer rows keep their start: see data.overlong"),
        "shuffle_dataset": harmless("rows are always shuffled, by training.seed"),
        "packing_strategy": _packing_strategy,
        "padding_free": harmless("nothing is padded"),
        "pad_to_multiple_of": harmless("nothing is padded"),
        "eval_packing": harmless("the validation loss is the same, packed or not"),
        "loss_type": only("nll", "chunked_nll", otherwise="the loss is plain cross-entropy"),
        "router_aux_loss_coef": left("a router's loss is weighed as the model's config says"),
        "ignore_bias_buffers": harmless("nothing here needs it"),
        "env": left("set them in the environment"),
        "config": harmless("it names this file"),
    },
)


def defaults(_: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Default]:
    """TRL's defaults: all weights (LoRA with use_peft: rank 16, alpha 32, dropout 0.05), 1,024 tokens, 2e-5."""
    if settings.get("adapter.method") == "lora":
        yield Default("adapter.r", 16, "TRL's default")
        yield Default("adapter.lora_alpha", 32.0, "TRL's default")
        yield Default("adapter.lora_dropout", 0.05, "TRL's default")
        yield hugging_face.PEFT_TARGETS
    else:
        yield Default("adapter.method", "full", "TRL trains all weights unless use_peft is true")
    yield from text_defaults("TRL")
    if settings.get("evaluation.eval_strategy", "no") == "no":
        yield Default("data.test_size", 0, "TRL holds no rows out unless it is asked to")
    yield from hugging_face.schedule("TRL", learning_rate=2e-5)
    yield from hugging_face.rhythm("TRL")


def text_defaults(tool: str) -> Iterator[Default]:
    """What TRL's trainer does with rows where it is not told: 1,024 tokens, cut, unpacked, all learned."""
    learned = f"{tool} learns prompts too, but of prompt and completion the latter alone: set assistant then"
    yield Default("data.train_on", "all", learned)
    yield Default("data.max_length", 1024, f"default of {tool}")
    yield Default("data.overlong", "truncate", f"{tool} cuts longer rows")
    yield Default("data.packing", False, f"default of {tool}")


def refusals(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys of TRL's other trainers."""
    for key in document:
        if key in _OTHER_METHODS and document[key] is not None:
            yield key, f"a key of {_OTHER_METHODS[key]}, which is not supported"


TRL = Tool("trl", "TRL", RULES, defaults, refusals)
