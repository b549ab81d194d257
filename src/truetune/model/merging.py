"""Adapters merged into the weights of their base: shard by shard where that can be done, else in the loaded model.

Either way W + scaling B A is made in fp32 and rounded once, to the dtype that is stored.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.errors import CheckpointError, first_line
from truetune.files import write_json
from truetune.model.headers import Headers
from truetune.model.load import read_config
from truetune.model.source import ModelSource
from truetune.model.stored import Weights, find_weights, folder_model, headers_of

TORCH_NAMES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""torch's name of each dtype that safetensors can hold a model in."""

_INDEX = "model.safetensors.index.json"
_IN_PEFT = "base_model.model."
_MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A base's files in `folder`; `headers` are None where they are pickles."""

    folder: Path
    weights: Weights
    headers: Headers | None

    @property
    def dtypes(self) -> Mapping[str, str]:
        """torch's name of each tensor's dtype, where it is a floating one that a model is stored in."""
        tensors = self.headers.tensors if self.headers else ()
        return {each.name: TORCH_NAMES[each.dtype] for each in tensors if each.dtype in TORCH_NAMES}

    @property
    def dtype(self) -> str | None:
        """torch's name of the dtype that most bytes have; None where the files do not tell."""
        return TORCH_NAMES.get((self.headers and self.headers.dtype) or "")


@dataclass(frozen=True, slots=True)
class ShardMerge:
    """What changes in a base's files.

    `updates` are PEFT's layers by the name of the weight that each stands on, `replaced` tensors trained whole.
    """

    base: StoredWeights
    updates: Mapping[str, Any]
    replaced: Mapping[str, Any]


def read_stored(folder: Path) -> StoredWeights:
    """The files of a model in a folder. BackendError if a header is damaged."""
    stored = folder_model(folder, name=str(folder))
    weights = find_weights(stored)
    return StoredWeights(folder, weights, headers_of(stored, weights))


def require_update(adapter: Path) -> None:
    """CheckpointError for a folder whose adapter holds nothing, or stands on weights that are not the base's."""
    from peft import PeftConfig, load_peft_weights
    from safetensors import SafetensorError

    try:
        start = str(getattr(PeftConfig.from_pretrained(str(adapter)), "init_lora_weights", True))
        tensors = load_peft_weights(str(adapter), "cpu")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the adapter in {adapter} cannot be read: {first_line(error)}") from error
    if not tensors:
        raise CheckpointError(f"the adapter in {adapter} holds no tensors", hint="it was saved wrong: train it again")
    if start.startswith(_MOVED):
        raise CheckpointError(
            f"the adapter in {adapter} stands on a base changed by {start}",
            hint="a finished run of truetune saves it as plain LoRA: merge that",
        )


def grow_for(model: Any, adapter: Path) -> int | None:
    """Makes the embeddings as long as those that were trained; returns how long, None if they are already."""
    from peft import load_peft_weights

    ends = {path.rpartition(".")[2] for path, module in model.named_modules() if module in _ends(model)}
    rows = [len(each) for name, each in load_peft_weights(str(adapter), "cpu").items() if _is_end(name, ends)]
    if not rows or max(rows) <= model.get_input_embeddings().weight.shape[0]:
        return None
    model.resize_token_embeddings(max(rows))
    return max(rows)


def _is_end(name: str, ends: set[str]) -> bool:
    """True for a tensor of embeddings or output layer that was trained whole, by its name in an adapter's file."""
    return (
        "lora_" not in name and name.endswith(".weight") and name.removesuffix(".weight").rpartition(".")[2] in ends
    )


def _ends(model: Any) -> tuple[Any, ...]:
    return model.get_input_embeddings(), model.get_output_embeddings()


def write_configuration(base: ModelSource, out: Path, *, dtype: str) -> None:
    """The base's configuration and generation settings, with the dtype that its weights are stored in now."""
    from transformers import GenerationConfig

    config = read_config(base)
    config.dtype = dtype
    config.save_pretrained(out)
    file = Path(base.path) / "generation_config.json"
    if file.is_file():
        (out / file.name).write_bytes(file.read_bytes())
    else:
        GenerationConfig.from_model_config(config).save_pretrained(out)


