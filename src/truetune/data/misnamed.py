"""Fields whose names say nothing here: which name may be meant, and how they are given one."""

import difflib
import json
import re
from collections.abc import Iterable, Sequence

_ASKED = (
    *("question", "frage", "pregunta", "pergunta", "domanda", "vraag", "fråga", "pytanie", "вопрос", "问题", "質問"),
    *("prompt", "query", "request", "ask", "problem", "q"),
)
_SAID = (
    *("answer", "antwort", "respuesta", "resposta", "risposta", "réponse", "reponse", "antwoord", "svar"),
    *("odpowiedź", "ответ", "回答", "答案", "reply", "response", "completion", "solution", "a"),
)
"""Words that names of columns hold, for a proposal that a person reads before it is used."""
_SHORT = 3
_PLAIN = re.compile(r"[^\W\d][\w -]*")


def close_name(name: str, known: Iterable[str], *, cutoff: float = 0.76) -> str | None:
    """The known name that this one is misspelt from: of nearly its length, with letters missing, wrong or swapped."""
    spelled = name.strip().lower()
    near = [each for each in known if abs(len(each) - len(spelled)) < 2 and each != spelled]
    return next(iter(difflib.get_close_matches(spelled, near, n=1, cutoff=cutoff)), None)


def columns_remedy(present: Sequence[str]) -> str:
    """How data.columns names these fields: those that say in some language what they hold, or the only two."""
    asked = _holding(present, _ASKED)
    said = _holding([name for name in present if name != asked], _SAID)
    if len(present) == 1:
        return _setting({present[0]: "text"})
    if len(present) == 2:
        asked = asked or next(name for name in present if name != said)
        said = said or next(name for name in present if name != asked)
    if asked and said:
        return _setting({asked: "instruction", said: "output"})
    return "data.columns='{THIS: instruction, THAT: output}' with two of these names"


def _holding(names: Iterable[str], words: Sequence[str]) -> str | None:
    """The name that is one of the words, or holds one that is not too short to say anything."""
    spelled = {name: name.strip().lower() for name in names if not name.lower().endswith("id")}
    for word in words:
        for name, text in spelled.items():
            if text == word or (len(word) > _SHORT and word in text):
                return name
    return None


def _setting(columns: dict[str, str]) -> str:
    named = ", ".join(f"{_quoted(name)}: {target}" for name, target in columns.items() if name != target)
    return f"data.columns='{{{named}}}'"


def _quoted(name: str) -> str:
    """A name as YAML has it in a mapping; an apostrophe would end the shell's word."""
    if _PLAIN.fullmatch(name):
        return name
    return json.dumps(name, ensure_ascii=False).replace("'", "\\u0027")
