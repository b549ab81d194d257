"""`truetune export`: a run as what other programs load, which takes its name once it is proved there."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from truetune.config.load import load_config
from truetune.errors import BackendError, CheckpointError, TruetuneError
from truetune.files import named_refusals, require_place, staged_file, staged_folder
from truetune.inference.converter import convert, find_converter
from truetune.inference.generate import load_trained
from truetune.inference.gguf import GgufModel, require_exportable, write_gguf
from truetune.inference.gguf_tokenizer import Vocabulary
from truetune.inference.llama_cpp import INSTALL, Asked, LlamaCppCheck, ask, is_installed, texts_of
from truetune.inference.ollama import Modelfile, go_template, write_modelfile
from truetune.inference.parity import FILE as PARITY
from truetune.inference.parity import Fixtures, Parity, as_json, read_fixtures, replay
from truetune.inference.quantization import Quantization, choose_quantization
from truetune.listener import Listener, LogListener
from truetune.model.fixtures import read_file
from truetune.model.load import read_config
from truetune.model.source import ModelSource, metadata_has
from truetune.model.tokenizer import load_tokenizer
from truetune.pipeline.adapter_base import base_of, known_format, was_trained_quantised
from truetune.pipeline.merge import merge_run
from truetune.pipeline.whole_model import Judge, WholeModel, answered, renderer
from truetune.runs.checkpoints import checkpoint_step, problems
from truetune.runs.trained import run_of, weights_folder

Target = Literal["gguf", "ollama", "adapter"]

ENOUGH = 0.8
"""The share of a quantised model's tokens that should be the trained model's first choice; below it is warned."""


@dataclass(frozen=True, slots=True)
class Export:
    """What was written to `path`. `check` is what was found where it will be used; None where none was made."""

    path: Path
    format: Target
    quantization: str | None
    bytes: int
    check: LlamaCppCheck | Parity | None

    def as_json(self) -> dict[str, Any]:
        """As `truetune export --json` prints it."""
        check = self.check.as_json() if isinstance(self.check, LlamaCppCheck) else self.check and as_json(self.check)
        return {
            "path": str(self.path),
            "format": self.format,
            "quantization": self.quantization,
            "bytes": self.bytes,
            "check": check,
        }

    def told(self) -> list[str]:
        """As `truetune export` prints it."""
        how = f" ({self.quantization}, {self.bytes / 1e6:,.1f} MB)" if self.quantization else ""
        lines = [f"exported: {self.path}{how}", _verdict(self.check)]
        if self.format == "ollama":
            lines.append(f"run it: cd {self.path} && ollama create {self.path.name} -f Modelfile")
        return lines


def _verdict(check: LlamaCppCheck | Parity | None) -> str:
    match check:
        case None:
            return "not checked"
        case LlamaCppCheck():
            answers = f"{check.equal} of {check.prompts} training prompts have the same answer in llama.cpp"
            ties = f", and {check.ties} another that rounding alone explains" if check.ties else ""
            return f"checked: {answers}{ties}; {check.tokens_equal_rate:.0%} of the tokens are the same choice"
        case _:
            return f"checked: {check.equal + check.ties} of {check.prompts} training prompts have the same answer"


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """How to export. `check` "require" makes it an error where llama.cpp is not there to ask."""

    to: Target
    quantize: str = "auto"
    check: Literal["try", "require", "skip"] = "try"
    base_model: str | None = None
    llama_cpp: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    overwrite: bool = False


def export_run(
    name: str | Path, out: str | Path, settings: ExportSettings, *, listener: Listener | None = None
) -> Export:
    """Writes the model of a run (or of a folder of weights, or of RUN@STEP) to `out`, once it is proved there.

    An adapter is merged first, in a folder that is removed again. Of a GGUF the training's prompts are asked in
    llama.cpp, where that is installed. Raises ConfigError, CheckpointError or BackendError before weights load, and
    CheckpointError for an export that is not the trained model; nothing is left at `out` then.
    """
    listener, folder = listener or LogListener(), weights_folder(name)
    if found := problems(folder) if (folder / "manifest.json").is_file() else []:
        raise CheckpointError(f"{folder} is not what was written: {found[0]}")
    if settings.to == "adapter":
        return _export_adapter(folder, Path(out), settings, listener)
    return _GgufExport(name, folder, settings, listener).write(Path(out))


# --- the adapter ------------------------------------------------------------------------------------------


def _export_adapter(folder: Path, out: Path, settings: ExportSettings, listener: Listener) -> Export:
    """PEFT's folder as it is: it names its base as the user did, and is asked its prompts on it."""
    if not (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds a whole model, no adapter", hint="export --to gguf, or copy the folder"
        )
    require_place(
        out, overwrite=settings.overwrite, is_ours=(out / "adapter_config.json").is_file(), what="such export"
    )
    with named_refusals(out), staged_folder(out) as staged:
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            shutil.copy(file, staged / file.name)
        check = None if settings.check == "skip" else _asked_as_adapter(folder, staged, settings, listener)
        size = sum(file.stat().st_size for file in staged.iterdir())
    return Export(out, "adapter", None, size, check)


