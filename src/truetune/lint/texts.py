"""Rules on the text of a row, as it stands there, without a tokenizer.

Each looks for a cheap literal first: a check reads 100,000 rows in seconds.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from truetune.data.prefixes import common_length
from truetune.lint.parts import Finding, Part, Parts
from truetune.lint.private import personal_data, secrets


def encoding_damage(parts: Parts) -> Iterator[Finding]:
    """Text that was decoded by the wrong table, or holds the sign for what could not be decoded."""
    for part in parts:
        if part.text.isascii():
            continue
        if "\ufffd" in part.text:
            yield part, f"holds the replacement character U+FFFD: {_around(part.text, part.text.index(chr(0xFFFD)))}"
        elif (mended := mend_encoding(part.text)) != part.text:
            place = common_length(part.text, mended)
            yield part, f"is decoded by the wrong table: {_around(part.text, place)} for {_around(mended, place)}"


def mend_encoding(text: str) -> str:
    """The text with its wrongly decoded stretches decoded aright; itself where none is surely one.

    A text that has the right signs as well speaks of the wrong ones.
    """
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    if not is_bad(text) or _ABOUT_ENCODING.search(text):
        return text
    mended = fix_encoding(text)
    before, after = (Counter(filter(_is_foreign, each)) for each in (text, mended))
    return text if any(before[sign] for sign in after - before) else mended


_ABOUT_ENCODING = re.compile(r"mojibake|encod|decod|utf-?8|latin-?1|unicode|charset|codepage", re.IGNORECASE)


def _is_foreign(sign: str) -> bool:
    return not sign.isascii()


_MARKERS = (
    "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<<SYS>>", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>",
    "<|assistant|>", "<|user|>", "<|system|>", "<|end|>", "<|im_sep|>", "<｜User｜>", "<｜Assistant｜>",
    "### Instruction:", "### Response:", "### Human:", "### Assistant:", "<|START_OF_TURN_TOKEN|>",
)  # fmt: skip
_HINTS = ("<|", "INST]", "<<SYS", "_of_turn>", "### ", "<｜", "</s>", "\nHuman:", "\nUser:", "\nUSER:")
_OTHER_SIDE = re.compile(r"\n(?P<side>Human:|User:|USER:)[^\n]*\n+(?:Assistant|ASSISTANT|AI):")
_ABOUT_TEMPLATES = re.compile(
    r"chatml|chat template|special token|prompt (?:format|template)|control token", re.IGNORECASE
)


def template_text(parts: Parts) -> Iterator[Finding]:
    """What templates write around turns, inside a turn. Bare texts are written with it."""
    found = [
        (part, marker)
        for part in parts
        if part.kind != "text" and any(map(part.text.__contains__, _HINTS)) and (marker := _marker(part))
    ]
    if found and not any(_ABOUT_TEMPLATES.search(part.text) for part in parts):
        yield from ((part, f"holds {marker!r}, which a template writes around turns") for part, marker in found)


def _marker(part: Part) -> str | None:
    text = part.text
    if marker := next((marker for marker in _MARKERS if marker in text), None):
        return marker
    if text.rstrip().endswith("</s>") and "<s>" not in text[1:]:
        return "</s>"
    # An answer that goes on with the other side's words: the model would learn to ask itself.
    spoken = _OTHER_SIDE.search(text) if part.kind == "answer" else None
    return spoken["side"] if spoken else None


_PLACEHOLDER = re.compile(
    r"\{\{\s*[A-Za-z_][\w.-]{1,40}\s*\}\}"
    r"|\[(?:insert|your|enter|add)\s[^\]\n]{1,40}\]"
    r"|<(?:insert|your)[ _][^>\n]{1,40}>",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"```|html|jinja|vue|angular|handlebars|mustache|template|liquid|django|flask|ansible|helm|github actions|latex",
    re.IGNORECASE,
)


def placeholders(parts: Parts) -> Iterator[Finding]:
    """Places of a template that nobody filled. Rows about templates have them as their matter."""
    found = [
        (part, match[0])
        for part in parts
        if ("{{" in part.text or "[" in part.text or "<" in part.text) and (match := _PLACEHOLDER.search(part.text))
    ]
    if found and not any(_CODE.search(part.text) for part in parts):
        yield from ((part, f"holds the unfilled placeholder {name!r}") for part, name in found)


_MARKUP = re.compile(
    r"&(?:nbsp|amp|lt|gt|quot|apos|#\d{2,5}|#x[0-9a-f]{2,4});"
    r"|</?(?:br|div|span|font|strong|em|li|ul|ol|td|tr|table|h[1-6]|img)(?:\s[^<>]*)?/?>"
    r"|</[biupa]>|<[ap]\s[^<>]*>",  # <B> alone may be a generic type.
    re.IGNORECASE,
)
_ABOUT_MARKUP = re.compile(
    r"html|xml|css|svg|markup|\btags?\b|javascript|jsx|react|vue|angular|php|web ?(?:page|site)|browser|<script"
    r"|<!doctype|<body|jquery|markdown|rss|escape|template|```",
    re.IGNORECASE,
)


def markup(parts: Parts) -> Iterator[Finding]:
    """HTML's tags and entities in text that is not about them."""
    found = [
        (part, match[0])
        for part in parts
        if ("<" in part.text or "&" in part.text) and (match := _MARKUP.search(part.text))
    ]
    if found and not any(_ABOUT_MARKUP.search(part.text) for part in parts):
        yield from ((part, f"holds the markup {tag!r}") for part, tag in found)


