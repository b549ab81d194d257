"""The prompts by which a run's model is known again: a few rows', and two of our own that may be passed on."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from truetune.data.examples import (
    IGNORED,
    Completion,
    Conversation,
    Example,
    Instruction,
    Location,
    Message,
    Tokenized,
)
from truetune.data.render import render_prompt
from truetune.data.rules import RowError
from truetune.data.store import StoredRows, evenly
from truetune.data.templates import Template
from truetune.data.tokenize import tokenize_prompt
from truetune.errors import TemplateError
from truetune.inference.prompt_format import RowFormat
from truetune.model.fixtures import MAX_NEW_TOKENS, FixedPrompt
from truetune.model.tokenizer import with_chat_template

_ASKED = Location("prompt", 1, "row")
_QUESTIONS = (
    ("", "What is the capital of France?"),
    ("You are a helpful assistant. Answer in one sentence.", "Why is the sky blue?"),
)
_BEGINNINGS = ("The capital of France is", "Once upon a time there was")

_ROWS = 4
_LONG, _TOO_LONG = 512, 2048
"""Tokens: rows beyond the first are asked only where all are, and prompts beyond the second cost too much."""
_START = 8
"""The tokens that are a prompt of a row which is learned from its start."""


def own_prompts(template: Template, row_format: RowFormat, *, context_length: int | None = None) -> list[FixedPrompt]:
    """Two prompts of ours, in the format of the run's rows; fewer where the template refuses one."""
    return [
        prompt
        for example, messages in _examples(row_format)
        if (prompt := _prompt(example, messages, template)) and _fits(prompt.prompt_ids, context_length)
    ]


def row_prompts(rows: StoredRows, tokenizer: Any, *, context_length: int | None = None) -> list[FixedPrompt]:
    """The prompts of up to four rows, spread by length: each row's ids before its first learned token."""
    found = dict.fromkeys(_prompt_ids(rows[int(place)]) for place in _spread(rows.lengths))
    return [
        FixedPrompt(ids, tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for ids in found
        if len(ids) <= _TOO_LONG and _fits(ids, context_length)
    ]


def _examples(row_format: RowFormat) -> Iterator[tuple[Example, tuple[dict[str, str], ...]]]:
    """Our prompts as rows of this format, and as conversations, where they are some."""
    if row_format not in ("chat", "instruction"):
        yield from ((Completion(text, "", _ASKED), ()) for text in _BEGINNINGS)
        return
    for system, question in _QUESTIONS:
        opening = ({"role": "system", "content": system},) if system else ()
        messages = (*opening, {"role": "user", "content": question})
        if row_format == "instruction":
            yield Instruction(question, "", "", system, _ASKED), messages
        else:
            yield Conversation(tuple(Message(**each) for each in messages), _ASKED), messages


def _prompt(example: Example, messages: tuple[dict[str, str], ...], template: Template) -> FixedPrompt | None:
    with suppress(RowError, TemplateError):
        rendered = render_prompt(example, template=template)
        ids = tokenize_prompt(rendered, tokenizer=template.tokenizer)
        is_served = messages and _served(messages, template) == rendered.text
        return FixedPrompt(tuple(ids), rendered.text, messages if is_served else None)
    return None


def _served(messages: tuple[dict[str, str], ...], template: Template) -> str | None:
    """The text that a server makes of the conversation, by the template that is saved with the model."""
    from jinja2 import TemplateError as Refusal

    if template.servers_chat_template is None:
        return None
    tokenizer = with_chat_template(template.tokenizer, template.servers_chat_template)
    with suppress(Refusal):
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return text
    return None


def _spread(lengths: Any) -> Any:
    """The places of the rows to ask, by length."""
    order = np.argsort(lengths, kind="stable")
    short = order[lengths[order] <= _LONG]
    return short[evenly(len(short), _ROWS)] if len(short) else order[:1]


def _prompt_ids(row: Tokenized) -> tuple[int, ...]:
    first = next(place for place, label in enumerate(row.labels) if label != IGNORED)
    return tuple(row.input_ids[: first if first > 1 else min(_START, len(row.input_ids) - 1)])


def _fits(ids: tuple[int, ...], context_length: int | None) -> bool:
    return context_length is None or len(ids) + MAX_NEW_TOKENS <= context_length
