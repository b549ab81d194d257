"""What is asked of an export, and what one is: the values that its kinds share."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from truetune.errors import BackendError, CheckpointError
from truetune.figures import byte_size
from truetune.files import write_json
from truetune.inference.generate import load_trained
from truetune.inference.llama_cpp import LlamaCppCheck
from truetune.inference.parity import Parity, as_json, read_fixtures, replay, told
from truetune.inference.prompt_format import FILE as PROMPT_FORMAT
from truetune.inference.prompt_format import find_prompt_format
from truetune.listener import Listener
from truetune.model.source import metadata_has
from truetune.pipeline.passed_on import kind_of, passed_on
from truetune.runs.checkpoints import checkpoint_step
from truetune.runs.trained import run_of

Target = Literal["gguf", "ollama", "adapter", "gguf-adapter", "vllm"]


@dataclass(frozen=True, slots=True)
class Export:
    """What was written to `path`. `check` is what was found where it will be used; None where none was made.

    `base` is what a GGUF adapter was checked on, in words; `command` is what uses the export.
    """

    path: Path
    format: Target
    quantization: str | None
    bytes: int
    check: LlamaCppCheck | Parity | None
    base: str | None = None
    command: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As `truetune export --json` prints it."""
        check = self.check.as_json() if isinstance(self.check, LlamaCppCheck) else self.check and as_json(self.check)
        document = {
            "path": str(self.path),
            "format": self.format,
            "quantization": self.quantization,
            "bytes": self.bytes,
            "check": check,
        }
        more = {"base": self.base, "command": self.command}
        return {**document, **{name: value for name, value in more.items() if value is not None}}

    def told(self) -> list[str]:
        """As `truetune export` prints it."""
        kind = f"{self.quantization}, " if self.quantization else ""
        on = f", on {self.base}" if self.base else ""
        lines = [f"exported: {self.path} ({kind}{byte_size(self.bytes)})", f"{told_check(self.check)}{on}"]
        lines += [f"run it: {self.command}"] if self.command else []
        return [*lines, _FOR_OLLAMA] if self.format == "gguf" else lines


_FOR_OLLAMA = "for Ollama: --to ollama writes its Modelfile beside it, with the template, the stops and the context"


def told_check(check: LlamaCppCheck | Parity | None) -> str:
    """What a check found, in a line for people."""
    match check:
        case None:
            return "not checked"
        case LlamaCppCheck():
            return f"checked: {check.told()}"
        case _:
            return f"checked: {told(check)}"


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """How to export. `check` "require" makes it an error where nothing can be asked.

    `keeps_adapter` leaves an adapter for vLLM unmerged; `with_base` writes the base's GGUF beside an adapter's.
    """

    to: Target
    quantize: str = "auto"
    check: Literal["try", "require", "skip"] = "try"
    base_model: str | None = None
    llama_cpp: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    overwrite: bool = False
    keeps_adapter: bool = False
    with_base: bool = False


# --- what the kinds share ---------------------------------------------------------------------------------


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def title_of(name: str | Path) -> str:
    """The run's name, for files and for servers: letters, figures, dots and dashes."""
    path = Path(str(name).replace("@", "-"))
    word = path.parent.name if path.name in ("adapter", "model") and path.parent.name else path.absolute().name
    return plain_name(word)


def plain_name(word: str) -> str:
    """The word in lower-case letters, figures, dots and dashes."""
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in word).lower() or "model"


def name_of(out: Path) -> str:
    """What a folder that is written is called."""
    return plain_name(out.absolute().name)


def require_gguf() -> None:
    """BackendError where the library that writes GGUF files is not installed."""
    if not metadata_has("gguf"):
        raise BackendError("writing a GGUF needs the gguf package", hint="run: pip install 'truetune[gguf]'")


def copied(folder: Path, staged: Path) -> None:
    """Copies a folder's files, not what lies deeper; of a checkpoint what may be passed on, and its prompt format."""
    is_checkpoint = checkpoint_step(folder) >= 0
    files = passed_on(folder, kind_of(folder)).values() if is_checkpoint else folder.iterdir()
    for file in sorted(path for path in files if path.is_file()):
        shutil.copy(file, staged / file.name)
    if is_checkpoint and (known := find_prompt_format(folder)):
        write_json(staged / PROMPT_FORMAT, asdict(known))


def replayed(folder: Path, copy: Path, settings: ExportSettings, listener: Listener) -> Parity | None:
    """The recorded answers, asked of a copy of the weights; None where there are none, or none are asked for.

    Raises CheckpointError where the answers are others.
    """
    if settings.check == "skip":
        return None
    run = run_of(folder)
    fixtures = read_fixtures(folder if run is None or checkpoint_step(folder) >= 0 else run.path)
    if fixtures is None or not fixtures.fixtures:
        if settings.check == "require":
            raise CheckpointError(f"no answers were recorded with {folder}: there is nothing to check it by")
        listener.warn("no answers were recorded with these weights: they are copied, and not asked")
        return None
    loaded = load_trained(copy, base_model=settings.base_model, device=settings.device, dtype=fixtures.dtype)
    found = replay(loaded.model, fixtures)
    if not found.is_same:
        where = "on its base the adapter" if is_adapter(folder) else "the copy"
        raise CheckpointError(f"{where} is not the trained model: {found.first_difference}")
    return found


def size_of(folder: Path) -> int:
    """The bytes of its files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
