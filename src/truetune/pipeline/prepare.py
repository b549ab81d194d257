"""Rows into the tokens a run trains on, kept for the next run, with a report of what became of every row."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from truetune.config.schema import Config
from truetune.data.cache import cached, code_digest, digest, file_digest, tokenizer_digest
from truetune.data.examples import Note, Record
from truetune.data.keys import row_key
from truetune.data.near import NearIndex, Pairs, Shingles
from truetune.data.rules import Report
from truetune.data.sources import SourceFile
from truetune.data.split import Split, linked, near_linked, place, split_rows
from truetune.data.store import ROW_FILES, Places, RowWriter, StoredRow, StoredRows, row_batch
from truetune.data.templates import Template
from truetune.files import write_json
from truetune.lint.parts import parts_of
from truetune.lint.sketch import near_sketched
from truetune.listener import Listener, LogListener
from truetune.model.source import cache_directory
from truetune.pipeline.findings import find_all, nothing_usable, refuse_if_strict
from truetune.pipeline.stages import (
    Account,
    Formatting,
    Row,
    RowPath,
    Rows,
    chunks,
    length_limit,
    load_data_template,
    training_files,
    validation_files,
)
from truetune.pipeline.workers import by_chunks

_LIBRARIES = ("truetune", "transformers", "tokenizers")
POLICIES = {
    "strict",
    "packing",
    "path",
    "split",
    "revision",
    "data_files",
    "subset",
    "field",
    "validation_path",
    "num_proc",
}
"""Data settings that do not shape the tokens, or do so through the files they name."""

_FILES = ("prepared.json", *ROW_FILES, "train.npy", "validation.npy")


@dataclass(frozen=True, slots=True)
class PreparedDataset:
    """What a run trains on, memory-mapped.

    `fingerprint` digests all tokens, labels, weights and the split; `first_learned` is what the first row learns.
    `folder` is where the rows lie, None for rows from Python, which are kept for this process alone.
    """

    train: StoredRows
    validation: StoredRows
    report: Report
    template: Template
    fingerprint: str
    first_learned: tuple[str, ...]
    folder: Path | None
    keeper: Any = None

    @property
    def formats(self) -> Mapping[str, int]:
        """The kept rows by format."""
        formats: Mapping[str, int] = self.report.stats["formats"]
        return formats


def prepare_rows(
    config: Config,
    *,
    tokenizer: Any,
    context_length: int | None = None,
    source: Rows | None = None,
    formatting: Formatting | None = None,
    listener: Listener | None = None,
    must_be_usable: bool = True,
) -> PreparedDataset:
    """Reads, renders, tokenizes and splits the rows of `source` (default: data.path), every unusable row counted.

    Rows of files are prepared once and then found again, until anything that shapes them changes.

    Raises DataError where `data.invalid_rows` or `data.overlong` is error and a row is not usable. And, if rows
    `must_be_usable`, where none is, or strict data has a finding.
    """
    listener = listener or LogListener()
    template = load_data_template(config.data, tokenizer)
    max_length = length_limit(config.data, context_length)
    preparation = _Preparation(config, template, max_length, formatting, listener)
    prepared = preparation.run(source)
    if must_be_usable:
        refuse_if_strict(config.data, prepared.report)
        if not len(prepared.train) or (config.data.validation_path and not len(prepared.validation)):
            raise nothing_usable(prepared.report, is_validation=bool(len(prepared.train)))
    return prepared


def trace_rows(
    config: Config,
    *,
    tokenizer: Any,
    context_length: int | None = None,
    source: Rows | None = None,
    formatting: Formatting | None = None,
    limit: int,
) -> tuple[list[Row], Report]:
    """The first `limit` usable rows at every stage, for `inspect`, and the report of what was read for them."""
    listener = LogListener()
    template = load_data_template(config.data, tokenizer)
    max_length = length_limit(config.data, context_length)
    path, account = RowPath(config.data, template, max_length=max_length), Account()
    inputs = training_files(config.data, listener) if source is None else [source]
    kept: list[Row] = []
    for chunk in chunks(inputs, formatting, size=max(limit, 10)):
        rows, of_chunk = path.take(chunk)
        account.add(of_chunk)
        kept += rows
        if len(kept) >= limit:
            break
    return kept[:limit], account.report()


class _Preparation:
    """Writes prepared rows, their split and their report into a folder."""

    def __init__(
        self,
        config: Config,
        template: Template,
        max_length: int,
        formatting: Formatting | None,
        listener: Listener,
    ) -> None:
        self.config = config
        self.template = template
        self.max_length = max_length
        self.formatting = formatting
        self.listener = listener
        self.account = Account()
        self._path = RowPath(config.data, template, max_length=max_length)

    def run(self, source: Rows | None) -> PreparedDataset:
        """The rows: in the cache, found or put there; what the user's own Python makes for this process alone."""
        training = training_files(self.config.data, self.listener) if source is None else []
        validation = validation_files(self.config.data, self.listener)
        if source is not None or self.formatting:
            return self._run_apart(training if source is None else [source], validation)
        key = _key(self.config, [*training, *validation], self.template, self.max_length)
        folder = cached(
            cache_directory() / "prepared",
            key,
            lambda staged: self.write(staged, training, validation),
            is_whole=lambda folder: all((folder / name).is_file() for name in _FILES),
            on_wait=lambda: self.listener.say("another process is preparing these rows: waiting for it"),
        )
        return _opened(folder, self.template, folder=folder)

    def _run_apart(self, inputs: Sequence[SourceFile | Rows], validation: Sequence[SourceFile]) -> PreparedDataset:
        keeper = tempfile.TemporaryDirectory(prefix="truetune-")
        self.write(Path(keeper.name), inputs, validation)
        return _opened(Path(keeper.name), self.template, folder=None, keeper=keeper)

    def write(self, folder: Path, inputs: Sequence[SourceFile | Rows], validation: Sequence[SourceFile]) -> None:
        content, pairs = self._write_rows(folder, [*inputs, *validation])
        stored = StoredRows.open(folder)
        split = self._split(stored, inputs, pairs, has_validation=bool(validation))
        np.save(folder / "train.npy", split.train)
        np.save(folder / "validation.npy", split.held_out)
        for places in (split.train, split.held_out):
            content.update(places.tobytes())
        document = {
            "report": self._report(stored, split).as_json(),
            "fingerprint": content.hexdigest(),
            "first_learned": self.account.first_learned,
        }
        write_json(folder / "prepared.json", document)

    def _write_rows(self, folder: Path, inputs: Sequence[SourceFile | Rows]) -> tuple[Any, Pairs]:
        content, stage, account = hashlib.sha256(), "preparing rows", self.account
        with closing(RowWriter(folder)) as writer, closing(NearIndex()) as near:
            for batch, of_chunk, sketch in by_chunks(
                self._batch, inputs, formatting=self.formatting, num_proc=self.config.data.num_proc
            ):
                account.add(of_chunk)
                content.update(writer.write(batch))
                if sketch:
                    near.add(sketch)
                self.listener.progress(stage, account.rows_read, None)
            pairs = near.pairs()
        self.listener.progress(stage, account.rows_read, account.rows_read)
        return content, pairs

    def _batch(self, chunk: Sequence[tuple[int, Record]]) -> tuple[Any, Account, Shingles | None]:
        rows, account = self._path.take(chunk)
        sketch = near_sketched([parts_of(row.example) for row in rows]) if rows and self._links_near_rows() else None
        return row_batch([self._stored(row, account) for row in rows]), account, sketch

    def _links_near_rows(self) -> bool:
        """True if rows that are nearly equal must not stand on both sides of a split."""
        return self.config.data.leakage == "near" and (
            self.config.data.validation_path is not None or self._test_size() != 0
        )

    def _stored(self, row: Row, account: Account) -> StoredRow:
        key = row_key(row.rendered.text)
        return StoredRow(row.tokens, key, self._group(row, key, account), row.file, row.record.where.line)

    def _group(self, row: Row, key: int, account: Account) -> int:
        """The digest of the row's group; its own key where it has none."""
        name = self.config.data.group_by
        if name is None:
            return key
        value = row.record.fields.get(name)
        if value is None:
            account.tally.note([Note("absent-group", name)], row.record.where)
            return key
        return row_key(json.dumps([name, value], sort_keys=True, default=str))

    def _split(
        self, stored: StoredRows, inputs: Sequence[SourceFile | Rows], pairs: Pairs, *, has_validation: bool
    ) -> Split:
        """The rows to train on, as often as their file's weight says, and those to validate on."""
        files, keys = stored.column("file"), stored.column("key")
        is_held_out, of_one_form = files >= len(inputs), np.empty(0, np.int64)
        if not has_validation and len(keys):
            groups = linked(keys, stored.column("group")) if self.config.data.group_by else keys
            groups, of_one_form = near_linked(groups, pairs, test_size=self._test_size())
            is_held_out = split_rows(groups, test_size=self._test_size(), seed=self.config.training.seed)
        weights = np.array([getattr(source, "weight", 1.0) for source in inputs] or [1.0])
        train = _weighted(np.flatnonzero(~is_held_out), files, keys, weights, self.config.training.seed)
        return Split(train, np.flatnonzero(is_held_out), pairs, of_one_form)

    def _test_size(self) -> float | int | None:
        wants_none = self.config.evaluation.eval_strategy == "no" and self.config.data.test_size is None
        return 0 if wants_none else self.config.data.test_size

    def _report(self, stored: StoredRows, split: Split) -> Report:
        account = self.account
        return account.report(
            find_all(stored, split, account=account, template=self.template),
            train_rows=len(split.train),
            validation_rows=len(split.held_out),
            tokens=account.tokens,
            supervised_tokens=account.supervised_tokens,
            max_length=self.max_length,
            longest_row_tokens=account.longest,
            train_on=self.config.data.train_on,
            terminator=self.template.terminator,
            bos=self.template.bos,
        )


