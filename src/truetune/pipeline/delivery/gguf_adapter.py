"""`truetune export --to gguf-adapter`: a LoRA as a file that llama.cpp puts over its base, asked there."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from truetune.errors import ConfigError
from truetune.files import named_refusals, require_place, staged_file, staged_folder
from truetune.inference.gguf import require_exportable, write_gguf
from truetune.inference.gguf_adapter import GgufAdapter, NamedBase, require_convertible, write_gguf_adapter
from truetune.inference.llama_cpp import LlamaCppCheck
from truetune.inference.parity import Fixtures
from truetune.inference.prompt_format import find_prompt_format
from truetune.inference.quantization import QUANTIZATIONS, Quantization, choose_quantization
from truetune.inference.reference import asked_again
from truetune.listener import Listener
from truetune.model.merging import require_update
from truetune.model.stored import fetched
from truetune.pipeline.delivery.adapter import require_adapter
from truetune.pipeline.delivery.adapter_base import base_of, was_trained_quantised
from truetune.pipeline.delivery.exported import Export, ExportSettings, name_of, plain_name, require_gguf, title_of
from truetune.pipeline.delivery.llama_cpp_check import answers_of, can_check, checked, rows_answers
from truetune.pipeline.delivery.local_card import named_base, write_card
from truetune.pipeline.delivery.merge import require_unquantised
from truetune.pipeline.delivery.whole_model import WholeModel
from truetune.pipeline.trained_records import read_records
from truetune.runs.directory import CARD_FACTS


@dataclass(frozen=True, slots=True)
class _Written:
    """The adapter's size, and what llama.cpp found with it over its base."""

    bytes: int
    check: LlamaCppCheck | None


class GgufAdapterExport:
    """One export: all that can be refused is, before weights load; then the file, and its base to ask it on."""

    def __init__(self, name: str | Path, folder: Path, settings: ExportSettings, listener: Listener) -> None:
        _require_sense(settings)
        require_adapter(folder, hint="export --to gguf writes it")
        require_gguf()
        require_update(folder)
        self.folder, self.settings, self.listener = folder, settings, listener
        self.does_check = can_check(settings.check, listener)
        self.model = WholeModel(_base_folder(folder, settings), title_of(name), adapter=folder)
        self.adapter = GgufAdapter(folder, self.model.exported, self.model.title, self._named_base())
        require_convertible(self.adapter)
        self.quantization = self._quantization()
        if self._needs_base:
            require_exportable(self.model.exported)

    @property
    def _needs_base(self) -> bool:
        return self.does_check or self.settings.with_base

    def write(self, out: Path) -> Export:
        is_file = out.suffix == ".gguf"
        if is_file and self.settings.with_base:
            hint = "name a folder, or leave --with-base out"
            raise ConfigError(f"-o {out} is one file, and two are asked for", hint=hint)
        is_ours = out.is_file() if is_file else (out / CARD_FACTS).is_file()
        require_place(out, overwrite=self.settings.overwrite, is_ours=is_ours, what="such export")
        with named_refusals(out):
            return self._file(out) if is_file else self._folder(out)

    def _file(self, out: Path) -> Export:
        with staged_file(out) as staged, TemporaryDirectory(dir=out.parent, prefix=".unfinished-base-") as place:
            written = self._write(staged, Path(place) / "base.gguf")
        return self._export(out, written, base_file=None)

    def _folder(self, out: Path) -> Export:
        file, base_file = f"{self.model.title}-lora-f32.gguf", f"{self._base_title}-{self.quantization.name}.gguf"
        with staged_folder(out) as staged, TemporaryDirectory(dir=out.parent, prefix=".unfinished-base-") as place:
            base = (staged if self.settings.with_base else Path(place)) / base_file
            written = self._write(staged / file, base)
            check = written.check
            told = None if check is None else f"{check.told()}, on {self._told_base}"
            results = {"check in llama.cpp": told}
            base_model = self.settings.base_model
            write_card(
                staged, self.folder, name=name_of(out), kind="gguf-adapter", base_model=base_model, results=results
            )
        return self._export(out / file, written, base_file=out / base_file if self.settings.with_base else None)

    def _export(self, file: Path, written: _Written, *, base_file: Path | None) -> Export:
        command = shlex.join(["llama-server", "-m", str(base_file or "BASE.gguf"), "--lora", str(file)])
        base = self._told_base if written.check else None
        return Export(file, "gguf-adapter", "f32", written.bytes, written.check, base=base, command=command)

    def _write(self, file: Path, base_file: Path) -> _Written:
        self.listener.say("writing the adapter in f32")
        size = write_gguf_adapter(self.adapter, file, listener=self.listener)
        if not self._needs_base:
            return _Written(size, None)
        self.model.tell_context(self.listener)
        self.listener.say(f"writing its base in {self.quantization.name}")
        base = replace(self.model.exported, name=self._base_title)
        write_gguf(base, base_file, quantization=self.quantization, listener=self.listener)
        if not self.does_check:
            return _Written(size, None)
        found = checked(
            self.model, self.quantization, base_file, self._answers(), listener=self.listener, adapter=file
        )
        return _Written(size, found)

    def _answers(self) -> Fixtures:
        """What was recorded; of one that was trained over quantised weights, its answers over unquantised ones."""
        recorded = answers_of(self.model, rows_answers(self.folder), self.listener)
        if not was_trained_quantised(self.folder):
            return recorded
        self.listener.warn("it was trained over quantised weights: its answers over unquantised ones are compared")
        return asked_again(self.model.loaded, recorded, stop_token_ids=self.model.stop_token_ids)

    # --- the base ---

    def _quantization(self) -> Quantization:
        """How the base is stored that it is asked on: so that nothing is rounded, unless the base is to stay."""
        if not self.settings.with_base:
            return QUANTIZATIONS["f32"]
        return choose_quantization(self.settings.quantize, dtype=self.model.dtype)

    def _named_base(self) -> NamedBase | None:
        base = named_base(read_records(self.folder), self.settings.base_model)
        if base is None:
            return None
        url = base.hub_id and f"https://huggingface.co/{base.hub_id}"
        return NamedBase(base.hub_id or base.name, base.revision, url, base.note)

    @property
    def _base_title(self) -> str:
        base = self.adapter.base_name
        return plain_name(base.name.rpartition("/")[2]) if base else "base"

    @property
    def _told_base(self) -> str:
        base = self.adapter.base_name
        name = "its base" if base is None else f"{base.name}@{base.revision}" if base.revision else base.name
        return f"{name} in {self.quantization.name}"


def _base_folder(adapter: Path, settings: ExportSettings) -> Path:
    named = settings.base_model
    source = base_of(adapter, find_prompt_format(adapter, base_model=named), named=named)
    require_unquantised(source)
    return Path(fetched(source).path)


def _require_sense(settings: ExportSettings) -> None:
    if settings.quantize != "auto" and not settings.with_base:
        raise ConfigError(
            "--quantize is how the base's GGUF is stored, and the base is not asked for",
            hint="add --with-base, or leave --quantize out: the adapter's own file is float32",
        )
