"""Accelerators that a run may be planned for without having one here: read from devices.toml, and found by name."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any, Literal

from truetune.errors import ConfigError

_GIB = 2**30
_MIB = 2**20
_FIRST_WITH_BF16 = 8.0
"""NVIDIA's compute capability from which on bf16 is multiplied by the hardware: Ampere's."""

_NOISE = {"nvidia", "geforce", "tesla", "amd", "instinct", "generation", "gpu", "hbm2", "hbm2e", "hbm3", "hbm3e"}
"""Words that drivers and shops put into a name, and that tell no two cards of the table apart."""

_COUNT_FIRST = re.compile(r"(\d{1,3})\s*[x*]\s*(.+)|(\d{1,3})\s+(\S.*)")
_COUNT_LAST = re.compile(r"(.+?)(?:\s*[:*]\s*|\s+x\s*|(?<=\d)x)(\d{1,3})")


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, as its maker describes it.

    `memory_gb` is as sold, and means 2^30 bytes each; `visible_mib` is what the driver shows as total, None where it
    was not seen. `bf16`, `fp16` and `fp32` are TFLOPS: dense, accumulated in fp32, without TF32; None where no source
    gives one. `bandwidth` is the memory's, in 10^9 bytes a second. `sources` say where the figures were `read`.
    """

    name: str
    aliases: tuple[str, ...]
    vendor: Literal["nvidia", "amd"]
    memory_gb: int
    visible_mib: int | None
    bf16: float | None
    fp16: float | None
    fp32: float | None
    bandwidth: float | None
    capability: str
    note: str
    sources: tuple[str, ...]
    read: str

    @property
    def memory_bytes(self) -> int:
        """What the card has."""
        return self.memory_gb * _GIB

    @property
    def visible_bytes(self) -> int:
        """What programs find of it: less than the card has where ECC or the driver keeps some and that was seen."""
        return self.memory_bytes if self.visible_mib is None else self.visible_mib * _MIB

    @property
    def has_native_bf16(self) -> bool:
        """True if the hardware multiplies bf16: NVIDIA's from Ampere on, all of AMD's in the table."""
        return self.vendor == "amd" or float(self.capability) >= _FIRST_WITH_BF16

    @property
    def bandwidth_bytes(self) -> float | None:
        """Bytes a second between the memory and the chip."""
        return None if self.bandwidth is None else self.bandwidth * 1e9

    def flops(self, precision: Literal["fp32", "bf16", "fp16"]) -> float | None:
        """Operations a second at most, of dense matrices; None where no source gives them."""
        tflops = {"fp32": self.fp32, "bf16": self.bf16, "fp16": self.fp16}[precision]
        return None if tflops is None else tflops * 1e12


@cache
def devices() -> tuple[Device, ...]:
    """All accelerators known, in the table's order."""
    text = resources.files("truetune.planning").joinpath("devices.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    return tuple(_device(each, tables["sources"], str(tables["read"])) for each in tables["device"])


def find_device(text: str) -> tuple[Device, int]:
    """The accelerator that a text means, and how many: `RTX 4090`, `h100:8`, `2x A100 80GB`, `Tesla V100-SXM2-16GB`.

    ConfigError if it means none or several, with the names that come near.
    """
    name, count = _split(text.strip().lower().replace("×", "x"))
    if count < 1:
        raise ConfigError(f"--device {text}: the count must be at least 1", hint="such as h100:8 or 2x a100-80gb")
    asked = _words(name)
    found = _called(asked) or _fitting(asked)
    match found:
        case [device]:
            return device, count
        case []:
            raise ConfigError(f"--device {text}: this accelerator is not known", hint=_hint(name))
        case _:
            names = ", ".join(device.name for device in found)
            raise ConfigError(f"--device {text}: it may be one of {names}", hint="name one of these in full")


def _split(text: str) -> tuple[str, int]:
    """The name and the count, 1 where none is given: 8xh100, 8 x H100, 8 h100, h100:8, h100 x 8."""
    if first := _COUNT_FIRST.fullmatch(text):
        count, name, other_count, other_name = first.groups()
        return name or other_name, int(count or other_count)
    if last := _COUNT_LAST.fullmatch(text):
        return last[1], int(last[2])
    return text, 1


def _words(name: str) -> frozenset[str]:
    """A name's words, as all spellings share them: NVIDIA A100-SXM4-80GB is {a100, sxm, 80gb}."""
    text = re.sub(r"(\d+)\s*(?:gib|gb|g)\b", r" \1gb ", name.lower())
    text = re.sub(r"(?<=rtx)(?=a?\d)|(?<=\d)(?=ti\b|super\b|sxm|pcie|nvl|ada\b)", " ", text)
    text = re.sub(r"sxm\d", "sxm", text)
    return frozenset(re.findall(r"[a-z0-9]+", text)) - _NOISE


def _called(asked: frozenset[str]) -> list[Device]:
    """The devices with exactly that name or alias, with or without their memory: 80 GB, 80."""
    return [device for device in devices() if any(asked in _spellings(device, each) for each in _names(device))]


def _spellings(device: Device, name: str) -> tuple[frozenset[str], ...]:
    words, memory = _words(name), f"{device.memory_gb}gb"
    return words, words | {memory}, words - {memory} | {str(device.memory_gb)}


def _fitting(asked: frozenset[str]) -> list[Device]:
    """The devices in whose full name all words stand; none for words that name no model."""
    if not any(re.search(r"\d", word) and not word.endswith("gb") for word in asked):
        return []
    return [device for device in devices() if all(_has(device, word) for word in asked)]


def _has(device: Device, word: str) -> bool:
    full = _words(device.name) | {f"{device.memory_gb}gb"}
    return word in full or f"{word}gb" in full


def _names(device: Device) -> tuple[str, ...]:
    return device.name, *device.aliases


def _hint(name: str) -> str:
    """What comes near to a name that is not known, and all names there are."""
    keys = {re.sub(r"[^a-z0-9]", "", each.lower()): device.name for device in devices() for each in _names(device)}
    asked = "".join(re.findall(r"[a-z0-9]+", " ".join(_in_order(name))))
    near = dict.fromkeys(keys[key] for key in get_close_matches(asked, keys, n=4, cutoff=0.6))
    known = "known are " + ", ".join(device.name for device in devices())
    return f"did you mean {' or '.join(near)}? {known}" if near else known


def _in_order(name: str) -> Iterator[str]:
    return (word for word in re.findall(r"[a-z0-9]+", name) if word not in _NOISE)


def _device(table: Mapping[str, Any], sources: Mapping[str, str], read: str) -> Device:
    return Device(
        name=table["name"],
        aliases=tuple(table.get("aliases", ())),
        vendor=table["vendor"],
        memory_gb=table["memory_gb"],
        visible_mib=table.get("visible_mib"),
        bf16=table.get("bf16"),
        fp16=table.get("fp16"),
        fp32=table.get("fp32"),
        bandwidth=table.get("bandwidth"),
        capability=table["capability"],
        note=table.get("note", ""),
        sources=tuple(sources[key] for key in table["sources"]),
        read=read,
    )
