"""LoRA's linear layer as one step of autograd, in the base's dtype: PEFT's layer, and PEFT's files.

PEFT computes the adapter in its own fp32, from a copy of the input that it keeps for the backward pass, and autograd
keeps every product between. Here the input is kept once, for base and adapter, and the adapter's small factors are
cast instead of it. Whatever this cannot do (dropout, DoRA, several adapters) PEFT's own forward does.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.nn.functional import linear


class FusedLinear(Linear):
    """PEFT's LoRA layer around a torch.nn.Linear; parameters, names and files are PEFT's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        name = self._only_adapter()
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base, rows = self.get_base_layer(), x.reshape(-1, x.shape[-1])
        factors = self.lora_A[name].weight, self.lora_B[name].weight
        made = _LoraLinear.apply(rows, base.weight, base.bias, *factors, self.scaling[name])
        # Shaped out here: what OLMo clamps and Llama 4 adds to in place must not be a view made within the step.
        return made.view(*x.shape[:-1], made.shape[-1])

    def _only_adapter(self) -> str | None:
        """The one adapter that is computed in the plain way; None where PEFT has more to do."""
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


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows = rows.to(weight.dtype)
        inner = rows @ down.to(rows.dtype).T
        made = linear(rows, weight, bias).addmm_(inner, up.to(rows.dtype).T, alpha=scaling)
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scaling, ctx.has_bias = scaling, bias is not None
        return made

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, down, up, inner = ctx.saved_tensors
        arriving = upstream.to(rows.dtype)
        through = (arriving @ up.to(rows.dtype)) * ctx.scaling
        of_down = (through.T @ rows).to(down.dtype)
        of_up = (arriving.T @ inner * ctx.scaling).to(up.dtype)
        of_rows = None
        if ctx.needs_input_grad[0]:
            of_rows = (arriving @ weight).addmm_(through, down.to(rows.dtype))
        of_weight = arriving.T @ rows if ctx.needs_input_grad[1] else None
        of_bias = arriving.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return of_rows, of_weight, of_bias, of_down, of_up, None
