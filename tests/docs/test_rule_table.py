"""The table of rules in docs/checking.md is the catalog."""

import re
from pathlib import Path

from truetune.lint.explain import index

PAGE = Path(__file__).parents[2] / "docs" / "checking.md"
ROW = re.compile(r"^\| (TT\d{3}) \| `([\w-]+)` \| (error|warning|note) \| (.+) \|$", re.MULTILINE)


def test_the_table_of_rules_is_the_catalog() -> None:
    assert ROW.findall(PAGE.read_text(encoding="utf-8")) == index()