# --- shard by shard ---------------------------------------------------------------------------------------


def plan_shards(base: StoredWeights, adapter: Path) -> ShardMerge | None:
    """How the adapter goes into the base's files, one after the other; None where it takes the whole model.

    That is so for all but plain LoRA on linear layers, and modules trained whole, of a model whose tensors are stored
    under its own names, and for embeddings that are the output layer too.
    """
    from peft import PeftConfig, load_peft_weights

    settings = PeftConfig.from_pretrained(str(adapter))
    if base.headers is None or base.weights.form != "safetensors" or base.weights.missing or not _is_plain(settings):
        return None
    tensors = {name.removeprefix(_IN_PEFT): each for name, each in load_peft_weights(str(adapter), "cpu").items()}
    factors = {name: each for name, each in tensors.items() if "lora_" in name}
    replaced = {name.replace(".base_layer.", "."): each for name, each in tensors.items() if name not in factors}
    empty = _empty(base.folder)
    if not {each.name for each in base.headers.tensors} <= set(empty.state_dict()):
        return None
    tied = _tied_names(empty)
    updates = _updates(empty, settings, factors)
    if updates is None or tied & {*updates, *replaced} or not _fit(base.headers, updates, replaced):
        return None
    return ShardMerge(base, updates, replaced)


def merge_shards(plan: ShardMerge, out: Path, *, dtype: str | None, progress: Progress) -> None:
    """Writes each of the base's files to `out` under its name, and their index.

    `dtype` is torch's name for all weights; None leaves each its own. One file is held in memory at a time.
    Raises CheckpointError for values that the dtype cannot hold.
    """
    files, size = plan.base.weights.files, 0
    for done, file in enumerate(files, 1):
        size += _merge_file(plan, file, out, dtype=dtype)
        progress(done, len(files))
    if (index := plan.base.folder / _INDEX).is_file() and len(files) > 1:
        document = json.loads(index.read_text(encoding="utf-8"))
        write_json(out / _INDEX, {**document, "metadata": {**document.get("metadata", {}), "total_size": size}})


def _merge_file(plan: ShardMerge, file: str, out: Path, *, dtype: str | None) -> int:
    """Writes one file, and returns the bytes of its tensors."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(plan.base.folder / file, framework="pt") as opened:
        names = list(opened.keys())
        merged = {name: _merged(plan, name, opened.get_tensor(name), dtype=dtype) for name in names}
    save_file(merged, out / file, {"format": "pt"})
    return sum(each.numel() * each.element_size() for each in merged.values())


def _merged(plan: ShardMerge, name: str, weight: Any, *, dtype: str | None) -> Any:
    """The tensor as it is stored, its update added in fp32."""
    kept = weight.dtype
    if name in plan.updates:
        weight = weight.float() + plan.updates[name].get_delta_weight("default")
    elif name in plan.replaced:
        weight = plan.replaced[name]
    return stored_as(
        weight, dtype if dtype and kept.is_floating_point else str(kept).removeprefix("torch."), name=name
    )


def stored_as(weight: Any, dtype: str, *, name: str) -> Any:
    """The tensor in a dtype. CheckpointError if that cannot hold its values."""
    import torch

    cast = weight.detach().to(getattr(torch, dtype)).contiguous()
    if cast.dtype != weight.dtype and not cast.isfinite().all():
        raise CheckpointError(
            f"{name} holds values that {dtype} cannot", hint="merge with --dtype float32, or bfloat16"
        )
    return cast


def _is_plain(settings: Any) -> bool:
    """True for LoRA as it was first made, in PEFT's LoraConfig."""
    kinds = (
        "use_dora",
        "trainable_token_indices",
        "target_parameters",
        "layer_replication",
        "alora_invocation_tokens",
    )
    return (
        str(getattr(settings.peft_type, "value", settings.peft_type)) == "LORA"
        and not any(getattr(settings, name, None) for name in kinds)
        and settings.init_lora_weights in (True, False, "gaussian")
    )


