"""The reference of the configuration, from the schema, the rules behind settings and the names that are read."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from truetune.config.names import ALIASES, REFUSED
from truetune.config.schema import SECTIONS
from truetune.config.words import fields
from truetune.planning.rules import Rule, known

HEAD = """# Configuration

Every setting of a config file: what it does, what it takes, its default and the reason for that. In YAML a setting
stands in its section; on a command line it is `key=value`, in Python a keyword:

```yaml
model: {name_or_path: demo}
data: {path: train.jsonl}
training: {learning_rate: 1e-4}
```

`truetune init DATA --model M` writes all of them with their reasons for your rows, and `truetune plan` tells what
each `auto` comes to. `truetune schema` is the same as a JSON Schema, for [editors](../training.md#in-an-editor).

Other tools' names are read, translated and told; [coming from other tools](../coming-from.md) has them by tool.
"""


def page() -> str:
    """All settings, section by section, then the names that are refused."""
    sections: dict[str, list[str]] = defaultdict(list)
    for name, default, description, kind in fields():
        sections[name.rpartition(".")[0]].append(_setting(name, default, description, kind))
    parts = [HEAD]
    for section, settings in sections.items():
        parts += [_section(section), *settings]
    return "\n".join([*parts, *_refused()])


def _section(name: str) -> str:
    if not name:
        return "## At the top\n\nThese stand in no section.\n"
    return f"## {name}\n\n{(SECTIONS[name].__doc__ or '').strip()}\n"


def _setting(name: str, default: Any, description: str, kind: str) -> str:
    lines = [f"### {name}", "", f"{_sentence(description)}", "", f"- takes {kind}", f"- {_default(default)}"]
    rules = [rule for rule in known().rules if rule.setting == name]
    lines += [f"- {_why(rules)}"] if rules else []
    names = [f"`{other}`" for other, alias in ALIASES.items() if alias.target == name]
    lines += [f"- other tools' names: {', '.join(names)}"] if names else []
    return "\n".join([*lines, ""])


def _default(default: Any) -> str:
    is_missing = default is ... or repr(default) == "PydanticUndefined"
    return "must be given" if is_missing else f"default: `{spelled(default)}`"


def spelled(value: Any) -> str:
    """A value as YAML has it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple():
            return f"[{', '.join(map(spelled, value))}]"
        case _:
            return str(value)


def _why(rules: Sequence[Rule]) -> str:
    if len(rules) == 1 and not rules[0].when:
        rule = rules[0]
        return f"why {spelled(rule.value)}: {rule.why} ({rule.source}). Limit: {rule.limit}"
    return f"by which [rules](../settings.md#what-is-chosen) it is chosen ({len(rules)}, with sources and limits)"


def _refused() -> Iterator[str]:
    yield "## Names that are refused"
    yield "\nThey mean something that is done elsewhere, or not at all.\n"
    yield from (f"- `{name}`: {reason}" for name, reason in REFUSED.items())
    yield ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
