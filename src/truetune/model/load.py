"""Models, loaded in the dtype and on the device they will train on."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

from truetune.errors import BackendError
from truetune.model.hardware import Device
from truetune.model.reach import is_out_of_reach
from truetune.model.source import ModelSource, metadata_has
from truetune.model.tokenizer import unloadable

Quantization = Literal["none", "4bit", "8bit"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How weights are stored: `dtype` is torch's name, "float32" or "bfloat16" for instance.

    A base that `is_stored_quantized` is loaded as it is. One that `is_sharded` will be shared out over processes.
    """

    dtype: str
    device: Device
    quantization: Quantization = "none"
    trust_remote_code: bool = False
    is_stored_quantized: bool = False
    is_sharded: bool = False


def load_model(source: ModelSource, options: ModelOptions) -> Any:
    """The causal language model, on its device, in evaluation mode, with its KV cache on.

    Raises BackendError with the library's reason if it cannot be loaded.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, options.dtype)
    placement: dict[str, Any] = {"device_map": {"": options.device}} if options.quantization != "none" else {}
    is_away = is_out_of_reach(source)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision,
            dtype=dtype,
            local_files_only=is_away,
            # transformers (5.24) does not hand it on to where it looks for an adapter.
            adapter_kwargs={"local_files_only": True} if is_away else None,
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
            **_quantization(options, dtype),
            **placement,
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise unloadable(source, "model", error) from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        reason = ValueError("its weights have other sizes than its config.json says")
        raise unloadable(source, "model", reason) from error
    _require_all_weights(model, found["missing_keys"], source)
    mend(model)
    return model.eval() if placement else model.to(options.device).eval()


def _require_all_weights(model: Any, missing: set[str], source: ModelSource) -> None:
    """Refuses a base whose files lack weights, which transformers (5.24) fills with random ones and a warning."""
    lacking = sorted(missing & {name for name, _ in model.named_parameters()})
    if lacking:
        reason = ValueError(f"{len(lacking)} of its weights are in no file, the first of them {lacking[0]}")
        raise unloadable(source, "model", reason)


def mend(model: Any) -> None:
    """What libraries leave in a loaded model that would fail, or lie, later in a run."""
    _make_saveable(model)
    if getattr(model, "is_loaded_in_4bit", False):
        _keep_differentiable(model)


def require_quantization(quantization: Quantization, *, because: str | None = None) -> None:
    """BackendError, before anything loads, if bitsandbytes is needed (for the base `because`) and missing."""
    if quantization != "none" and not metadata_has("bitsandbytes"):
        what = f"{because} is stored in {quantization}, which" if because else f"model.load_in_{quantization}"
        remedy = "name a base that is not quantised" if because else "set it to false"
        raise BackendError(f"{what} needs bitsandbytes", hint=f"run: pip install 'truetune[bnb]', or {remedy}")


def require_optimizer(optim: str) -> None:
    """BackendError, before anything loads, if the optimizer is one of bitsandbytes' and that is missing."""
    if ("8bit" in optim or "paged" in optim or "lion" in optim) and not metadata_has("bitsandbytes"):
        raise BackendError(
            f"training.optim: {optim} needs bitsandbytes",
            hint="run: pip install 'truetune[bnb]', or use adamw_torch",
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model's configuration says: its architecture, the tokens it can attend to, how it is stored.

    `dtype` is torch's name of the stored weights', float32 where the configuration names none.
    """

    model_type: str
    context_length: int | None
    quantization: Quantization
    dtype: str = "float32"


def read_facts(source: ModelSource, *, trust_remote_code: bool = False) -> ModelFacts:
    """The facts, read without weights."""
    return facts_of(read_config(source, trust_remote_code=trust_remote_code))


def facts_of(config: Any) -> ModelFacts:
    """The facts of one of transformers' configurations."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return ModelFacts(str(config.model_type), int(length) if length else None, _stored_quantization(config), dtype)


def _stored_quantization(config: Any) -> Quantization:
    """How bitsandbytes has quantised the stored weights; other methods are left to transformers."""
    settings = quantization_settings(config)
    if "bitsandbytes" not in str(settings.get("quant_method", "")):
        return "none"
    return "4bit" if settings.get("load_in_4bit") or settings.get("_load_in_4bit") else "8bit"


def quantization_settings(config: Any) -> dict[str, Any]:
    """How the stored weights are quantised, by whatever method; empty where they are not."""
    stored = getattr(config, "quantization_config", None) or {}
    return stored if isinstance(stored, dict) else dict(stored.to_dict())


def read_config(source: ModelSource, *, trust_remote_code: bool = False) -> Any:
    """transformers' configuration of the model. BackendError if it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            source.path,
            revision=source.revision,
            trust_remote_code=trust_remote_code,
            local_files_only=is_out_of_reach(source),
        )
    except (OSError, ValueError, KeyError) as error:
        raise unloadable(source, "configuration", error) from error


def _make_saveable(model: Any) -> None:
    """Some bases (Llama 2) come with sampling settings and sampling off, which transformers then refuses to save."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config.do_sample = True


def _keep_differentiable(model: Any) -> None:
    """Stops bitsandbytes (0.50) from repacking 4-bit weights at the first evaluation on a CPU with AVX512_BF16.

    The packed kernel has no backward: from then on nothing below a quantised layer gets its gradient, unsaid.
    """
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def _quantization(options: ModelOptions, dtype: Any) -> dict[str, Any]:
    """NF4 with double quantisation (QLoRA, arXiv 2305.14314) or LLM.int8(); nothing for what is stored so already.

    A quantization_config of None would hide the stored one (transformers 5.24).
    """
    from transformers import BitsAndBytesConfig

    if options.quantization == "8bit":
        # One line a layer and step, about a cast that LLM.int8() always does.
        logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
    if options.quantization == "none" or options.is_stored_quantized:
        return {}
    if options.quantization == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # FSDP shares out weights of one dtype: packed numbers then lie in the one that the others have.
            **({"bnb_4bit_quant_storage": dtype} if options.is_sharded else {}),
        )
    }