def _asked_as_adapter(folder: Path, staged: Path, settings: ExportSettings, listener: Listener) -> Parity | None:
    fixtures = read_fixtures(_home(folder))
    if fixtures is None or not fixtures.fixtures:
        if settings.check == "require":
            raise CheckpointError(f"no answers were recorded with {folder}: there is nothing to check it by")
        listener.warn("no answers were recorded with this adapter: it is copied, and not asked")
        return None
    loaded = load_trained(staged, base_model=settings.base_model, device=settings.device, dtype=fixtures.dtype)
    found = replay(loaded.model, fixtures)
    if not found.is_same:
        raise CheckpointError(f"on its base the adapter is not the trained model: {found.first_difference}")
    return found


# --- GGUF and Ollama --------------------------------------------------------------------------------------


class _GgufExport:
    """One export: what is known of the run before anything loads, and then the file."""

    def __init__(self, name: str | Path, folder: Path, settings: ExportSettings, listener: Listener) -> None:
        self.name, self.folder, self.settings, self.listener = name, folder, settings, listener
        self.is_adapter = (folder / "adapter_config.json").is_file()
        self.converter = find_converter(settings.llama_cpp)
        self.does_check = settings.check != "skip" and self._can_check()
        _require_gguf()
        if settings.quantize != "auto":
            choose_quantization(settings.quantize, dtype="float32")
        self._foresee()

    def write(self, out: Path) -> Export:
        target = self._target(out)
        with named_refusals(target), self._whole_model(target) as folder:
            model = WholeModel(folder, _title(self.name))
            quantization = choose_quantization(self.settings.quantize, dtype=model.dtype)
            if self.settings.to == "gguf":
                if target.suffix != ".gguf":
                    target = target / f"{model.title}-{quantization.name}.gguf"
                with staged_file(target) as staged:
                    size, check = self._write_gguf(model, quantization, staged)
            else:
                with staged_folder(target) as staged:
                    file = staged / f"{model.title}-{quantization.name}.gguf"
                    size, check = self._write_gguf(model, quantization, file)
                    write_modelfile(staged / "Modelfile", self._modelfile(model, file.name, check))
        return Export(target, self.settings.to, quantization.name, size, check)

    # --- before weights load ---

    def _can_check(self) -> bool:
        if is_installed():
            return True
        if self.settings.check == "require":
            raise BackendError("the check needs llama.cpp, which is not installed", hint=INSTALL)
        self.listener.warn(f"llama.cpp is not installed, so the file is not checked in it; {INSTALL}")
        return False

    def _foresee(self) -> None:
        """Refuses what cannot be written, from the configuration and the tokenizer alone."""
        source = ModelSource(str(self.folder), str(self.folder))
        if self.is_adapter:
            source = base_of(self.folder, known_format(self.folder), named=self.settings.base_model)
        try:
            config = read_config(source)
            holder = self.folder if (self.folder / "tokenizer_config.json").is_file() else Path(source.path)
            tokenizer = load_tokenizer(ModelSource(str(holder), str(holder)))
        except TruetuneError:
            return  # Merging tells what is missing, and how to name it.
        if self.converter:
            return
        size = max(config.vocab_size, len(tokenizer))
        require_exportable(GgufModel(self.folder, config, Vocabulary(tokenizer, size), "", (), False, None))
        if self.settings.to == "ollama" and tokenizer.chat_template:
            go_template(renderer(tokenizer))

    def _target(self, out: Path) -> Path:
        if self.settings.to == "gguf" and out.suffix == ".gguf":
            require_place(out, overwrite=self.settings.overwrite, is_ours=out.is_file(), what="such export")
        elif self.settings.to == "ollama":
            require_place(
                out, overwrite=self.settings.overwrite, is_ours=(out / "Modelfile").is_file(), what="such export"
            )
        return out

    # --- the model ---

    @contextmanager
    def _whole_model(self, target: Path) -> Iterator[Path]:
        """The folder of the whole model: a run's own, or the merged one, which is removed again."""
        if not self.is_adapter:
            yield self.folder
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unfinished-merged-") as temporary:
            merged = merge_run(
                self.name,
                Path(temporary) / "model",
                base_model=self.settings.base_model,
                dtype="auto" if self.settings.quantize == "auto" else "float32",
                device=self.settings.device,
                listener=self.listener,
            )
            yield merged.path

    def _write_gguf(
        self, model: WholeModel, quantization: Quantization, path: Path
    ) -> tuple[int, LlamaCppCheck | None]:
        self.listener.say(f"writing {quantization.name}")
        if self.converter:
            size = convert(self.converter, model.folder, path, quantization=quantization)
        else:
            if model.exported.context_length != model.config.max_position_embeddings:
                self.listener.warn(
                    f"llama.cpp has no sliding window for this architecture: its context is told to be "
                    f"{model.exported.context_length:,} tokens, up to which it makes no difference"
                )
            size = write_gguf(model.exported, path, quantization=quantization, listener=self.listener)
        return size, self._checked(model, quantization, path) if self.does_check else None

    # --- the check ---

    def _checked(self, model: WholeModel, quantization: Quantization, path: Path) -> LlamaCppCheck:
        recorded = self._fixtures(model)
        fixtures = recorded.fixtures
        asked = Asked(
            fixtures,
            texts_of(model.tokenizer, fixtures),
            model.conversations(fixtures),
            model.stop_token_ids,
            model.bos if model.adds_bos else "",
        )
        found = ask(path, asked, is_tie=Judge(model, quantization, recorded.dtype), listener=self.listener)
        if found.other_ids:
            raise CheckpointError(f"llama.cpp makes other tokens of {found.other_ids!r} than the tokenizer does")
        if quantization.is_exact and not found.is_same:
            raise CheckpointError(
                f"in llama.cpp it is not the trained model: {found.first_difference}",
                hint="nothing was written; --no-check writes it all the same",
            )
        if found.other_text:
            self.listener.warn(f"llama.cpp makes other tokens of some texts than training did: {found.other_text!r}")
        if found.other_prompts:
            self.listener.warn(f"llama.cpp's server prompts otherwise than training did: {found.other_prompts}")
        if found.tokens_equal_rate < ENOUGH:
            self.listener.warn(
                f"in {quantization.name} only {found.tokens_equal_rate:.0%} of the answers' tokens are the trained "
                "model's first choice: store it in more bits"
            )
        return found

    def _fixtures(self, model: WholeModel) -> Fixtures:
        """What was recorded, the rows' prompts too; for a model without, the answers that it gives now."""
        found = read_fixtures(model.folder) or Fixtures((), "float32")
        if rows := self._rows_fixtures():
            found = Fixtures((*found.fixtures, *rows.fixtures), found.dtype)
        if not found.fixtures:
            self.listener.say("no answers were recorded with it: a few prompts are asked now, and compared")
            found = answered(model)
        return found

    def _rows_fixtures(self) -> Fixtures | None:
        """What was recorded of the run's rows; None where it was of another model: an earlier step's, or over a base
        that is quantised, or another one than merging takes."""
        run = run_of(self.folder)
        if run is None or checkpoint_step(self.folder) >= 0 or self.settings.base_model:
            return None
        if self.is_adapter and was_trained_quantised(self.folder):
            return None
        return read_file(run.path / PARITY)

    # --- Ollama ---

    def _modelfile(self, model: WholeModel, file: str, check: LlamaCppCheck | None) -> Modelfile:
        context = self._context(model)
        if model.template and model.template.prints_date:
            self.listener.warn("the chat template prints the date: Ollama will go on printing today's")
        if check:
            told = f"In llama.cpp {check.equal + check.ties} of {check.prompts} training prompts had the same answer."
        else:
            told = "Not checked in llama.cpp."
        notes = (
            f"{model.title}, exported by truetune. {told}",
            f"Run it: ollama create {model.title} -f Modelfile",
            f"Ollama reads 2,048 tokens unless it is told otherwise: num_ctx {context} is what training read.",
            "Ollama samples at temperature 0.8; the checked answers are greedy: temperature 0, repeat_penalty 1.",
        )
        stops = tuple(("stop", text) for text in model.stop_texts)
        return Modelfile(f"./{file}", model.go_template(), (("num_ctx", context), *stops), notes)

    def _context(self, model: WholeModel) -> int:
        """The tokens of the run's longest rows, as far as the model can read."""
        most = int(model.config.max_position_embeddings)
        run = run_of(self.folder)
        return min(load_config(run.config).config.data.max_length, most) if run and run.config.is_file() else most


def _home(folder: Path) -> Path:
    """Where its answers are recorded: the run, with the rows' too, or the folder itself."""
    run = run_of(folder)
    return folder if run is None or checkpoint_step(folder) >= 0 else run.path


def _title(name: str | Path) -> str:
    """The run's name, for files and for Ollama: letters, figures, dots and dashes."""
    path = Path(str(name).replace("@", "-"))
    word = path.parent.name if path.name in ("adapter", "model") and path.parent.name else path.absolute().name
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in word).lower() or "model"


def _require_gguf() -> None:
    if not metadata_has("gguf"):
        raise BackendError("writing a GGUF needs the gguf package", hint="run: pip install 'truetune[gguf]'")