def _empty(folder: Path) -> Any:
    """The model without its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(read_config(ModelSource(str(folder), str(folder))))


def _tied_names(model: Any) -> set[str]:
    """The weights of embeddings and output layer where they are one tensor."""
    if not is_tied(model):
        return set()
    return {f"{path}.weight" for path, module in model.named_modules() if module in _ends(model)}


def is_tied(model: Any) -> bool:
    """True if embeddings and output layer are one tensor."""
    head = model.get_output_embeddings()
    return head is not None and model.get_input_embeddings().weight is head.weight


def _updates(empty: Any, settings: Any, factors: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """PEFT's layers, with the stored factors in fp32; None unless these are the factors of plain linear layers."""
    import torch
    from peft import get_peft_model

    try:
        with _quiet():
            adapted = get_peft_model(empty, settings, low_cpu_mem_usage=True)
    except ValueError:
        return None  # What does not fit is refused where the whole model is loaded, with PEFT's reason.
    layers = dict(_plain_layers(adapted.get_base_model()))
    if {*factors} != {f"{path}{end}" for path in layers for end in (_DOWN, _UP)}:
        return None
    for path, layer in layers.items():
        layer.lora_A["default"].weight = torch.nn.Parameter(factors[path + _DOWN].float(), requires_grad=False)
        layer.lora_B["default"].weight = torch.nn.Parameter(factors[path + _UP].float(), requires_grad=False)
    return {f"{path}.weight": layer for path, layer in layers.items()}


def _plain_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """PEFT's layers on torch's linear layers and on GPT-2's transposed ones."""
    import torch
    from peft.tuners.lora.layer import Linear
    from transformers.pytorch_utils import Conv1D

    for path, module in model.named_modules():
        if type(module) is Linear and isinstance(module.get_base_layer(), torch.nn.Linear | Conv1D):
            yield path, module


def _fit(headers: Headers, updates: Mapping[str, Any], replaced: Mapping[str, Any]) -> bool:
    """True if every change has its stored tensor, of its shape."""
    shapes = {each.name: each.shape for each in headers.tensors}
    changed = {name: tuple(layer.get_base_layer().weight.shape) for name, layer in updates.items()}
    changed |= {name: tuple(each.shape) for name, each in replaced.items()}
    return bool(changed) and all(shapes.get(name) == shape for name, shape in changed.items())


# --- the whole model --------------------------------------------------------------------------------------


def merge_whole(adapted: Any, out: Path, *, dtype: str, dtypes: Mapping[str, str]) -> bool:
    """Merges in the loaded model, which is plain then, and saves it to `out`.

    A weight is stored in the dtype that `dtypes` has for its name, else in `dtype`. Returns True if embeddings and
    output layer were one tensor, and had to be parted since only one of them was trained.
    """
    model = adapted.get_base_model()
    was_tied = is_tied(model)
    if was_tied and _has_adapter_at_an_end(model):
        part(model)
    merge_in_fp32(adapted)
    model = _unloaded(adapted)
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = is_tied(model)
    for name, weight in model.named_parameters():
        weight.data = stored_as(weight, dtypes.get(name, dtype), name=name)
    model.config.dtype = dtype
    model.save_pretrained(out)
    return was_tied and not is_tied(model)


def merge_in_fp32(adapted: Any) -> None:
    """PEFT's own merge, which adds in the base's dtype, with each layer in fp32 meanwhile."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            dtype = next(base.parameters()).dtype
            base.float()
            layer.merge(safe_merge=True)
            base.to(dtype)


def _unloaded(adapted: Any) -> Any:
    """The plain model, with the modules that were trained whole in their places."""
    with _quiet():
        return adapted.merge_and_unload(safe_merge=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PEFT's advice (0.21): that the base has another path, is transposed or tied, is merged already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _has_adapter_at_an_end(model: Any) -> bool:
    from peft.tuners.lora.layer import LoraLayer

    return any(isinstance(end, LoraLayer) for end in _ends(model))


def part(model: Any) -> None:
    """Gives the output layer a tensor of its own: PEFT merges in place, and would change both."""
    import torch

    head = model.get_output_embeddings()
    layer = head.get_base_layer() if hasattr(head, "get_base_layer") else head
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
