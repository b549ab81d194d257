"""Modules trained whole beside an adapter (PEFT's modules_to_save): found, kept tied, and in fp32."""

from collections.abc import Sequence
from typing import Any

from truetune.errors import BackendError


def require_modules(model: Any, names: Sequence[str]) -> None:
    """BackendError for a name that no module ends with, or whose weights are quantised and cannot be trained."""
    modules = dict(model.named_modules())
    for name in names:
        found = [module for path, module in modules.items() if path.endswith(name)]
        if not found:
            raise BackendError(f"adapter.modules_to_save: this model has no module {name}", hint=_embeddings(model))
        weights = [weight for module in found for weight in module.parameters()]
        if not all(weight.is_floating_point() and weight.dtype.itemsize > 1 for weight in weights):
            raise BackendError(
                f"adapter.modules_to_save: {name} is quantised, and cannot be trained whole",
                hint="leave it out (lm_head and embed_tokens are not quantised), or load the base unquantised",
            )


def touches_tied_embeddings(model: Any, names: Sequence[str]) -> bool:
    """True if input embeddings and output layer are one tensor, and `names` holds either."""
    return _is_tied(model) and any(path.endswith(name) for path in _embedding_paths(model) for name in names)


def train_whole(model: Any, *, is_tied: bool) -> None:
    """Stores the trained copies in fp32, whatever the base computes in.

    BackendError where the model's embeddings are tied and asked for (`is_tied`), and PEFT has parted them.
    """
    if is_tied and not _is_tied(model):
        raise BackendError(
            "adapter.modules_to_save: embeddings and output layer of this model are one tensor, and PEFT parts them",
            hint=f"leave {' and '.join(_last_names(model))} out",
        )
    for wrapper in whole_modules(model):
        for trained in wrapper.modules_to_save.values():
            _in_fp32(trained)


def whole_modules(model: Any) -> list[Any]:
    """PEFT's wrappers of the modules that are trained whole."""
    from peft.utils.other import ModulesToSaveWrapper

    return [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]


def _in_fp32(module: Any) -> None:
    """The module's weights in fp32; it still gives what the layers behind it were stored for."""
    import torch
    from torch.utils._pytree import tree_map

    dtype = next(module.parameters()).dtype
    if dtype == torch.float32:
        return

    def cast(values: Any, to: torch.dtype) -> Any:
        return tree_map(
            lambda value: value.to(to) if isinstance(value, torch.Tensor) and value.is_floating_point() else value,
            values,
        )

    module.float()
    module.register_forward_pre_hook(lambda _, given: cast(given, torch.float32))
    module.register_forward_hook(lambda _, __, made: cast(made, dtype))


def _is_tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and model.get_input_embeddings().weight is head.weight


def _embedding_paths(model: Any) -> list[str]:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [path for path, module in model.named_modules() if any(module is end for end in ends)]


def _last_names(model: Any) -> list[str]:
    return [path.rpartition(".")[2] for path in _embedding_paths(model)]


def _embeddings(model: Any) -> str:
    return f"its embeddings and its output layer are {' and '.join(_last_names(model))}"
