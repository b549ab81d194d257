"""The models on this machine: in the caches, the demo, and below a folder."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from truetune.errors import BackendError, TruetuneError, first_line
from truetune.model.source import DEMO, cache_directory
from truetune.model.stored import StoredModel, find_stored, folder_model, gguf_model, read_json
from truetune.pipeline.models.describe import REFUSALS, ModelDescription, described
from truetune.pipeline.models.needs import Here, here

_DEPTH = 2


def list_models(folder: Path) -> tuple[ModelDescription, ...]:
    """The models in the caches, the demo, and those up to two levels below `folder`; what is wrong with which."""
    machine = here()
    found = [*_cached(machine), *_converted(machine), *_demo(machine), *_below(folder, machine)]
    return tuple(found)


def _safely(stored: StoredModel, *, source: str, machine: Here) -> ModelDescription:
    """The description, or the name with what is wrong."""
    try:
        return described(stored, source=source, machine=machine)
    except (TruetuneError, OSError, *REFUSALS) as error:
        reason = error.message if isinstance(error, TruetuneError) else first_line(error)
        return ModelDescription(stored.name, source, problem=reason)


def _cached(machine: Here) -> Iterator[ModelDescription]:
    """The hub models in Hugging Face's cache, at the newest revision that is there, main before others."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError):
        return
    for repo in sorted(cache.repos, key=lambda repo: str(repo.repo_id)):
        if repo.repo_type == "model" and repo.revisions:
            newest = max(repo.revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified))
            yield _safely(
                folder_model(newest.snapshot_path, name=repo.repo_id, kind="hub"), source="hub cache", machine=machine
            )
    for warning in cache.warnings:
        if named := re.search(r"models--([^/\\]+)", str(warning)):
            yield ModelDescription(
                named[1].replace("--", "/"), "hub cache", problem=f"damaged: {first_line(warning)}"
            )


def _converted(machine: Here) -> Iterator[ModelDescription]:
    """GGUF files that truetune has unpacked."""
    for folder in sorted((cache_directory() / "gguf").glob("*/")):
        if (folder / "config.json").is_file():
            yield _safely(folder_model(folder, name=str(folder)), source="converted", machine=machine)


def _demo(machine: Here) -> Iterator[ModelDescription]:
    try:
        stored = find_stored(DEMO)
    except BackendError:
        return
    yield _safely(stored, source="demo", machine=machine)


def _below(folder: Path, machine: Here) -> Iterator[ModelDescription]:
    """Folders of models and .gguf files below `folder`; in a run's directory one level further."""
    for path in _walked(folder, _DEPTH):
        name = str(path.relative_to(folder)) if path != folder else "."
        named = name if path == folder or os.sep in name else f"./{name}"
        if path.suffix == ".gguf":
            yield _safely(gguf_model(path, name=named), source="gguf", machine=machine)
        else:
            yield _safely(folder_model(path, name=named), source="folder", machine=machine)


def _walked(folder: Path, depth: int) -> Iterator[Path]:
    """Models in `folder` and so many levels below; hidden folders and those that may not be read are passed by."""
    try:
        inside: Sequence[Path] = sorted(folder.iterdir())
    except OSError:
        return
    if _is_model(folder):
        yield folder
        return
    depth += (folder / "run.json").is_file() and depth == 0
    for path in inside:
        if path.name.startswith("."):
            continue
        if path.suffix == ".gguf" and path.is_file():
            yield path
        elif depth and path.is_dir() and not path.is_symlink():
            yield from _walked(path, depth - 1)


def _is_model(folder: Path) -> bool:
    """True of a folder whose config.json names a model: other programs have files of that name too."""
    try:
        return bool({"model_type", "architectures"} & {*read_json(folder / "config.json")})
    except BackendError:
        return any(folder.glob("*.safetensors"))
