"""The loss of the supervised tokens alone, a chunk at a time: all logits of a batch are never held.

The log-probability of each target, as cross-entropy takes it, from the hidden states before the output layer. Where
that layer is frozen, as under LoRA, the gradient of the hidden states is formed while the logits are there anyway.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

CHUNK = 128
"""Tokens whose logits are held at a time."""


@dataclass(frozen=True, slots=True)
class Head:
    """An output layer: with a softcap, logits are softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any) -> "Head":
        """The head of one of transformers' causal language models, with what its configuration says of logits."""
        config, layer = model.config.get_text_config(), model.get_output_embeddings()
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        return cls(
            layer.weight, getattr(layer, "bias", None), scale, getattr(config, "final_logit_softcapping", None)
        )

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of (tokens, size) hidden states, in fp32."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        logits = linear(hidden, self.weight.to(hidden.dtype), bias).float()
        if self.scale != 1.0:
            logits *= self.scale
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def through(self, gradient: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The gradient of what the output layer gives, from that of the logits; overwrites both."""
        if self.softcap is not None:
            gradient *= logits.div_(self.softcap).square_().neg_().add_(1.0)
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def log_probs(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """The targets' log-probabilities, in fp32, and whether each is the likeliest token.

    `hidden` is (tokens, size), `targets` (tokens,); so are both results.
    """
    values, is_top1 = _LogProbs.apply(hidden, head.weight, head.bias, targets, head)
    return values, is_top1


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        _: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        normalizers = torch.empty_like(values)
        is_top1 = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        is_frozen = not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        gradient = torch.empty_like(hidden) if is_frozen and ctx.needs_input_grad[0] else None
        for part in _chunks(len(hidden)):
            logits, wanted = head.logits(hidden[part]), targets[part, None]
            highest, likeliest = logits.max(dim=-1)
            is_top1[part] = likeliest == targets[part]
            reached = logits.gather(1, wanted)[:, 0]
            kept = logits.clone() if head.softcap is not None and gradient is not None else logits
            total = logits.sub_(highest[:, None]).exp_().sum(dim=-1)
            normalizers[part] = highest + total.log()
            values[part] = reached - normalizers[part]
            if gradient is not None:
                piece = head.through(_less(logits.mul_(-1.0 / total[:, None]), wanted), kept).to(hidden.dtype)
                gradient[part] = piece @ weight.to(hidden.dtype)
        ctx.head, ctx.has_gradient = head, gradient is not None
        ctx.save_for_backward(*((gradient,) if gradient is not None else (hidden, targets, normalizers)))
        ctx.mark_non_differentiable(is_top1)
        return values, is_top1

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        if ctx.has_gradient:
            (gradient,) = ctx.saved_tensors
            return (gradient * upstream[:, None]).to(gradient.dtype), None, None, None, None
        return _recomputed(ctx, upstream)


def _recomputed(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The gradients of hidden states, weight and bias: of a trained output layer they need the upstream gradient."""
    hidden, targets, normalizers = ctx.saved_tensors
    head: Head = ctx.head
    of_hidden = torch.empty_like(hidden)
    learned = head.weight if ctx.needs_input_grad[1] else None, head.bias if ctx.needs_input_grad[2] else None
    of_weight, of_bias = (None if each is None else torch.zeros_like(each, dtype=torch.float32) for each in learned)
    for part in _chunks(len(hidden)):
        piece = _gradient(head.logits(hidden[part]), normalizers[part], targets[part, None], head)
        piece *= upstream[part, None]
        if of_bias is not None:
            of_bias += piece.sum(0)
        piece = piece.to(hidden.dtype)
        of_hidden[part] = piece @ head.weight.to(hidden.dtype)
        if of_weight is not None:
            of_weight += piece.T @ hidden[part]
    # Autograd casts them to the dtypes of weight and bias.
    return of_hidden, of_weight, of_bias, None, None


def _gradient(logits: torch.Tensor, normalizer: torch.Tensor, wanted: torch.Tensor, head: Head) -> torch.Tensor:
    """The gradient of the targets' log-probabilities at the output layer; overwrites the logits."""
    kept = logits.clone() if head.softcap is not None else logits
    return head.through(_less(logits.sub_(normalizer[:, None]).exp_().neg_(), wanted), kept)


def _less(negated: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """One at each target, less every token's probability."""
    return negated.scatter_add_(1, wanted, torch.ones_like(wanted, dtype=negated.dtype))


def _chunks(length: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, length, CHUNK))


# --- a model's own head -----------------------------------------------------------------------------------

_TOKENS = 12
"""Tokens that a head is tried on."""


@dataclass(frozen=True, slots=True)
class LanguageHead:
    """A causal language model in two parts: what makes hidden states, and the output layer behind it."""

    base: Any
    head: Head

    def log_probs(
        self, inputs: dict[str, torch.Tensor], mask: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`log_probs` of the targets, which stand behind the tokens of the mask, (rows, length - 1)."""
        read = {name: value for name, value in inputs.items() if name != "labels"}
        hidden = self.base(**read, use_cache=False)[0][:, :-1][mask]
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        return log_probs(hidden, targets, self.head)


def provable_head(model: Any) -> LanguageHead | None:
    """The model's parts, if together they give the logits of the whole; None if they do not, or cannot be had.

    Models do more between their parts than their configurations say: so it is tried, on a few tokens.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    was_training = model.training
    model.eval()
    try:
        parts = LanguageHead(causal.base_model, Head.of(causal))
        with torch.no_grad():
            return parts if _gives_logits(parts, causal) else None
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return None
    finally:
        model.train(was_training)


def _gives_logits(parts: LanguageHead, causal: Any) -> bool:
    """True if the head makes the model's logits of its hidden states, and of others.

    The others are drawn so that logits spread from nothing, where a bias is all there is, to hundreds, where every
    softcap shows.
    """
    ids = torch.arange(1, 1 + _TOKENS, device=causal.device).unsqueeze(0)
    hidden = parts.base(input_ids=ids, use_cache=False)[0]
    drawn = _drawn(hidden, parts.head)

    def replace(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = drawn
        return output

    whole = causal(input_ids=ids, use_cache=False).logits
    with parts.base.register_forward_hook(replace):
        of_drawn = causal(input_ids=ids, use_cache=False).logits
    # One rounding in bf16 is 0.2 of its eps, root mean square, and a model's scale and softcap are four. More may lie
    # between hidden states that are computed twice.
    eps = torch.finfo(causal.dtype).eps
    return _is_close(parts.head.logits(hidden[0]), whole[0], within=max(1e-5, 4 * eps)) and _is_close(
        parts.head.logits(drawn[0]), of_drawn[0], within=max(1e-5, 0.8 * eps)
    )


def _drawn(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    """Hidden states of the same shape, the first of them zero, whose logits grow from token to token."""
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(hidden)
    spread = Head(head.weight, scale=head.scale).logits(noise[0]).std()
    sizes = torch.tensor([0.0, *(2.0**power for power in range(-3, _TOKENS - 4))])
    return noise * (sizes[:, None].to(hidden) / spread.to(hidden))


def _is_close(found: torch.Tensor, expected: torch.Tensor, *, within: float) -> bool:
    """True if each token's logits are the expected ones, but for rounding."""
    error, size = (found - expected.float()).norm(dim=-1), expected.float().norm(dim=-1)
    return bool((error <= within * size).all())
