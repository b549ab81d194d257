"""A model's greedy answers, token by token as one forward pass over them shows it, and by how much each token led."""

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class GreedyAnswer:
    """`margins` are by how many logits each token led the second-likeliest."""

    answer_ids: tuple[int, ...]
    margins: tuple[float, ...]


def answer_logits(model: Any, prompt_ids: Ids, answer_ids: Ids) -> Any:
    """The float32 logits, on the CPU, of (tokens + 1, vocabulary): one row a token of the answer, and one behind it.

    One forward pass in the weights' own precision, without a cache and without padding: the same computation for
    whoever asks, so that a model is known again by it.
    """
    import torch

    ids = [*prompt_ids, *answer_ids]
    kept = len(answer_ids) + 1
    options = {"use_cache": False, "logits_to_keep": kept}  # The prompt's logits are gigabytes where it is long.
    taken = {name: option for name, option in options.items() if name in _parameters(model)}
    model.eval()
    with torch.no_grad():
        # The class's forward: on a trained model, accelerate's wrapper with autocast stands before it.
        made = type(model).forward(model, input_ids=torch.tensor([ids], device=model.device), **taken)
    return made.logits[0, -kept:].float().cpu()


def drafts(
    model: Any, prompts: Sequence[Ids], *, stop_token_ids: Collection[int], max_new_tokens: int
) -> list[tuple[int, ...]]:
    """What the model goes on with, all prompts in one batch with a cache: an answer but for rounding and padding."""
    import torch
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = torch.tensor(prompt), 1
    bare = plain(model.eval())
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stop_token_ids) or None, pad_token_id=0
    )
    with torch.no_grad(), _without_settings(bare, GenerationConfig()):
        made = bare.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
            synced_gpus=False,  # Of a sharded model one process generates (training/sharded.py), and others follow.
        )
    return [_until_stop(row[width:].tolist(), stop_token_ids) for row in made]


def greedy_answer(
    model: Any,
    prompt_ids: Ids,
    *,
    stop_token_ids: Collection[int],
    max_new_tokens: int,
    draft: Ids | None = None,
) -> GreedyAnswer:
    """The greedy answer up to and including the first stop token.

    With a draft of it one forward pass is enough; the answer then ends where the draft leaves it, with the token that
    the model itself prefers there. Without one, every token takes a pass.
    """
    if draft is not None:
        return _agreed(answer_logits(model, prompt_ids, draft[:-1]), draft)
    answer: tuple[int, ...] = ()
    margins: tuple[float, ...] = ()
    while len(answer) < max_new_tokens and not (answer and answer[-1] in stop_token_ids):
        (token,), (margin,) = _likeliest(answer_logits(model, prompt_ids, answer)[-1:])
        answer, margins = (*answer, token), (*margins, margin)
    return GreedyAnswer(answer, margins)


def _agreed(logits: Any, draft: Ids) -> GreedyAnswer:
    likeliest, margins = _likeliest(logits)
    same = next((place for place, token in enumerate(draft) if token != likeliest[place]), len(draft) - 1)
    return GreedyAnswer(tuple(likeliest[: same + 1]), tuple(margins[: same + 1]))


def _likeliest(logits: Any) -> tuple[list[int], list[float]]:
    """The likeliest token of each row, and its lead. Of equals the first, as in transformers: topk takes any."""
    values = logits.topk(2).values
    return logits.argmax(dim=-1).tolist(), (values[:, 0] - values[:, 1]).tolist()


def _until_stop(ids: list[int], stop_token_ids: Collection[int]) -> tuple[int, ...]:
    end = next((place for place, token in enumerate(ids) if token in stop_token_ids), len(ids) - 1)
    return tuple(ids[: end + 1])


@contextmanager
def _without_settings(model: Any, none: Any) -> Iterator[None]:
    """In here nothing of the base's own settings is in force, which may punish repetition, sample, or stop earlier.

    transformers 5.24 takes from them whatever it is not given.
    """
    own = model.generation_config
    model.generation_config = none
    try:
        yield
    finally:
        model.generation_config = own


def _parameters(model: Any) -> Collection[str]:
    """What the forward pass of a model takes."""
    return inspect.signature(type(plain(model)).forward).parameters


def plain(model: Any) -> Any:
    """The model that an adapter was put into, with the adapter in it; a model without one itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
