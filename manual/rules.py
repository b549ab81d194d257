"""The reference of the rules that data is held against: their pages, as `truetune check --explain` shows them."""

import re

from truetune.data.catalog import GROUPS, RULES, Rule
from truetune.lint.explain import page as page_of

HEAD = """# Rules of check

What `truetune check` holds data against, a page a rule: what it finds, why it hurts, rows that trip it and rows
that do not, and the remedy. `truetune check --explain TT205` shows the same; [checking data](../checking.md) says
how rules are chosen.
"""

TITLES = {
    "structure": "Structure",
    "text": "Text",
    "tokens": "Tokens, with a model",
    "set": "The set",
    "guidelines": "The guidelines",
}


def page() -> str:
    """All rules by their groups."""
    parts = [HEAD]
    for group in GROUPS.values():
        parts += [f"## {TITLES[group]}\n", *(_rule(rule) for rule in RULES.values() if rule.group == group)]
    return "\n".join(parts)


def _rule(rule: Rule) -> str:
    title, _, text = page_of(rule).partition("\n")
    # The word behind jsonl tells tests what the rows are for.
    text = re.sub(r"^```jsonl .*$", "```json", text.strip(), flags=re.MULTILINE)
    return f"##{title}\n\nSeverity: {rule.severity}.\n\n{text}\n"
