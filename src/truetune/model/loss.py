"""The loss of the supervised tokens alone, some words of the vocabulary at a time: all logits are never held.

The log-probability of each target, as cross-entropy takes it, from the hidden states before the output layer. Sums
over the words are kept up as one part of the vocabulary after the other comes (online softmax, arXiv 1805.02867).
Where the output layer is frozen, as under LoRA, the gradient of the hidden states is summed up with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

from truetune.model.portions import words_at_a_time as words_at_a_time


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

    def slope(self, logits: torch.Tensor) -> torch.Tensor | None:
        """How fast the softcap lets these logits rise; None where there is none."""
        return None if self.softcap is None else 1.0 - (logits / self.softcap).square_()

    def parts(self, words: int) -> Iterator[tuple[int, "Head"]]:
        """The heads of so many words each, with the place of their first."""
        for start in range(0, len(self.weight), words):
            part = slice(start, start + words)
            bias = None if self.bias is None else self.bias[part]
            yield start, Head(self.weight[part], bias, self.scale, self.softcap)


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
        _weight: torch.Tensor,
        _bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        is_frozen = not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        sums = _Sums(hidden, targets, pulls=is_frozen and ctx.needs_input_grad[0])
        for start, part in head.parts(words_at_a_time(len(hidden), hidden.device.type)):
            sums.add(start, part)
        normalizers = (sums.highest + sums.total.log())[:, 0]
        is_top1 = sums.likeliest[:, 0] == targets
        gradient = sums.gradient(head)
        ctx.head, ctx.has_gradient = head, gradient is not None
        ctx.save_for_backward(*((gradient,) if gradient is not None else (hidden, targets, normalizers)))
        ctx.mark_non_differentiable(is_top1)
        return sums.reached[:, 0] - normalizers, is_top1

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        if ctx.has_gradient:
            (gradient,) = ctx.saved_tensors
            return (gradient * upstream[:, None]).to(gradient.dtype), None, None, None, None
        return _recomputed(ctx, upstream)


class _Sums:
    """What the words so far come to, for each of the tokens.

    `highest` is the highest of their logits and `likeliest` its word, `total` the sum of exp(logit - highest),
    `reached` the target's logit, and `pull` the sum of the words' weights, each by its share in the total.
    """

    def __init__(self, hidden: torch.Tensor, targets: torch.Tensor, *, pulls: bool) -> None:
        self._hidden, self._targets = hidden, targets[:, None]
        self.highest = torch.full(self._targets.shape, float("-inf"), device=hidden.device)
        self.total, self.reached = (torch.zeros_like(self.highest) for _ in range(2))
        self.likeliest = torch.zeros_like(self._targets)
        self.pull = torch.zeros_like(hidden, dtype=torch.float32) if pulls else None

    def add(self, start: int, part: Head) -> None:
        """Counts in the words from `start` on, whose head this is."""
        logits = part.logits(self._hidden)
        slope = None if self.pull is None else part.slope(logits)
        place, is_there = _places(self._targets, start, len(part.weight))
        self.reached = torch.where(is_there, logits.gather(1, place), self.reached)
        top, word = logits.max(dim=-1, keepdim=True)
        self.likeliest = torch.where(top > self.highest, word + start, self.likeliest)
        before, self.highest = self.highest, self.highest.maximum(top)
        shrunk = (before - self.highest).exp_()
        powers = logits.sub_(self.highest).exp_()
        self.total.mul_(shrunk).add_(powers.sum(dim=-1, keepdim=True))
        if self.pull is not None:
            powers = (powers if slope is None else powers.mul_(slope)).to(self._hidden.dtype)
            self.pull.mul_(shrunk).add_(powers @ part.weight.to(self._hidden.dtype))

    def gradient(self, head: Head) -> torch.Tensor | None:
        """The gradient of the hidden states, once all words are counted in."""
        if self.pull is None:
            return None
        wanted, slope = head.weight[self._targets[:, 0]].float(), head.slope(self.reached)
        gradient = (wanted if slope is None else wanted * slope).sub_(self.pull.div_(self.total))
        return gradient.mul_(head.scale).to(self._hidden.dtype)


def _places(targets: torch.Tensor, start: int, words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the targets stand among the words from `start` on, and whether they do."""
    place = targets - start
    return place.clamp(0, words - 1), (place >= 0) & (place < words)


def _recomputed(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The gradients of hidden states, weight and bias: of a trained output layer they need the upstream gradient."""
    hidden, targets, normalizers = ctx.saved_tensors
    head: Head = ctx.head
    of_hidden = torch.zeros_like(hidden, dtype=torch.float32)
    of_weight = torch.empty_like(head.weight) if ctx.needs_input_grad[1] else None
    arriving = upstream[:, None] * head.scale
    of_bias = torch.empty_like(head.bias) if head.bias is not None and ctx.needs_input_grad[2] else None
    for start, part in head.parts(words_at_a_time(len(hidden), hidden.device.type)):
        words = slice(start, start + len(part.weight))
        piece = _gradient(part, hidden, *_places(targets[:, None], start, len(part.weight)), normalizers[:, None])
        piece *= arriving
        if of_bias is not None:
            of_bias[words] = piece.sum(0)
        piece = piece.to(hidden.dtype)
        of_hidden += piece @ part.weight.to(hidden.dtype)
        if of_weight is not None:
            of_weight[words] = piece.T @ hidden
    return of_hidden.to(hidden.dtype), of_weight, of_bias, None, None


def _gradient(
    part: Head, hidden: torch.Tensor, place: torch.Tensor, is_there: torch.Tensor, normalizers: torch.Tensor
) -> torch.Tensor:
    """The gradient of the targets' log-probabilities at the words' outputs: one at a target, less the probability.

    The head's scale is left to whoever has the upstream gradient.
    """
    logits = part.logits(hidden)
    slope = part.slope(logits)
    gradient = logits.sub_(normalizers).exp_().neg_().scatter_add_(1, place, is_there.to(logits.dtype))
    return gradient if slope is None else gradient.mul_(slope)


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
