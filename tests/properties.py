"""What property-based tests share: how many examples they take, JSON of any kind, and values changed in one place.

`HYPOTHESIS_PROFILE=thorough` takes a hundred times as many examples, and other ones each time. Otherwise they are the
same in every run: a change fails for what it did, and not by chance.
"""

import os
from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"

settings.register_profile(
    "quick", deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("thorough", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("thorough" if _THOROUGH else "quick")


def examples(count: int) -> settings:
    """So many examples of a property, or a hundred times as many."""
    return settings(max_examples=100 * count if _THOROUGH else count)


# --- JSON -------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=12)
"""Any text, half of a surrogate pair among it: JSON can spell it."""
WHOLE_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
"""Any text that has an encoding."""
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
ODD: list[Any] = [None, True, 0, -1, 0.5, 1e308, float("inf"), float("nan"), 10**30, "", "x", "\ud800", [], [[]], [7]]
ODD += [{}, {"a": 1}, [{}], "2026-11-29", "é" * 300]
"""Values that a field which should hold another kind of value may hold."""


def json_values(texts: st.SearchStrategy[str] = TEXTS, *, most: int = 6) -> st.SearchStrategy[Any]:
    """Any JSON value."""
    leaves = st.none() | st.booleans() | NUMBERS | texts
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=most,
    )


def places(value: Any) -> list[tuple[Any, ...]]:
    """The path of every value inside a value, itself first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *path) for key, each in inner for path in places(each))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with another one at the end of a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def spoiled(document: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """The document with one or two of its values replaced by odd ones."""

    def replace(draw: st.DrawFn) -> Any:
        spoilt: Any = dict(document)
        for _ in range(draw(st.integers(1, 2))):
            spoilt = changed(spoilt, draw(st.sampled_from(places(spoilt))), draw(st.sampled_from(ODD)))
        return spoilt

    return st.composite(replace)()
