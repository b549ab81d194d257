"""Tokens out of a model: transformers' own generation, with rows that come and go between short stretches of it."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin, LogitsProcessor, StoppingCriteria
from transformers.cache_utils import DynamicLayer
from transformers.generation import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from truetune.inference.answers import Stops
from truetune.inference.sampling import Sampling

_STRETCH = 16
"""Tokens between two looks at which rows have ended: 8 are lost by each on the average."""


@dataclass(slots=True)
class Row:
    """A prompt and what the model has said to it so far, at most `limit` tokens. `number` names it to the caller."""

    number: int
    prompt: Sequence[int]
    limit: int
    ids: list[int] = field(default_factory=list)
    has_ended: bool = False
    draws: torch.Generator | None = None

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.ids)

    def take(self, ids: Sequence[int], stops: Stops) -> None:
        """Adds what was said, up to its end."""
        self.ids += ids
        end = stops.end(self.ids)
        self.has_ended = end is not None
        del self.ids[self.limit if end is None else end :]

    @property
    def is_done(self) -> bool:
        return self.has_ended or len(self.ids) >= self.limit


@dataclass(frozen=True)
class Decoder:
    """One model, with what ends its answers and how tokens are chosen; `pad` is an id to fill with.

    `seed` is the sampling's, or a drawn one. `heard` is told each token of a row that is asked alone, and ends the
    answer by returning True.
    """

    model: Any
    stops: Stops
    sampling: Sampling
    pad: int
    seed: int
    heard: Callable[[Sequence[int]], bool] | None = None

    def together(self, rows: Sequence[Row]) -> None:
        """All rows to their ends, in one batch for each limit."""
        with torch.inference_mode():
            for limit in sorted({row.limit for row in rows}):
                self._go_on([row for row in rows if row.limit == limit], limit)

    def finished(self, rows: Iterable[Row], *, batch_size: int) -> Iterator[Row]:
        """Each row when it is done, in no order: up to `batch_size` at a time, the next ones for those that ended."""
        waiting = iter(rows)
        if not holds_rows(self.model):
            while several := list(islice(waiting, batch_size)):
                self.together(several)
                yield from several
            return
        batch = _Batch()
        while True:
            with torch.inference_mode():
                free = batch_size - len(batch.rows)
                fresh = list(islice(waiting, free)) if free * 4 >= batch_size else []
                self._admit(batch, fresh)
                if not batch.rows:
                    return
                self._advance(batch)
                done = batch.drop_done()
            yield from done

    def _admit(self, batch: "_Batch", fresh: Sequence[Row]) -> None:
        if not fresh:
            return
        admitted = _Batch(list(fresh), DynamicCache(config=_text_config(self.model)))
        self._go_on(fresh, 1, admitted.cache)
        batch.join(admitted)

    def _advance(self, batch: "_Batch") -> None:
        open_ = [row for row in batch.rows if not row.is_done]
        if len(open_) == len(batch.rows):
            steps = min(row.limit - len(row.ids) for row in open_)
            self._go_on(open_, min(steps, _STRETCH), batch.cache)

    def _go_on(self, rows: Sequence[Row], steps: int, cache: DynamicCache | None = None) -> None:
        width = max(row.length for row in rows)
        # Filled with each row's own first token: no penalty on repetition can then take the filling for something
        # that was said. transformers 5.24 minds that by itself.
        filled = [[row.prompt[0]] * (width - row.length) + [*row.prompt, *row.ids] for row in rows]
        mask = [[0] * (width - row.length) + [1] * row.length for row in rows]
        said = self.model.generate(
            input_ids=torch.tensor(filled, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            max_new_tokens=steps,
            pad_token_id=self.pad,
            eos_token_id=list(self.stops.token_ids) or None,
            repetition_penalty=self.sampling.repetition_penalty,
            logits_processor=self._warpers(rows),
            stopping_criteria=self._criteria(rows, width),
            **_GREEDY,
            **({} if cache is None else {_CACHE: cache}),
        )
        for row, ids in zip(rows, said[:, width:].tolist(), strict=True):
            row.take(ids, self.stops)

    def _warpers(self, rows: Sequence[Row]) -> list[LogitsProcessor]:
        """What narrows down what is drawn from, then the draw: nothing where the answer is greedy."""
        asked = self.sampling
        if asked.is_greedy:
            return []
        for row in rows:
            row.draws = row.draws or torch.Generator().manual_seed(self.seed + row.number)
        warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(asked.temperature)]
        warpers += [TopKLogitsWarper(asked.top_k)] if asked.top_k else []
        warpers += [TopPLogitsWarper(asked.top_p)] if asked.top_p < 1 else []
        warpers += [MinPLogitsWarper(asked.min_p)] if asked.min_p else []
        return [*warpers, _Draw([row.draws for row in rows if row.draws is not None])]

    def _criteria(self, rows: Sequence[Row], width: int) -> list[StoppingCriteria]:
        criteria: list[StoppingCriteria] = [_Spelled(self.stops, rows, width)] if self.stops.texts else []
        return [*criteria, _Hearing(self.heard, width)] if self.heard else criteria


_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "synced_gpus": False,  # Of a sharded model (training/sharded.py) one process generates, and the others follow.
}
# transformers 5.24 gave the argument a new name.
_CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)


class _Draw(LogitsProcessor):
    """Leaves the one token that each row draws: a row's chance is its own, whoever stands beside it in the batch."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        lots = torch.cat([torch.rand(1, generator=each, dtype=torch.float64) for each in self._generators])
        sums = scores.double().softmax(-1).cumsum(-1)
        lots = lots.to(scores.device)[:, None] * sums[:, -1:]
        drawn = (sums <= lots).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


