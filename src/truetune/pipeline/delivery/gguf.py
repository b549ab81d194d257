"""`truetune export --to gguf | ollama`: a whole model as one file, in a folder with a Modelfile for Ollama."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from truetune.config.load import load_config
from truetune.errors import TruetuneError
from truetune.files import named_refusals, require_place, staged_file, staged_folder
from truetune.inference.converter import convert, find_converter
from truetune.inference.gguf import GgufModel, require_exportable, write_gguf
from truetune.inference.gguf_tokenizer import Vocabulary
from truetune.inference.llama_cpp import LlamaCppCheck
from truetune.inference.ollama import Modelfile, go_template, write_modelfile
from truetune.inference.parity import Fixtures
from truetune.inference.prompt_format import find_prompt_format
from truetune.inference.quantization import Quantization, choose_quantization
from truetune.listener import Listener
from truetune.model.load import read_config
from truetune.model.source import ModelSource
from truetune.model.tokenizer import load_tokenizer
from truetune.pipeline.delivery.adapter_base import base_of, was_trained_quantised
from truetune.pipeline.delivery.exported import Export, ExportSettings, is_adapter, name_of, require_gguf, title_of
from truetune.pipeline.delivery.llama_cpp_check import answers_of, can_check, checked, rows_answers
from truetune.pipeline.delivery.local_card import write_card
from truetune.pipeline.delivery.merge import merge_run
from truetune.pipeline.delivery.whole_model import WholeModel, renderer
from truetune.runs.directory import CARD_FACTS
from truetune.runs.trained import run_of


class GgufExport:
    """One export: what is known of the run before anything loads, and then the file."""

    def __init__(self, name: str | Path, folder: Path, settings: ExportSettings, listener: Listener) -> None:
        self.name, self.folder, self.settings, self.listener = name, folder, settings, listener
        self.is_adapter = is_adapter(folder)
        self.converter = find_converter(settings.llama_cpp)
        self.does_check = can_check(settings.check, listener)
        require_gguf()
        if settings.quantize != "auto":
            choose_quantization(settings.quantize, dtype="float32")
        self._foresee()

    def write(self, out: Path) -> Export:
        self._require_place(out)
        with named_refusals(out), self._whole_model(out) as folder:
            model = WholeModel(folder, title_of(self.name))
            quantization = choose_quantization(self.settings.quantize, dtype=model.dtype)
            if self.settings.to == "gguf":
                return self._file(model, quantization, out)
            return self._ollama_folder(model, quantization, out)

    def _file(self, model: WholeModel, quantization: Quantization, out: Path) -> Export:
        is_ours = not out.is_dir() or not any(out.iterdir()) or (out / CARD_FACTS).is_file()
        target = out if out.suffix == ".gguf" else out / f"{model.title}-{quantization.name}.gguf"
        with staged_file(target) as staged:
            size, check = self._write_gguf(model, quantization, staged)
        if target != out and is_ours:  # Into a folder of somebody's no card is put.
            self._write_card(out, check)
        command = f"llama-server -m {quote(str(target))} --jinja"
        return Export(target, "gguf", quantization.name, size, check, command=command)

    def _ollama_folder(self, model: WholeModel, quantization: Quantization, out: Path) -> Export:
        with staged_folder(out) as staged:
            file = staged / f"{model.title}-{quantization.name}.gguf"
            size, check = self._write_gguf(model, quantization, file)
            write_modelfile(staged / "Modelfile", self._modelfile(model, file.name, check))
            self._write_card(staged, check, name=name_of(out))
        name = name_of(out)
        command = f"cd {quote(str(out))} && ollama create {name} -f Modelfile && ollama run {name}"
        return Export(out, "ollama", quantization.name, size, check, command=command)

    def _write_card(self, folder: Path, check: LlamaCppCheck | None, *, name: str | None = None) -> None:
        write_card(
            folder,
            self.folder,
            name=name or name_of(folder),
            kind="gguf",
            base_model=self.settings.base_model,
            results={"check in llama.cpp": None if check is None else check.told()},
        )

    # --- before weights load ---

    def _foresee(self) -> None:
        """Refuses what cannot be written, from the configuration and the tokenizer alone."""
        source = ModelSource(str(self.folder), str(self.folder))
        if self.is_adapter:
            named = self.settings.base_model
            source = base_of(self.folder, find_prompt_format(self.folder, base_model=named), named=named)
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

    def _require_place(self, out: Path) -> None:
        if self.settings.to == "gguf" and out.suffix == ".gguf":
            require_place(out, overwrite=self.settings.overwrite, is_ours=out.is_file(), what="such export")
        elif self.settings.to == "ollama":
            is_ours = (out / "Modelfile").is_file()
            require_place(out, overwrite=self.settings.overwrite, is_ours=is_ours, what="such export")

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
            model.tell_context(self.listener)
            size = write_gguf(model.exported, path, quantization=quantization, listener=self.listener)
        if not self.does_check:
            return size, None
        recorded = answers_of(model, self._rows_answers(), self.listener)
        return size, checked(model, quantization, path, recorded, listener=self.listener)

    def _rows_answers(self) -> Fixtures | None:
        """What was recorded of the run's rows; None where that was over a base that is quantised, or another one than
        merging takes."""
        if self.settings.base_model or (self.is_adapter and was_trained_quantised(self.folder)):
            return None
        return rows_answers(self.folder)

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
