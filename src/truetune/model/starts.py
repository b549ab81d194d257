"""Adapters that start in the base's own weights (PiSSA, arXiv 2404.02948; OLoRA, arXiv 2406.01775), saved plainly.

PEFT takes their first factors out of the base, so that training sees W - s B0 A0 + s B A. On the base as everyone has
it, that is W + s (B A - B0 A0): a plain LoRA of twice the rank. PEFT (0.21) converts so too, but drops trained
modules, biases and magnitudes on the way, and keeps two large products whose difference no bf16 can tell.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file

from truetune.errors import BackendError, CheckpointError


class StartFactors(torch.nn.Module):
    """What the factors were before the first step, by their names in an adapter's file; in no saved state."""

    def __init__(self, factors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.factors = factors


def remember_start(model: Any, *, start: str) -> None:
    """Keeps the first factors with the model. BackendError where PEFT cannot have taken them out of the base."""
    factors = {
        name: tensor.detach().cpu().clone()
        for name, tensor in get_peft_model_state_dict(model).items()
        if "lora_A" in name or "lora_B" in name
    }
    rank = model.peft_config["default"].r
    narrow = [name for name, each in factors.items() if "lora_A" in name and len(each) != rank]
    if narrow:
        raise BackendError(
            f"adapter.r: {rank} is more than {narrow[0].rpartition('.lora_A')[0]} has, and {start} needs as many",
            hint="lower it, or set adapter.init_lora_weights to default",
        )
    if start == "olora" and any(layer.fan_in_fan_out for _, layer in _layers(model)):
        # PEFT 0.21 takes the factors out of the weight as it is stored.
        raise BackendError(
            "adapter.init_lora_weights: olora is wrong for the transposed layers of this model (GPT-2's)",
            hint="use pissa or default",
        )
    model.add_module("start_factors", StartFactors(factors))


def start_of(model: Any) -> Mapping[str, torch.Tensor] | None:
    """The first factors of an adapter that started in the base's weights."""
    return next((module.factors for module in model.children() if isinstance(module, StartFactors)), None)


def write_plain(folder: Path, start: Mapping[str, torch.Tensor]) -> None:
    """The adapter in `folder` as plain LoRA of twice the rank. CheckpointError if it is where it started."""
    file, settings_file = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(file)
    if all(torch.equal(tensors[name], first) for name, first in start.items()):
        raise CheckpointError(f"{folder}: every factor is where it started: the run learned nothing")
    for down in [name for name in start if "lora_A" in name]:
        up = down.replace("lora_A", "lora_B")
        tensors[up], tensors[down] = _balanced(
            torch.cat([tensors[up], -start[up]], dim=1), torch.cat([tensors[down], start[down]])
        )
    save_file(tensors, file, {"format": "pt"})
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    growth = 2**0.5 if settings["use_rslora"] else 2
    settings |= {"r": settings["r"] * 2, "lora_alpha": settings["lora_alpha"] * growth, "init_lora_weights": True}
    settings_file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def verify_plain(model: Any, reloaded: Any, folder: Path) -> None:
    """CheckpointError unless `reloaded`, the untouched base with the saved adapter, has the trained model's weights.

    To the rounding of the base's dtype: what is left of a bf16 weight is rounded once more.
    """
    there = dict(_layers(reloaded))
    for name, layer in _layers(model):
        trained, found = _weight(layer), _weight(there[name])
        rounding = max(1e-5, 2 * torch.finfo(layer.get_base_layer().weight.dtype).eps)
        if not (trained - found.to(trained.device)).abs().max() <= rounding * trained.abs().max():
            raise CheckpointError(f"{folder}: on the untouched base the saved adapter gives other weights ({name})")


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _weight(layer: Any) -> torch.Tensor:
    """The base's weight with the adapter's update, in fp32."""
    with torch.no_grad():
        weight: torch.Tensor = layer.get_base_layer().weight.float() + layer.get_delta_weight("default").float()
    return weight


def _balanced(up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of the same product, (out, rank) and (rank, in), of equal lengths: none larger than it has to be."""
    left, upper = torch.linalg.qr(up.double())
    right, lower = torch.linalg.qr(down.double().T)
    turned, sizes, back = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    root = sizes.sqrt()
    lacking = up.shape[1] - len(root)
    up, down = left @ turned * root, root[:, None] * (back @ right.T)
    pad = torch.nn.functional.pad
    return pad(up, (0, lacking)).float().contiguous(), pad(down, (0, 0, 0, lacking)).float().contiguous()
