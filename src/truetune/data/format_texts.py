"""Format texts: plain prompts with {instruction}, {input}, {output} and {system}; Alpaca's are the best known."""

import json
import re

from truetune.data.examples import Instruction

_RESPONSE = "\n\n### Response:\n"
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}" + _RESPONSE + "{output}"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}" + _RESPONSE + "{output}"
)
_PLACEHOLDER = re.compile(r"\{(instruction|input|output|system)\}")


def format_text(name: str, *, has_input: bool) -> str:
    """The text that `alpaca` stands for, for a row with an input or without; any other text stands for itself."""
    if name != "alpaca":
        return name
    return _WITH_INPUT if has_input else _WITHOUT_INPUT


def filled(text: str, row: Instruction) -> str:
    """The text with the row's fields in their places."""
    return _PLACEHOLDER.sub(lambda match: str(getattr(row, match[1])), text)


def as_chat_template(name: str, *, bos: str, eos: str) -> str:
    """A Jinja chat template that prompts as the text does.

    The user's message stands for {instruction}, {input} and {system} are empty.
    """
    before, _, after = format_text(name, has_input=False).partition("{output}")
    places = _PLACEHOLDER.sub(lambda match: "\x00" if match[1] == "instruction" else "", bos + before)
    asked = " ~ message['content'] ~ ".join(map(json.dumps, places.split("\x00")))
    closing = json.dumps(_PLACEHOLDER.sub("", after) + eos)
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ " + asked + " }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] ~ " + closing + " }}"
        "{% endif %}{% endfor %}"
    )
