"""A Modelfile whose prompts are training's: the chat template in Go's words, proved on conversations."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.errors import TemplateError
from truetune.inference.go_template import render_go

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages], str | None]
"""The prompt that the chat template makes of a conversation, for the model to go on; None where it refuses."""

PROMPT_ALONE = "{{ .Prompt }}"
"""For a model that goes on from plain text."""

_HINT = "export --to gguf: llama.cpp and its servers render the chat template itself, which is in the file"
# Private-use characters: no template treats them as blank, and none holds them.
_MARKS = {"S": "\ue100S\ue101", "U": "\ue100U\ue101", "A": "\ue100A\ue101", "V": "\ue100V\ue101"}


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a chat template puts around the messages of a conversation.

    `opening` stands before the first question, `between` behind an answer and before the next question, `answered`
    behind a question that has an answer, `asked` behind the last one. `system` is what `opening` (or, for templates
    that put the system message into the last question, also `between`) becomes around a system message; None where
    the template leaves it out.
    """

    opening: str
    between: str
    answered: str
    asked: str
    system: tuple[str, str] | None = None
    later_system: tuple[str, str] | None = None


def go_template(render: Render, *, bos: str = "") -> str:
    """The chat template in Go's words. `bos` is a token that the model's loader puts before each prompt by itself.

    Raises TemplateError for a template that cannot be put so: both render conversations, and they must agree.
    """
    pieces = find_pieces(render)
    template = _written(_without_bos(pieces, bos))
    for messages in _conversations():
        wanted = render(messages)
        if wanted is None:
            continue
        found = bos + render_go(template, as_ollama(messages))
        if found != wanted:
            raise _unmapped(f"of {messages!r} it would make {found!r}, and the chat template makes {wanted!r}")
    return template


def find_pieces(render: Render) -> Pieces:
    """What the template puts around messages, found by rendering marked ones. TemplateError if they are not there."""
    single = _split(render, "U")
    talk = _split(render, "U", "A", "V")
    if single is None or talk is None:
        raise _unmapped("it refuses a question, an answer and a question")
    opening, asked = single
    _, answered, between, _ = talk
    return Pieces(opening, between, answered, asked, *_system(render))


def _system(render: Render) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
    first = _split(render, "S", "U")
    if first is None:
        return None, None
    opening = (first[0], first[1])
    later = _split(render, "U", "A", "S", "V", given="SUAV")
    return opening, (later[2], later[3]) if later else None


def _split(render: Render, *order: str, given: str | None = None) -> tuple[str, ...] | None:
    """The texts before, between and behind the marked messages, if they stand in this order; None if they do not."""
    names = {"S": "system", "U": "user", "A": "assistant", "V": "user"}
    text = render([{"role": names[each], "content": _MARKS[each]} for each in given or "".join(order)])
    if text is None:
        return None
    pattern = "(.*?)" + "(.*?)".join(re.escape(_MARKS[each]) for each in order) + "(.*)"
    found = re.fullmatch(pattern, text, re.DOTALL)
    return tuple(found.groups()) if found else None


def _without_bos(pieces: Pieces, bos: str) -> Pieces:
    if not bos:
        return pieces
    if not pieces.opening.startswith(bos):
        raise _unmapped(f"it puts no {bos} first, and the model's loader does")
    system = pieces.system and (pieces.system[0].removeprefix(bos), pieces.system[1])
    return Pieces(
        pieces.opening.removeprefix(bos), pieces.between, pieces.answered, pieces.asked, system, pieces.later_system
    )


def _written(pieces: Pieces) -> str:
    """All text stands in quoted strings, so that no blank between the actions counts."""
    last = "(eq (len (slice $.Messages $i)) 1)"
    if pieces.later_system is None:
        opening = _choice("$.System", _around(pieces.system), _text(pieces.opening))
        between = _text(pieces.between)
    else:
        asks_last = f"and $.System {last}"
        opening = _choice(asks_last, _around(pieces.system), _text(pieces.opening))
        between = _choice(asks_last, _around(pieces.later_system), _text(pieces.between))
    behind = _choice(last, _text(pieces.asked), _text(pieces.answered))
    return "\n".join(
        (
            "{{- $first := true }}",
            "{{- range $i, $message := .Messages }}",
            '{{- if eq .Role "user" }}',
            f"{{{{- if $first }}}}{opening}",
            f"{{{{- else }}}}{between}",
            "{{- end }}",
            "{{- $first = false }}{{ .Content }}" + behind,
            '{{- else if eq .Role "assistant" }}{{ .Content }}',
            "{{- end }}",
            "{{- end }}",
        )
    )


