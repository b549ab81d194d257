"""Models, loaded in the dtype and on the device they will train on."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

from truetune.errors import BackendError
from truetune.model.hardware import Device
from truetune.model.source import ModelSource, metadata_has
from truetune.model.tokenizer import unloadable

Quantization = Literal["none", "4bit", "8bit"]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How weights are stored: `dtype` is torch's name, "float32" or "bfloat16" for instance."""

    dtype: str
    device: Device
    quantization: Quantization = "none"
    trust_remote_code: bool = False


def load_model(source: ModelSource, options: ModelOptions) -> Any:
    """The causal language model, on its device, in evaluation mode, with its KV cache on.

    Raises BackendError with the library's reason if it cannot be loaded.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, options.dtype)
    placement: dict[str, Any] = {"device_map": {"": options.device}} if options.quantization != "none" else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.path,
            revision=source.revision,
            dtype=dtype,
            trust_remote_code=options.trust_remote_code,
            quantization_config=_quantization(options, dtype),
            **placement,
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise unloadable(source, "model", error) from error
    _make_saveable(model)
    if options.quantization == "4bit":
        _keep_differentiable(model)
    return model.eval() if placement else model.to(options.device).eval()


def require_quantization(quantization: Quantization) -> None:
    """BackendError, before anything loads, if bitsandbytes is needed and missing."""
    if quantization != "none" and not metadata_has("bitsandbytes"):
        raise BackendError(
            f"model.load_in_{quantization} needs bitsandbytes",
            hint="run: pip install 'truetune[bnb]', or set it to false",
        )


def require_optimizer(optim: str) -> None:
    """BackendError, before anything loads, if the optimizer is one of bitsandbytes' and that is missing."""
    if ("8bit" in optim or "paged" in optim or "lion" in optim) and not metadata_has("bitsandbytes"):
        raise BackendError(
            f"training.optim: {optim} needs bitsandbytes",
            hint="run: pip install 'truetune[bnb]', or use adamw_torch",
        )


def context_length(source: ModelSource, *, trust_remote_code: bool = False) -> int | None:
    """The tokens the model can attend to, where its configuration says so."""
    config = _config(source, trust_remote_code=trust_remote_code)
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def count_parameters(source: ModelSource, *, trust_remote_code: bool = False) -> int:
    """The model's weights, counted on an empty copy: nothing is loaded."""
    import torch
    from transformers import AutoModelForCausalLM

    config = _config(source, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return int(model.num_parameters())


def _config(source: ModelSource, *, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=trust_remote_code)
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


def _quantization(options: ModelOptions, dtype: Any) -> Any:
    """NF4 with double quantisation (QLoRA, arXiv 2305.14314) or LLM.int8()."""
    match options.quantization:
        case "none":
            return None
        case "8bit":
            from transformers import BitsAndBytesConfig

            # One line a layer and step, about a cast that LLM.int8() always does.
            logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
            return BitsAndBytesConfig(load_in_8bit=True)
        case "4bit":
            from transformers import BitsAndBytesConfig

            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
