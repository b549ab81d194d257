"""How anything is shown: lines, tables, errors, JSON, a question. Together with its neighbours all that prints."""

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, ConsoleDimensions, JustifyMethod
from rich.markup import escape
from rich.table import Column, Table

from truetune.errors import TruetuneError


def is_first_process() -> bool:
    """False in all but one of the processes that a launcher started: they say nothing but errors."""
    return os.environ.get("RANK", "0") == "0"


def error_console(file: TextIO | None = None) -> Console:
    """Standard error, or where it led before it was turned elsewhere."""
    return _ErrorConsole(file=file, stderr=True, highlight=False, soft_wrap=True)


class _ErrorConsole(Console):
    """As wide as the terminal of its own file: rich asks the process's descriptors, which may lead elsewhere."""

    @property  # type: ignore[misc]  # Nobody sets it.
    def size(self) -> ConsoleDimensions:
        try:
            columns, lines = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError):
            return super().size
        return super().size if "COLUMNS" in os.environ or not columns else ConsoleDimensions(columns, lines)


def show_error(error: TruetuneError) -> None:
    """`error: …` and `hint: …`, each line of a list of problems on its own."""
    console = error_console()
    console.print(f"[bold red]error:[/] {escape(error.message)}")
    if error.hint:
        console.print(f"[bold]hint:[/] {escape(error.hint)}")
    for note in getattr(error, "__notes__", ()):
        console.print(escape(note))


def show_interrupted() -> None:
    """That Ctrl-C has ended the command."""
    if is_first_process():
        error_console().print("stopped by Ctrl-C")


def show_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, ensure_ascii=False, default=str))


def show(text: str = "") -> None:
    if is_first_process():
        print(text)


@contextmanager
def to_whoever_is_there() -> Iterator[None]:
    """For the last words of a run that its terminal's end has stopped: they may be lost, and its exit status not."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_piece(text: str) -> None:
    """A piece of a text that goes on, at once."""
    if is_first_process():
        print(text, end="", flush=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # Only where there is a table: an error must not wait for more imports.
    from truetune.runs.log import without_controls

    table = Table(*columns, title=title, title_justify="left", show_lines=True)
    for row in rows:
        table.add_row(*(escape(without_controls(cell)) for cell in row))
    Console(highlight=False).print(table)


def show_columns(columns: Sequence[str], rows: Sequence[Sequence[str]], *, spare: Sequence[str] = ()) -> None:
    """A table on a terminal, numbers to the right; elsewhere a line with tabs for each row.

    Where a terminal is too narrow, `spare` columns are left out, in their order, as many as have to be.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        for row in (columns, *rows):
            show("\t".join(row))
        return
    first, *others = _fitting(columns, rows, spare, console.width)
    kinds: list[JustifyMethod] = ["right" if _are_numbers(row[place] for row in rows) else "left" for place in others]
    headers = [Column(escape(columns[place]), justify=kind) for place, kind in zip(others, kinds, strict=True)]
    table = Table(Column(escape(columns[first]), overflow="fold"), *headers, box=None)
    for row in rows:
        table.add_row(*(escape(row[place]) for place in (first, *others)))
    console.print(table)


def _fitting(columns: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str], width: int) -> list[int]:
    """The places of the columns that are shown."""
    widths = [max(map(len, cells)) + 2 for cells in zip(columns, *rows, strict=True)]
    left_out: set[str] = set()
    for name in spare:
        if sum(size for column, size in zip(columns, widths, strict=True) if column not in left_out) > width:
            left_out.add(name)
    return [place for place, column in enumerate(columns) if column not in left_out]


def _are_numbers(cells: Iterable[str]) -> bool:
    return all(set(cell) <= set("0123456789.,+-e") for cell in cells)


def show_pairs(pairs: Mapping[str, str]) -> None:
    """Names and values, aligned."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        print(f"{name:<{width}}  {value}")


def show_section(title: str, pairs: Mapping[str, str]) -> None:
    show_heading(title)
    show_pairs(pairs)
    show()


def show_heading(title: str) -> None:
    Console(highlight=False).print(f"[bold]{title}[/]")


def ask(prompt: str) -> str | None:
    """A line from the user, None at the end of input; the prompt is shown only on a terminal."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        return input(prompt)
    except EOFError:
        return None
