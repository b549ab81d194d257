"""What would make a run fit: the cheapest changes to its settings, each with what it saves and what it costs."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from truetune.config.edit import with_settings
from truetune.config.schema import Config, with_values
from truetune.files import write_text
from truetune.pipeline.machine import Machine
from truetune.pipeline.workload import Longest, memory_of

_TO_SPARE = 1.1
"""How much more than its estimate a run that was made to fit may take."""

_SHORTEST = 64
"""Tokens of the shortest limit that is proposed."""


@dataclass(frozen=True, slots=True)
class Change:
    """Settings by dotted name, the bytes of the peak that they save, and the price."""

    settings: dict[str, Any]
    saves: int
    costs: str

    def as_json(self) -> dict[str, Any]:
        return {"settings": self.settings, "saves_bytes": self.saves, "costs": self.costs}


@dataclass(frozen=True, slots=True)
class _Setup:
    """A run while levers are pulled: its decided config, the machine, the longest row."""

    config: Config
    machine: Machine
    longest: Longest

    @property
    def peak(self) -> int:
        return memory_of(self.config, self.machine, self.longest).peak

    def fits(self) -> bool:
        return self.machine.free_memory is None or self.peak * _TO_SPARE <= self.machine.free_memory

    def pulled(self, settings: dict[str, Any], costs: str) -> "_Pulled":
        return _Pulled(replace(self, config=with_values(self.config, settings)), settings, costs)


@dataclass(frozen=True, slots=True)
class _Pulled:
    """A lever pulled: the run with it, its settings and its price."""

    setup: _Setup
    settings: dict[str, Any]
    costs: str


_Lever = Callable[[_Setup], _Pulled | None]
"""The run with the lever pulled as far as it must be to fit, or as far as it goes; None where it has none."""


def fitting_changes(
    config: Config, machine: Machine, longest: Longest, lengths: Sequence[int]
) -> tuple[Change, ...] | None:
    """The cheapest changes by which a run with this decided config fits; none if it does; None where nothing helps.

    `lengths` are the tokens of its rows. Levers are tried in the order of what they cost, alone and together, before
    a dearer one is.
    """
    setup = _Setup(config, machine, longest)
    if machine.free_memory is None or setup.peak <= machine.free_memory:
        return ()
    levers: list[_Lever] = [_checkpointing, _eight_bit_states, _four_bit_base]
    for chosen in _subsets(levers):
        for ending in ([], [_smaller_batch]):
            if (changes := _pulled(setup, [*chosen, *ending])) is not None:
                return changes
    return _with_shorter_rows(setup, [*levers, _smaller_batch], lengths)


def _subsets(levers: Sequence[_Lever]) -> Iterator[list[_Lever]]:
    """Every choice of levers; all of the cheaper ones come before any that needs a dearer one."""
    for mask in range(2 ** len(levers)):
        yield [lever for place, lever in enumerate(levers) if mask >> place & 1]


def _with_shorter_rows(setup: _Setup, levers: Sequence[_Lever], lengths: Sequence[int]) -> tuple[Change, ...] | None:
    """The changes that let rows be longest; without a lever that does nothing for it."""

    def by(some: Sequence[_Lever]) -> tuple[Change, ...] | None:
        return _pulled(setup, [*some, lambda each: _shorter_rows(each, lengths)])

    changes = by(levers)
    for lever in levers:
        fewer = [each for each in levers if each is not lever]
        if (without := by(fewer)) is not None and (changes is None or _limit(without) >= _limit(changes)):
            levers, changes = fewer, without
    return changes


def _limit(changes: Sequence[Change]) -> int:
    return int(settings_of(changes)["data.max_length"])


def _pulled(setup: _Setup, levers: Sequence[_Lever]) -> tuple[Change, ...] | None:
    """The changes by these levers; None where the run does not fit with them."""
    changes: list[Change] = []
    for lever in levers:
        before = setup.peak
        if (pulled := lever(setup)) is not None:
            setup = pulled.setup
            changes.append(Change(pulled.settings, before - setup.peak, pulled.costs))
    return tuple(changes) if setup.fits() else None


def _checkpointing(setup: _Setup) -> _Pulled | None:
    if setup.config.training.gradient_checkpointing is True:
        return None
    return setup.pulled({"training.gradient_checkpointing": True}, "a third more time")


def _eight_bit_states(setup: _Setup) -> _Pulled | None:
    if not setup.config.training.optim.startswith("adamw_torch"):
        return None
    costs = "AdamW's two numbers a weight are kept in 8 bits; needs bitsandbytes"
    return setup.pulled({"training.optim": "adamw_8bit"}, costs)


def _four_bit_base(setup: _Setup) -> _Pulled | None:
    machine, config = setup.machine, setup.config
    if config.adapter.method != "lora" or machine.quantization == "4bit" or machine.facts.quantization != "none":
        return None
    settings = {"model.load_in_4bit": True} | ({"model.load_in_8bit": False} if config.model.load_in_8bit else {})
    costs = "the base is rounded to 4 bits (QLoRA), and steps take longer; needs bitsandbytes"
    return replace(setup, machine=replace(machine, quantization="4bit")).pulled(settings, costs)


def _smaller_batch(setup: _Setup) -> _Pulled | None:
    """Fewer rows at a time with the same effective batch."""
    training = setup.config.training
    size, accumulation = int(training.per_device_train_batch_size), int(training.gradient_accumulation_steps)
    found = None
    for fewer in (each for each in range(size - 1, 0, -1) if size % each == 0):
        settings = {
            "training.per_device_train_batch_size": fewer,
            "training.gradient_accumulation_steps": accumulation * size // fewer,
        }
        found = setup.pulled(settings, "some speed on a GPU; the effective batch stays")
        if found.setup.fits():
            return found
    return found


def _shorter_rows(setup: _Setup, lengths: Sequence[int]) -> _Pulled | None:
    """The longest limit with which it fits; what the limit does to longer rows, `data.overlong` says."""
    longest, ordered = setup.longest, sorted(lengths)
    low, high = _SHORTEST, longest.row
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _limited(setup, middle, "").setup.fits() else (low, middle)
    if low >= longest.row:
        return None
    lost = len(ordered) - bisect_right(ordered, low)
    costs = f"{lost:,} of {len(ordered):,} rows are longer (data.overlong: {setup.config.data.overlong})"
    return _limited(setup, low, costs)


def _limited(setup: _Setup, length: int, costs: str) -> _Pulled:
    longest = setup.longest
    shorter = Longest(*(min(length, each) for each in (longest.row, longest.sequence, longest.validation)))
    return replace(setup, longest=shorter).pulled({"data.max_length": length}, costs)


def settings_of(changes: Sequence[Change]) -> dict[str, Any]:
    """All of their settings, by dotted name."""
    return {name: value for change in changes for name, value in change.settings.items()}


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes settings into a config file, in place of those it has for them under any name; comments stay."""
    write_text(path, with_settings(path, settings))
