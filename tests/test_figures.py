"""Figures as people read them: three digits, the unit that fits, and no figure that its own rounding makes odd."""

import doctest

import pytest

from truetune import figures
from truetune.figures import byte_size, duration, short_count


def test_the_examples_in_its_docstrings_are_true() -> None:
    found = doctest.testmod(figures)
    assert (found.failed, found.attempted >= 4) == (0, True)


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.00 kB"),
        (999_400, "999 kB"),
        (999_600, "1.00 MB"),
        (9_996_000_000, "10.0 GB"),
        (12_345_678_901, "12.3 GB"),
        (1_234_567_890_123, "1,235 GB"),
        (-2_500_000, "-2.50 MB"),
    ],
)
def test_a_size_has_three_digits_in_the_unit_that_fits(size: int, told: str) -> None:
    assert byte_size(size) == told


def test_an_estimate_has_two_digits_and_loses_none_before_the_point() -> None:
    told = [byte_size(size, digits=2) for size in (617_000_000, 3_104_000_000, 22_400_000_000, 123_456_000_000)]
    assert told == ["617 MB", "3.1 GB", "22 GB", "123 GB"]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "less than a second"),
        (1.04, "1.0 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3_599.4, "59 min 59 s"),
        (3_599.6, "1 h 00 min"),
        (7_199, "2 h 00 min"),
        (86_399, "1 d 00 h"),
        (10_000_000, "115 d 17 h"),
    ],
)
def test_a_duration_never_rounds_to_sixty_of_a_unit(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_a_count_is_whole_below_a_million() -> None:
    assert [short_count(number) for number in (0, 999_499, 1_000_000, 999_600_000)] == [
        "0",
        "999,499",
        "1.00M",
        "1.00B",
    ]
