"""A stream's blocks on the disk: prepared one after the other, taken by all processes of a run, and removed again."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from truetune import launched
from truetune.config.schema import Config
from truetune.data.blocks import BEGINNING, BlockReader, BlockStart
from truetune.data.cache import digest
from truetune.data.store import StoredRows
from truetune.errors import DataError
from truetune.files import write_json
from truetune.listener import Unheard
from truetune.model.source import cache_directory
from truetune.pipeline.ahead import Ahead, ahead_of
from truetune.pipeline.check import require_embeddings
from truetune.pipeline.machine import Machine
from truetune.pipeline.prepare import Head, Preparation, PreparedDataset
from truetune.pipeline.stages import Account
from truetune.training.world import World

_MADE = "block.json"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared block: its rows, where it began and the next one begins, what became of its rows.

    `account` counts the rows of the first pass; those of later ones are the same again.
    """

    rows: StoredRows
    start: BlockStart
    next: BlockStart
    account: Account
    fingerprint: str

    @classmethod
    def open(cls, folder: Path) -> "Prepared":
        """The block in a folder, memory-mapped."""
        document = json.loads((folder / _MADE).read_text(encoding="utf-8"))
        start, behind = (BlockStart.from_json(document[name]) for name in ("start", "next"))
        account = Account.from_json(document["account"])
        return cls(StoredRows.open(folder), start, behind, account, document["fingerprint"])

    @classmethod
    def first_of(cls, prepared: PreparedDataset, head: Head) -> "Prepared":
        """The stream's first block, as it was prepared for the plan."""
        return cls(prepared.train, BEGINNING, head.next, head.account, prepared.fingerprint)


class BlockMaker:
    """Prepares a stream's blocks one after the other, each into a folder of its own."""

    def __init__(self, preparation: Preparation, reader: BlockReader, folder: Path, *, processes: int) -> None:
        self._preparation = preparation
        self._reader = reader
        self._folder = folder
        self._processes = processes

    def make(self, number: int) -> None:
        """The next block with rows that can be used. DataError if a whole pass has none, or a row cannot be read."""
        folder, account = self._folder / str(number), Account()
        passes_begun = 0
        while True:
            block = self._reader.read()
            folder.mkdir(parents=True)
            of_block, fingerprint = self._preparation.write_block(folder, block, processes=self._processes)
            if block.start.epoch == 0:
                account.add(of_block)
            if of_block.rows_kept:
                document = {"start": asdict(block.start), "next": asdict(block.next), "account": account.as_json()}
                write_json(folder / _MADE, {**document, "fingerprint": fingerprint})
                return
            shutil.rmtree(folder)
            passes_begun += not block.start.number
            if passes_begun > 1:
                raise DataError("no row of a whole pass can be used", hint="truetune check tells what is wrong")


class Blocks:
    """The blocks of a stream from a place on. All processes of a run take them alike; one a machine prepares."""

    def __init__(
        self,
        folder: Path,
        *,
        world: World,
        ahead: Ahead | None,
        first: Prepared | None,
        require: Callable[[StoredRows], None],
    ) -> None:
        self._folder = folder
        self._world = world
        self._ahead = ahead
        self._first = first
        self._require = require
        self._taken = 0
        self.waited = 0.0

    def take(self) -> Prepared:
        """The next block, waited for if it is not there yet; the folder of the one before it goes."""
        if (first := self._first) is not None:
            self._first = None
            return first
        number, self._taken = self._taken, self._taken + 1
        with self._world.first_on_each_machine(f"block/{number}"):
            self._wait()
        block = Prepared.open(self._folder / str(number))
        self._require(block.rows)
        self._world.require_same({f"block {number}": block.fingerprint})
        self._world.meet()  # All have it open, and none reads the one before it any more.
        if self._ahead:
            shutil.rmtree(self._folder / str(number - 1), ignore_errors=True)
            self._ahead.begin(self._taken)
        return block

    def _wait(self) -> None:
        if self._ahead:
            started = time.monotonic()
            self._ahead.result()
            self.waited += time.monotonic() - started

    @property
    def has_failed(self) -> bool:
        """True if the next block is known to be missing."""
        return self._first is None and self._ahead is not None and self._ahead.has_failed


@contextmanager
def open_blocks(
    config: Config,
    prepared: PreparedDataset,
    head: Head,
    *,
    machine: Machine,
    start: BlockStart,
    run: Path,
    world: World,
) -> Iterator[Blocks]:
    """The blocks from `start` on. What is left of them on the disk goes at the end."""
    first = Prepared.first_of(prepared, head) if start == BEGINNING else None
    require = partial(require_embeddings, machine)
    # One run at a time trains in its directory: what lies here is its own, or a killed one's.
    folder = cache_directory() / "streams" / digest({"run": str(run.absolute()), "machine": launched.machine()})
    if not world.is_first_here:
        yield Blocks(folder, world=world, ahead=None, first=first, require=require)
        return
    shutil.rmtree(folder, ignore_errors=True)
    maker = _maker(config, prepared, head, start=head.next if first else start, folder=folder)
    try:
        with ahead_of(maker.make) as ahead:
            ahead.begin(0)
            yield Blocks(folder, world=world, ahead=ahead, first=first, require=require)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _maker(config: Config, prepared: PreparedDataset, head: Head, *, start: BlockStart, folder: Path) -> BlockMaker:
    data, max_length = config.data, prepared.report.stats["max_length"]
    preparation = Preparation(config, prepared.template, max_length, None, Unheard())
    reader = BlockReader(head.files, size=data.shuffle_buffer_size, start=start)
    # The training needs the cores, and one process prepares many times what it learns; a number asks for more.
    return BlockMaker(preparation, reader, folder, processes=1 if data.num_proc == "auto" else data.num_proc)
