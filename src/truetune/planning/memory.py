"""How much memory a training takes at its peak: estimated from a model's shape, before anything loads.

What is kept for the backward pass was counted on Llama, Qwen and Gemma with torch's saved-tensor hooks;
tests/planning/test_memory.py holds the estimate within a quarter of it.
"""

from dataclasses import dataclass, replace
from typing import Literal

from truetune.model.shape import ModelShape

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp32": 4, "bf16": 2, "fp16": 2}
_QUANTIZED_BYTES = {"4bit": 0.52, "8bit": 1.01}
"""Bytes of a weight with its share of the scales: NF4 with double quantisation, LLM.int8()."""

_STATES = {"sgd": 0.0, "adafactor": 0.02, "adagrad": 4.0, "rmsprop": 4.0}
"""Bytes an optimizer keeps of a weight, where it is not AdamW's two numbers or Lion's one."""

_KEPT = {"gated": 1.0, "other": 1.7, "mixture": 2.3}
"""What blocks of others keep against fused ones: GPT-2 1.7 times as much, Phi-3 1.4, GPT-NeoX 1.06, Mixtral 2.3."""

_LOGITS_COPIES = 3
"""How often logits are held: as made, in fp32, as a gradient."""

_ON_THE_WAY = 2
"""Layers whose offloaded activations are still, or again, on the GPU: a guess, not measured."""

_FRAMEWORK, _BEFORE_TRAINING = 600_000_000, 80_000_000
"""What Python, libraries, their kernels and the rows read ahead take once training begins; less while loading."""

_AT_HAND = 2
"""Layers that FSDP has whole: the one that computes, and the next."""

_LOADED_AT_A_TIME = 16
"""Linear layers that are in fp32 while a base is being quantised."""


@dataclass(frozen=True, slots=True)
class _Fit:
    """What a step takes of a CPU's memory beside weights and states: so many times what it keeps for the backward
    pass (with checkpointing, the layers' inputs), so many matrices of embeddings, and bytes in any case."""

    kept: float
    embeddings: float
    fixed: int = 0


_ON_A_CPU = {
    "adapters": _Fit(2.7, 0.6),
    "adapters, side by side": _Fit(3.6, 0.6),
    "all weights": _Fit(1.3, 2.0),
    "quantised": _Fit(1.6, 4.4, 200_000_000),
    "checkpointing": _Fit(5.3, 2.4),
}
"""Fitted to the runs of bench/plan.py (glibc, torch 2.13): what is freed lies between what is in use, and stays."""

_EIGHT_BIT_STEP = 2.3
"""So many matrices of embeddings, in fp32, an optimizer with 8-bit states makes on a CPU for each one there is."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained, and how much at a time.

    `trained` weights learn, in `dtype` unless they `are_adapters`, which are fp32. `tokens` are computed at a time,
    with the logits of so many `words` for each; the `longest` sample among them matters where attention keeps its
    scores; true for `is_side_by_side` if they are several slices; `evaluated` ones are at a time in an evaluation.
    `dtype` is torch's name of the base's, which lies on the disk in `stored` bytes. Weights, gradients and states are
    split over so many `shards` (FSDP, ZeRO 3), but for adapters; with `shards_on_cpu` they are not on the device.
    With `recomputes`, plain adapters on all linear layers make again what norms and the first layers of MLPs made, as
    they do on a CPU.
    """

    device: Literal["cpu", "cuda", "mps"]

    trained: int
    are_adapters: bool
    adapter_rank: int
    recomputes: bool
    dtype: str
    quantization: Literal["none", "4bit", "8bit"]
    precision: Literal["fp32", "bf16", "fp16"]
    optim: str
    offloads: bool
    tokens: int
    words: int
    longest: int
    is_side_by_side: bool = False
    evaluated: int = 0
    stored: int = 0
    stored_as_loaded: bool = True
    shards: int = 1
    shards_on_cpu: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a training's parts, by which its peak is found in one of three phases.

    `weights` are the base's, `adapters` what learns beside them, both with their `gradients`; `casts` are copies in
    the dtype it computes in. Training peaks where the forward pass has ended: then `logits` or `backward`, whichever
    is more, comes on top: some words' logits, one layer's gradients; `held` is what the allocator of a CPU's memory
    holds besides. `loading` is what reading weights takes, `evaluation` what a batch does of which nothing is kept.
    """

    weights: int
    adapters: int
    gradients: int
    casts: int
    optimizer: int
    activations: int
    logits: int
    backward: int
    held: int = 0
    evaluation: int = 0
    loading: int = 0
    framework: int = _FRAMEWORK

    @property
    def trained(self) -> int:
        """Of the weights that learn."""
        return self.adapters or self.weights

    @property
    def parts(self) -> dict[str, int]:
        """What stands at the peak; `evaluation` and `loading` are what they take beyond the training's own peak."""
        training = {
            "weights": self.weights,
            "adapters": self.adapters,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "casts": self.casts,
            "activations": self.activations,
            "loss" if self.logits >= self.backward else "backward": max(self.logits, self.backward),
            "allocator": self.held,
            "framework": self.framework,
        }
        peak = sum(training.values())
        evaluating = self.weights + self.adapters + self.optimizer + self.casts + self.evaluation + self.framework
        beyond = {"evaluation": evaluating - peak, "loading": self.loading + self.framework - _BEFORE_TRAINING - peak}
        most = max(beyond, key=lambda name: beyond[name])
        return training | {name: max(0, size) if name == most else 0 for name, size in beyond.items()}

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


