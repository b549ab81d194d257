"""Answers while it trains: the last answers of a few validation rows, generated at evaluations, scored and kept."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from accelerate.utils.memory import clear_device_cache

from truetune.errors import BackendError
from truetune.files import write_text
from truetune.inference.batch import choose_batch_size, sorted_windows
from truetune.inference.decoding import Decoder, Row
from truetune.inference.metrics import Metric, Statistics, named_metrics, without_thinking
from truetune.inference.sampling import Sampling
from truetune.inference.tool_calls import calls_in
from truetune.listener import Listener
from truetune.model.fused_lora import cast_once
from truetune.model.greedy import plain
from truetune.runs.directory import answers_file
from truetune.training.room import persist
from truetune.training.scored import ScoredRow, ScoredRows

_AT_A_TIME = 16
"""Rows, at most: more gain little on a CPU (inference/batch.py), and take memory that the training has planned."""


class AnswerScorer:
    """Has a model in training answer the same rows again and again. Greedy: no random number is drawn for it."""

    def __init__(self, scored: ScoredRows, *, pad_token_id: int, listener: Listener) -> None:
        self._scored = scored
        self._metrics = named_metrics(scored.metrics)
        self._pad = pad_token_id
        self._listener = listener
        self._most = _AT_A_TIME

    def measure(self, model: Any, *, step: int) -> dict[str, float]:
        """Each metric of the answers of a model in evaluation mode, by name; the answers are kept.

        BackendError where memory runs out with one row at a time.
        """
        answers = persist(lambda: self._answered(model), self._give_way)
        texts = [self._scored.stops.text(answer.ids) for answer in answers]
        found = {metric: self._statistics(metric, texts) for metric in self._metrics}
        self._keep(answers, texts, found, step)
        return {metric.name: metric.figure(statistics.sum(0)) for metric, statistics in found.items()}

    def _answered(self, model: Any) -> list[Row]:
        """The rows with what the model says to them, in order."""
        rows = [Row(number, row.prompt_ids, row.limit) for number, row in enumerate(self._scored.rows)]
        # accelerate's wrapper with autocast stands before an adapter's model: weights answer as they are saved.
        decoder = Decoder(plain(model), self._scored.stops, Sampling(), self._pad, 0)
        clear_device_cache()  # What training has let go of is not free before that, on a GPU.
        longest = max(len(row.prompt) + row.limit for row in rows)
        size = min(self._most, choose_batch_size("auto", model, longest=longest).size)
        with cast_once(model), _frequencies_kept(model):
            finished = decoder.finished(sorted_windows(rows, size), batch_size=size)
            for done, _ in enumerate(finished, start=1):
                self._listener.progress("answering", done, len(rows))
        return rows

    def _give_way(self, failure: str) -> None:
        if self._most == 1:
            raise BackendError(
                f"out of memory while it answers validation rows, one at a time: {failure}",
                hint="lower evaluation.generate_max_new_tokens, or leave evaluation.generate out",
            )
        clear_device_cache(garbage_collection=True)
        self._most //= 2
        self._listener.warn(
            f"out of memory while it answers ({failure}): from now on {self._most} rows at a time at most"
        )

    def _statistics(self, metric: Metric, texts: Sequence[str]) -> Statistics:
        expected = [row.expected for row in self._scored.rows]
        return metric.statistics([without_thinking(text) for text in texts], expected)

    def _keep(
        self, answers: Sequence[Row], texts: Sequence[str], found: Mapping[Metric, Statistics], step: int
    ) -> None:
        """A line for each row, written whole or not at all; what a step was answered before is replaced."""
        scores = {metric.name: metric.row_scores(statistics) for metric, statistics in found.items()}
        lines = (
            {"step": step, **_line(*each), "scores": {name: of[n] for name, of in scores.items()}}
            for n, each in enumerate(zip(self._scored.rows, answers, texts, strict=True))
        )
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        write_text(answers_file(self._scored.folder, step), text)


def _line(row: ScoredRow, answer: Row, text: str) -> dict[str, Any]:
    """What is kept of an answer, as `truetune eval --reference` reads it; calls are as they were parsed back."""
    line = {
        "where": asdict(row.where),
        "id": row.id,
        "prompt": row.prompt,
        "expected": row.expected.text,
        "answer": text,
        "stop_reason": "stop" if answer.has_ended else "length",
    }
    if not row.expected.calls:
        return line
    found = calls_in(without_thinking(text))
    return {**line, "expected_calls": [*map(asdict, row.expected.calls)], "calls": [*map(asdict, found)]}


@contextmanager
def _frequencies_kept(model: Any) -> Iterator[None]:
    """Frequencies that go by the longest sample so far (dynamic RoPE) are those of the training again afterwards."""
    kept = [(each, dict(vars(each)), dict(each._buffers)) for each in model.modules() if "rope_type" in vars(each)]
    try:
        yield
    finally:
        for module, values, buffers in kept:
            vars(module).update(values)
            module._buffers.update(buffers)
