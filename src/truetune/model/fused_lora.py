"""LoRA's linear layer as one step of autograd, in the base's dtype: PEFT's layer, and PEFT's files.

PEFT computes the adapter in its own fp32, from a copy of the input that it keeps for the backward pass, and autograd
keeps every product between. Here the input is kept once, for base and adapter, and the adapter's small factors are
cast instead of it, once for all that is computed before they learn (`cast_once`). Whatever this cannot do (dropout,
DoRA, several adapters) PEFT's own forward does.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear
from torch.nn.functional import linear

from truetune.model.recomputed import Recipe, recipe_of, with_recipe


class FusedLinear(Linear):
    """PEFT's LoRA layer around a torch.nn.Linear; parameters, names and files are PEFT's."""

    kept: "tuple[torch.Tensor, torch.Tensor] | None" = None
    """The factors as `cast_once` found them."""

    is_peft_s: bool = False
    """True where PEFT's own forward is asked for."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        parts = self.parts()
        if parts is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        x = x.to(parts.weight.dtype)
        recipe = None if torch.compiler.is_compiling() else recipe_of(x)
        made = _LoraLinear.apply(x.reshape(-1, x.shape[-1]), recipe, *parts)
        # Shaped out here: what OLMo clamps and Llama 4 adds to in place must not be a view made within the step.
        made = made.view(*x.shape[:-1], made.shape[-1])
        return made if recipe is None else with_recipe(made, recipe.then(_made, *parts.fixed()))

    def parts(self) -> "LoraParts | None":
        """What the plain way of computing takes; None where PEFT has more to do."""
        if self.is_peft_s or (name := self.only_adapter()) is None:
            return None
        base, scaling = self.get_base_layer(), self.scaling[name]
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        return LoraParts(base.weight, base.bias, down, up, *(self.kept or self.cast(name)), scaling)

    def cast(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The adapter's factors in the base's dtype, the second by its scaling."""
        dtype = self.get_base_layer().weight.dtype
        down, up = self.lora_A[name].weight.detach(), self.lora_B[name].weight.detach()
        return down.to(dtype), (up * self.scaling[name]).to(dtype)

    def only_adapter(self) -> str | None:
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1:
            return None
        (name,) = active
        drops = self.training and not isinstance(self.lora_dropout[name], torch.nn.Identity)
        is_plain = not (drops or self.use_dora.get(name) or self.lora_bias.get(name) or name in self.lora_variant)
        base = self.get_base_layer()
        return name if is_plain and type(base) is torch.nn.Linear and not _is_cast(base.weight) else None


def _is_cast(weight: torch.Tensor) -> bool:
    """True where autocast computes in another dtype than the weight's, as over an fp32 base: PEFT minds its casts."""
    device = weight.device.type
    return bool(torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != weight.dtype)


@contextmanager
def cast_once(model: torch.nn.Module) -> Iterator[None]:
    """In here no adapter of the model may learn: its factors are cast now, and not again."""
    layers = [layer for layer in model.modules() if isinstance(layer, FusedLinear)]
    for layer in layers:
        name = layer.only_adapter()
        # Between layers ZeRO 3 leaves nothing of a weight: those are cast where they compute.
        if name is not None and layer.lora_A[name].weight.numel():
            layer.kept = layer.cast(name)
    try:
        yield
    finally:
        for layer in layers:
            layer.kept = None


def as_peft(model: torch.nn.Module) -> AbstractContextManager[None]:
    """In here adapters are computed as whoever loads them with PEFT will have them."""
    return _computed(model, is_peft_s=True)


def as_trained(model: torch.nn.Module) -> AbstractContextManager[None]:
    """In here adapters are computed as training computes them: in one step, in the base's dtype."""
    return _computed(model, is_peft_s=False)


@contextmanager
def _computed(model: torch.nn.Module, *, is_peft_s: bool) -> Iterator[None]:
    layers = [layer for layer in model.modules() if isinstance(layer, FusedLinear)]
    before = [layer.is_peft_s for layer in layers]
    for layer in layers:
        layer.is_peft_s = is_peft_s
    try:
        yield
    finally:
        for layer, was_so in zip(layers, before, strict=True):
            layer.is_peft_s = was_so


class LoraParts(NamedTuple):
    """A linear layer of (out, in) weights and an adapter on it, of (r, in) and (out, r).

    `cast_down` and `cast_up` are the adapter's factors in the weights' dtype, the second times `scaling`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    down: torch.Tensor
    up: torch.Tensor
    cast_down: torch.Tensor
    cast_up: torch.Tensor
    scaling: float

    def fixed(self) -> tuple[torch.Tensor | None, ...]:
        """What makes the layer's output, and learns nothing before the next step."""
        bias = None if self.bias is None else self.bias.detach()
        return self.weight.detach(), bias, self.cast_down, self.cast_up


def lora_forward(rows: torch.Tensor, parts: LoraParts) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layer makes of (tokens, in) rows in the weight's dtype, and what passes between the factors."""
    return _applied(rows, parts.weight, parts.bias, parts.cast_down, parts.cast_up)


def _applied(
    rows: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    cast_down: torch.Tensor,
    cast_up: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    inner = rows @ cast_down.T
    return linear(rows, weight, bias).addmm_(inner, cast_up.T), inner


def _made(x: torch.Tensor, *fixed: Any) -> torch.Tensor:
    """What a layer of those fixed parts makes of an input of any shape."""
    made, _ = _applied(x.reshape(-1, x.shape[-1]), *fixed)
    return made.view(*x.shape[:-1], made.shape[-1])


def lora_backward(
    upstream: torch.Tensor, rows: torch.Tensor, inner: torch.Tensor, parts: LoraParts, needs: Sequence[bool]
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of rows, weight, bias, down and up; the first three where they are needed."""
    arriving = upstream.to(rows.dtype)
    through = arriving @ parts.cast_up
    of_down = (through.T @ rows).to(parts.down.dtype)
    of_up = (arriving.T @ inner).to(parts.up.dtype).mul_(parts.scaling)
    of_rows = (arriving @ parts.weight).addmm_(through, parts.cast_down) if needs[0] else None
    of_weight = arriving.T @ rows if needs[1] else None
    of_bias = arriving.sum(0) if parts.bias is not None and needs[2] else None
    return of_rows, of_weight, of_bias, of_down, of_up


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, recipe: Recipe | None, *parts: Any) -> torch.Tensor:
        layer = LoraParts(*parts)
        made, inner = lora_forward(rows, layer)
        kept = (rows,) if recipe is None else recipe.keep()
        ctx.save_for_backward(inner, *layer[:-1], *kept)
        ctx.maker, ctx.scaling = recipe and recipe.maker, layer.scaling
        return made

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inner, *tensors = ctx.saved_tensors
        count = len(LoraParts._fields) - 1
        layer = LoraParts._make((*tensors[:count], ctx.scaling))
        made = ctx.maker.again(tensors[count:]) if ctx.maker else tensors[count]
        rows = made.reshape(-1, made.shape[-1])
        needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[2:])
        of_rows, *of_parts = lora_backward(upstream, rows, inner, layer, needs)
        return of_rows, None, *of_parts, None, None, None