def estimate(shape: ModelShape, work: Workload, *, checkpointing: bool) -> Memory:
    """The memory of training a model of this shape so, on each of its devices."""
    computed = _computed(work)
    learned = _BYTES[work.dtype] if not work.are_adapters else 4
    base = _frozen(shape, work) if work.are_adapters else work.trained * learned
    # What learns beside a frozen base is small, and stays whole in each process.
    share = 1.0 if work.are_adapters else _share(work)
    memory = Memory(
        weights=round(base * _share(work) + _gathered(shape, work)),
        adapters=work.trained * learned if work.are_adapters else 0,
        gradients=int(work.trained * learned * share),
        casts=_casts(shape, work),
        optimizer=round(work.trained * _state_bytes(work.optim) * share),
        activations=round(work.tokens * (_all_layers(shape, work, checkpointing) + 2 * shape.hidden * computed)),
        logits=_logits(shape, work, work.tokens),
        backward=round(work.tokens * 6 * shape.intermediate * computed + _of_one_layer(shape, work)),
        evaluation=_evaluation(shape, work),
        loading=_loading(shape, work),
    )
    return replace(memory, held=_held(shape, work, memory, checkpointing)) if work.device == "cpu" else memory


def _share(work: Workload) -> float:
    """What a device holds of what is shared out."""
    return 0.0 if work.shards_on_cpu and work.device != "cpu" else 1 / work.shards


def _gathered(shape: ModelShape, work: Workload) -> float:
    """What is put together while it computes: embeddings and output layer, a layer, and the one fetched ahead."""
    if work.shards == 1 and not work.shards_on_cpu:
        return 0
    of_one = _BYTES[work.dtype] if work.are_adapters else _computed(work)
    of_linear = _QUANTIZED_BYTES.get(work.quantization, of_one)
    rest = max(0, shape.parameters - shape.linear_weights)
    return rest * of_one + _AT_HAND * _layer_weights(shape) * of_linear


def _of_one_layer(shape: ModelShape, work: Workload) -> float:
    """What a backward pass makes of weights: a quantised matrix in full; gradients, until they are shared out."""
    whole = 0.0 if work.are_adapters else _gathered(shape, work)
    return _largest_dequantized(shape, work) + whole


def _held(shape: ModelShape, work: Workload, memory: Memory, checkpointing: bool) -> int:
    """What a step takes of a CPU's memory beyond the parts that are counted."""
    fit = _ON_A_CPU[_kind(work, checkpointing)]
    inputs = work.tokens * shape.layers * shape.hidden * _stream(work)
    is_inputs = checkpointing and work.quantization == "none"
    embeddings = shape.vocabulary * shape.hidden * (_computed(work) if work.are_adapters else 4)
    taken = fit.kept * (inputs if is_inputs else memory.activations) + fit.embeddings * embeddings + fit.fixed
    if "8bit" in work.optim and not work.are_adapters:
        taken += _EIGHT_BIT_STEP * 4 * max(0, shape.parameters - shape.linear_weights)
    return max(0, round(taken) - memory.activations - max(memory.logits, memory.backward))


def _kind(work: Workload, checkpointing: bool) -> str:
    if work.quantization != "none":
        return "quantised"
    if checkpointing:
        return "checkpointing"
    if not work.are_adapters:
        return "all weights"
    return "adapters, side by side" if work.is_side_by_side else "adapters"


def _layer_weights(shape: ModelShape) -> int:
    return shape.linear_weights // max(shape.layers, 1)


def _logits(shape: ModelShape, work: Workload, tokens: int) -> int:
    return tokens * min(work.words, shape.vocabulary) * 4 * _LOGITS_COPIES


def _evaluation(shape: ModelShape, work: Workload) -> int:
    """Of the tokens evaluated at a time: one layer's, since nothing is kept, and the logits."""
    layer = work.evaluated * round(_per_layer(shape, work) + 2 * shape.hidden * _stream(work))
    return layer + _logits(shape, work, work.evaluated)


def _loading(shape: ModelShape, work: Workload) -> int:
    """What loading takes of the device. A CPU's memory has the mapped files too, where weights are made of them."""
    made = round(_frozen(shape, work)) if work.are_adapters else work.trained * _BYTES[work.dtype]
    largest = 4 * max((layer.inputs * layer.outputs for layer in shape.linear), default=0)
    if work.device != "cpu":
        return made // work.shards + (largest if work.quantization != "none" else 0)
    if work.quantization != "none":
        made += _LOADED_AT_A_TIME * largest
    return made if work.stored_as_loaded else work.stored + made


