"""LoRA adapters, through PEFT: added, gone on from, reloaded and compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from truetune.errors import BackendError, CheckpointError
from truetune.model.whole_modules import require_modules, touches_tied_embeddings, train_whole, whole_modules

_STARTS_IN_BASE = ("pissa", "olora")
_BLIND_STARTS = ("default", "gaussian")
"""Starts for which the base's weights are not looked at."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """PEFT's LoraConfig, as far as truetune sets it; `init_from` is a folder with an adapter to go on from."""

    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: str | tuple[str, ...]
    bias: Literal["none", "all", "lora_only"]
    init_from: str | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: str = "default"
    modules_to_save: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()

    @property
    def starts_in_base(self) -> bool:
        """True if the first factors are taken out of the base's weights."""
        return self.init_lora_weights.startswith(_STARTS_IN_BASE)


def add_adapter(model: Any, settings: LoraSettings, *, seed: int) -> Any:
    """The model with a trainable adapter in fp32, new (seeded) or gone on from `init_from`."""
    from peft import prepare_model_for_kbit_training

    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if settings.init_from is not None:
        return _without_head(_gone_on_from(model, settings, adapter_folder(settings.init_from)))
    return _without_head(_new_adapter(model, settings, seed))


def _gone_on_from(model: Any, settings: LoraSettings, folder: str) -> Any:
    from peft import LoraConfig

    stored = LoraConfig.from_pretrained(folder)
    _require_kind(stored, settings, folder)
    _require_dora_s_base(model, use_dora=stored.use_dora)
    _compute_at_once(stored, model)
    return _with_stored(model, folder, is_trainable=True, config=stored)


