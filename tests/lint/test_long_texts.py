"""Every rule ends soon on whatever text: no pattern takes the square of a row."""

import time

import pytest

from truetune.data.examples import Completion, Location
from truetune.lint.parts import Part
from truetune.lint.private import without_secrets
from truetune.lint.sketch import SketchedRow, sketched
from truetune.lint.texts import TEXT_RULES

LENGTH = 200_000
PIECES = (
    "a", "(", "1", "+2", "+" + "2" * 40 + " ", "{{", "<", "@", "a.", "a+", "eyJ-", "x+y+", "[your ", "<your ",
    "\n", " ",
    "é", "Ã", "-----BEGIN ", "://", "sk-", "555-", "2345 ", "\nUser:", "<|", "as an ai ", "i am ",
    "a:b@", "&", "A@a.",
)  # fmt: skip


@pytest.mark.parametrize("piece", PIECES, ids=repr)
def test_a_long_row_of_one_piece_is_read_in_a_moment(piece: str) -> None:
    text = piece * (LENGTH // len(piece))
    parts = (Part("prompt", "prompt", "go to http://x.de + sk-"), Part("answer", "completion", text + " ://"))
    started = time.process_time()
    for look in TEXT_RULES.values():
        next(look(parts), None)
    without_secrets(text)
    sketched([SketchedRow(Completion("a", text, Location("a", 1)), parts, 0, 1)], with_languages=True)
    # A pattern that takes the square of the row needs minutes here; a slow machine needs a second or two.
    assert time.process_time() - started < 8
