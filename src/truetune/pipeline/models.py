"""`truetune models`: what models are here, what each needs, and what is unusual about one; from their files alone."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from truetune.errors import BackendError, TruetuneError, first_line
from truetune.model.hardware import Device, Precision, free_memory, resolve_device, resolve_precision
from truetune.model.headers import Headers, Listed
from truetune.model.load import ModelFacts, Quantization, facts_of
from truetune.model.portions import words_at_a_time
from truetune.model.shape import ModelShape, configured_shape
from truetune.model.source import DEMO, ModelSource, cache_directory
from truetune.model.stored import (
    StoredModel,
    Weights,
    configuration,
    find_stored,
    find_weights,
    folder_model,
    gguf_model,
    headers_of,
    read_json,
)
from truetune.model.tokenizer import load_tokenizer
from truetune.model.unusual import Evidence, Oddity, Vocabulary, find_unusual
from truetune.pipeline.workload import Longest, tokens_evaluated, tokens_trained
from truetune.planning.hyperparameters import leaves_room
from truetune.planning.memory import Workload, estimate

Method = Literal["lora", "qlora", "full"]
METHODS: tuple[Method, ...] = ("lora", "qlora", "full")
_LENGTH, _RANK = 2048, 16
_DEPTH = 2
_REFUSALS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    RuntimeError,
)
"""What making an empty model raises for a configuration that makes none."""


@dataclass(frozen=True, slots=True)
class Here:
    """What this machine computes with; `free` bytes are left on the device, None where it does not say."""

    device: Device
    precision: Precision
    free: int | None


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes at the peak of a training, and whether they fit; gradient checkpointing is on where they would not."""

    peak_bytes: int
    fits: bool | None
    gradient_checkpointing: bool


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a model's files say, None where they do not; `needs` of a method that cannot train it are None.

    `bytes` are those of the weights' files; `problem` is why there is no more to say.
    """

    name: str
    source: str
    parameters: int | None = None
    bytes: int | None = None
    context_length: int | None = None
    template: bool | None = None
    dtype: str | None = None
    needs: Mapping[str, Need | None] = field(default_factory=lambda: dict.fromkeys(METHODS))
    unusual: tuple[Oddity, ...] = ()
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def here() -> Here:
    """This machine, as a training with every setting on `auto` would use it."""
    device = resolve_device("auto")
    return Here(device, resolve_precision("auto", device), free_memory(device))


def describe_model(name: str, *, trust_remote_code: bool = False) -> ModelDescription:
    """One model's facts, needs and oddities. Of a model on the hub no weights are fetched, of a GGUF none converted.

    Raises BackendError for what is not there, or whose files are damaged.
    """
    stored = find_stored(name, trust_remote_code=trust_remote_code)
    return _described(stored, source=stored.kind, machine=here(), trust=trust_remote_code, is_alone=True)


def list_models(folder: Path) -> tuple[ModelDescription, ...]:
    """The models in the caches, the demo, and those up to two levels below `folder`; what is wrong with which."""
    machine = here()
    found = [*_cached(machine), *_converted(machine), *_demo(machine), *_below(folder, machine)]
    return tuple(found)


# --- one model --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Configured:
    """transformers' configuration and the shape it makes, or why there is none."""

    config: Any = None
    shape: ModelShape | None = None
    refusal: str | None = None


def _described(
    stored: StoredModel, *, source: str, machine: Here, trust: bool = False, is_alone: bool = False
) -> ModelDescription:
    """The description; oddities, for which the tokenizer is loaded, only of a model that is asked for alone."""
    weights = find_weights(stored)
    headers = headers_of(stored, weights)
    configured = _configured(stored, headers, trust=trust)
    settings = _settings(stored, configured.config)
    facts = facts_of(configured.config) if configured.config else None
    context = facts.context_length if facts else _stated_context(settings, headers)
    quantization = _quantization(settings, facts.quantization if facts else "none")
    shape, size = configured.shape, sum(stored.sizes[file] for file in weights.files)
    return ModelDescription(
        name=stored.name,
        source=source,
        parameters=_parameters(headers, shape, settings),
        bytes=size or None,
        context_length=context,
        template=_has_template(stored, headers),
        dtype=headers.dtype if headers else None,
        needs=_needs(shape, facts, weights, size, machine, quantization)
        if shape and facts
        else dict.fromkeys(METHODS),
        unusual=_unusual(stored, weights, headers, configured, settings, trust) if is_alone else (),
        problem=_incomplete(weights),
    )