class _Spelled(StoppingCriteria):
    """Ends a row whose answer, and not its prompt, spells a stop that is no single token."""

    def __init__(self, stops: Stops, rows: Sequence[Row], width: int) -> None:
        self._stops, self._before, self._width = stops, [list(row.ids) for row in rows], width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        said = input_ids[:, self._width :].tolist()
        ended = [self._stops.end(before + ids) is not None for before, ids in zip(self._before, said, strict=True)]
        return torch.tensor(ended, device=input_ids.device)


class _Hearing(StoppingCriteria):
    """Tells what is said as it is said."""

    def __init__(self, heard: Callable[[Sequence[int]], bool], width: int) -> None:
        self._heard, self._width = heard, width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.tensor([self._heard(input_ids[0, self._width :].tolist())], device=input_ids.device)


@dataclass
class _Batch:
    """Rows that are answered together, and their keys and values, padded on the left."""

    rows: list[Row] = field(default_factory=list)
    cache: Any = None

    def join(self, other: "_Batch") -> None:
        """Takes in the rows of another batch."""
        if not self.rows:
            self.rows, self.cache = other.rows, other.cache
            return
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            if mine.is_initialized:
                mine.keys = _stacked(mine.keys, theirs.keys)
                mine.values = _stacked(mine.values, theirs.values)
        self.rows += other.rows

    def drop_done(self) -> list[Row]:
        """Takes out the rows that are done, and the columns that none of the others needs."""
        done = [row for row in self.rows if row.is_done]
        if done:
            kept = [place for place, row in enumerate(self.rows) if not row.is_done]
            self.rows = [self.rows[place] for place in kept]
            self.cache.batch_select_indices(torch.tensor(kept, dtype=torch.long))
            self._narrow()
        return done

    def _narrow(self) -> None:
        width = max((row.length for row in self.rows), default=1) - 1
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.keys = layer.keys[:, :, layer.keys.shape[-2] - width :]
                layer.values = layer.values[:, :, layer.values.shape[-2] - width :]


def _stacked(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Two (rows, heads, tokens, size) as one, the shorter filled on the left."""
    width = max(mine.shape[-2], theirs.shape[-2])
    padded = (torch.nn.functional.pad(each, (0, 0, width - each.shape[-2], 0)) for each in (mine, theirs))
    return torch.cat(list(padded))


def holds_rows(model: Any) -> bool:
    """True if each layer keeps all keys and values, a place a token: then rows can come and go between tokens.

    Windows that slide and recurrent states have no such places.
    """
    with suppress(AttributeError, KeyError, ValueError, TypeError):
        layers = DynamicCache(config=_text_config(model)).layers
        return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    return False


def _text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)
