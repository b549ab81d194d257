"""LoRA adapters, through PEFT: added, gone on from, reloaded and compared."""

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
        return PeftModel.from_pretrained(model, folder, is_trainable=True)
    targets = settings.target_modules if isinstance(settings.target_modules, str) else list(settings.target_modules)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        bias=settings.bias,
        task_type="CAUSAL_LM",
    )
    set_seed(seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise BackendError(f"adapter.target_modules: {error}", hint="use all-linear, or names that exist") from error


def load_trained_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter of `folder`, for inference. BackendError if they do not belong together."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
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
    model.eval()
    probe = torch.arange(1, 9, device=model.device).unsqueeze(0)
    with torch.no_grad():
        expected = model(input_ids=probe).logits
        model.load_adapter(str(folder), adapter_name="saved")
        model.set_adapter("saved")
        reloaded = model(input_ids=probe).logits
    model.set_adapter("default")
    model.delete_adapter("saved")
    if not torch.equal(expected, reloaded):
        raise CheckpointError(f"{folder}: the reloaded adapter gives other logits than the trained one")
    return len(saved)


def _same(saved: Any, trained: Any) -> bool:
    return saved is not None and bool((saved.to(trained.device) == trained).all())