def _new_adapter(model: Any, settings: LoraSettings, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    _require_takers(model, settings)
    is_tied = touches_tied_embeddings(model, settings.modules_to_save)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=_whole(settings.lora_alpha),
        lora_dropout=settings.lora_dropout,
        target_modules=_as_list(settings.target_modules),
        bias=settings.bias,
        task_type="CAUSAL_LM",
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        init_lora_weights=True if settings.init_lora_weights == "default" else settings.init_lora_weights,
        modules_to_save=_as_list(settings.modules_to_save) or None,
        target_parameters=_as_list(settings.target_parameters) or None,
        ensure_weight_tying=is_tied,
    )
    _compute_at_once(config, model)
    set_seed(seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise BackendError(f"adapter.target_modules: {error}", hint="use all-linear, or names that exist") from error
    train_whole(adapted, is_tied=is_tied)
    if settings.starts_in_base:
        from truetune.model.starts import remember_start

        remember_start(adapted, start=settings.init_lora_weights)
    return adapted


def _whole(value: float) -> float:
    """16 for 16.0: in adapter_config.json Ollama (2026-07) reads nothing but a whole number."""
    return int(value) if float(value).is_integer() else value


def _as_list(names: str | tuple[str, ...]) -> str | list[str]:
    return names if isinstance(names, str) else list(names)


def _require_takers(model: Any, settings: LoraSettings) -> None:
    """BackendError for what this model's layers cannot take, before PEFT changes any."""
    require_modules(model, settings.modules_to_save)
    parameters = [name for name, _ in model.named_parameters()]
    for name in settings.target_parameters:
        if not any(path == name or path.endswith(f".{name}") for path in parameters):
            there = ", ".join(stacked_parameters(model)) or "none: this model is no mixture"
            raise BackendError(
                f"adapter.target_parameters: this model has no parameter {name}", hint=f"its experts are {there}"
            )
    if getattr(model, "is_quantized", False) and settings.init_lora_weights not in _BLIND_STARTS:
        raise BackendError(
            f"adapter.init_lora_weights: {settings.init_lora_weights} reads weights, and this base's are quantised",
            hint="use default or gaussian, or a base that is not quantised",
        )
    _require_dora_s_base(model, use_dora=settings.use_dora)
    reaches_experts = settings.target_modules == "all-linear" or bool(settings.target_parameters)
    if reaches_experts and stacked_parameters(model):
        _require_plain(settings)


def _require_dora_s_base(model: Any, *, use_dora: bool) -> None:
    if use_dora and getattr(model, "is_loaded_in_8bit", False):
        # PEFT 0.21 with bitsandbytes 0.50: the scales are gone after the first step.
        raise BackendError(
            "adapter.use_dora: it does not train over a base in 8 bits",
            hint="use a base in 4 bits, or one that is not quantised",
        )


def _require_plain(settings: LoraSettings) -> None:
    """BackendError for what PEFT has for linear layers only."""
    asked = {
        "lora_dropout": "dropout" if settings.lora_dropout else "",
        "use_dora": "DoRA" if settings.use_dora else "",
        "init_lora_weights": "" if settings.init_lora_weights in _BLIND_STARTS else settings.init_lora_weights,
    }
    for name, what in asked.items():
        if what:
            raise BackendError(
                f"adapter.{name}: the experts of a mixture take no {what}",
                hint="leave it out, or list linear layers only in adapter.target_modules",
            )


def _require_kind(stored: Any, settings: LoraSettings, folder: str) -> None:
    """BackendError if the stored adapter is not of the kind asked for, or stands on a base of its own."""
    lacking = [name for name in ("use_rslora", "use_dora") if getattr(settings, name) and not getattr(stored, name)]
    for name in ("modules_to_save", "target_parameters"):
        lacking += [name] if {*getattr(settings, name)} - {*(getattr(stored, name) or ())} else []
    if lacking:
        raise BackendError(
            f"adapter.{lacking[0]}: the adapter in {folder} was made without it",
            hint="leave it out, or start a new adapter, without adapter.init_from",
        )
    if str(stored.init_lora_weights).startswith((*_STARTS_IN_BASE, "corda", "lora_ga", "loftq")):
        raise BackendError(
            f"adapter.init_from: the adapter in {folder} stands on a base changed by {stored.init_lora_weights}",
            hint="give a finished run: its adapter was saved as plain LoRA",
        )


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
    """The model with the adapter of `folder`, for inference. BackendError if they do not belong together.

    It computes as PEFT does; whoever wants the losses alone can have it compute as training did.
    """
    from peft import LoraConfig, PeftConfig

    from truetune.model.fused_lora import FusedLinear

    with _fitting(str(folder)):
        stored = PeftConfig.from_pretrained(str(folder))
    if isinstance(stored, LoraConfig):
        _compute_at_once(stored, model)
    adapted = _with_stored(model, str(folder), config=stored)
    for layer in adapted.modules():
        if isinstance(layer, FusedLinear):
            layer.is_peft_s = True
    return adapted.eval()


def _with_stored(model: Any, folder: str, **options: Any) -> Any:
    """The model with a stored adapter, modules that were trained whole in fp32 as they were saved."""
    from peft import PeftModel

    with _fitting(folder):
        adapted = PeftModel.from_pretrained(model, folder, **options)
        if whole_modules(adapted):
            train_whole(adapted, is_tied=False)
            # PEFT has read them into copies in the base's dtype: once more, into fp32.
            adapted.load_adapter(folder, adapter_name="default", is_trainable=options.get("is_trainable", False))
        return adapted


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

    tensors = verify_tensors(model, folder)
    model.eval()
    probe = torch.arange(1, 9, device=model.device).unsqueeze(0)
    with torch.no_grad():
        expected = model(input_ids=probe).logits
        reloaded = _reloaded(model, folder, probe)
    if not torch.equal(expected, reloaded):
        raise CheckpointError(f"{folder}: the reloaded adapter gives other logits than the trained one")
    return tensors


def verify_tensors(model: Any, folder: Path) -> int:
    """The number of saved tensors. Raises CheckpointError if one is missing, differs, or nothing was learned."""
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
    return len(saved)


def _reloaded(model: Any, folder: Path, probe: Any) -> Any:
    """The logits of the adapter as it was read back; the model ends as it came."""
    if model.peft_config["default"].bias == "none" and not whole_modules(model):
        model.load_adapter(str(folder), adapter_name="saved")
        model.set_adapter("saved")
        logits = model(input_ids=probe).logits
        model.set_adapter("default")
        model.delete_adapter("saved")
        return logits
    # PEFT takes no second adapter beside one that trains biases, and would read whole modules into the base's dtype:
    # the trained one is blanked and filled again.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.zero_()
    model.load_adapter(str(folder), adapter_name="default", is_trainable=True)
    return model(input_ids=probe).logits


def _same(saved: Any, trained: Any) -> bool:
    """Bit for bit, so that values that are not numbers compare too."""
    import torch

    return saved is not None and torch.allclose(saved.to(trained.device), trained, rtol=0, atol=0, equal_nan=True)
