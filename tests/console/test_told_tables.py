"""What tables show of texts that a model or a file has made."""

import pytest

from truetune.console.output import show_table


def test_a_cell_cannot_tell_the_terminal_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("", ("before", "after"), [("\x1b[31mred\x1b]0;title\x07 \x11text", "[bold]as it is[/]")])
    shown = capsys.readouterr().out
    assert "red text" in shown
    assert "[bold]as it is[/]" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x11"}
