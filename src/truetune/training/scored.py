"""The validation rows that a model in training is asked, as plain values."""

from dataclasses import dataclass
from pathlib import Path

from truetune.data.examples import Location
from truetune.inference.answers import Stops
from truetune.inference.metrics import Expected


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row whose last answer is generated: the ids to go on from, by at most `limit`, and what is expected.

    `prompt` is what was last asked, for people; `id` is the row's own, if it has one.
    """

    prompt_ids: tuple[int, ...]
    limit: int
    expected: Expected
    prompt: str
    where: Location
    id: str | int | None = None


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Validation rows that are answered at each evaluation, and the names of the metrics that score the answers.

    The answers are kept in `folder`, a file for each evaluation.
    """

    rows: tuple[ScoredRow, ...]
    metrics: tuple[str, ...]
    stops: Stops
    folder: Path