def _weighted(places: Places, files: Any, keys: Any, weights: Any, seed: int) -> Places:
    """The places as often as their files' weights say; of a fraction, a seeded choice of rows."""
    if (weights == 1.0).all():
        return places
    wanted = weights[files[places]]
    whole = np.floor(wanted)
    is_extra = place(keys[places], seed, purpose="weight") < wanted - whole
    return np.repeat(places, whole.astype(np.int64) + is_extra)


def _key(config: Config, files: Sequence[SourceFile], template: Template, max_length: int) -> str:
    """A digest of all that shapes prepared rows."""
    data = config.data.model_dump(mode="json", exclude=POLICIES)
    return digest(
        {
            "versions": {name: metadata.version(name) for name in _LIBRARIES},
            "code": code_digest("truetune.data", "truetune.lint", "truetune.pipeline"),
            "files": [(file.name, file.weight, file.field, file.split, file_digest(file.path)) for file in files],
            "validates": (bool(config.data.validation_path), config.evaluation.eval_strategy == "no"),
            "tokenizer": tokenizer_digest(template.tokenizer),
            "template": (template.chat, template.text, template.completion_as_chat),
            "max_length": max_length,
            "seed": config.training.seed,
            "data": data,
        }
    )


def _opened(path: Path, template: Template, **options: Any) -> PreparedDataset:
    document = json.loads((path / "prepared.json").read_text(encoding="utf-8"))
    rows = StoredRows.open(path)
    return PreparedDataset(
        train=rows.select(np.load(path / "train.npy")),
        validation=rows.select(np.load(path / "validation.npy")),
        report=Report.from_json(document["report"]),
        template=template,
        fingerprint=document["fingerprint"],
        first_learned=tuple(document["first_learned"]),
        **options,
    )
