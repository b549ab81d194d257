"""`truetune generate --input`: an answer to each row of a file, written as it comes; gone on with after a stop."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from truetune.config.load import load_config
from truetune.data.examples import Example, Record
from truetune.data.read import read_records
from truetune.data.rules import RowError
from truetune.errors import ConfigError, DataError
from truetune.files import named_refusals, write_json
from truetune.inference.answers import Answer
from truetune.inference.batch import BatchSize, choose_batch_size
from truetune.inference.generate import Sampling, TrainedModel, load_opened, room_behind
from truetune.inference.opened import Opened, open_trained
from truetune.listener import Listener, LogListener
from truetune.model.source import fingerprint
from truetune.runs.trained import run_of

_SECONDS_BETWEEN_LINES = 30.0
_NAMED = 10
"""Rows that cannot be asked, and are named."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A file of answers: of its `rows` so many were there `before`; tokens and seconds are those of the others."""

    path: Path
    rows: int
    before: int
    prompt_tokens: int
    answer_tokens: int
    seconds: float
    batch_size: int | None

    @property
    def tokens_per_second(self) -> float | None:
        return self.answer_tokens / self.seconds if self.answer_tokens else None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


def answer_file(
    run: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    sampling: Sampling | None = None,
    batch_size: BatchSize = "auto",
    system: str = "",
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    overwrite: bool = False,
    listener: Listener | None = None,
) -> Answered:
    """Answers each row of `source` (what training reads, or {"prompt": …}) into a JSONL file, in the rows' order.

    A line holds its row, and `answer`, `stop_reason`, `prompt_tokens` and `answer_tokens`. Lines that are there
    already are held against their rows and kept, and one that was cut off is mended. Raises DataError for rows that
    cannot be asked, each named, before any weights load.
    """
    listener, sampling, path = listener or LogListener(), sampling or Sampling(), Path(output)
    _require_other_file(Path(source), path)
    opened = open_trained(run, base_model=base_model, listener=listener)
    asked = _Asked(source, opened, _reading(Path(opened.source.path)), system)
    lengths = _lengths(asked, opened.context_length, listener)
    if overwrite:
        path.unlink(missing_ok=True)
    before = _kept(path, asked, listener)
    _require_same_settings(path, before, _settings(opened, sampling, system), listener)
    if before == len(lengths):
        listener.say(f"{path}: all {before:,} rows are answered")
        return Answered(path, before, before, 0, 0, 0.0, None)
    model = load_opened(opened, device=device)
    longest = max(lengths[before:]) + sampling.max_new_tokens
    chosen = choose_batch_size(batch_size, model.model, longest=longest)
    listener.say(f"batch_size: {chosen.size} ({chosen.reason})")
    writing = _Writing(path, before, len(lengths), listener)
    with named_refusals(path):
        writing.write(asked, model, sampling, chosen.size)
    return Answered(
        path,
        len(lengths),
        before,
        writing.prompt_tokens,
        writing.answer_tokens,
        time.monotonic() - writing.started,
        chosen.size,
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """The rows of a file as prompts; read again by each who wants them, for they may not fit into memory."""

    source: str | Path
    opened: Opened
    reading: Mapping[str, Any]
    system: str

    def records(self) -> Iterator[Record]:
        return read_records(str(self.source))

    def example(self, record: Record) -> Example:
        return self.opened.prompts.of_row(record, system=self.system, **self.reading)


class _Writing:
    """Writes answers in their rows' order, each line as soon as all before it are there."""

    def __init__(self, path: Path, before: int, total: int, listener: Listener) -> None:
        self.path, self.before, self.total, self.listener = path, before, total, listener
        self.started = self._told = time.monotonic()
        self.prompt_tokens = self.answer_tokens = 0

    def write(self, asked: _Asked, model: TrainedModel, sampling: Sampling, batch_size: int) -> None:
        rows: dict[int, Record] = {}

        def examples() -> Iterator[tuple[int, Example]]:
            for number, record in enumerate(asked.records()):
                if number >= self.before:
                    rows[number] = record
                    yield number, asked.example(record)

        waiting: dict[int, Answer] = {}
        due = self.before
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for number, answer in model.answers(examples(), sampling=sampling, batch_size=batch_size):
                waiting[number] = answer
                while due in waiting:
                    file.write(_line(rows.pop(due), self._counted(waiting.pop(due))))
                    file.flush()
                    due += 1
                    self._tell(due)

    def _counted(self, answer: Answer) -> Answer:
        self.prompt_tokens += len(answer.prompt_ids)
        self.answer_tokens += len(answer.answer_ids)
        return answer

    def _tell(self, done: int) -> None:
        self.listener.progress("answering rows", done, self.total)
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_LINES and done < self.total:
            self._told, passed = now, now - self.started
            left = passed / (done - self.before) * (self.total - done)
            rate = self.answer_tokens / passed
            self.listener.say(f"{done:,} of {self.total:,} rows, {rate:,.0f} tokens/s, about {left:,.0f} s left")


_ADDED = ("answer", "stop_reason", "prompt_tokens", "answer_tokens", "tool_calls")


def _line(record: Record, answer: Answer) -> str:
    said = {
        "answer": answer.text,
        "stop_reason": answer.stop_reason,
        "prompt_tokens": len(answer.prompt_ids),
        "answer_tokens": len(answer.answer_ids),
        **({"tool_calls": answer.tool_calls} if answer.tool_calls else {}),
    }
    return json.dumps({**_row(record), **said}, ensure_ascii=False) + "\n"


def _row(record: Record) -> dict[str, Any]:
    """The row as JSON has it; a field of the row with the name of one of ours is kept as input_<name>."""
    fields: dict[str, Any] = json.loads(json.dumps(dict(record.fields), ensure_ascii=False, default=str))
    return {f"input_{name}" if name in _ADDED else name: value for name, value in fields.items()}


# --- before anything loads --------------------------------------------------------------------------------


def _require_other_file(source: Path, output: Path) -> None:
    if source.exists() and output.exists() and source.samefile(output):
        raise ConfigError(f"--output is the file of --input: {output}", hint="name another file for the answers")


def _reading(folder: Path) -> dict[str, Any]:
    """How the run read its rows, where the weights lie in a run."""
    run = run_of(folder)
    if run is None or not run.config.is_file():
        return {}
    data = load_config(run.config).config.data
    return {"columns": data.columns, "response_marker": data.response_marker}


def _lengths(asked: _Asked, context_length: int | None, listener: Listener) -> list[int]:
    """The tokens of each prompt. DataError, naming file and line, for rows that cannot be asked."""
    lengths: list[int] = []
    problems: list[str] = []
    for record in asked.records():
        try:
            prompt = asked.opened.prompts.ids(asked.example(record))
            room_behind(prompt, context_length)
            lengths.append(len(prompt))
        except DataError as error:
            field = f", field {error.field}" if isinstance(error, RowError) and error.field else ""
            problems.append(f"{record.where}{field}: {error.message.removeprefix(f'{record.where}: ')}")
    if problems:
        more = f"\nand {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
        raise DataError("\n".join(problems[:_NAMED]) + more, hint="mend these rows, or take them out: none was asked")
    if not lengths:
        raise DataError(f"{asked.source} holds no row")
    listener.say(f"{len(lengths):,} prompts of {min(lengths):,} to {max(lengths):,} tokens")
    return lengths


# --- what is there already --------------------------------------------------------------------------------


def _kept(path: Path, asked: _Asked, listener: Listener) -> int:
    """How many rows are answered already. DataError for a line that is no answer to its row."""
    if not path.exists():
        return 0
    _mend(path, listener)
    records, count = asked.records(), 0
    with path.open(encoding="utf-8") as lines:
        for count, line in enumerate(lines, start=1):
            record = next(records, None)
            if record is None or not _answers(line, record):
                told = "has no row in the input" if record is None else f"is no answer to {record.where}"
                raise DataError(
                    f"{path}, line {count}: {told}",
                    hint="name another file for the answers, or replace this one with --overwrite",
                )
    if count:
        listener.say(f"{path}: {count:,} rows are answered already")
    return count


def _mend(path: Path, listener: Listener) -> None:
    """Takes off a last line that was not written to its end."""
    with path.open("rb") as file:
        size, end = path.stat().st_size, 0
        for line in file:
            end += len(line) if line.endswith(b"\n") else 0
    if end < size:
        os.truncate(path, end)
        listener.say(f"{path}: its last line was cut off, and is written again")


def _answers(line: str, record: Record) -> bool:
    try:
        stored = json.loads(line)
    except ValueError:
        return False
    if not isinstance(stored, dict) or "answer" not in stored:
        return False
    return {name: value for name, value in stored.items() if name not in _ADDED} == _row(record)


def _settings(opened: Opened, sampling: Sampling, system: str) -> dict[str, Any]:
    """What the answers hang on, beside their rows."""
    base = opened.base_model or opened.format.base_model
    weights = fingerprint(opened.source) or opened.source.path
    document = {"weights": weights, "base": base, "system": system, "sampling": asdict(sampling)}
    return dict(json.loads(json.dumps(document)))


def _require_same_settings(path: Path, before: int, now: Mapping[str, Any], listener: Listener) -> None:
    """Answers of two models, or of two samplings, do not go into one file. Writes the settings down."""
    beside = path.with_name(path.name + ".settings.json")
    if before and not beside.is_file():
        listener.warn(f"{beside} is missing: whether the answers there are of this model is not known")
    elif before:
        stored = json.loads(beside.read_bytes())
        other = [name for name in now if stored.get(name) != now[name]]
        if other:
            raise DataError(
                f"{path}: its answers were given with another {' and another '.join(other)}",
                hint="name another file for the answers, or replace this one with --overwrite",
            )
    with named_refusals(beside):
        write_json(beside, now)
