"""`truetune check --score`: how surprising each row's answers are to the base model, before it has learned any."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truetune.config.schema import Config
from truetune.data.examples import Location
from truetune.data.rules import Problem
from truetune.data.store import evenly
from truetune.inference.losses import row_losses
from truetune.listener import Listener
from truetune.model.hardware import DTYPES, resolve_device, resolve_precision
from truetune.model.load import ModelOptions, load_model, read_facts
from truetune.model.source import resolve_model
from truetune.model.tokenizer import pad_token_id
from truetune.pipeline.prepare import PreparedDataset
from truetune.pipeline.stages import Account

SHOWN = 10
"""Rows at each end that the report names."""

_FEWEST_ROWS = 20
_SPREADS = 4.0
_KNOWN = 0.1
"""Nats a token, a probability of 0.9: the model says this already."""


@dataclass(frozen=True, slots=True)
class RowScore:
    """A row's mean loss in nats a learned token, and the rows' number of these."""

    where: Location
    loss: float
    learned_tokens: int


@dataclass(frozen=True, slots=True)
class Scores:
    """The scored rows, the most surprising first; `rows` is how many there are in all."""

    scored: tuple[RowScore, ...]
    rows: int

    @property
    def limit(self) -> float:
        """The loss beyond which an answer may be a mistake: four spreads above the middle."""
        losses = self._losses
        middle = np.median(losses)
        return float(middle + _SPREADS * 1.4826 * np.median(np.abs(losses - middle)))

    @property
    def _losses(self) -> NDArray[np.float64]:
        return np.array([score.loss for score in self.scored])

    def problems(self) -> Iterator[Problem]:
        """A finding for each row that is likely wrong, and for each that is likely known."""
        if len(self.scored) < _FEWEST_ROWS:
            return
        middle, limit = float(np.median(self._losses)), self.limit
        for score in self.scored:
            told = f"{score.loss:.2f} nats a token, half of the rows have at most {middle:.2f}"
            if score.loss > limit:
                yield Problem.found(
                    "surprising-answer", f"the answer is unlike all others to the model: {told}", score.where
                )
            elif score.loss < _KNOWN:
                yield Problem.found("known-answer", f"the model says this already: {told}", score.where)

    def as_json(self) -> dict[str, Any]:
        """What the report shows."""
        return {
            "rows": self.rows,
            "rows_scored": len(self.scored),
            "mean_loss": float(np.mean(self._losses)),
            "median_loss": float(np.median(self._losses)),
            "most_surprising": [asdict(score) for score in self.scored[:SHOWN]],
            "least_surprising": [asdict(score) for score in self.scored[: -SHOWN - 1 : -1]],
        }


def score_rows(
    config: Config, prepared: PreparedDataset, *, account: Account, limit: int, listener: Listener
) -> Scores:
    """Loads the base model and reads up to `limit` rows with it, spread evenly over all that are prepared.

    `account` knows the inputs' places.
    """
    every = prepared.train.select(np.unique(np.concatenate([prepared.train.places, prepared.validation.places])))
    chosen = every.select(every.places[evenly(len(every), limit)])
    listener.say(f"scoring {len(chosen):,} of {len(every):,} rows with {config.model.name_or_path}")
    files, lines = chosen.column("file"), chosen.column("line")
    places = [account.where(files[place], lines[place]) for place in chosen.places]
    losses = row_losses(
        _base(config),
        chosen,
        pad_token_id=pad_token_id(prepared.template.tokenizer),
        progress=lambda done, total: listener.progress("scoring rows", done, total),
    )
    found = zip(places, losses.means.tolist(), losses.tokens.tolist(), strict=True)
    scored = [RowScore(where, loss, tokens) for where, loss, tokens in found]
    return Scores(tuple(sorted(scored, key=lambda score: -score.loss)), len(every))


def _base(config: Config) -> Any:
    device = resolve_device(config.model.device)
    precision = resolve_precision(config.training.precision, device)
    source = resolve_model(config.model.name_or_path, revision=config.model.revision)
    trust = config.model.trust_remote_code
    facts = read_facts(source, trust_remote_code=trust)
    options = ModelOptions(
        DTYPES[precision],
        device,
        quantization=facts.quantization,
        trust_remote_code=trust,
        is_stored_quantized=facts.quantization != "none",
    )
    return load_model(source, options)
