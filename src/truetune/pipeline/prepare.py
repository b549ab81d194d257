"""Rows into the tokens a run trains on, kept for the next run, with a report of what became of every row."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from truetune.config.schema import Config
from truetune.data.blocks import Block, BlockReader, BlockStart, about_share, ends_digest
from truetune.data.cache import cached
from truetune.data.examples import Note
from truetune.data.keys import row_key
from truetune.data.near import NearIndex, Pairs, Shingles
from truetune.data.rules import Report
from truetune.data.sources import SourceFile
from truetune.data.split import Split, linked, near_linked, place, split_rows
from truetune.data.store import ROW_FILES, Places, RowWriter, StoredRow, StoredRows, row_batch
from truetune.data.templates import Template
from truetune.errors import ConfigError
from truetune.files import write_json
from truetune.lint.parts import parts_of
from truetune.lint.sketch import near_sketched
from truetune.listener import Listener, LogListener
from truetune.model.source import cache_directory
from truetune.pipeline.findings import find_all, nothing_usable, refuse_if_strict
from truetune.pipeline.prepared_key import prepared_key
from truetune.pipeline.stages import (
    Account,
    Formatting,
    Row,
    RowPath,
    Rows,
    chunks,
    in_chunks,
    length_limit,
    load_data_template,
    training_files,
    validation_files,
)
from truetune.pipeline.workers import Chunk, over_chunks, processes_for

_FILES = ("prepared.json", *ROW_FILES, "train.npy", "validation.npy")


@dataclass(frozen=True, slots=True)
class Head:
    """The first block of a stream, all that is prepared before a training; the block behind it begins at `next`.

    `share` is about its share of all rows. `account` is of its rows, and of those to validate on.
    """

    files: tuple[SourceFile, ...]
    next: BlockStart
    share: float
    account: Account


@dataclass(frozen=True, slots=True)
class PreparedDataset:
    """What a run trains on, memory-mapped.

    `fingerprint` digests all tokens, labels, weights and the split; `first_learned` is what the first row learns.
    `folder` is where the rows lie, None for rows from Python, which are kept for this process alone.
    Of a stream the rows are its first block, its `head`; the fingerprint then digests these, and its files' ends.
    """

    train: StoredRows
    validation: StoredRows
    report: Report
    template: Template
    fingerprint: str
    first_learned: tuple[str, ...]
    folder: Path | None
    head: Head | None = None
    keeper: Any = None

    @property
    def formats(self) -> Mapping[str, int]:
        """The kept rows by format."""
        formats: Mapping[str, int] = self.report.stats["formats"]
        return formats

    def of_all(self, count: int) -> int:
        """A count of the rows to train on, as it is of all of them: more, where these are a stream's first block."""
        return count if self.head is None else round(count / self.head.share)


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
    preparation = Preparation(config, template, max_length, formatting, listener)
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


