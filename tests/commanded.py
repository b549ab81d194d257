"""What a command prints, in this process."""

import json
from typing import Any

import pytest

from truetune.cli import main


def printed_json(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """What the command prints with --json, once it has succeeded."""
    capsys.readouterr()
    status = main([*map(str, words), "--json"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    document: dict[str, Any] = json.loads(printed.out)
    return document


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """The exit status of a command that does not succeed, and what it says on stderr."""
    capsys.readouterr()
    status = main([*map(str, words)])
    assert status
    return status, capsys.readouterr().err
