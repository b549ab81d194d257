"""A model's layers compiled by torch, one graph for all that are alike, where they prove to compute the same."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from truetune.errors import first_line

_Call = tuple[tuple[Any, ...], dict[str, Any]]


class CompiledLayers:
    """The layers that a model repeats, and what torch compiles of them, which takes their place while `in_use`.

    A layer whose input needs no gradient, as a LoRA's first, is left alone: it would take a graph of its own.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        layers = [] if model is None else repeated_layers(model)
        self._forwards = {layer: torch.compile(layer.forward, dynamic=True) for layer in layers}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        for layer, forward in self._forwards.items():
            layer.forward = forward
        try:
            yield
        finally:
            for layer in self._forwards:
                del layer.forward

    def problem(
        self, run: Callable[[], Any], autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> str | None:
        """Compiles the layers, and tries each as `run` calls it; says why they cannot be used, None if they can.

        They can if each makes the same as before, and the same gradients, but for rounding. What is compiled holds
        for the dtypes of `autocast` only.
        """
        try:
            with autocast():
                calls = self._calls(run)
            self._forwards = {layer: each for layer, each in self._forwards.items() if layer in calls}
            for layer, compiled in self._forwards.items():
                found, expected = (_tried(layer, each, calls[layer], autocast) for each in (compiled, layer.forward))
                if not _are_close(found, expected):
                    return "what they compute is not the same then"
        except RuntimeError as error:
            return first_line(error)
        return None if self._forwards else "it has no layers that repeat and learn"

    def _calls(self, run: Callable[[], Any]) -> dict[nn.Module, _Call]:
        """What each layer is called with, if its input needs a gradient."""
        calls: dict[nn.Module, _Call] = {}

        def keep(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].requires_grad:
                calls[layer] = (args[0].detach(), *args[1:]), options  # Without the graph that it hangs on.

        hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in self._forwards]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
        return calls


def repeated_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of the outermost lists of blocks of one kind, but for those that have a forward put on them."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1 and len(set(map(type, child))) == 1:
            yield from (block for block in child.children() if "forward" not in vars(block))
        else:
            yield from repeated_layers(child)


def _tried(
    layer: nn.Module,
    forward: Callable[..., Any],
    call: _Call,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> list[Tensor]:
    """What is made of a call of the layer, and the gradients of its input and its weights."""
    args, options = call
    rows = args[0].detach().requires_grad_()
    with autocast():
        made = forward(rows, *args[1:], **options)
    made = made if isinstance(made, Tensor) else made[0]
    noise = torch.randn(made.shape, generator=torch.Generator().manual_seed(0)).to(made)
    learned = [rows, *(each for each in layer.parameters() if each.requires_grad)]
    gradients = torch.autograd.grad(made, learned, noise, allow_unused=True)
    return [made.detach(), *(torch.zeros(()) if each is None else each for each in gradients)]


def _are_close(found: list[Tensor], expected: list[Tensor]) -> bool:
    """True if all are, but for rounding: in bf16 up to 0.036 of a gradient, measured on SmolLM2.

    A gradient a thousandth the size of the largest may be nothing but rounding, as that of a key's bias is.
    """
    within = 1e-4 if expected[0].dtype == torch.float32 else 0.1
    sizes = [float(each.float().norm()) for each in expected]
    errors = [float((ours.float() - theirs.float()).norm()) for ours, theirs in zip(found, expected, strict=True)]
    least = 1e-3 * max(sizes[1:], default=0.0)
    return all(error <= within * max(size, least) for error, size in zip(errors, sizes, strict=True))