class Preparation:
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
        if self.config.data.streaming and (source is not None or self.formatting):
            raise ConfigError(
                "data.streaming reads files, and rows from Python or through a function are no files",
                hint="set data.streaming to false, or write the rows to a .jsonl file",
            )
        training = training_files(self.config.data, self.listener) if source is None else []
        validation = validation_files(self.config.data, self.listener)
        if source is not None or self.formatting:
            return self._run_apart(training if source is None else [source], validation)
        key = prepared_key(
            self.config,
            training=training,
            validation=validation,
            template=self.template,
            max_length=self.max_length,
        )
        folder = cached(
            cache_directory() / "prepared",
            key,
            lambda staged: self.write(staged, training, validation),
            is_whole=lambda folder: all((folder / name).is_file() for name in _FILES),
            on_wait=lambda: self.listener.say("another process is preparing these rows: waiting for it"),
        )
        return _opened(folder, self.template, training, folder=folder)

    def _run_apart(self, inputs: Sequence[SourceFile | Rows], validation: Sequence[SourceFile]) -> PreparedDataset:
        keeper = tempfile.TemporaryDirectory(prefix="truetune-")
        self.write(Path(keeper.name), inputs, validation)
        return _opened(Path(keeper.name), self.template, folder=None, keeper=keeper)

    def write(self, folder: Path, inputs: Sequence[SourceFile | Rows], validation: Sequence[SourceFile]) -> None:
        block = self._first_block(inputs) if self.config.data.streaming else None
        content, pairs = self._write_all(folder, inputs, validation, block)
        stored = StoredRows.open(folder)
        split = self._split(stored, inputs, pairs, has_validation=bool(validation))
        np.save(folder / "train.npy", split.train)
        np.save(folder / "validation.npy", split.held_out)
        for places in (split.train, split.held_out):
            content.update(places.tobytes())
        head = None if block is None else self._head(block, inputs, content)
        document = {
            "report": self._report(stored, split).as_json(),
            "fingerprint": content.hexdigest(),
            "first_learned": self.account.first_learned,
            "head": head,
        }
        write_json(folder / "prepared.json", document)

    def _first_block(self, files: Sequence[Any]) -> Block:
        return BlockReader(files, size=self.config.data.shuffle_buffer_size).read()

    def _head(self, block: Block, files: Sequence[Any], content: Any) -> dict[str, Any]:
        """What a stream goes on from; its rows and its files are what its fingerprint is of."""
        for known in (self.config.data.shuffle_buffer_size, *map(ends_digest, files)):
            content.update(f"{known} ".encode())
        return {
            "next": asdict(block.next),
            "share": about_share(files, block),
            "account": self.account.as_json(),
        }

    def _write_all(
        self,
        folder: Path,
        inputs: Sequence[SourceFile | Rows],
        validation: Sequence[SourceFile],
        block: Block | None,
    ) -> tuple[Any, Pairs]:
        """Writes the rows of all inputs, or of the block alone; and those to validate on."""
        behind: list[SourceFile | Rows] = [*([[]] * len(inputs) if block else inputs), *validation]

        def read() -> Iterator[Chunk]:
            return chain(in_chunks(block.rows) if block else (), chunks(behind, self.formatting))

        processes = 1 if self.formatting else processes_for([*inputs, *validation], self.config.data.num_proc)
        work = partial(self._batch, is_linked=self._links_near_rows())
        with closing(NearIndex()) as near:
            content = self._write_rows(folder, work, read, account=self.account, near=near, processes=processes)
            return content, near.pairs()

    def write_block(self, folder: Path, block: Block, *, processes: int) -> tuple[Account, str]:
        """Writes a block of a stream; returns what became of its rows, and a digest of what was written."""
        account, work = Account(), partial(self._batch, is_linked=False)
        content = self._write_rows(
            folder, work, lambda: in_chunks(block.rows), account=account, near=None, processes=processes
        )
        return account, content.hexdigest()

    def _write_rows(
        self,
        folder: Path,
        work: Callable[[Chunk], tuple[Any, Account, Shingles | None]],
        read: Callable[[], Iterator[Chunk]],
        *,
        account: Account,
        near: NearIndex | None,
        processes: int,
    ) -> Any:
        content, stage = hashlib.sha256(), "preparing rows"
        with closing(RowWriter(folder)) as writer:
            for batch, of_chunk, sketch in over_chunks(work, read, processes=processes):
                account.add(of_chunk)
                content.update(writer.write(batch))
                if sketch and near is not None:
                    near.add(sketch)
                self.listener.progress(stage, account.rows_read, None)
        self.listener.progress(stage, account.rows_read, account.rows_read)
        return content

    def _batch(self, chunk: Chunk, *, is_linked: bool) -> tuple[Any, Account, Shingles | None]:
        rows, account = self._path.take(chunk)
        sketch = near_sketched([parts_of(row.example) for row in rows]) if rows and is_linked else None
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
        data = self.config.data
        wants_none = self.config.evaluation.eval_strategy == "no" and data.test_size is None
        return 0 if wants_none or data.streaming else data.test_size

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


def _opened(path: Path, template: Template, files: Sequence[SourceFile] = (), **options: Any) -> PreparedDataset:
    document = json.loads((path / "prepared.json").read_text(encoding="utf-8"))
    rows, head = StoredRows.open(path), document["head"]
    return PreparedDataset(
        train=rows.select(np.load(path / "train.npy")),
        validation=rows.select(np.load(path / "validation.npy")),
        report=Report.from_json(document["report"]),
        template=template,
        fingerprint=document["fingerprint"],
        first_learned=tuple(document["first_learned"]),
        head=head and _head_of(head, files),
        **options,
    )


def _head_of(document: Mapping[str, Any], files: Sequence[SourceFile]) -> Head:
    start, account = BlockStart.from_json(document["next"]), Account.from_json(document["account"])
    return Head(tuple(files), start, document["share"], account)
