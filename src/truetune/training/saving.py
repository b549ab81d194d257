"""The trained weights, saved through the trainer, read back, compared, and only then given their name."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from truetune.errors import CheckpointError
from truetune.files import write_json
from truetune.model.adapter import load_trained_adapter, verify_adapter, verify_tensors
from truetune.model.fused_lora import as_peft
from truetune.model.probe import likeliest
from truetune.runs.checkpoints import manifested
from truetune.training.checkpoints import drop_unwanted, saving


def save_adapter(
    engine: Any,
    folder: Path,
    *,
    base_model: str,
    revision: str | None,
    load_base: Callable[[], Any],
    documents: Mapping[str, Any] | None = None,
) -> int:
    """Saves adapter, tokenizer, template and `documents` to `folder`; returns how many tensors it holds.

    `base_model` is recorded as the user named it. Raises CheckpointError unless the adapter, loaded again, has the
    trained tensors and gives the trained logits bit for bit. One that started in the base's weights is checked on the
    base that `load_base` loads, untouched.
    """
    with _saved(engine, folder, documents) as staged:
        tensors = _verified(engine.accelerator.unwrap_model(engine.model), staged, load_base)
        _name_base(staged / "adapter_config.json", base_model, revision)
        return tensors


def save_full_model(
    engine: Any, folder: Path, *, stop_token_ids: tuple[int, ...], documents: Mapping[str, Any] | None = None
) -> int:
    """Saves the whole model with its tokenizer and `documents` to `folder`; returns how many tensors it holds.

    Raises CheckpointError unless every trained tensor is there, or one it shares its memory with, and equal.
    """
    model = engine.accelerator.unwrap_model(engine.model)
    model.generation_config.eos_token_id = list(stop_token_ids)
    with _saved(engine, folder, documents) as staged:
        return _verify_weights(engine.strategy.weights(model) or model.state_dict(), staged)


@contextmanager
def _saved(engine: Any, folder: Path, documents: Mapping[str, Any] | None) -> Iterator[Path]:
    """The weights in a hidden folder, which takes its name and gets a manifest when they have been verified."""
    model = engine.accelerator.unwrap_model(engine.model)
    with as_peft(model):
        logits = likeliest(model)
    with saving(folder, engine.model), manifested(folder, {"logits": logits}) as staged:
        engine.save_model(str(staged))
        drop_unwanted(staged)
        for name, document in (documents or {}).items():
            write_json(staged / name, document)
        yield staged


def _verified(model: Any, folder: Path, load_base: Callable[[], Any]) -> int:
    from truetune.model.starts import start_of, verify_plain, write_plain

    start = start_of(model)
    if start is None:
        return verify_adapter(model, folder)
    tensors = verify_tensors(model, folder)
    write_plain(folder, start)
    verify_plain(model, load_trained_adapter(load_base(), folder), folder)
    return tensors


def _name_base(config: Path, base_model: str, revision: str | None) -> None:
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings |= {"base_model_name_or_path": base_model, "revision": revision}
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _verify_weights(trained: Mapping[str, Any], folder: Path) -> int:
    import torch
    from safetensors.torch import load_file

    saved: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            saved.add(name)
            if name not in trained or not torch.equal(trained[name].cpu(), tensor):
                raise CheckpointError(f"{folder}: the saved model differs from the trained one ({name})")
    places = {trained[name].data_ptr() for name in saved}
    missing = [name for name, tensor in trained.items() if tensor.data_ptr() not in places]
    if missing:
        raise CheckpointError(f"{folder}: the saved model lacks {missing[0]}, of {len(missing)} tensors missing")
    return len(saved)
