"""What is unusual about a model, and what it means for fine-tuning it: only what its own files say."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from truetune.figures import byte_size
from truetune.model.headers import Headers
from truetune.model.stored import Weights


@dataclass(frozen=True, slots=True)
class Oddity:
    """`what` the files say, and its `meaning` for a training with truetune, a line each."""

    what: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a tokenizer's files say; `size` is its highest id and one."""

    size: int
    pad: int | None
    eos: int | None
    has_template: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was read of a model; None for what it lacks or what could not be read.

    `settings` are its configuration's, the text model's first; `heads` the names of transformers' causal language
    models of its type, none for a type of another kind; `stops` the end tokens that it generates with.
    """

    settings: Mapping[str, Any]
    weights: Weights
    headers: Headers | None
    vocabulary: Vocabulary | None
    heads: tuple[str, ...] = ()
    stops: tuple[int, ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why configuration or tokenizer could not be read."""


def find_unusual(evidence: Evidence) -> tuple[Oddity, ...]:
    """Every unusual thing, the gravest first."""
    return tuple(oddity for look in _LOOKS for oddity in look(evidence))


# --- what stops a training --------------------------------------------------------------------------------


def _refused(evidence: Evidence) -> Iterator[Oddity]:
    for part, reason in evidence.refusals.items():
        yield Oddity(f"its {part} cannot be read: {reason}", "a training is refused before it begins")


def _kind(evidence: Evidence) -> Iterator[Oddity]:
    stored = [str(name) for name in evidence.settings.get("architectures") or ()]
    kind = evidence.settings.get("model_type")
    if not evidence.heads and "configuration" not in evidence.refusals and not evidence.settings.get("auto_map"):
        named = stored[0] if stored else kind
        yield Oddity(
            f"not a causal language model: {named}", "truetune trains causal language models only: it is refused"
        )
    elif stored and evidence.heads and not {*stored} & {*evidence.heads}:
        yield Oddity(
            f"stored as {stored[0]}, loaded as {evidence.heads[0]}",
            "weights that its files lack, the output layer's for instance, are not made up: it is refused then",
        )
    if parts := [name for name in ("vision_config", "audio_config") if evidence.settings.get(name)]:
        what = " and ".join(name.removesuffix("_config") for name in parts)
        yield Oddity(f"reads more than text ({what})", "rows are text: these parts are not trained on any input")


def _files(evidence: Evidence) -> Iterator[Oddity]:
    weights = evidence.weights
    if weights.form == "none":
        yield Oddity(
            "no weights: neither model.safetensors nor pytorch_model.bin, nor an index of either",
            "there is nothing to train: fetch or write the rest of the model",
        )
    if weights.missing:
        yield Oddity(
            f"{len(weights.missing)} of the files that its index lists are not there: {weights.missing[0]}",
            "it cannot be loaded: fetch the rest",
        )
    if weights.form == "pickles":
        yield Oddity(
            "its weights are pickles (.bin): their header cannot be read alone",
            "torch reads them as weights only, and truetune saves safetensors; prefer a repository that has these",
        )
    if weights.form == "gguf" and evidence.headers is not None:
        size = byte_size(4 * evidence.headers.parameters)
        yield Oddity(
            f"a GGUF file, mostly {evidence.headers.dtype}",
            f"it is unpacked once, to fp32, into truetune's cache ({size}); what quantising lost stays lost",
        )


def _code(evidence: Evidence) -> Iterator[Oddity]:
    if mapped := evidence.settings.get("auto_map"):
        meaning = (
            "transformers has a class for it, which is used unless model.trust_remote_code is set"
            if evidence.heads
            else "it runs code of its repository: refused without model.trust_remote_code: true; read that code first"
        )
        yield Oddity(f"code of its own (auto_map: {', '.join(map(str, mapped))})", meaning)


