"""Norms and gated MLPs that keep less for the backward pass, in the places of a model's own.

transformers' norms keep a copy of their input in fp32, its MLPs four tensors of their widest size. Here a norm keeps
its input, an MLP the outputs of its two first layers or what they are made of, and the rest is computed once more
where it is needed. Each is taken only where it proves, on numbers, to do what the model's own does; names and files
of the weights stay.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from truetune.model.fused_lora import FusedLinear, LoraParts, lora_backward, lora_forward
from truetune.model.recomputed import Maker, Recipe, recipe_of, with_recipe
from truetune.model.shape import GATED_MLP

_Activation = Callable[[Tensor], Tensor]


def fuse_blocks(model: nn.Module) -> int:
    """Puts a fused block in the place of every norm and MLP of the model that it equals; returns how many."""
    proven = [
        (parent, name, ours)
        for parent in model.modules()
        for name, child in parent.named_children()
        if (ours := _equal_block(child)) is not None
    ]
    for parent, name, ours in proven:
        setattr(parent, name, ours)
    return len(proven)


def _equal_block(theirs: nn.Module) -> nn.Module | None:
    """A fused block on the weights of a model's own, if it does the same."""
    return next((ours for ours in _candidates(theirs) if _does_the_same(ours, theirs)), None)


def _candidates(theirs: nn.Module) -> Iterator[nn.Module]:
    children, own = dict(theirs.named_children()), dict(theirs.named_parameters(recurse=False))
    if set(children) == GATED_MLP and not own:
        yield GatedMLP(**children)
    epsilon = getattr(theirs, "variance_epsilon", getattr(theirs, "eps", None))
    # Bamba's and Mamba 2's take a gate as well, which they can do without.
    takes_rows_only = len(signature(theirs.forward).parameters) == 1
    if (
        "RMSNorm" in type(theirs).__name__
        and isinstance(epsilon, float)
        and set(own) == {"weight"}
        and takes_rows_only
    ):
        for plus, is_wide in ((0, False), (0, True), (1, True)):
            yield RMSNorm(own["weight"], epsilon, plus, is_wide=is_wide)


def _does_the_same(ours: nn.Module, theirs: nn.Module) -> bool:
    """True if the outputs of both are equal, in any dtype that comes up, and the gradients but for rounding."""
    try:
        return all(
            _is_same(_tried(ours, rows, weights), _tried(theirs, rows, weights)) for rows, weights in _trials(ours)
        )
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False


def _is_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    (made, gradient), (its, its_gradient) = found, expected
    # The gradient's operations come in another order. Row by row: small rows have large gradients.
    rounding = 4.0 * torch.finfo(gradient.dtype).eps
    error, size = (gradient - its_gradient).norm(dim=-1), its_gradient.norm(dim=-1)
    return made.dtype == its.dtype and torch.equal(made, its) and bool((error <= rounding * size).all())


def _trials(ours: nn.Module) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Random rows, small ones among them, which show epsilon, and the weights to try a block with.

    A norm's are drawn, since a fresh model's show nothing; under autocast they meet rows of another dtype.
    """
    draw = torch.Generator().manual_seed(0)
    weight = next(ours.parameters())
    size = ours.gate_proj.in_features if isinstance(ours, GatedMLP) else len(weight)
    rows = torch.randn(6, size, generator=draw) * torch.tensor([1.0, 4.0, 0.1, 1e-2, 1e-3, 1.0]).unsqueeze(1)
    if isinstance(ours, GatedMLP):
        yield rows.to(weight.device, weight.dtype if weight.is_floating_point() else torch.bfloat16), {}
        return
    drawn = torch.randn(size, generator=draw)
    for of_rows, of_weight in product((torch.float32, torch.bfloat16), repeat=2):
        yield rows.to(weight.device, of_rows), {"weight": drawn.to(weight.device, of_weight)}


def _tried(block: nn.Module, rows: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The block's output and its input's gradient."""
    rows = rows.detach().requires_grad_()
    made = functional_call(block, weights, (rows,))
    upstream = torch.randn(made.shape, generator=torch.Generator().manual_seed(1)).to(made)
    (gradient,) = torch.autograd.grad(made, rows, upstream)
    return made, gradient


