"""`truetune import`: another tool's config file, or a training script, into a translation."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.config.document import read_text
from truetune.errors import ConfigError
from truetune.migrate import litgpt, unsloth
from truetune.migrate.axolotl import AXOLOTL
from truetune.migrate.detect import TOOLS, detect
from truetune.migrate.document import Document, read_document
from truetune.migrate.litgpt import LITGPT
from truetune.migrate.llamafactory import INFO, llamafactory
from truetune.migrate.notebook import script_of
from truetune.migrate.outcomes import Tool
from truetune.migrate.script import read_script
from truetune.migrate.translation import Translation, resolved, translate
from truetune.migrate.trl import TRL
from truetune.migrate.unsloth import UNSLOTH
from truetune.migrate.write import as_json, as_yaml

_NOTEBOOK = ".ipynb"
_OF_ROWS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".txt", ".gz", ".zst")


@dataclass(frozen=True, slots=True)
class Imported:
    """A file's translation, the tool it was found to belong to, and the keys that told it."""

    source: str
    translation: Translation
    because: tuple[str, ...]
    lines: Mapping[str, int]

    def as_yaml(self) -> str:
        """A run.yaml: load_config reads it, and it tells what came from which key and what is missing."""
        return as_yaml(self.translation, source=Path(self.source).name)

    def as_json(self) -> dict[str, Any]:
        return as_json(self.translation, source=self.source, because=self.because, lines=self.lines)

    def told(self) -> Iterator[str]:
        """What a person should know, a line each: the tool, the notes, and each key that was lost, with its line."""
        done = self.translation
        lost = [each for each in done.untranslated if each.matters]
        idle = len(done.untranslated) - len(lost)
        yield f"{done.tool}, by {', '.join(self.because[:6])}"
        yield f"{len(done.translated)} keys translated, {len(lost)} not, {idle} that nothing is lost by"
        yield from (f"note: {note}" for note in done.notes)
        for each in lost:
            yield f"{self.where(each.key)}: {each.key} is not translated: {each.reason}"

    def where(self, key: str) -> str:
        """`axolotl.yaml:12`, as far as the line is known."""
        return f"{self.source}:{self.lines[key]}" if key in self.lines else self.source


def import_file(path: str | Path, *, tool: str | None = None) -> Imported:
    """The file's settings in truetune's words; a script is read, and never run. `tool` overrides what its keys say.

    Raises ConfigError for a file that cannot be read, whose tool cannot be told, or that trains in a way that
    truetune does not.
    """
    path = Path(path)
    if tool not in (None, *TOOLS):
        raise ConfigError(f"no such tool: {tool}", hint=f"tools are {', '.join(TOOLS)}")
    if path.suffix in _OF_ROWS:
        raise ConfigError(f"{path} holds rows, not settings", hint=f"look at them: truetune check {path}")
    if tool == "script" or (tool is None and path.suffix in (".py", _NOTEBOOK)):
        return _checked(path, *_from_script(path))
    return _checked(path, *_from_document(path, tool))


def _from_script(path: Path) -> tuple[Document, Tool, tuple[str, ...]]:
    text = read_text(path)
    script = read_script(script_of(text, name=str(path)) if path.suffix == _NOTEBOOK else text, name=str(path))
    return Document(script.values, script.lines), script.tool, script.because


def _from_document(path: Path, tool: str | None) -> tuple[Document, Tool, tuple[str, ...]]:
    document = read_document(path)
    try:
        detected = None if tool else detect(document.values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from None
    chosen = tool or (detected.tool if detected else "")
    because = detected.because if detected else ("--from",)
    match chosen:
        case "axolotl":
            return document, AXOLOTL, because
        case "llamafactory":
            return document, llamafactory(*_dataset_info(path, document.values)), because
        case "trl":
            return document, TRL, because
        case "unsloth":
            return Document(unsloth.flat(document.values), _flat_lines(document.lines)), UNSLOTH, because
        case _:
            return Document(litgpt.flat(document.values), document.lines), LITGPT, because


def _flat_lines(lines: Mapping[str, int]) -> dict[str, int]:
    known = {key.partition(".")[2]: line for key, line in lines.items() if key.partition(".")[0] in unsloth.SECTIONS}
    return {**lines, **known}


def _dataset_info(path: Path, values: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, Path]:
    """What dataset_info.json says, and its folder: the data folder below this one or one above the file, or beside
    the file. None if it is in none of them."""
    folder = Path(str(values.get("dataset_dir") or "data"))
    above = (parent / folder for parent in path.absolute().parents)
    for place in (folder, path.parent / folder, path.parent, *above):
        with suppress(OSError):  # A name may be longer than the system takes.
            if (place / INFO).is_file():
                return read_document(place / INFO).values, place
    return None, folder


def _checked(path: Path, document: Document, tool: Tool, because: tuple[str, ...]) -> Imported:
    """The translation of the document; its settings make a config that loads."""
    try:
        translation = translate(document.values, tool)
    except ConfigError as error:
        lines = [_placed(line, path, document.lines) for line in error.message.splitlines()]
        raise ConfigError("\n".join(lines), hint=error.hint) from None
    resolved(translation)
    return Imported(str(path), translation, because, document.lines)


def _placed(message: str, path: Path, lines: Mapping[str, int]) -> str:
    line = lines.get(message.partition(":")[0])
    return f"{path}:{line}: {message}" if line else f"{path}: {message}"