def _quantised(evidence: Evidence) -> Iterator[Oddity]:
    stored = evidence.settings.get("quantization_config")
    if not isinstance(stored, Mapping):
        return
    method = str(stored.get("quant_method", "an unnamed method"))
    bits = stored.get("bits") or next((bits for bits in (4, 8) if stored.get(f"load_in_{bits}bit")), None)
    what = f"quantised already: {method}{f', {bits} bits' if bits else ''}"
    if method == "bitsandbytes":
        yield Oddity(what, "LoRA trains on it as it is stored (QLoRA); full fine-tuning is refused")
    else:
        yield Oddity(what, "left to transformers and PEFT, unproved by truetune; memory is not estimated for it")


# --- tokens -----------------------------------------------------------------------------------------------


def _tokenizer(evidence: Evidence) -> Iterator[Oddity]:
    words = evidence.vocabulary
    if words is None:
        return
    if not words.has_template:
        yield Oddity(
            "no chat template",
            "conversations are refused without data.template: FILE.jinja; instruction rows get the Alpaca prompts",
        )
    if words.pad is None:
        yield Oddity(
            "no pad token", "none is needed or added: rows are laid end to end, and padding is masked by its place"
        )
    elif words.pad == words.eos:
        yield Oddity(
            f"pad token and end token are one ({words.pad})",
            "padding is masked by its place, never by its id: the end token is learned all the same",
        )
    if words.eos is None:
        yield Oddity("no end token", "only a template's terminator can tell the model to stop")


def _sizes(evidence: Evidence) -> Iterator[Oddity]:
    rows, words = evidence.settings.get("vocab_size"), evidence.vocabulary
    if not isinstance(rows, int) or words is None:
        return
    if words.size > rows:
        yield Oddity(
            f"the tokenizer has ids up to {words.size - 1:,}, the model has {rows:,} embeddings",
            "a row with one of the higher ids cannot be computed: use the tokenizer that belongs to this model",
        )
    elif words.size < rows:
        yield Oddity(
            f"{rows - words.size:,} of {rows:,} embeddings belong to no token",
            "harmless: they are never read, and the output layer computes their logits like any other's",
        )


def _stops(evidence: Evidence) -> Iterator[Oddity]:
    if len(evidence.stops) > 1:
        yield Oddity(
            f"{len(evidence.stops)} end tokens: {', '.join(map(str, evidence.stops))}",
            "training teaches the template's own terminator; truetune stops at that and at the tokenizer's end token",
        )


# --- layers -----------------------------------------------------------------------------------------------


def _tied(evidence: Evidence) -> Iterator[Oddity]:
    tied, headers = evidence.settings.get("tie_word_embeddings"), evidence.headers
    has_head = headers is None or headers.has_output_layer
    if tied and headers is not None and headers.has_output_layer:
        yield Oddity(
            "tied embeddings, and an output layer in the files all the same",
            "the stored output layer is not used: embeddings and output layer are one tensor",
        )
    elif tied:
        yield Oddity(
            "tied embeddings: embeddings and output layer are one tensor",
            "LoRA leaves it alone; naming either in adapter.modules_to_save trains both, or is refused",
        )
    elif tied is False and not has_head:
        yield Oddity(
            "no output layer in the files, and the configuration does not tie it to the embeddings",
            "weights that the files lack are never made up: it is refused when it is loaded",
        )


def _windows(evidence: Evidence) -> Iterator[Oddity]:
    settings = evidence.settings
    kinds = [str(kind) for kind in settings.get("layer_types") or ()]
    window = settings.get("sliding_window") if settings.get("use_sliding_window", True) else None
    sliding = [place for place, kind in enumerate(kinds) if kind == "sliding_attention"]
    if window and (sliding or not kinds):
        yield Oddity(
            f"sliding windows of {window:,} tokens in {_places(sliding, len(kinds))}",
            "kept in training, and proved on the loaded model; rows up to that length are not touched by them",
        )
    chunk, chunked = settings.get("attention_chunk_size"), kinds.count("chunked_attention")
    if chunk and chunked:
        yield Oddity(
            f"attention in chunks of {chunk:,} tokens in {chunked} of {len(kinds)} layers",
            "kept in training, and proved on the loaded model; rows up to that length are not touched by them",
        )
    others = Counter(
        kind for kind in kinds if not kind.endswith(("full_attention", "sliding_attention", "chunked_attention"))
    )
    if others:
        yield Oddity(
            f"layers of other kinds: {', '.join(f'{count} {kind}' for kind, count in others.items())}",
            "where they let concatenated rows see each other, rows are padded, and data.packing: true is refused",
        )