def _around(around: tuple[str, str] | None) -> str | None:
    return around and f"{_text(around[0])}{{{{ $.System }}}}{_text(around[1])}"


def _choice(condition: str, then: str | None, otherwise: str) -> str:
    if then is None or then == otherwise:
        return otherwise
    return f"{{{{- if {condition} }}}}{then}{{{{- else }}}}{otherwise}{{{{- end }}}}"


def _text(text: str) -> str:
    """As an action that prints it; a quotation mark by its number, since three would end a Modelfile's text."""
    if not text:
        return ""
    return '{{ "' + json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', "\\u0022") + '" }}'


def as_ollama(messages: Messages) -> dict[str, Any]:
    """The data that Ollama gives a template: the system messages joined, and all messages."""
    system = "\n\n".join(str(each["content"]) for each in messages if each["role"] == "system")
    return {
        "System": system,
        "Messages": [{"Role": each["role"], "Content": each["content"]} for each in messages],
    }


def _conversations() -> Iterator[Messages]:
    """What the two templates must agree on."""
    turns = [
        {"role": role, "content": text}
        for role, text in (
            ("user", 'What is 2 + 2? Say "four".'),
            ("assistant", "It is {{ four }}.\nIs that all?"),
            ("user", "No: a\\b, <b>c</b> & {d}\n\n\tand é 日本 🙂"),
            ("assistant", "So be it."),
            ("user", "Thanks"),
        )
    ]
    system = {"role": "system", "content": "Be brief.\nBe kind."}
    for count in (1, 3, 5):
        yield turns[:count]
        yield [system, *turns[:count]]


def _unmapped(why: str) -> TemplateError:
    return TemplateError(f"the chat template cannot be put into Ollama's words: {why}", hint=_HINT)


# --- the file ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Modelfile:
    """What Ollama is told of a model. `notes` are comments."""

    model: str
    template: str
    parameters: tuple[tuple[str, str | int], ...]
    notes: tuple[str, ...] = ()

    def as_text(self) -> str:
        lines = [*(f"# {note}" for note in self.notes), f"FROM {self.model}", f'TEMPLATE """{self.template}"""']
        lines += [
            f"PARAMETER {name} {value if isinstance(value, int) else json.dumps(value, ensure_ascii=False)}"
            for name, value in self.parameters
        ]
        return "\n".join(lines) + "\n"


def parse_modelfile(text: str) -> Modelfile:
    """A Modelfile of the kind we write, read back. TemplateError for anything else."""
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.DOTALL | re.MULTILINE)
    rest = text.replace(template[0], "") if template else text
    model, parameters, notes = "", [], []
    for line in filter(str.strip, rest.splitlines()):
        match line.split(" ", 2):
            case ["FROM", name]:
                model = name
            case ["PARAMETER", name, value]:
                parameters.append((name, json.loads(value)))
            case ["#", *_]:
                notes.append(line.removeprefix("# "))
            case _:
                raise TemplateError(f"a Modelfile has no line {line!r}")
    if not model or template is None:
        raise TemplateError("a Modelfile needs FROM and TEMPLATE")
    return Modelfile(model, template[1], tuple(parameters), tuple(notes))


def write_modelfile(path: Path, modelfile: Modelfile) -> None:
    """Writes it, and reads it back: TemplateError if it does not say what was meant."""
    path.write_text(modelfile.as_text(), encoding="utf-8")
    if parse_modelfile(path.read_text(encoding="utf-8")) != modelfile:
        raise TemplateError(f"{path.name} cannot be written so that it is read back the same", hint=_HINT)