def _configured(stored: StoredModel, headers: Headers | None, *, trust: bool) -> _Configured:
    try:
        config = configuration(stored, headers, trust_remote_code=trust)
    except BackendError as error:
        return _Configured(refusal=error.message)
    if not (_heads(config.model_type) or trust):
        return _Configured(config)  # transformers (5.24) would import every model's configuration to say so.
    try:
        return _Configured(config, configured_shape(config, trust_remote_code=trust))
    except _REFUSALS:
        return _Configured(config)


def _settings(stored: StoredModel, config: Any) -> Mapping[str, Any]:
    """The configuration as one mapping, the text model's sizes over the whole's; else as it stands in the file."""
    raw = config.to_dict() if config else read_json(stored.folder / "config.json") if stored.folder else {}
    text = config.get_text_config().to_dict() if config else raw.get("text_config") or {}
    kept = {name: raw[name] for name in ("model_type", "architectures") if name in raw}
    return {**raw, **{name: value for name, value in text.items() if value is not None}, **kept}


def _stated_context(settings: Mapping[str, Any], headers: Headers | None) -> int | None:
    metadata = headers.metadata if headers else {}
    stated = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    length = settings.get("max_position_embeddings") or stated
    return length if isinstance(length, int) else None


def _quantization(settings: Mapping[str, Any], stored: Quantization) -> Quantization | None:
    """How bitsandbytes has stored it; None for a method whose memory is not known."""
    return None if settings.get("quantization_config") and stored == "none" else stored


def _parameters(headers: Headers | None, shape: ModelShape | None, settings: Mapping[str, Any]) -> int | None:
    """Those in the files; of packed weights, or without headers, those that the configuration makes."""
    if headers and not settings.get("quantization_config"):
        return headers.parameters
    return shape.parameters if shape else None


def _has_template(stored: StoredModel, headers: Headers | None) -> bool | None:
    if stored.folder is None:
        return headers is not None and "tokenizer.chat_template" in headers.metadata
    if {"chat_template.jinja", "chat_template.json"} & {*stored.sizes}:
        return True
    if "tokenizer_config.json" not in stored.sizes:
        return None
    return bool(read_json(stored.folder / "tokenizer_config.json").get("chat_template"))


def _incomplete(weights: Weights) -> str | None:
    if weights.form == "none":
        return "incomplete: no weights"
    if weights.missing:
        return f"incomplete: {weights.missing[0]} is missing"
    return None


# --- what it needs ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Files:
    """What a base is loaded from: its quantisation, torch's name of its dtype, its bytes."""

    quantization: Quantization
    dtype: str
    bytes: int


def needs(
    shape: ModelShape,
    machine: Here,
    *,
    context: int | None,
    quantization: Quantization | None,
    dtype: str = "float32",
    size: int = 0,
) -> Mapping[str, Need | None]:
    """What each method takes at its peak: batch 1, `max_length` 2048 or the context if that is shorter, rank 16.

    A base that is stored in 4 or 8 bits stays so, and is not trained whole; None stands for what is not known.
    `dtype` and `size` in bytes are those of the files that it is loaded from.
    """
    length = min(_LENGTH, context or _LENGTH)

    def need(method: Method) -> Need | None:
        if quantization is None or (quantization != "none" and method == "full"):
            return None
        files = _Files(quantization, dtype, size)
        return _need(shape, _workload(shape, machine, method, length, files), machine.free)

    return {method: need(method) for method in METHODS}


def _needs(
    shape: ModelShape,
    facts: ModelFacts,
    weights: Weights,
    size: int,
    machine: Here,
    quantization: Quantization | None,
) -> Mapping[str, Need | None]:
    """Of a model in files of so many bytes; a GGUF is loaded from what is unpacked of it, in fp32."""
    dtype = "float32" if weights.form == "gguf" else facts.dtype
    size = 4 * shape.parameters if weights.form == "gguf" else size
    return needs(shape, machine, context=facts.context_length, quantization=quantization, dtype=dtype, size=size)


