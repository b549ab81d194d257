"""What the tools say alike of data sets: places of rows, and templates by name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truetune.migrate.outcomes import Leave, Note, Outcome, Set

CHATS = ("messages", "conversations")
"""Fields whose turns are found by themselves."""

ROLE_SPELLINGS = {
    *("system", "developer", "user", "human", "assistant", "gpt", "model", "bot"),
    *("tool", "function", "observation", "function_call", "tool_call", "tool_response"),
}
"""Roles that are known by themselves (data/turns.py has them all)."""


SLICED = "a part of a split is not taken: shorten the file, or set training.max_steps"


def is_sliced(split: Any) -> bool:
    """Whether a split is a part of one: train[:10%]."""
    return isinstance(split, str) and "[" in split


@dataclass(frozen=True, slots=True)
class Places:
    """Several places of rows as data.path takes them."""

    entries: Sequence[Mapping[str, Any]]

    @property
    def value(self) -> Any:
        """One path, or a list."""
        plain = [entry["path"] if list(entry) == ["path"] else dict(entry) for entry in self.entries]
        return plain[0] if len(plain) == 1 and isinstance(plain[0], str) else plain


def template_of(tool: str, name: Any) -> Iterator[Outcome]:
    """A template by its name: the tool's own text stays there, and the model's own template takes over."""
    text = str(name)
    if text.endswith(".jinja") or "{output}" in text:
        yield Set("data.template", text)
    elif text == "alpaca":
        yield Set("data.template", "alpaca")
    elif text in ("tokenizer_default", "default"):
        yield Set("data.template", "model")
    elif text.startswith("tokenizer_default_fallback_"):
        yield Set("data.template", "auto")
    elif text in ("empty", "vanilla"):
        yield Leave("set data.template to a text: '{instruction}{output}' puts nothing around them")
    else:
        yield Set("data.template", "model")
        yield Note(
            f"template {text} is {tool}'s own text; here the model's own chat template is used. A base model has "
            "none: write one to a file that ends in .jinja and name it in data.template"
        )
