"""A model as its files describe it: facts, needs, oddities."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from truetune.errors import BackendError
from truetune.model.headers import Headers, Listed
from truetune.model.load import ModelFacts, Quantization, facts_of
from truetune.model.shape import ModelShape, configured_shape
from truetune.model.source import ModelSource
from truetune.model.stored import (
    StoredModel,
    Weights,
    configuration,
    find_stored,
    find_weights,
    headers_of,
    read_json,
)
from truetune.model.tokenizer import load_tokenizer
from truetune.model.unusual import Evidence, Oddity, Vocabulary, find_unusual
from truetune.pipeline.models.needs import METHODS, Here, Need, here, needs

REFUSALS = (
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


def describe_model(name: str, *, trust_remote_code: bool = False) -> ModelDescription:
    """One model's facts, needs and oddities. Of a model on the hub no weights are fetched, of a GGUF none converted.

    Raises BackendError for what is not there, or whose files are damaged.
    """
    stored = find_stored(name, trust_remote_code=trust_remote_code)
    return described(stored, source=stored.kind, machine=here(), trust=trust_remote_code, is_alone=True)


@dataclass(frozen=True, slots=True)
class _Configured:
    """transformers' configuration and the shape it makes, or why there is none."""

    config: Any = None
    shape: ModelShape | None = None
    refusal: str | None = None


def described(
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
    except REFUSALS:
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
