"""A few logits by which a model is known again: kept with trained weights, asked of them when they are verified."""

from typing import Any

from truetune.errors import CheckpointError

_PROMPT = range(1, 9)
_KEPT = 32


def likeliest(model: Any) -> dict[str, Any]:
    """The likeliest next tokens after a fixed prompt, with their logits, as JSON takes them."""
    values, tokens = _logits(model, list(_PROMPT)).topk(min(_KEPT, model.config.get_text_config().vocab_size))
    return {
        "input_ids": list(_PROMPT),
        "dtype": str(model.dtype).removeprefix("torch."),
        "is_quantized": bool(getattr(model, "is_quantized", False)),
        "tokens": tokens.tolist(),
        "logits": values.tolist(),
    }


def farthest(model: Any, recorded: dict[str, Any]) -> tuple[float, float]:
    """How far the model's logits are off the recorded ones at most, and how far rounding alone may take them.

    CheckpointError for a model that has not all of the recorded tokens.
    """
    import torch

    expected = torch.tensor(recorded["logits"])
    logits = _logits(model, recorded["input_ids"])
    if (largest := max(recorded["tokens"])) >= len(logits):
        raise CheckpointError(f"its base has {len(logits):,} tokens, and {largest} is none of them: another base")
    found = logits[recorded["tokens"]]
    eps = max(torch.finfo(getattr(torch, name)).eps for name in (recorded["dtype"], str(model.dtype)[6:]))
    return float((found - expected).abs().max()), max(1e-4, 8 * eps) * float(expected.abs().max())


def _logits(model: Any, ids: list[int]) -> Any:
    import torch

    model.eval()
    with torch.no_grad():
        # The class's forward: on a trained model, accelerate's wrapper with autocast stands before it.
        made = type(model).forward(model, input_ids=torch.tensor([ids], device=model.device))
    return made.logits[0, -1].float().cpu()
