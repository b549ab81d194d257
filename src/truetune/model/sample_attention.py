"""Causal attention within each of the samples that stand end to end, on a CPU: plain matrix products, both ways.

Samples of about one length are computed side by side, long ones a block of queries at a time against the keys that
these see. torch's own backward (2.13) takes twice as long for samples of 60 to 300 tokens, as long for 512.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_BLOCK = 256
"""Queries of a sample that are computed at a time."""
_SCORES = 1 << 20
"""Scores that are held at a time, but for those of one block: more than fit into a core's cache take longer."""
_PADDING = 1 << 14
"""Scores of padding, for each head, that samples may cost to be computed beside longer ones: about what it costs to
compute them by themselves, in calls alone."""


def attend_samples(
    query: Tensor, key: Tensor, value: Tensor, *, bounds: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """Queries, keys and values of (1, heads, tokens, size) into (1, tokens, heads, size).

    `bounds` are as packed_attention has them: the width of the window, then where samples begin, and the end.
    """
    made: Tensor = _OPERATOR(query, key, value, bounds, scale, softcap)
    return made


@dataclass(frozen=True, slots=True)
class _Rule:
    window: int
    scale: float
    softcap: float | None

    def is_plain(self, length: int) -> bool:
        return self.softcap is None and not 0 < self.window < length


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Samples of about one length, side by side, padded behind: which row of (tokens * heads, size) stands where.

    `queries` fill (samples, groups, heads a group, length), `keys` (samples, groups, length).
    """

    shape: tuple[int, int, int, int]
    queries: Tensor
    keys: Tensor
    is_sample: Tensor

    def take_queries(self, rows: Tensor) -> Tensor:
        return rows.index_select(0, self.queries).view(*self.shape, -1)

    def take_keys(self, rows: Tensor) -> Tensor:
        samples, groups, _, length = self.shape
        return rows.index_select(0, self.keys).view(samples * groups, length, -1)


@dataclass(frozen=True, slots=True)
class _Layout:
    """All buckets; where in them, one behind the other, each row of queries and of keys has come to stand."""

    buckets: tuple[_Bucket, ...]
    of_queries: Tensor
    of_keys: Tensor


@lru_cache(maxsize=8)
def _layout(edges: tuple[int, ...], groups: int, shared: int) -> _Layout:
    buckets = tuple(
        _bucket(some, length, groups, shared)
        for length, its in _by_length(list(pairwise(edges)))
        for some in _some(its, max(1, _SCORES // (groups * shared * length * min(length, _BLOCK))))
    )
    of_queries = _inverse([(each.queries, each.is_sample) for each in buckets])
    of_keys = _inverse([(each.keys, each.is_sample[:, :, 0]) for each in buckets])
    return _Layout(buckets, of_queries, of_keys)


def _by_length(samples: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The samples in groups of about one length, each with the length that it is padded to, the longest first."""
    waiting = sorted(samples, key=lambda edge: edge[0] - edge[1])
    while waiting:
        length = _rounded(waiting[0][1] - waiting[0][0])
        padding = list(accumulate(length**2 - (end - start) ** 2 for start, end in waiting))
        count = max(1, bisect_right(padding, _PADDING))
        yield length, waiting[:count]
        waiting = waiting[count:]


def _some(samples: list[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    return (samples[first : first + most] for first in range(0, len(samples), most))


def _rounded(length: int) -> int:
    """What samples of about this length are padded to: few lengths, at most an eighth more of them."""
    step = max(8, 1 << max(length.bit_length() - 4, 0))
    return -(-length // step) * step


def _bucket(samples: Sequence[tuple[int, int]], length: int, groups: int, shared: int) -> _Bucket:
    starts, ends = (torch.tensor(edge)[:, None, None, None] for edge in zip(*samples, strict=True))
    shape = (len(samples), groups, shared, length)
    token = (starts + torch.arange(length)).expand(shape)
    is_sample = token < ends
    group = torch.where(is_sample, token, 0) * groups + torch.arange(groups)[:, None, None]
    queries = group * shared + torch.arange(shared)[:, None]
    return _Bucket(shape, queries.flatten(), group[:, :, 0].flatten(), is_sample)


def _inverse(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Where each row stands in the parts, which are rows and whether they are of a sample."""
    rows = torch.cat([rows for rows, _ in parts])
    places = torch.cat([is_sample.flatten() for _, is_sample in parts]).nonzero()[:, 0]
    return torch.empty_like(places).scatter_(0, rows[places], places)


def _attend(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float, softcap: float | None) -> Tensor:
    rule, layout = _read(bounds, query, key, scale, softcap)
    queries, keys, values = map(_rows, (query, key, value))
    pieces = [
        _forward(bucket.take_queries(queries), bucket.take_keys(keys), bucket.take_keys(values), rule)
        for bucket in layout.buckets
    ]
    return _joined(pieces, layout.of_queries).view(1, -1, query.shape[1], value.shape[-1])


def _gradients(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values."""
    rule, layout = _read(bounds, query, key, scale, softcap)
    queries, keys, values = map(_rows, (query, key, value))
    arriving = upstream.reshape(-1, upstream.shape[-1])
    pieces = []
    for bucket in layout.buckets:
        its_arriving = bucket.take_queries(arriving).mul_(bucket.is_sample.unsqueeze(-1))
        its = bucket.take_queries(queries), bucket.take_keys(keys), bucket.take_keys(values)
        pieces.append(_backward(its_arriving, *its, rule))
    of_query, of_key, of_value = map(list, zip(*pieces, strict=True))
    return (
        _by_head(_joined(of_query, layout.of_queries), query),
        _by_head(_joined(of_key, layout.of_keys), key),
        _by_head(_joined(of_value, layout.of_keys), value),
    )


def _read(bounds: Tensor, query: Tensor, key: Tensor, scale: float, softcap: float | None) -> tuple[_Rule, _Layout]:
    window, *edges = bounds.flatten().tolist()
    groups = key.shape[1]
    return _Rule(window, scale, softcap), _layout(tuple(edges), groups, query.shape[1] // groups)


# As operators of torch's own kind, which torch.compile takes as they are: with the shape of what they make.

_OPERATOR = torch.library.custom_op("truetune::attend_samples", _attend, mutates_args=())
_BACKWARD = torch.library.custom_op("truetune::attend_samples_backward", _gradients, mutates_args=())

_OPERATOR.register_fake(
    lambda query, _key, value, *_: query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
)
_BACKWARD.register_fake(
    lambda _, *inputs: tuple(
        _by_head(each.new_empty(each.numel() // each.shape[-1], each.shape[-1]), each) for each in inputs[:3]
    )
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch passes it by name
    *tensors, ctx.scale, ctx.softcap = inputs
    ctx.save_for_backward(*tensors)


def _arrive(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    return *_BACKWARD(upstream, *ctx.saved_tensors, ctx.scale, ctx.softcap), None, None, None


_OPERATOR.register_autograd(_arrive, setup_context=_keep)


def _rows(each: Tensor) -> Tensor:
    """(1, heads, tokens, size) as rows of (tokens * heads, size)."""
    return each.transpose(1, 2).reshape(-1, each.shape[-1])


def _joined(pieces: Sequence[Tensor], inverse: Tensor) -> Tensor:
    """The buckets' rows in the order of the tokens."""
    return torch.cat([piece.view(-1, piece.shape[-1]) for piece in pieces]).index_select(0, inverse)


def _by_head(rows: Tensor, like: Tensor) -> Tensor:
    _, heads, tokens, size = like.shape
    return rows.view(1, tokens, heads, size).transpose(1, 2)


def _forward(query: Tensor, key: Tensor, value: Tensor, rule: _Rule) -> Tensor:
    """What a bucket's samples attend to: (samples, groups, heads a group, length, size)."""
    samples, groups, shared, length, size = query.shape
    if rule.is_plain(length):
        made = scaled_dot_product_attention(
            query.view(samples, groups * shared, length, size),
            key.view(samples, groups, length, size),
            value.view(samples, groups, length, -1),
            is_causal=True,
            scale=rule.scale,
            enable_gqa=True,
        )
        return made.reshape(samples, groups, shared, length, -1)
    made = query.new_empty(samples * groups, shared, length, value.shape[-1])
    for block, seen in _blocks(length, rule.window):
        weights, _ = _weights(_block(query, block) * rule.scale, key[:, seen], (block, seen), rule)
        made[:, :, block] = torch.bmm(weights, value[:, seen]).view(samples * groups, shared, -1, value.shape[-1])
    return made


def _backward(
    upstream: Tensor, query: Tensor, key: Tensor, value: Tensor, rule: _Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a bucket's queries, keys and values."""
    _, _, shared, length, size = query.shape
    of_query = query.new_empty(len(key), shared, length, size)
    of_keys, of_values = [], []
    for block, seen in _blocks(length, rule.window):
        queries, arriving, keys = _block(query, block) * rule.scale, _block(upstream, block), key[:, seen]
        weights, slope = _weights(queries, keys, (block, seen), rule)
        of_values.append((seen, torch.bmm(weights.transpose(1, 2), arriving)))
        of_weights = torch.bmm(arriving, value[:, seen].transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        if slope is not None:
            of_scores *= slope
        of_query[:, :, block] = (torch.bmm(of_scores, keys) * rule.scale).view(len(key), shared, -1, size)
        of_keys.append((seen, torch.bmm(of_scores.transpose(1, 2), queries)))
    return of_query, _summed(of_keys, key), _summed(of_values, value)


def _summed(pieces: Sequence[tuple[slice, Tensor]], like: Tensor) -> Tensor:
    """The blocks' gradients of the keys that each saw, summed up in fp32."""
    if len(pieces) == 1:
        return pieces[0][1]
    total = torch.zeros_like(like, dtype=torch.float32)
    for seen, piece in pieces:
        total[:, seen] += piece
    return total.to(like.dtype)


def _block(each: Tensor, block: slice) -> Tensor:
    """A block of queries, the heads that share a key behind one another: (samples * groups, heads * block, size)."""
    samples, groups, _, _, size = each.shape
    return each[:, :, :, block].reshape(samples * groups, -1, size)


def _blocks(length: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, and the keys that each sees."""
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        yield slice(start, end), slice(max(0, start - window + 1) if window else 0, end)


def _weights(queries: Tensor, keys: Tensor, places: tuple[slice, slice], rule: _Rule) -> tuple[Tensor, Tensor | None]:
    """The weight of each key for each query, and the slope of the softcap, if there is one."""
    scores, slope = torch.bmm(queries, keys.transpose(1, 2)), None
    if rule.softcap is not None:
        scores = scores.div_(rule.softcap).tanh_()
        slope = 1.0 - scores.square()
        scores = scores.mul_(rule.softcap)
    block, seen = places
    by_query = scores.view(len(keys), -1, block.stop - block.start, seen.stop - seen.start)
    # Without a window all keys before the block are seen, and one small mask serves every block.
    length, width = by_query.shape[2:]
    masked = width if rule.window else length
    by_query[..., -masked:] += _unseen(masked - length, length, masked, rule.window, scores.dtype)
    return torch.softmax(scores, dim=-1), slope


@lru_cache(maxsize=32)
def _unseen(before: int, queries: int, keys: int, window: int, dtype: torch.dtype) -> Tensor:
    """-inf for keys that a query does not see, where the first of the queries stands behind so many keys; else 0.

    Adding it takes a quarter of the time of filling in.
    """
    distance = torch.arange(queries)[:, None] + before - torch.arange(keys)
    unseen = (distance < 0) | (distance >= window) if window else distance < 0
    return torch.zeros(queries, keys, dtype=dtype).masked_fill_(unseen, float("-inf"))
