"""`truetune export --to adapter`: PEFT's folder as it is, asked its prompts on its base, with a card."""

from pathlib import Path

from truetune.errors import CheckpointError
from truetune.files import named_refusals, require_place, staged_folder
from truetune.inference.parity import told
from truetune.listener import Listener
from truetune.pipeline.delivery.exported import Export, ExportSettings, copied, is_adapter, name_of, replayed, size_of
from truetune.pipeline.delivery.local_card import write_card


def export_adapter(folder: Path, out: Path, settings: ExportSettings, listener: Listener) -> Export:
    """The adapter names its base as the user did. Raises as `export_run` does."""
    require_adapter(folder, hint="export --to gguf, or copy the folder")
    require_place(out, overwrite=settings.overwrite, is_ours=is_adapter(out), what="such export")
    with named_refusals(out), staged_folder(out) as staged:
        copied(folder, staged)
        check = replayed(folder, staged, settings, listener)
        results = {"check on its base": None if check is None else told(check)}
        write_card(staged, folder, name=name_of(out), kind="adapter", base_model=settings.base_model, results=results)
        size = size_of(staged)
    return Export(out, "adapter", None, size, check)


def require_adapter(folder: Path, *, hint: str) -> None:
    """CheckpointError for weights that are no adapter."""
    if not is_adapter(folder):
        raise CheckpointError(f"{folder} holds a whole model, no adapter", hint=hint)
