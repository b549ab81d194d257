"""Accelerators of the table: each with sources, each found under the names that people and drivers use."""

import tomllib
from collections import Counter
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path

import pytest

from truetune.errors import ConfigError
from truetune.planning.devices import devices, find_device


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("RTX 4090", "RTX 4090", 1),
        ("rtx4090", "RTX 4090", 1),
        ("4090", "RTX 4090", 1),
        ("4090x2", "RTX 4090", 2),
        ("2 3090", "RTX 3090", 2),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 1),
        ("h100:8", "H100 SXM 80GB", 8),
        ("8xh100", "H100 SXM 80GB", 8),
        ("8 × H100", "H100 SXM 80GB", 8),
        ("H100 x 8", "H100 SXM 80GB", 8),
        ("NVIDIA H100 80GB HBM3", "H100 SXM 80GB", 1),
        ("NVIDIA H100 PCIe", "H100 PCIe 80GB", 1),
        ("h100-nvl", "H100 NVL 94GB", 1),
        ("2x A100 80GB", "A100 SXM 80GB", 2),
        ("a100-80gb", "A100 SXM 80GB", 1),
        ("A100 80 GiB", "A100 SXM 80GB", 1),
        ("A100-80", "A100 SXM 80GB", 1),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB", 1),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB", 1),
        ("Tesla T4", "T4", 1),
        ("Tesla V100-SXM2-16GB", "V100 SXM 16GB", 1),
        ("L40", "L40", 1),
        ("l40s", "L40S", 1),
        ("NVIDIA A10", "A10", 1),
        ("A10G", "A10G", 1),
        ("a6000", "RTX A6000", 1),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", 1),
        ("4060ti 16gb", "RTX 4060 Ti 16GB", 1),
        ("mi300x:8", "MI300X", 8),
        ("8xMI300X", "MI300X", 8),
        ("AMD Instinct MI300X", "MI300X", 1),
    ],
)
def test_a_device_is_found_under_the_names_people_and_drivers_use(text: str, name: str, count: int) -> None:
    device, found = find_device(text)
    assert (device.name, found) == (name, count)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a100", ["A100 SXM 40GB", "A100 PCIe 80GB"]),
        ("V100:4", ["V100 SXM 16GB", "V100 SXM 32GB"]),
        ("RTX 4060 Ti", ["RTX 4060 Ti 8GB", "RTX 4060 Ti 16GB"]),
    ],
)
def test_a_name_that_several_cards_share_is_refused_with_their_names(text: str, names: list[str]) -> None:
    with pytest.raises(ConfigError, match="it may be one of") as caught:
        find_device(text)
    assert all(name in caught.value.message for name in names)


@pytest.mark.parametrize("text", ["RTX 4900", "RTX 4090 48GB", "RTX 3090 Ti", "h1000", "4080 super"])
def test_a_card_that_is_not_in_the_table_is_never_taken_for_its_neighbour(text: str) -> None:
    with pytest.raises(ConfigError, match="is not known") as caught:
        find_device(text)
    assert "known are T4, V100 SXM 16GB" in (caught.value.hint or "")


def test_a_mistyped_name_is_told_what_comes_near() -> None:
    with pytest.raises(ConfigError) as caught:
        find_device("RTX 4900:2")
    assert (caught.value.hint or "").startswith("did you mean RTX 4090")


@pytest.mark.parametrize("text", ["", "x", "ada", "24gb", "sxm", "tpu v5", "h100:8:2"])
def test_words_that_name_no_model_are_not_known(text: str) -> None:
    with pytest.raises(ConfigError, match="is not known"):
        find_device(text)


def test_no_device_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        find_device("h100:0")


def test_every_device_is_found_by_its_own_name_and_aliases() -> None:
    for device in devices():
        for name in (device.name, *device.aliases, device.name.lower().replace(" ", "-")):
            assert find_device(f"{name}:3") == (device, 3), name
    assert max(Counter(name for each in devices() for name in (each.name, *each.aliases)).values()) == 1


def test_every_device_has_a_source_and_every_source_a_device() -> None:
    named = {source for device in devices() for source in device.sources}
    assert all(device.sources and device.read == "2026-11-29" for device in devices())
    text = resources.files("truetune.planning").joinpath("devices.toml").read_text(encoding="utf-8")
    assert named == set(tomllib.loads(text)["sources"].values())


def test_rates_are_dense_and_equal_in_both_half_precisions() -> None:
    assert find_device("h100")[0].flops("bf16") == 989e12
    assert find_device("l4")[0].flops("bf16") == 121e12
    assert find_device("4090")[0].flops("fp16") == 165.2e12
    assert find_device("4090")[0].bandwidth_bytes == 1008e9
    assert all(each.bf16 == each.fp16 for each in devices() if each.bf16 and each.fp16)


def test_bf16_is_native_from_ampere_on_and_has_no_rate_before() -> None:
    before = {device.name for device in devices() if not device.has_native_bf16}
    assert before == {"T4", "V100 SXM 16GB", "V100 SXM 32GB", "V100 PCIe 16GB", "V100 PCIe 32GB"}
    assert all(device.flops("bf16") is None for device in devices() if not device.has_native_bf16)
    assert find_device("MI300X")[0].has_native_bf16


def test_memory_is_counted_in_powers_of_two_and_the_visible_part_is_never_more() -> None:
    card = find_device("T4")[0]
    assert (card.memory_bytes, card.visible_bytes) == (16 * 2**30, 15 * 2**30)
    assert all(0.93 <= each.visible_bytes / each.memory_bytes <= 1 for each in devices())


def test_the_table_is_part_of_the_package() -> None:
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["truetune"]
    assert any(fnmatch("planning/devices.toml", pattern) for pattern in patterns)
