"""Unsloth, the second engine: its model and its loss under our trainer, tokens and labels.

Importing unsloth replaces classes of TRL and transformers for the whole process, so all of this runs in a process
that `serve` makes its own; remote.RemoteSession is its other end. Everything sent to Unsloth is held against the
installed version's signatures by tests/unsloth/test_contracts.py.
"""

import json
import os
from pathlib import Path
from typing import Any

from truetune.errors import BackendError, first_line
from truetune.model.adapter import LoraSettings, adapter_folder
from truetune.model.load import mend
from truetune.model.source import cache_directory
from truetune.training.session import ModelRequest, TrlSession

_ENVIRONMENT = {
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "UNSLOTH_COMPILE_LOCATION": str(cache_directory() / "unsloth"),
}
"""It would otherwise report its use to a hub, and write compiled code into the folder it is called from."""


def serve() -> None:
    """The process's life: imports Unsloth before anything it changes, then does what it is asked for."""
    from truetune.training.remote import answer_requests

    answer_requests(_open_session)


def _open_session(**options: Any) -> TrlSession:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import unsloth  # noqa: F401 - first of all libraries: it changes those that are loaded after it
    except (ImportError, NotImplementedError, RuntimeError) as error:
        raise BackendError(
            f"Unsloth cannot be used here: {first_line(error)}",
            hint="set training.backend to trl; `truetune doctor` shows what this machine has",
        ) from error
    from truetune.training.unsloth_engine import UnslothEngine

    return UnslothSession(**options, engine_options={"kind": UnslothEngine})


class UnslothSession(TrlSession):
    """A training with Unsloth's model; unsloth has been imported."""

    def _load(self, request: ModelRequest) -> tuple[Any, bool]:
        from transformers import set_seed

        from truetune.model.attention import isolates_samples

        model = _load_base(request)
        isolates = isolates_samples(model)
        if request.adapter is None:
            return model, isolates
        set_seed(request.seed)
        return _add_adapter(model, request.adapter, request), isolates


def _load_base(request: ModelRequest) -> Any:
    from unsloth import FastLanguageModel

    try:
        model, _ = FastLanguageModel.from_pretrained(**base_arguments(request))
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise BackendError(
            f"Unsloth cannot load {request.source.name}: {first_line(error)}",
            hint="set training.backend to trl, which loads more models",
        ) from error
    mend(model)
    return model


def base_arguments(request: ModelRequest) -> dict[str, Any]:
    """What FastLanguageModel.from_pretrained is given. Its tokenizer is not used: the rows are tokens already."""
    import torch

    options = request.options
    return {
        "model_name": request.source.path,
        "max_seq_length": request.max_length,
        "dtype": getattr(torch, options.dtype),
        "load_in_4bit": options.quantization == "4bit",
        "load_in_8bit": options.quantization == "8bit",
        "full_finetuning": request.adapter is None,
        "trust_remote_code": options.trust_remote_code,
        "revision": request.source.revision,
        "use_gradient_checkpointing": "unsloth" if request.gradient_checkpointing else False,
        # It would otherwise load its own 4-bit copy in the named model's place.
        **({"use_exact_model_name": True} if options.device == "cuda" else {}),
    }


def _add_adapter(model: Any, settings: LoraSettings, request: ModelRequest) -> Any:
    from unsloth import FastLanguageModel

    folder = adapter_folder(settings.init_from) if settings.init_from is not None else None
    arguments = adapter_arguments(model, settings, request)
    try:
        adapted = FastLanguageModel.get_peft_model(model, **arguments | (_stored(folder) if folder else {}))
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise BackendError(f"Unsloth does not take this adapter: {first_line(error)}") from error
    if folder:
        _fill(adapted, folder)
    return adapted


def adapter_arguments(model: Any, settings: LoraSettings, request: ModelRequest) -> dict[str, Any]:
    """What FastLanguageModel.get_peft_model is given."""
    targets = settings.target_modules
    return {
        "r": settings.r,
        "target_modules": linear_modules(model) if targets == "all-linear" else list(targets),
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.lora_dropout,
        "bias": settings.bias,
        "use_gradient_checkpointing": "unsloth" if request.gradient_checkpointing else False,
        "random_state": request.seed,
        "max_seq_length": request.max_length,
    }


def linear_modules(model: Any) -> list[str]:
    """The last names of all linear layers but the output layer: q_proj, k_proj …"""
    import torch

    head = model.get_output_embeddings()
    names = [
        name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and layer is not head
    ]
    return sorted({name.rpartition(".")[2] for name in names})


def _stored(folder: str) -> dict[str, Any]:
    """The shape of an adapter to go on from."""
    settings = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    if kind := next((name for name in ("use_rslora", "use_dora", "modules_to_save") if settings.get(name)), None):
        raise BackendError(
            f"adapter.init_from: the adapter in {folder} has {kind}, which trains with TRL only",
            hint="set training.backend to trl",
        )
    return {name: settings[name] for name in ("r", "target_modules", "lora_alpha", "lora_dropout", "bias")}


def _fill(model: Any, folder: str) -> None:
    """The stored weights in the adapter's place. BackendError unless they are its own."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    result = set_peft_model_state_dict(model, load_file(Path(folder) / "adapter_model.safetensors"))
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        name = (missing or result.unexpected_keys)[0]
        raise BackendError(f"the adapter in {folder} does not fit this base model: {name}")
