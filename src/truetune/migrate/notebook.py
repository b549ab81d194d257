"""The code of a Jupyter notebook as one script: its cells in their order."""

import json
from collections.abc import Iterator
from typing import Any

from truetune.errors import ConfigError

_OF_PYTHON = ("%%capture", "%%time", "%%timeit", "%%prun")
"""Magics of a cell whose other lines are Python."""


def script_of(text: str, *, name: str) -> str:
    """The code of all cells; what speaks to the notebook (%, !) does nothing in it. ConfigError if it is none."""
    try:
        cells = json.loads(text)["cells"]
        sources = [_lines(each["source"]) for each in cells if each["cell_type"] == "code"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(f"{name}: this is no notebook: it has no cells of code") from error
    return "".join(f"{line}\n" for source in sources if _is_python(source) for line in _plain(source))


def _lines(source: Any) -> list[str]:
    """A cell's text, which stands in one piece or as a list of lines."""
    return ("".join(map(str, source)) if isinstance(source, list) else str(source)).splitlines()


def _is_python(source: list[str]) -> bool:
    return not source or not source[0].startswith("%%") or source[0].startswith(_OF_PYTHON)


def _plain(source: list[str]) -> Iterator[str]:
    """The lines as Python: a command of the notebook's, in as many lines as it has, is `pass`."""
    goes_on = False
    for line in source:
        indent = line[: len(line) - len(line.lstrip())]
        is_command = goes_on or line.lstrip().startswith(("%", "!"))
        yield ("" if goes_on else f"{indent}pass") if is_command else line
        goes_on = is_command and line.rstrip().endswith("\\")
