"""Makes docs/images/demo.svg, which README shows: what `truetune demo` leaves on a terminal. Needs pyte, from PyPI.

    python -m manual.picture [-o FILE] [--keep RECORDING] [--folder FOLDER]      takes minutes
    python -m manual.picture --recording RECORDING [-o FILE]                     draws what was kept

The demo runs in a folder of its own, which is removed unless it is named, so that no path of the machine is in the
picture. Of what it says before and after, dots are left: the picture is the training, the answers and the outcome.
"""

import argparse
import os
import pty
import re
import sys
import termios
from collections.abc import Sequence
from io import StringIO
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import pyte
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.style import Style
from rich.text import Text

from manual.contents import DOCS

PICTURE = DOCS / "images" / "demo.svg"
COMMAND = ("truetune", "demo")


def recorded(command: Sequence[str], *, folder: Path, columns: int, lines: int) -> bytes:
    """All that a command writes on a terminal of this size, from its start to its end."""
    process, terminal = pty.fork()
    if process == 0:
        termios.tcsetwinsize(0, (lines, columns))
        os.chdir(folder)
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)}
        os.execve(sys.executable, [sys.executable, "-m", *command], environment)
    written = bytearray()
    while piece := _piece(terminal):
        written += piece
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        sys.exit(written.decode(errors="replace"))
    return bytes(written)


def _piece(terminal: int) -> bytes:
    try:
        return os.read(terminal, 2**16)
    except OSError:  # Linux' way to say that nobody is there any more.
        return b""


def left(written: bytes, *, columns: int) -> list[Text]:
    """The lines that stand on the terminal at the end, those that have scrolled away before them."""
    screen = pyte.Screen(columns, 500)
    # pyte knows no dim: grey is what a terminal makes of it.
    pyte.ByteStream(screen).feed(re.sub(rb"\x1b\[2m", b"\x1b[90m", written))
    lines = [_line(screen.buffer[number], columns) for number in range(screen.lines)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    return lines


def chosen(lines: Sequence[Text]) -> list[Text]:
    """From the view of the training to what was learned; dots for what stands before and behind."""
    starts = [line.plain.split(" ")[0] for line in lines]
    first, last = starts.index("training"), len(starts) - starts[::-1].index("validation")
    return [Text("⋮"), *lines[first:last], Text("⋮")]


def _line(cells: "pyte.screens.StaticDefaultDict[int, pyte.screens.Char]", columns: int) -> Text:
    runs = groupby((cells[column] for column in range(columns)), key=_style)
    pieces = [("".join(cell.data for cell in run), style) for style, run in runs]
    line = Text.assemble(*pieces)
    line.rstrip()
    return line


def _style(cell: "pyte.screens.Char") -> Style:
    fore, back = _colour(cell.fg), _colour(cell.bg)
    return Style(color=fore, bgcolor=back, bold=cell.bold, italic=cell.italics, reverse=cell.reverse)


def _colour(name: str) -> str | None:
    """rich's name of pyte's colour."""
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    named = name.replace("brown", "yellow").replace("bright", "bright_")
    return None if name == "default" else named


def drawn(lines: Sequence[Text], *, columns: int, title: str) -> str:
    """The lines as a terminal's window in SVG. It has a ground of its own, and fetches no font."""
    console = Console(record=True, width=columns, file=StringIO(), force_terminal=True)
    for line in (Text.assemble(("$ ", "green"), (title, "bold")), *lines):
        console.print(line, soft_wrap=True)
    without_fonts = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.S)
    return console.export_svg(title=title, code_format=without_fonts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--lines", type=int, default=35)
    parser.add_argument("--recording", type=Path, help="draw this instead of running the demo")
    parser.add_argument("--keep", type=Path, help="where to keep what the demo wrote")
    parser.add_argument("--folder", type=Path, help="where to run it: its run stays there")
    parser.add_argument("-o", "--output", type=Path, default=PICTURE)
    options = parser.parse_args()
    written = options.recording.read_bytes() if options.recording else run_demo(options)
    if options.keep:
        options.keep.write_bytes(written)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    lines = chosen(left(written, columns=options.columns))
    options.output.write_text(drawn(lines, columns=options.columns, title=" ".join(COMMAND)), encoding="utf-8")


def run_demo(options: argparse.Namespace) -> bytes:
    size = {"columns": options.columns, "lines": options.lines}
    if options.folder:
        options.folder.mkdir(parents=True)
        return recorded(COMMAND, folder=options.folder, **size)
    with TemporaryDirectory() as folder:
        return recorded(COMMAND, folder=Path(folder), **size)


if __name__ == "__main__":
    main()