# --- norms ------------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """x / rms(x) * (weight + plus), in fp32; `is_wide` rounds to x's dtype at the end, else before the weight."""

    def __init__(self, weight: nn.Parameter, eps: float, plus: int, *, is_wide: bool) -> None:
        super().__init__()
        self.weight = weight
        self.eps, self.plus, self.is_wide = eps, plus, is_wide

    def forward(self, x: Tensor) -> Tensor:
        made, shrink = _RMSNorm.apply(x, self.weight, self.eps, self.plus, self.is_wide)
        if torch.compiler.is_compiling():
            return made
        scaled = partial(_scaled, dtype=x.dtype, plus=self.plus, is_wide=self.is_wide)
        return with_recipe(made, Recipe(Maker(scaled), (x.detach(), shrink, self.weight.detach())))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, plus: int, is_wide: bool) -> tuple[Tensor, Tensor]:
        wide = x.float()
        shrink = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
        ctx.save_for_backward(x, shrink, weight)
        ctx.mark_non_differentiable(shrink)
        ctx.plus = plus
        return _scaled(wide, shrink, weight, dtype=x.dtype, plus=plus, is_wide=is_wide), shrink

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        x, shrink, weight = ctx.saved_tensors
        normed, arriving = x.float() * shrink, upstream.float()
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (arriving * normed).flatten(0, -2).sum(0).to(weight.dtype)
        scaled = arriving * (weight.float() + ctx.plus)
        along = (scaled * normed).mean(-1, keepdim=True)
        of_x = scaled.sub_(normed.mul_(along)).mul_(shrink).to(x.dtype)
        return of_x, of_weight, None, None, None


def _scaled(x: Tensor, shrink: Tensor, weight: Tensor, *, dtype: torch.dtype, plus: int, is_wide: bool) -> Tensor:
    normed = x.float() * shrink
    if is_wide:
        return normed.mul_(weight.float() + plus).to(dtype)
    return normed.to(dtype) * weight


# --- gated MLPs -------------------------------------------------------------------------------------------


class GatedMLP(nn.Module):
    """down_proj(act_fn(gate_proj(x)) * up_proj(x))."""

    def __init__(self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = gate_proj, up_proj, down_proj, act_fn

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if torch.compiler.is_compiling():
            return self.down_proj(self.act_fn(gate) * up)
        recipes = recipe_of(gate), recipe_of(up)
        parts = self.down_proj.parts() if isinstance(self.down_proj, FusedLinear) else None
        if parts is None or gate.dtype != parts.weight.dtype:
            made: Tensor = self.down_proj(_Gated.apply(gate, up, *recipes, self.act_fn))
            return made
        made = _GatedLora.apply(gate, up, *recipes, self.act_fn, *parts)
        return made.view(*x.shape[:-1], made.shape[-1])


class _Gated(torch.autograd.Function):
    """act(gate) * up, for any layer behind it."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, of_gate: Recipe, of_up: Recipe, act: _Activation) -> Tensor:
        _keep(ctx, of_gate, of_up)
        ctx.act = act
        return act(gate) * up

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gate, up), _ = _kept(ctx)
        return *_gated_backward(upstream, *_opened(gate, ctx.act), up), None, None, None


class _GatedLora(torch.autograd.Function):
    """act(gate) * up, and the LoRA layer behind it, whose input is not kept."""

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, of_gate: Recipe, of_up: Recipe, act: _Activation, *parts: Any
    ) -> Tensor:
        layer = LoraParts(*parts)
        made, inner = lora_forward((act(gate) * up).flatten(0, -2), layer)
        _keep(ctx, of_gate, of_up, inner, *layer[:-1])
        ctx.act, ctx.scaling = act, layer.scaling
        return made

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gate, up), (inner, *tensors) = _kept(ctx)
        opened, gate = _opened(gate, ctx.act)
        needs = (True, *ctx.needs_input_grad[5:7])
        layer = LoraParts._make((*tensors, ctx.scaling))
        product = (opened.detach() * up).flatten(0, -2)
        of_product, *of_parts = lora_backward(upstream, product, inner, layer, needs)
        assert of_product is not None
        three_times_none = (None,) * 3
        of_both = _gated_backward(of_product.view_as(up), opened, gate, up)
        return *of_both, *three_times_none, *of_parts, *three_times_none


def _keep(ctx: Any, of_gate: Recipe, of_up: Recipe, *others: Tensor | None) -> None:
    ctx.makers = of_gate.maker, of_up.maker
    ctx.counts = len(of_gate.ingredients), len(of_up.ingredients)
    ctx.save_for_backward(*of_gate.keep(), *of_up.keep(), *others)


def _kept(ctx: Any) -> tuple[tuple[Tensor, Tensor], Sequence[Tensor]]:
    """Gate and up, and what else was kept."""
    tensors = iter(ctx.saved_tensors)
    gate, up = (
        maker.again(tuple(islice(tensors, count))) for maker, count in zip(ctx.makers, ctx.counts, strict=True)
    )
    return (gate, up), tuple(tensors)


def _opened(gate: Tensor, act: _Activation) -> tuple[Tensor, Tensor]:
    """act(gate) with its graph, and the gate that the graph leads to."""
    with torch.enable_grad():
        gate = gate.detach().requires_grad_()
        return act(gate), gate


def _gated_backward(upstream: Tensor, opened: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up."""
    (of_gate,) = torch.autograd.grad(opened, gate, upstream * up)
    return of_gate, upstream * opened.detach()
