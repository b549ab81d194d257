"""What to do about a file that cannot be read, told from its name and from what stands in it."""

import re
import shlex
from pathlib import Path

_SHEET = "save the sheet as CSV UTF-8 (Excel, LibreOffice: Save As), and give the .csv file"
_TEXT = "rows are wanted: an object for each example, as README shows, in a .jsonl file"
_PACKED = "unpack it, and give the file or the folder: .gz and .zst are read as they are"
_PICKLED = "load it, and write its rows with pandas: frame.to_parquet(…)"
_DATABASE = "export its rows as CSV or JSON Lines"
_OF_KINDS = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), _SHEET),
    **dict.fromkeys((".pdf", ".docx", ".doc", ".md", ".html", ".htm", ".rtf"), _TEXT),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar"), _PACKED),
    **dict.fromkeys((".pkl", ".pickle", ".pt"), _PICKLED),
    **dict.fromkeys((".jsonlines", ".jl", ".ldjson"), "let its name end in .jsonl"),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3", ".sql"), _DATABASE),
}

_STARTS = (
    (b"PK\x03\x04", "an Excel file or a zip archive", f"{_SHEET}; of an archive, unpack it"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", _SHEET),
    (b"\x1f\x8b", "compressed with gzip", "let its name end in .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "let its name end in .zst"),
    (b"PAR1", "a Parquet file", "let its name end in .parquet"),
    (b"ARROW1", "an Arrow file", "let its name end in .arrow"),
    (b"%PDF", "a PDF", _TEXT),
    (b"SQLite format 3", "an SQLite database", _DATABASE),
)
_PAGE = "it looks like a web page, or an error page of the server: fetch the file itself (a link to the raw file)"
_POINTER = "it is Git LFS's note of where the file is: fetch the file itself with git lfs pull"
_LINES = "a .json file holds one array of objects, a .jsonl file one whole object a line"
_QUOTES = "JSON has double quotes only: this is how Python prints an object; write it with json.dumps"
_NOT_IN_1252 = b"\x81\x8d\x8f\x90\x9d"


def kind_remedy(suffix: str) -> str | None:
    """What makes rows of a file of this kind, which is not read; None where nothing better is known."""
    return _OF_KINDS.get(suffix.lower())


def known_start(start: bytes) -> tuple[str, str] | None:
    """What a file is by its first bytes, whatever its name says, and what to do about it."""
    return next(((what, hint) for magic, what, hint in _STARTS if start.startswith(magic)), None)


def page_remedy(text: str) -> str | None:
    """What to do where a text is no data but a web page, or Git LFS's pointer to a file."""
    beginning = text.lstrip()[:40].lower()
    if beginning.startswith("version https://git-lfs"):
        return _POINTER
    return _PAGE if re.match(r"<(!doctype|html|head|\?xml|!--)", beginning) else None


def encoding_remedy(path: Path, byte: int) -> str:
    """How a file is saved as UTF-8; where it may be in Windows' code page, with the command for it."""
    if path.suffix.lower() in (".gz", ".zst") or byte in _NOT_IN_1252:
        return "save the file as UTF-8"
    name, target = shlex.quote(str(path)), shlex.quote(str(path.with_stem(f"{path.stem}-utf8")))
    command = f"iconv -f WINDOWS-1252 -t UTF-8 {name} > {target}"
    return f"save the file as UTF-8: in Excel as CSV UTF-8, or, if Windows wrote it, {command}"


def json_remedy(text: str, at: int, message: str) -> str:
    """What is most likely wrong with a JSON text that ends its reading at `at`."""
    if not text.strip():
        return f"the file is empty: {_LINES}"
    if "\0" in text:
        return "the file looks like UTF-16 without a byte order mark: save it as UTF-8"
    if "stands twice" in message:
        return "give every key of an object a name of its own"
    if message.endswith("is not a JSON value"):
        return "JSON has no such number: write null, or leave the row out"
    if "control character" in message:
        return r"a line break inside a text is written \n, a tab \t: write the rows with a JSON library"
    if "escape" in message:
        return r"a backslash inside a text is written twice, \\, a double quote \""
    return page_remedy(text) or _by_place(text, at, message)


def _by_place(text: str, at: int, message: str) -> str:
    rest = text[at:].strip()
    before = text[:at].rstrip()[-1:]
    match rest[:1]:
        case "" if at > 0 and not message.startswith("Extra"):
            return f"it ends in the middle of an object: is it cut off, or broken into several lines? {_LINES}"
        case "'":
            return _QUOTES
        case "}" | "]" if before == ",":
            return f"take out the comma before {rest[0]}"
        case "," if message.startswith("Extra") and rest == ",":
            return f"take out the comma at the end of the line: {_LINES}"
        case "{" | "[" if message.startswith("Extra"):
            return f"another object begins there: {_LINES}"
    if message.startswith("Unterminated"):
        return rf"the text that begins there does not end: is it cut off, or broken by a line break (\n)? {_LINES}"
    if re.match(r"(None|True|False|nan|inf)\b", rest):
        return f"{_word(rest)} is Python's: JSON writes null, true and false; write the rows with json.dumps"
    if message.startswith("Expecting ',' delimiter") and before == '"':
        return rf"a double quote inside a text is written \"; else a comma is missing there. {_LINES}"
    return _LINES


def _word(text: str) -> str:
    found = re.match(r"\w+", text)
    return found[0] if found else ""
