"""What somebody types, and what the program says to it: run here, where the libraries are loaded already."""

from dataclasses import dataclass

import pytest

from truetune.cli import main


@dataclass(frozen=True)
class Told:
    """How a command ended, and what stood on the terminal then."""

    status: int
    out: str
    err: str


class Terminal:
    """`terminal("check", file)` is `truetune check FILE` in a shell."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Told:
        self._capsys.readouterr()
        try:
            status = main([*map(str, words)])
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = self._capsys.readouterr()
        return Told(status, printed.out, printed.err)

    def done(self, *words: object) -> Told:
        """Of a command that must succeed."""
        told = self(*words)
        assert told.status == 0, told.err
        return told

    def refused(self, *words: object, status: int) -> str:
        """What stands on stderr of a command that must not succeed: an error and, but for argparse, its remedy."""
        told = self(*words)
        assert told.status == status, told
        assert told.err.startswith("error: ") or "\nerror: " in told.err, told.err
        assert "Traceback" not in told.err
        return told.err
