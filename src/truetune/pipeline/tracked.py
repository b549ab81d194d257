"""What trackers are told of a run beside its metrics: config, data, a few rows as they are learned, the outcome."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from truetune.data.store import StoredRows
from truetune.lint.private import without_secrets
from truetune.pipeline.review.rows import data_facts, learned_rows
from truetune.runs.directory import RunDirectory
from truetune.runs.documents import json_object, mapping, text
from truetune.training.job import TrainResult
from truetune.training.trackers.facts import RunFacts, Scalar, Scores, TrackedSample, cut

_SCORES = (
    "eval_loss",
    "best_metric",
    "best_step",
    "metric_for_best_model",
    "steps",
    "tokens",
    "supervised_tokens",
    "tokens_per_second",
    "seconds",
    "peak_memory_bytes",
    "stopped_by",
)


def run_facts(directory: RunDirectory, rows: StoredRows, tokenizer: Any, *, shown: int) -> RunFacts:
    """The facts of a run whose directory has been written: without secrets, and with at most `shown` of its rows."""
    record: dict[str, Any] = directory.read_record()
    report = json_object(directory.path, directory.data_report).value
    samples = learned_rows(rows, tokenizer, data=text(mapping(record, "data"), "path"), most=shown)
    return RunFacts(
        config=without_secrets(directory.config.read_text(encoding="utf-8")),
        settings=dict(_settings(mapping(record, "config"))),
        data=tuple((name, without_secrets(value)) for name, value in data_facts(report, record).facts),
        samples=tuple(
            TrackedSample(row.where, tuple((cut(piece), learned) for piece, learned in row.pieces)) for row in samples
        ),
        rows=shown,
        answers=directory.answers,
    )


def scores_of(result: TrainResult, *, is_verified: bool) -> Scores:
    """What came of a training, by the names of run.json; what is not known is left out."""
    known = {"loss": result.final_loss, **{name: getattr(result, name) for name in _SCORES}}
    return {**{name: value for name, value in known.items() if value is not None}, "verified": is_verified}


def _settings(config: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Scalar]]:
    """Each setting by its dotted name; lists and mappings as JSON, null as such: trackers take single values."""
    for name, value in config.items():
        if isinstance(value, dict) and not section:
            yield from _settings(value, f"{name}.")
        elif isinstance(value, bool | int | float):
            yield f"{section}{name}", value
        else:
            yield f"{section}{name}", without_secrets(value if isinstance(value, str) else json.dumps(value))
