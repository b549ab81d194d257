"""LoRA adapters, through PEFT: added, gone on from, reloaded and compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from truetune.errors import BackendError, CheckpointError


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """PEFT's LoraConfig, as far as truetune sets it; `init_from` is a folder with an adapter to go on from."""

    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: str | tuple[str, ...]
    bias: Literal["none", "all", "lora_only"]
    init_from: str | None = None


def add_adapter(model: Any, settings: LoraSettings, *, seed: int) -> Any:
    """The model with a trainable adapter in fp32, new (seeded) or gone on from `init_from`."""
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if settings.init_from is not None:
        folder = adapter_folder(settings.init_from)
        stored = LoraConfig.from_pretrained(folder)
        _compute_at_once(stored, model)
        with _fitting(folder):
            return _without_head(PeftModel.from_pretrained(model, folder, is_trainable=True, config=stored))
    targets = settings.target_modules if isinstance(settings.target_modules, str) else list(settings.target_modules)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        bias=settings.bias,
        task_type="CAUSAL_LM",
    )
    _compute_at_once(config, model)
    set_seed(seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        if "lora_dropout" in str(error):
            raise BackendError(
                "adapter.lora_dropout: the experts of a mixture take no dropout",
                hint="set it to 0, or list linear layers only in adapter.target_modules",
            ) from error
        raise BackendError(f"adapter.target_modules: {error}", hint="use all-linear, or names that exist") from error
    return _without_head(adapted)


def stacked_parameters(model: Any) -> tuple[str, ...]:
    """The last names of the parameters that hold a matrix for each expert, without an adapter's own."""
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 3 and "expert" in name and "lora_" not in name
    ]
    return tuple(dict.fromkeys(".".join(name.removesuffix(".base_layer").split(".")[-3:]) for name in names))


def reached_weights(model: Any) -> int:
    """How many of the base's weights have an adapter."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    def count(layer: Any) -> int:
        if isinstance(layer, ParamWrapper):
            return int(layer.get_param().numel())
        features = getattr(layer, "in_features", 0) * getattr(layer, "out_features", 0)
        return features or int(layer.get_base_layer().weight.numel())  # Packed weights have fewer numbers.

    return sum(count(layer) for layer in model.modules() if isinstance(layer, LoraLayer))


def missed_experts(model: Any) -> tuple[str, ...]:
    """The experts' parameters that no adapter reaches."""
    from peft.tuners.lora.layer import ParamWrapper

    reached = {layer.parameter_name for layer in model.modules() if isinstance(layer, ParamWrapper)}
    return tuple(name for name in stacked_parameters(model) if name.rpartition(".")[2] not in reached)


def _compute_at_once(config: Any, model: Any) -> None:
    """Has PEFT put our layer around plain linear layers; quantised ones keep PEFT's own."""
    import torch

    from truetune.model.fused_lora import FusedLinear

    if not getattr(model, "is_quantized", False):
        config._register_custom_module({torch.nn.Linear: FusedLinear})


def load_trained_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter of `folder`, for inference. BackendError if they do not belong together."""
    from peft import PeftModel

    with _fitting(str(folder)):
        return PeftModel.from_pretrained(model, str(folder)).eval()


def _without_head(model: Any) -> Any:
    """Refuses an adapter on the output layer: TRL computes the loss from that layer's own weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise BackendError(
            "adapter.target_modules: an adapter on the output layer (lm_head) would never be trained",
            hint="leave it out, or use all-linear",
        )
    return model


@contextmanager
def _fitting(folder: str) -> Iterator[None]:
    """The libraries' refusals as one line: the adapter is damaged, or of another base."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise BackendError(f"the adapter in {folder} is damaged: {error}") from error
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines()
        reason = next((line.strip() for line in lines if not line.endswith(":")), lines[0])
        raise BackendError(f"the adapter in {folder} does not fit this base model: {reason}") from error


def adapter_folder(path: str) -> str:
    """The folder with adapter_config.json: `path` itself, or `path`/adapter for a run's directory."""
    for folder in (Path(path), Path(path) / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return str(folder)
    raise BackendError(
        f"adapter.init_from: no adapter in {path}",
        hint="give a folder with adapter_config.json, or a run's directory",
    )


def verify_adapter(model: Any, folder: Path) -> int:
    """Reloads the saved adapter beside the trained one and compares tensors and logits, bit for bit.

    Returns how many tensors were saved. Raises CheckpointError if one is missing, differs, or nothing was learned.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(folder / "adapter_model.safetensors")
    trained = get_peft_model_state_dict(model)
    wrong = [name for name, tensor in trained.items() if not _same(saved.get(name), tensor)]
    if wrong or len(saved) != len(trained):
        raise CheckpointError(
            f"{folder}: the saved adapter differs from the trained one ({(wrong or list(saved))[0]})"
        )
    if not any(tensor.count_nonzero() for name, tensor in saved.items() if "lora_B" in name):
        raise CheckpointError(f"{folder}: every update matrix is zero: the run learned nothing")
    if not all(tensor.isfinite().all() for tensor in saved.values()):
        raise CheckpointError(f"{folder}: the adapter holds values that are not finite: the run diverged")
    model.eval()
    probe = torch.arange(1, 9, device=model.device).unsqueeze(0)
    with torch.no_grad():
        expected = model(input_ids=probe).logits
        reloaded = _reloaded(model, folder, probe)
    if not torch.equal(expected, reloaded):
        raise CheckpointError(f"{folder}: the reloaded adapter gives other logits than the trained one")
    return len(saved)


def _reloaded(model: Any, folder: Path, probe: Any) -> Any:
    """The logits of the adapter as it was read back; the model ends as it came."""
    if model.peft_config["default"].bias == "none":
        model.load_adapter(str(folder), adapter_name="saved")
        model.set_adapter("saved")
        logits = model(input_ids=probe).logits
        model.set_adapter("default")
        model.delete_adapter("saved")
        return logits
    # PEFT takes no second adapter beside one that trains biases: the trained one is blanked and filled again.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.zero_()
    model.load_adapter(str(folder), adapter_name="default", is_trainable=True)
    return model(input_ids=probe).logits


def _same(saved: Any, trained: Any) -> bool:
    """Bit for bit, so that values that are not numbers compare too."""
    import torch

    return saved is not None and torch.allclose(saved.to(trained.device), trained, rtol=0, atol=0, equal_nan=True)
