"""What the next tokens of a batch score: from a proven head, or from all logits."""

from typing import Any, TypeAlias

import torch
from trl.trainer.utils import FusedCausalLMOutput

from truetune.data.examples import IGNORED
from truetune.model.loss import LanguageHead

Scores: TypeAlias = FusedCausalLMOutput
"""What a batch scores: log_probs, is_top1 and label_mask of every next token, and a mixture's aux_loss."""


def score_supervised(head: LanguageHead, inputs: dict[str, Any]) -> Scores:
    """The scores of the supervised tokens, which are all that the output layer is asked for."""
    labels = inputs["labels"][:, 1:]
    mask = labels != IGNORED
    return _in_place(mask, *head.log_probs(inputs, mask, labels[mask]), aux_loss=None)


def score_logits(model: Any, inputs: dict[str, Any]) -> Scores:
    """The scores from all logits of the batch: of a model whose parts prove nothing, or with losses of its own."""
    labels = inputs["labels"][:, 1:]
    mask = labels != IGNORED
    outputs = model(**{name: value for name, value in inputs.items() if name != "labels"}, use_cache=False)
    logits, targets = outputs.logits[:, :-1][mask].float(), labels[mask]
    log_probs = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return _in_place(mask, log_probs, logits.argmax(-1) == targets, aux_loss=outputs.get("aux_loss"))


def _in_place(mask: torch.Tensor, log_probs: torch.Tensor, is_top1: torch.Tensor, *, aux_loss: Any) -> Scores:
    """The supervised tokens' values, each where its token stands."""
    return Scores(
        log_probs=log_probs.new_zeros(mask.shape).masked_scatter(mask, log_probs),
        is_top1=is_top1.new_zeros(mask.shape).masked_scatter(mask, is_top1),
        label_mask=mask,
        aux_loss=aux_loss,
    )
