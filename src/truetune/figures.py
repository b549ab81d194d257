"""Figures as people read them: sizes, spells of time, counts, and numbers of any kind."""

from collections.abc import Sequence

_SIZES = ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"))
_COUNTS = ((1e9, "B"), (1e6, "M"))


def byte_size(number: float, *, digits: int = 3) -> str:
    """Bytes in decimal units, to three digits. Two are enough for an estimate.

    >>> byte_size(3_104_000_000), byte_size(3_104_000_000, digits=2), byte_size(999_700), byte_size(48)
    ('3.10 GB', '3.1 GB', '1.00 MB', '48 bytes')
    """
    return _in_units(number, _SIZES, digits) or f"{number:,.0f} bytes"


def short_count(number: float) -> str:
    """A count to three digits from a million on, where the last ones are noise; below, all of it.

    >>> short_count(134_515_008), short_count(23_456)
    ('135M', '23,456')
    """
    return _in_units(number, _COUNTS, 3) or f"{number:,.0f}"


def duration(seconds: float) -> str:
    """A spell of time, in its two largest units.

    >>> duration(0.4), duration(7.52), duration(130), duration(7_260), duration(180_000)
    ('less than a second', '7.5 s', '2 min 10 s', '2 h 01 min', '2 d 02 h')
    """
    if seconds < 1:
        return "less than a second"
    if (whole := round(seconds)) < 60:
        return f"{whole} s" if whole >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(whole / 60), 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24:,} d {hours % 24:02} h"


def figure(value: float) -> str:
    """A number to four digits; from 10,000 on, all of its digits before the point.

    >>> figure(0.000_02), figure(1_234_567.8), figure(2.345_67)
    ('2e-05', '1,234,568', '2.346')
    """
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _in_units(value: float, units: Sequence[tuple[float, str]], digits: int) -> str | None:
    """The value in the largest unit of which it has one, once it is rounded; None where it has one of none."""
    for unit, name in units:
        in_unit = value / unit
        rounded = abs(float(f"{in_unit:.{digits - 1}e}"))
        if rounded >= 1:
            return f"{in_unit:,.{max(0, digits - len(str(int(rounded))))}f}{name}"
    return None
