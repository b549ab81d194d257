"""`truetune export`: a run as what other programs load, which takes its name once it is proved there."""

from pathlib import Path

from truetune.listener import Listener, LogListener
from truetune.pipeline.delivery.adapter import export_adapter
from truetune.pipeline.delivery.exported import Export, ExportSettings, Target, title_of
from truetune.pipeline.delivery.gguf import GgufExport
from truetune.pipeline.delivery.gguf_adapter import GgufAdapterExport
from truetune.pipeline.delivery.vllm import export_vllm
from truetune.runs.checkpoints import require_as_written
from truetune.runs.trained import weights_folder

__all__ = ["Export", "ExportSettings", "Target", "export_run", "name_for"]


def name_for(name: str | Path, to: Target) -> Path:
    """What an export is called that nobody has named: after the run, in this folder."""
    endings: dict[Target, str] = {"gguf": ".gguf", "gguf-adapter": "-lora.gguf"}
    return Path(f"{title_of(name)}{endings.get(to, f'-{to}')}")


def export_run(
    name: str | Path, out: str | Path, settings: ExportSettings, *, listener: Listener | None = None
) -> Export:
    """Writes the model of a run (or of a folder of weights, or of RUN@STEP) to `out`, once it is proved there.

    An adapter is merged first where the kind of export has no place for one. Of a GGUF the training's prompts are
    asked in llama.cpp, where that is installed. Raises ConfigError, CheckpointError or BackendError before weights
    load, and CheckpointError for an export that is not the trained model; nothing is left at `out` then.
    """
    listener, folder, out = listener or LogListener(), weights_folder(name), Path(out)
    require_as_written(folder)
    match settings.to:
        case "adapter":
            return export_adapter(folder, out, settings, listener)
        case "gguf-adapter":
            return GgufAdapterExport(name, folder, settings, listener).write(out)
        case "vllm":
            return export_vllm(name, folder, out, settings, listener)
        case "gguf" | "ollama":
            return GgufExport(name, folder, settings, listener).write(out)
