"""From bytes on disk to text: the kind and compression that a name claims, the encoding, and what can be wrong."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from truetune.data.remedies import encoding_remedy, known_start
from truetune.errors import DataError

COMPRESSIONS = (".gz", ".zst")
KINDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".feather")
"""The suffixes that are read, each also under a compression's: train.jsonl.zst."""

READ_KINDS = ".json, .jsonl, .csv, .tsv, .parquet, .arrow or .txt (also .gz, .zst)"

_BOMS = {b"\xff\xfe\0\0": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
_BUFFER = 1 << 18


def suffix_of(name: str | Path) -> str:
    """The suffix that names the kind, in lower case and without a compression's: `.jsonl` of A.JSONL.gz."""
    path = Path(name)
    return Path(path.stem if is_compressed(path) else path.name).suffix.lower()


def is_compressed(name: str | Path) -> bool:
    return Path(name).suffix.lower() in COMPRESSIONS


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed as its name says."""
    match path.suffix.lower():
        case ".gz":
            return cast(IO[bytes], gzip.open(path, "rb"))
        case ".zst":
            import pyarrow as pa

            return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), _BUFFER)
        case _:
            return path.open("rb", buffering=_BUFFER)


def encoding_of(path: Path) -> str:
    """The encoding of a text file: UTF-8, or as its byte order mark says."""
    with open_bytes(path) as file:
        return _encoding(file.read(4))


def pass_over(stream: IO[bytes], count: int) -> None:
    """Goes on behind the next so many bytes."""
    if stream.seekable():
        stream.seek(count)
        return
    while count > 0 and (block := stream.read(min(count, _BUFFER))):
        count -= len(block)


def open_text(path: Path, *, newline: str) -> IO[str]:
    r"""The text of a file, in UTF-8 or as its byte order mark says, its line ends as they are.

    `newline` is what ends a line when iterating: "\n" for that alone, "" for any of \n, \r and \r\n.
    """
    with open_bytes(path) as file:
        encoding = _encoding(file.read(4))
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline=newline)


@contextmanager
def reading(path: Path, name: str) -> Iterator[None]:
    """Whatever goes wrong with the bytes of a file becomes a DataError that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, name) from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{name}: broken or cut off: {error}", hint="get the file again") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}", hint=_system_hint(error)) from error


def _system_hint(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "give yourself the right to read it"
    return "the file is broken, cut off, or not what its name says: get it again"


def _encoding(start: bytes) -> str:
    return next((name for bom, name in _BOMS.items() if start.startswith(bom)), "utf-8")


def _wrong_encoding(path: Path, name: str) -> DataError:
    """The error for a file known to be badly encoded, found by reading it anew."""
    with path.open("rb") as raw:
        known = known_start(raw.read(16))
    if known and not is_compressed(path):
        what, hint = known
        return DataError(f"{name}: this is {what}, not text", hint=hint)
    line = 1
    with cast(io.BufferedIOBase, open_bytes(path)) as file:
        data = file.read(4)
        encoding = _encoding(data)
        decoder = codecs.getincrementaldecoder(encoding)()
        while True:
            try:
                line += decoder.decode(data, final=not data).count("\n")
            except UnicodeDecodeError as error:
                line += _line_feeds_before(error, encoding)
                return not_decoded(path, name, line, error, encoding=encoding)
            # No more than there is: behind the broken text the file may be cut off.
            data = file.read1(_BUFFER)


def not_decoded(path: Path, name: str, line: int, error: UnicodeDecodeError, *, encoding: str = "utf-8") -> DataError:
    """The error for a line that is not in the file's encoding."""
    byte = error.object[error.start]
    return DataError(
        f"{name}, line {line}: not valid {encoding.removesuffix('-sig').upper()} (byte 0x{byte:02x})",
        hint=encoding_remedy(path, byte) if encoding.startswith("utf-8") else "save the file as UTF-8",
    )


def _line_feeds_before(error: UnicodeDecodeError, encoding: str) -> int:
    if encoding.startswith("utf-8"):
        return error.object.count(b"\n", 0, error.start)
    return error.object[: error.start].decode(error.encoding, errors="ignore").count("\n")
