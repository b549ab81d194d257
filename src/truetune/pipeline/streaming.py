"""Rows that are prepared while they are trained on: a block at a time, and the next one while this one is used.

The disk holds two blocks beside the first one, which is prepared as any rows are, and kept. A position in the stream
is where a block begins and how many sequences of it were taken; from there a run goes on with the same rows.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from truetune.config.schema import Config
from truetune.data.blocks import BEGINNING, BlockStart, share_before
from truetune.data.examples import Packed, Tokenized
from truetune.data.packing import pack
from truetune.data.rules import Report
from truetune.errors import CheckpointError
from truetune.files import write_json
from truetune.listener import Listener
from truetune.pipeline.machine import Machine
from truetune.pipeline.plan import RunPlan
from truetune.pipeline.prepare import PreparedDataset
from truetune.pipeline.stages import Account
from truetune.pipeline.stream_blocks import Blocks, Prepared, open_blocks
from truetune.runs.directory import RunDirectory
from truetune.training.world import World

_LISTED = 10
"""Findings of a rule that the stream's report, and each checkpoint with it, lists."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run is in its stream: `first` of its sequences lie before the block that begins at `start`.

    `account` is what became of the rows before it.
    """

    start: BlockStart = BEGINNING
    first: int = 0
    account: Account = field(default_factory=Account)

    def as_json(self) -> dict[str, Any]:
        return {"start": asdict(self.start), "first": self.first, "account": self.account.as_json()}

    @classmethod
    def of_checkpoint(cls, checkpoint: Path | None) -> "Position":
        """The position that a checkpoint keeps; the beginning without one. CheckpointError if it has none."""
        if checkpoint is None:
            return cls()
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        kept = state["stateful_callbacks"].get("StreamPosition")
        if kept is None:
            raise CheckpointError(
                f"{checkpoint} is of a run whose rows were no stream", hint="set data.streaming to false to go on"
            )
        document = kept["attributes"]
        account = Account.from_json(document["account"])
        return cls(BlockStart.from_json(document["start"]), document["first"], account)


@dataclass(frozen=True, slots=True)
class _Passed:
    """A block that sequences were taken from, up to before `end`; the one behind it begins at `next`.

    `before` and `behind` are the passes, and the share of one, that lie before it and behind it.
    """

    position: Position
    end: int
    next: BlockStart
    before: float
    behind: float


class StreamedRows(Sequence[Tokenized | Packed]):
    """All sequences of a run, which are asked for in order, each block's in an order of its own.

    The order hangs on the seed, the pass and the block. A pass that ends goes over into the next one, within a batch
    too: every row comes once a pass.
    """

    def __init__(
        self, blocks: Blocks, plan: RunPlan, prepared: PreparedDataset, position: Position, listener: Listener
    ) -> None:
        assert prepared.head is not None
        self._blocks = blocks
        self._head = prepared.head
        self._report = prepared.report
        self._listener = listener
        self._seed = plan.config.training.seed
        self._packs = prepared.report.stats["max_length"] if plan.is_packed else None
        self._a_step = plan.steps.effective_batch_size
        self._count = self._a_step * plan.steps.total_steps
        self._begin = position
        self._passed: list[_Passed] = []
        self._first = self._end = position.first
        self._sequences: Sequence[Tokenized | Packed] = ()
        self._order: Any = ()
        self._account = _copied(position.account)
        self._told = {*prepared.report.rejected, *position.account.tally.rejected}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Tokenized | Packed: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Tokenized | Packed]: ...
    def __getitem__(self, place: int | slice) -> Tokenized | Packed | Sequence[Tokenized | Packed]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if not self._first <= place < self._count:
            raise IndexError(f"sequence {place} of a stream that is read forwards, and is at {self._first}")
        while place >= self._end:
            self._advance()
        return self._sequences[int(self._order[place - self._first])]

    def _advance(self) -> None:
        before, block = Position(self._next, self._end, _copied(self._account)), self._blocks.take()
        sequences = pack(block.rows, max_length=self._packs) if self._packs else block.rows
        self._sequences = sequences
        numbers = (self._seed, block.start.epoch, block.start.number)
        self._order = np.random.default_rng(numbers).permutation(len(sequences))
        self._first, self._end = self._end, self._end + len(sequences)
        self._tell(block)
        self._account.add(block.account)
        self._account.tally.problems = _few(self._account)
        self._passed.append(_Passed(before, self._end, block.next, *self._shares(block)))

    def _tell(self, block: Prepared) -> None:
        """What falls out for the first time in a pass, with its line."""
        tally = block.account.tally
        for rule in tally.rejected.keys() - self._told:
            first = next(problem for problem in tally.problems if problem.rule == rule)
            count = f"{tally.rejected[rule]} of {block.account.rows_read} rows"
            self._listener.warn(
                f"block {block.start.number + 1} of the stream: {count} left out: {rule}; first: {first}"
            )
            self._told.add(rule)

    def _shares(self, block: Prepared) -> tuple[float, float]:
        before = block.start.epoch + share_before(self._head.files, block.start.place)
        if block.next.epoch > block.start.epoch:
            return before, float(block.start.epoch + 1)
        return before, block.next.epoch + share_before(self._head.files, block.next.place)

    @property
    def _next(self) -> BlockStart:
        return self._passed[-1].next if self._passed else self._begin.start

    # --- where the run is -----------------------------------------------------------------------------------

    def position_at(self, step: int) -> dict[str, Any]:
        """The position behind that step, as JSON carries it; what lies before is forgotten."""
        done = self._forget(step)
        if not self._passed:
            return self._begin.as_json()
        oldest = self._passed[0]
        if done < oldest.end:
            return oldest.position.as_json()
        return Position(oldest.next, oldest.end, self._account).as_json()

    def epoch_at(self, step: int) -> float:
        """How often, and how far, the rows were read by then: by the files' bytes."""
        done = self._forget(step)
        if not self._passed:
            return 0.0
        oldest = self._passed[0]
        share = (done - oldest.position.first) / (oldest.end - oldest.position.first)
        return oldest.before + share * (oldest.behind - oldest.before)

    def _forget(self, step: int) -> int:
        """The sequences that were learned by then; blocks that end with them are forgotten, but for the last."""
        done = step * self._a_step
        while len(self._passed) > 1 and self._passed[0].end <= done:
            del self._passed[0]
        return done

    def is_broken_behind(self, step: int) -> bool:
        """True if the next block failed, and the step behind that one may already need it."""
        return self._blocks.has_failed and self._end - step * self._a_step < 2 * self._a_step

    def watchers(self) -> list[Any]:
        """What Trainer has to call back, for checkpoints to keep the position."""
        from truetune.training.stream_position import StreamPosition

        return [StreamPosition(self)]

    # --- what became of the rows ----------------------------------------------------------------------------

    def report(self) -> Report:
        """What became of the rows that were read in the first pass; findings of all rows are of the first block."""
        account, first = self._account, self._report
        read = account.report(
            **{
                **first.stats,
                "formats": dict(account.formats),
                "read_from": dict(account.forms.most_common()),
                "train_rows": account.rows_kept - first.stats["validation_rows"],
                "tokens": account.tokens,
                "supervised_tokens": account.supervised_tokens,
                "longest_row_tokens": account.longest,
            }
        )
        told = {problem.rule for problem in read.problems}
        others = tuple(problem for problem in first.problems if problem.rule not in told)
        return Report(
            read.rows_read, read.rows_kept, (*read.problems, *others), read.rejected, read.stats, read.found
        )

    def conclude(self, directory: RunDirectory) -> None:
        """Tells what became of the rows, and keeps it in the run's directory."""
        report = self.report()
        write_json(directory.data_report, report.as_json())
        counts = {"rows_read": report.rows_read, "rows_kept": report.rows_kept}
        directory.update_record(data={**directory.read_record()["data"], **counts})
        for rule, count in report.rejected.items():
            self._listener.warn(f"{count} of {report.rows_read} rows left out: {rule}; first: {report.first(rule)}")
        self._listener.say(
            f"of the stream {report.rows_kept:,} of {report.rows_read:,} rows of the first pass were kept"
        )
        if self._blocks.waited > 1:
            self._listener.say(
                f"the training waited {self._blocks.waited:.0f} s for rows; a higher data.num_proc prepares faster"
            )


StreamOf = Callable[[RunPlan, Listener], StreamedRows]


@contextmanager
def streamed(
    config: Config,
    prepared: PreparedDataset,
    *,
    machine: Machine,
    checkpoint: Path | None,
    run: Path,
    world: World,
) -> Iterator[StreamOf | None]:
    """Makes the sequences of a run's plan, from where the checkpoint left them; None where the rows are no stream."""
    if (head := prepared.head) is None:
        yield None
        return
    position = Position.of_checkpoint(checkpoint)
    with open_blocks(config, prepared, head, machine=machine, start=position.start, run=run, world=world) as blocks:
        yield lambda plan, listener: StreamedRows(blocks, plan, prepared, position, listener)


def _copied(account: Account) -> Account:
    copy = Account()
    copy.add(account)
    return copy


def _few(account: Account) -> list[Any]:
    """The first findings of each rule."""
    seen: dict[str, int] = {}
    few = []
    for problem in account.tally.problems:
        seen[problem.rule] = seen.get(problem.rule, 0) + 1
        if seen[problem.rule] <= _LISTED:
            few.append(problem)
    return few