_DO = (
    "assist|help(?! but)|provide|fulfil|comply|answer|generate|create|browse|access|retrieve|perform|complete|share"
    "|discuss|book"
)
_REFUSAL = re.compile(
    rf"\bi(?:'m| am) (?:unable|not able) to (?:{_DO}|directly|read|process|make|give|do that)"
    rf"|\bi (?:can't|cannot|won't be able to) (?:{_DO}|do that for|give you)"
    r"|\bsorry,? (?:but )?(?:as an ai,? )?i (?:can't|cannot|won't|don't have (?:the|access)|am unable|'m unable)"
    r"|\bi (?:don't|do not) have the (?:ability|capability|capabilities)\b"
    r"|\bi must decline\b|\bi'm not comfortable (?:answering|discussing|providing)"
)
_OPENING = 160
"""Characters of an answer in which a refusal stands."""


def refusals(parts: Parts) -> Iterator[Finding]:
    """Answers that refuse."""
    for part in parts:
        if part.kind != "answer":
            continue
        opening = part.text[:_OPENING].lower().replace("’", "'")
        if ("i " in opening or "i'" in opening) and (found := _REFUSAL.search(opening)):
            yield part, f"refuses: {_around(opening, found.start())}"


_BOILERPLATE = re.compile(
    r"\bas an? (?:large )?(?:ai|artificial intelligence|machine learning|language)(?: language)?(?: model)?"
    r"(?: assistant)?,? (?:i|my)\b"
    r"|\bas an? (?:large )?(?:ai|language model|artificial intelligence)(?: language model| assistant| model)?,"
    r"|\bmy knowledge cutoff|\bmy training data|\bas of my last (?:knowledge )?update"
    r"|\bi(?:'m| am) chatgpt|\b(?:i am|i'm|i was)\b[^.\n]{0,40}\b(?:developed|trained|created|made) by openai"
)
_BETRAYING = ("as a", "my knowledge", "my training", "my last", "openai", "chatgpt")


def boilerplate(parts: Parts) -> Iterator[Finding]:
    """Phrases by which another model's answers are known."""
    for part in parts:
        if part.kind != "answer":
            continue
        text = part.text.lower().replace("’", "'")
        if any(map(text.__contains__, _BETRAYING)) and (found := _BOILERPLATE.search(text)):
            yield part, f"has a model's stock phrase: {_around(text, found.start())}"


_NULLS = {"null", "none", "nan", "undefined", "n/a", "#n/a", "<na>", "nil"}


def null_words(parts: Parts) -> Iterator[Finding]:
    """A text that is nothing but the name of a missing value."""
    for part in parts:
        if len(part.text) <= 12 and part.text.strip().lower() in _NULLS:
            yield part, f"is the word {part.text.strip()!r}"


def edge_blanks(parts: Parts) -> Iterator[Finding]:
    """Answers that begin or end with blanks: one in front of a completion is how completions are joined."""
    for part in parts:
        if part.kind != "answer":
            continue
        text = part.text.removeprefix(" ") if part.field == "completion" else part.text
        if text != without_edge_blanks(text):
            yield part, "begins or ends with blanks, and the model learns them"


def without_edge_blanks(text: str) -> str:
    """The text without blanks at its ends; of several lines, the first keeps its indentation."""
    bare = text.strip()
    if "\n" not in bare:
        return bare
    start = text.index(bare)
    return (text[:start].rpartition("\n")[2] + bare) if start else bare


def _around(text: str, place: int, *, reach: int = 30) -> str:
    """The text's neighbourhood of a place, on one line, in quotes."""
    start = max(0, place - reach // 3)
    return repr(" ".join(text[start : place + reach].split()))


TEXT_RULES: Mapping[str, Callable[[Parts], Iterator[Finding]]] = {
    "encoding-damage": encoding_damage,
    "template-text": template_text,
    "placeholder": placeholders,
    "markup": markup,
    "refusal": refusals,
    "boilerplate": boilerplate,
    "secret": secrets,
    "personal-data": personal_data,
    "null-word": null_words,
    "edge-blanks": edge_blanks,
}
"""Each rule by its name; a row counts once for a rule, at its first finding."""