def tokens_at_a_time(*, limit: int | None, batch: int, sequence: int, longest: int, workers: int = 1) -> int:
    """The most tokens computed at once: a batch of sequences, cut between samples into slices of about the limit.

    A sample is never cut. So many workers have a slice each, unless one is half as long again as the limit.
    """
    whole = batch * sequence
    piece = _slice(limit, whole, longest)
    return min(whole, piece * (workers if limit is not None and piece <= 1.5 * limit else 1))


def is_side_by_side(*, limit: int | None, batch: int, sequence: int, longest: int, workers: int = 1) -> bool:
    """True if several slices of such a batch are computed at once."""
    tokens = tokens_at_a_time(limit=limit, batch=batch, sequence=sequence, longest=longest, workers=workers)
    return tokens > _slice(limit, batch * sequence, longest)


def _slice(limit: int | None, whole: int, longest: int) -> int:
    return whole if limit is None else max(round(whole / max(1, round(whole / limit))), longest)


def _frozen(shape: ModelShape, work: Workload) -> float:
    if not work.are_adapters:
        return 0
    if work.quantization == "none":
        return shape.parameters * _BYTES[work.dtype]
    rest = max(0, shape.parameters - shape.linear_weights)
    return shape.linear_weights * _QUANTIZED_BYTES[work.quantization] + rest * _BYTES[work.dtype]


def _casts(shape: ModelShape, work: Workload) -> int:
    """Autocast keeps a copy of every matrix that it casts."""
    is_gathered_so = work.shards > 1 and not work.are_adapters
    if not _is_cast(work) or work.quantization != "none" or is_gathered_so:
        return 0
    return (shape.linear_weights + shape.vocabulary * shape.hidden) * _computed(work) // work.shards


def _state_bytes(optim: str) -> float:
    if optim in _STATES:
        return _STATES[optim]
    of_one = 1.03 if "8bit" in optim else 4.0
    return of_one if "lion" in optim else 2 * of_one


def _all_layers(shape: ModelShape, work: Workload, checkpointing: bool) -> float:
    """The bytes of one token that all layers keep: with checkpointing their inputs, and one layer computed again."""
    inputs = shape.hidden * _stream(work)
    per_layer = _per_layer(shape, work)
    if work.offloads:
        return min(shape.layers, _ON_THE_WAY) * (inputs if checkpointing else per_layer) + per_layer
    return shape.layers * inputs + per_layer if checkpointing else shape.layers * per_layer


def _per_layer(shape: ModelShape, work: Workload) -> float:
    """The bytes of one token that one layer keeps for its backward pass."""
    computed = _computed(work)
    queries, keys = shape.heads * shape.head_size, 2 * shape.key_value_heads * shape.head_size
    attention = (2 * queries + keys) * computed
    if shape.caps_attention and work.device != "cpu":  # There each sample's scores are kept, and keys for every head.
        attention += (2 * queries - keys) * computed + 8 * shape.heads * work.longest
    factors = 7 * work.adapter_rank * computed
    return _KEPT[shape.blocks] * (attention + factors + _norms(shape, work) + _mlp(shape, work))


def _norms(shape: ModelShape, work: Workload) -> int:
    """The inputs of norms; what two of them make: once for all layers that read it, or cast for each of the five."""
    computed, stream = _computed(work), _stream(work)
    if _is_recomputed(shape, work):
        heads = (shape.heads + shape.key_value_heads) * shape.head_size if shape.norms_heads else 0
        return shape.hidden * shape.norms * stream + heads * computed
    return shape.hidden * (shape.norms * stream + (2 if stream == computed else 5) * computed)


def _mlp(shape: ModelShape, work: Workload) -> int:
    """What the two first matrices make; and their product, but where the third one's adapter computes it again."""
    computed = _computed(work)
    if work.quantization == "4bit":
        return shape.intermediate * (2 * 4 + computed)
    if _is_recomputed(shape, work):
        return 0
    return shape.intermediate * (2 if _is_fused(work) else 3) * computed


def _is_recomputed(shape: ModelShape, work: Workload) -> bool:
    return work.recomputes and shape.blocks == "gated" and _is_fused(work)


def _is_fused(work: Workload) -> bool:
    """True if an adapter and its layer are one step, in the base's own dtype."""
    return work.are_adapters and work.quantization == "none" and not _is_cast(work)


def _stream(work: Workload) -> int:
    """Bytes of a number between the layers: kept in fp32 by fp32 weights, and by the norms of a quantised base."""
    return 4 if work.quantization != "none" else _BYTES[work.dtype]


def _computed(work: Workload) -> int:
    """Bytes of a number in matrix products: autocast narrows, and never widens."""
    return min(_BYTES[work.dtype], _BYTES[work.precision])


def _is_cast(work: Workload) -> bool:
    return _computed(work) < _BYTES[work.dtype]


def _largest_dequantized(shape: ModelShape, work: Workload) -> int:
    largest = max((layer.inputs * layer.outputs for layer in shape.linear), default=0)
    return 0 if work.quantization == "none" else largest * _computed(work)