def _need(shape: ModelShape, work: Workload, free: int | None) -> Need:
    """Without gradient checkpointing where that leaves a quarter over, as `auto` decides."""
    memory = estimate(shape, work, checkpointing=False)
    checkpoints = free is not None and not leaves_room(memory, free)
    if checkpoints:
        memory = estimate(shape, work, checkpointing=True)
    return Need(memory.peak, None if free is None else memory.peak <= free, checkpoints)


def _workload(shape: ModelShape, machine: Here, method: Method, length: int, files: _Files) -> Workload:
    """A run of truetune's own settings with a row of this length, to train and to validate on."""
    from truetune.model.hardware import DTYPES

    is_lora, longest = method != "full", Longest(length, length, length)
    quantization = files.quantization if files.quantization != "none" else "4bit" if method == "qlora" else "none"
    is_shared = machine.device == "cpu" and is_lora and quantization == "none"
    tokens, are_side_by_side = tokens_trained(machine.device, batch=1, longest=longest, is_shared=is_shared)
    dtype = DTYPES[machine.precision] if is_lora else "float32"
    return Workload(
        device=machine.device,
        trained=shape.adapter_weights(_RANK, "all-linear") if is_lora else shape.parameters,
        are_adapters=is_lora,
        adapter_rank=_RANK if is_lora else 0,
        recomputes=machine.device == "cpu" and is_lora,
        dtype=dtype,
        quantization=quantization,
        precision=machine.precision,
        optim="adamw_torch_fused",
        offloads=False,
        tokens=tokens,
        words=words_at_a_time(tokens, machine.device),
        longest=length,
        is_side_by_side=are_side_by_side,
        evaluated=tokens_evaluated(machine.device, batch=1, longest=longest),
        stored=files.bytes,
        stored_as_loaded=quantization == "none" and files.dtype == dtype,
    )


# --- what is unusual --------------------------------------------------------------------------------------


def _unusual(
    stored: StoredModel,
    weights: Weights,
    headers: Headers | None,
    configured: _Configured,
    settings: Mapping[str, Any],
    trust: bool,
) -> tuple[Oddity, ...]:
    vocabulary, refusal = _vocabulary(stored, headers, trust=trust)
    reasons = {"configuration": configured.refusal, "tokenizer": refusal}
    evidence = Evidence(
        settings=settings,
        weights=weights,
        headers=headers,
        vocabulary=vocabulary,
        heads=_heads(settings.get("model_type")) or _own_heads(configured),
        stops=_stops(stored, settings),
        refusals={part: reason for part, reason in reasons.items() if reason},
    )
    return find_unusual(evidence)


def _vocabulary(stored: StoredModel, headers: Headers | None, *, trust: bool) -> tuple[Vocabulary | None, str | None]:
    """What the tokenizer says, or why it cannot be loaded."""
    if stored.folder is None:
        return _gguf_vocabulary(headers.metadata if headers else {}), None
    try:
        tokenizer = load_tokenizer(ModelSource(stored.name, str(stored.folder)), trust_remote_code=trust)
    except BackendError as error:
        return None, error.message
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    return Vocabulary(size, tokenizer.pad_token_id, tokenizer.eos_token_id, bool(tokenizer.chat_template)), None


def _gguf_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary | None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Listed):
        return None
    pad, eos = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("padding", "eos"))
    return Vocabulary(tokens.count, pad, eos, "tokenizer.chat_template" in metadata)


def _heads(model_type: Any) -> tuple[str, ...]:
    """transformers' causal language models of this type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(model_type), ())
    return (named,) if isinstance(named, str) else tuple(named)


def _own_heads(configured: _Configured) -> tuple[str, ...]:
    """What a model whose code is its own calls itself, if that code makes one."""
    return tuple(map(str, configured.config.architectures or ())) if configured.shape else ()


def _stops(stored: StoredModel, settings: Mapping[str, Any]) -> tuple[int, ...]:
    generation = read_json(stored.folder / "generation_config.json") if stored.folder else {}
    stops = generation.get("eos_token_id") or settings.get("eos_token_id")
    return tuple(stops) if isinstance(stops, list) else () if stops is None else (stops,)


# --- what is here -----------------------------------------------------------------------------------------


def _safely(stored: StoredModel, *, source: str, machine: Here) -> ModelDescription:
    """The description, or the name with what is wrong."""
    try:
        return _described(stored, source=source, machine=machine)
    except (TruetuneError, OSError, *_REFUSALS) as error:
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
