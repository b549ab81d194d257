"""Attention over samples that stand end to end, each by itself: no dense mask, no work between samples.

Registered with transformers' public registries. Where its models would get a dense mask they get `bounds`: one small
tensor, read off the mask's own rule, so that packs, sliding windows and chunks are whatever the model says they are.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from truetune.model.sample_attention import attend_samples

NAME = "truetune_packed"
_UNKNOWN = ("s_aux", "sinks", "position_bias", "head_mask", "indices", "block_indices")
"""What some models (gpt-oss, T5) add to attention or (MiniMax M3) leave out of it, and this one does not have."""


def register() -> None:
    """Makes the implementation known to transformers, under NAME."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, bounds)


def bounds(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    mask_function: Callable[..., torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> torch.Tensor | None:
    """The places where samples begin, and the end, behind the width of the window (0 where there is none).

    A dense mask, transformers' own, where rows are padded, cached or more than one, and where the rule is any other
    than: each token sees those up to itself, in its sample and window. In the last dimension of four, since models
    cut masks along the others.
    """
    from transformers.masking_utils import sdpa_mask

    is_whole = q_length == kv_length and not (options.get("q_offset") or options.get("kv_offset"))
    if attention_mask is None and batch_size == 1 and is_whole and not options.get("use_vmap"):
        window, edges = _read(mask_function, q_length, device)
        if _holds(mask_function, window, edges, device):
            return torch.tensor([window, *edges], dtype=torch.int32).view(1, 1, 1, -1)
    options.pop("config", None)
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        device=device,
        **options,
    )


def _read(rule: Callable[..., torch.Tensor], length: int, device: torch.device | str) -> tuple[int, list[int]]:
    """The window's width and the edges of samples: where a token does not see the one before it."""
    places = torch.arange(1, length, device=device)
    starts = places[~_allowed(rule, places, places - 1)].tolist()
    edges = [0, *starts, length]
    first, last = max(pairwise(edges), key=lambda edge: edge[1] - edge[0])
    width = int(_allowed(rule, torch.tensor(last - 1), torch.arange(first, last, device=device)).sum())
    return (0 if width == last - first else width), edges


def _holds(rule: Callable[..., torch.Tensor], window: int, edges: list[int], device: torch.device | str) -> bool:
    """True if window and edges are the whole rule.

    Tried for every token, with the keys at both ends of what it sees, beside them, between them, and some anywhere:
    all keys would be the dense mask.
    """
    length = edges[-1]
    queries = torch.arange(length, device=device)
    sizes = torch.tensor([end - start for start, end in pairwise(edges)], device=device)
    starts = torch.tensor(edges[:-1], device=device).repeat_interleave(sizes)
    lowest = starts.maximum(queries - (window or length) + 1)
    within = [lowest + (queries - lowest) * quarter // 4 for quarter in range(5)]
    anywhere = [(queries * step + step) % length for step in (3, 31, 8191)]
    keys = torch.stack([starts - 1, lowest - 1, queries + 1, *within, *anywhere]).clamp(0, length - 1)
    return bool(((lowest <= keys) & (keys <= queries)).equal(_allowed(rule, queries, keys)))


def _allowed(rule: Callable[..., torch.Tensor], queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Which keys the queries see, of the first row and head."""
    zero = torch.zeros((), dtype=torch.long, device=keys.device)
    return rule(zero, zero, queries.to(keys.device), keys).broadcast_to(keys.shape)


def _dense(mask: torch.Tensor) -> torch.Tensor:
    """The dense mask of the same bounds: in generation Gemma 4 (transformers 5.24) drops all queries but the last."""
    window, *edges = mask.flatten().tolist()
    places = torch.arange(edges[-1])
    sample = torch.bucketize(places, torch.tensor(edges[1:]), right=True)
    distance = places[:, None] - places
    return ((distance >= 0) & (distance < (window or edges[-1])) & (sample[:, None] == sample))[None, None]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Queries, keys and values of (rows, heads, tokens, size) into (rows, tokens, heads, size)."""
    if any(options.get(name) is not None for name in _UNKNOWN):
        raise TypeError("attention with sinks, biases or chosen keys is not computed sample by sample")
    if attention_mask is not None and attention_mask.dtype == torch.int32 and query.shape[2] < key.shape[2]:
        attention_mask = _dense(attention_mask)[..., -query.shape[2] :, :].to(query.device)
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return _with_dense_mask(module, query, key, value, attention_mask, dropout, scaling, softcap, **options)
    query, key, value = map(_as_autocast, (query, key, value))
    if query.device.type == "cpu" and not dropout:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attend_samples(query, key, value, bounds=attention_mask, scale=scale, softcap=softcap), None
    window, *edges = attention_mask.flatten().tolist()
    if query.is_cuda and query.dtype != torch.float32 and softcap is None and not dropout:
        return _on_cuda(query, key, value, window, edges, scaling), None
    lengths = [end - start for start, end in pairwise(edges)]
    # Not slices, whose gradients would each be as long as the pack.
    queries, keys, values = (each.split(lengths, dim=2) for each in (query, key, value))
    pieces = [
        _one(each, its_keys, its_values, window, dropout, scaling, softcap)
        for each, its_keys, its_values in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _as_autocast(each: torch.Tensor) -> torch.Tensor:
    """In autocast's dtype where that is on, as torch's own attention takes it: norms hand queries on in fp32."""
    device = each.device.type
    return each.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else each


def _on_cuda(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int,
    edges: list[int],
    scaling: float | None,
) -> torch.Tensor:
    """All samples in one call of torch's own kernel, which loses no time between them."""
    from torch.nn.attention.varlen import varlen_attn

    places = torch.tensor(edges, dtype=torch.int32, device=query.device)
    longest = max(end - start for start, end in pairwise(edges))
    by_token = (each[0].transpose(0, 1) for each in (query, key, value))
    left = window - 1 if 0 < window < longest else -1
    made = varlen_attn(
        *by_token, places, places, longest, longest, scale=scaling, window_size=(left, 0), enable_gqa=True
    )
    return made.unsqueeze(0)


def _one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Causal attention within one sample."""
    length = query.shape[2]
    if softcap is None and not 0 < window < length:
        return scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True
        )
    places = torch.arange(length, device=query.device)
    distance = places[:, None] - places[None, :]
    seen = (distance >= 0) & (distance < (window or length))
    if softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=seen, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
    return _capped(query, key, value, seen, dropout, scaling, softcap)


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    dropout: float,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attention whose scores pass through softcap * tanh(score / softcap), as in Gemma 2."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.nn.functional.dropout(weights, dropout) @ value


def _with_dense_mask(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What is padded or cached: transformers' own attention."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if softcap is None:
        options = {name: option for name, option in options.items() if option is not None}
        made, _ = sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **options)
        return made, None
    length, past = query.shape[2], key.shape[2] - query.shape[2]
    seen = (
        torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril(past) if mask is None else mask
    )
    return _capped(query, key, value, seen, dropout, scaling, softcap).transpose(1, 2).contiguous(), None