def _places(places: list[int], layers: int) -> str:
    """Which of the layers these are, by the shorter list."""
    if not places or len(places) == layers:
        return "all layers"
    others = [place for place in range(layers) if place not in places]
    named, word = (others, "all but") if len(others) < len(places) else (places, "layers")
    shown = ", ".join(map(str, named[:8])) + (", …" if len(named) > 8 else "")
    return f"{len(places)} of {layers} layers ({word} {shown})"


def _caps(evidence: Evidence) -> Iterator[Oddity]:
    if cap := evidence.settings.get("attn_logit_softcapping"):
        yield Oddity(
            f"attention scores are capped at {cap:g}",
            "kept in training; on a GPU each row's scores take memory, which the estimate counts",
        )
    if cap := evidence.settings.get("final_logit_softcapping"):
        yield Oddity(
            f"logits are capped at {cap:g}", "the loss is computed from capped logits, as the model's own is"
        )


def _experts(evidence: Evidence) -> Iterator[Oddity]:
    settings = evidence.settings
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    count = next((value for name in names if isinstance(value := settings.get(name), int) and value > 1), None)
    asked = next((settings[name] for name in ("num_experts_per_tok", "top_k_experts") if settings.get(name)), None)
    if count:
        yield Oddity(
            f"a mixture of experts: {asked or 'some'} of {count} are asked for each token",
            "all experts must be in memory; LoRA reaches them too, without dropout or DoRA",
        )


def _rope(evidence: Evidence) -> Iterator[Oddity]:
    stored = evidence.settings.get("rope_parameters") or evidence.settings.get("rope_scaling")
    for where, rope in _ropes(stored):
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind == "default":
            continue
        factor = f" by {rope['factor']:g}" if isinstance(rope.get("factor"), int | float) else ""
        first = rope.get("original_max_position_embeddings")
        whence = f", from {first:,} tokens" if isinstance(first, int) else ""
        yield Oddity(
            f"positions are scaled ({kind}){factor}{whence}{where}",
            "kept in training as it is; data.max_length may go up to the context above",
        )


def _ropes(stored: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each stands and its settings: one for all layers, or one for each kind of layer."""
    if not isinstance(stored, Mapping):
        return
    nested = {name: value for name, value in stored.items() if isinstance(value, Mapping)}
    if not nested:
        yield "", stored
    for name, value in nested.items():
        yield f" in layers of {name}", value


_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def _stored(evidence: Evidence) -> Iterator[Oddity]:
    said = str(evidence.settings.get("dtype") or evidence.settings.get("torch_dtype") or "").removeprefix("torch.")
    if evidence.headers is None or evidence.weights.form != "safetensors" or not said:
        return
    found = _DTYPES.get(str(evidence.headers.dtype))
    if found and found != said:
        yield Oddity(
            f"stored in {found}, and its configuration says {said}",
            "model.dtype: auto heeds neither: it loads what this machine computes in, or fp32 to train all weights",
        )


_LOOKS: tuple[Callable[[Evidence], Iterator[Oddity]], ...] = (
    _refused,
    _kind,
    _files,
    _code,
    _quantised,
    _tokenizer,
    _sizes,
    _stops,
    _tied,
    _windows,
    _caps,
    _experts,
    _rope,
    _stored,
)
