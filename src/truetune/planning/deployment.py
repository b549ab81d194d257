"""What stands in the way of an adapter where it is to be served: by vLLM, by llama.cpp (GGUF), by Ollama.

Each obstacle is a fact about that server, with where it was read. Once an adapter is merged into its base none of
these holds, and a run of all weights meets none.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Target = Literal["vllm", "gguf", "ollama"]

_MERGE = "merge the adapter into its base and serve that"

_READ = "read 2026-11-29"
_VLLM_CONFIG = f"vLLM, vllm/config/lora.py (MaxLoRARanks; docs.vllm.ai v0.22.1), {_READ}"
_VLLM_PEFT = f"vLLM, vllm/lora/peft_helper.py (docs.vllm.ai/en/latest), {_READ}"
_VLLM_MODEL = f"vLLM, vllm/lora/lora_model.py (commit 0306474e), {_READ}"
_VLLM_TOKENS = f"vLLM, vllm/config/lora.py (lora_extra_vocab_size, gone since v0.12) and lora_model.py, {_READ}"
_VLLM_BIAS = f"vLLM, pull request 25807 (Remove LoRA bias support), {_READ}"
_VLLM_EMBEDDINGS = f"vLLM, vllm/lora/utils.py (get_supported_lora_modules), {_READ}"
_VLLM_EXPERTS = f"vLLM, pull request 41384 and issue 40005 (2026), {_READ}"
_CONVERTER = f"llama.cpp, convert_lora_to_gguf.py (commit 0b03adaa), {_READ}"
_LOADER = f"llama.cpp, src/llama-adapter.cpp and llama-adapter.h, {_READ}"
_TENSOR_NAMES = f"llama.cpp, convert_lora_to_gguf.py and gguf's tensor names (gguf 0.19), {_READ}"
_OLLAMA_CONVERTER = f"Ollama, convert/convert.go (ConvertAdapter, commit 01cf7445) and docs/modelfile.mdx, {_READ}"

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_VLLM_DEFAULT_RANK = 16
_OLLAMA_MODELS = ("llama", "mistral", "gemma2")
"""Model types whose adapters Ollama converts by itself: those of its architectures llama and gemma2."""


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a run trains, as far as servers mind it; names are those of the config's adapter section.

    `adds_tokens` is true if the tokenizer has tokens that the published base lacks, `is_mixture` if the base has
    experts. `model_type` is transformers' name of the architecture.
    """

    method: Literal["lora", "full"]
    r: int
    use_dora: bool
    use_rslora: bool
    bias: Literal["none", "all", "lora_only"]
    modules_to_save: tuple[str, ...]
    target_modules: str | tuple[str, ...]
    target_parameters: tuple[str, ...]
    init_lora_weights: str
    adds_tokens: bool
    is_mixture: bool
    model_type: str

    @property
    def saved_rank(self) -> int:
        """The rank in the file: twice the trained one of an adapter that starts in the base's weights."""
        return self.r * 2 if self.init_lora_weights.startswith(("pissa", "olora")) else self.r

    @property
    def adapts_experts(self) -> bool:
        return self.is_mixture and (self.target_modules == "all-linear" or bool(self.target_parameters))

    def adapts(self, module: str) -> bool:
        """True if the target modules name it; all-linear leaves the output layer and the embeddings out."""
        names = (self.target_modules,) if isinstance(self.target_modules, str) else self.target_modules
        return any(module in name for name in names)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why an adapter cannot be served as it is (error), or what its serving takes (warning), and what to do."""

    setting: str
    severity: Literal["error", "warning"]
    why: str
    remedy: str
    source: str


def obstacles(target: Target, facts: AdapterFacts) -> tuple[Obstacle, ...]:
    """What stands in the way of that adapter at that server, errors first."""
    if facts.method == "full":
        return ()
    return tuple(sorted(_SERVERS[target](facts), key=lambda each: each.severity == "warning"))


def vllm_rank(rank: int) -> int | None:
    """The least --max-lora-rank that vLLM serves an adapter of that rank with; None where none is enough."""
    return next((each for each in _VLLM_RANKS if each >= rank), None)


def _vllm(facts: AdapterFacts) -> Iterator[Obstacle]:
    yield from _vllm_rank(facts)
    if facts.use_dora:
        yield _error("use_dora", "vLLM does not load DoRA adapters", _VLLM_MODEL)
    if facts.bias != "none":
        yield _error("bias", "vLLM takes no biases in an adapter any more", _VLLM_BIAS)
    if facts.modules_to_save:
        names = ", ".join(facts.modules_to_save)
        yield _error("modules_to_save", f"vLLM refuses an adapter with whole modules in it ({names})", _VLLM_PEFT)
    yield from _added_tokens(facts, "vLLM", _VLLM_TOKENS)
    if embeddings := _embeddings(facts):
        why = f"vLLM adapts {embeddings} of those models only that declare it"
        yield _warning("target_modules", why, f"try it before you deploy, or {_MERGE}", _VLLM_EMBEDDINGS)
    if facts.adapts_experts:
        why = "vLLM serves adapters on experts for some models only, and was seen to leave others' out without a word"
        remedy = f"compare its answers with truetune's before you deploy, or {_MERGE}"
        yield _warning("target_parameters", why, remedy, _VLLM_EXPERTS)


def _vllm_rank(facts: AdapterFacts) -> Iterator[Obstacle]:
    rank = facts.saved_rank
    told = f"rank {rank}" if rank == facts.r else f"rank {rank} (saved as twice r: {facts.init_lora_weights})"
    least = vllm_rank(rank)
    if least is None:
        why = f"{told} is more than the {_VLLM_RANKS[-1]} that vLLM takes at most"
        yield Obstacle("adapter.r", "error", why, f"lower it, or {_MERGE}", _VLLM_CONFIG)
    elif least > _VLLM_DEFAULT_RANK:
        why = f"{told} is more than vLLM's default of {_VLLM_DEFAULT_RANK}"
        yield _warning("r", why, f"start it with --enable-lora --max-lora-rank {least}", _VLLM_CONFIG)


def _gguf(facts: AdapterFacts) -> Iterator[Obstacle]:
    if facts.use_dora:
        yield _error("use_dora", "llama.cpp's converter stops at DoRA's magnitudes", _CONVERTER)
    if facts.use_rslora:
        times = f"{facts.saved_rank**0.5:.3g} times too little"
        why = f"llama.cpp scales every adapter by lora_alpha / r: an rsLoRA one {times}, without a word"
        yield _error("use_rslora", why, _LOADER)
    if facts.bias != "none":
        yield _error("bias", "llama.cpp's converter stops at trained biases", _CONVERTER)
    yield from _gguf_modules(facts)
    yield from _added_tokens(facts, "llama.cpp", _CONVERTER)
    if facts.adapts("lm_head"):
        why = "where the output layer is tied to the embeddings, llama.cpp's converter stops at an adapter on lm_head"
        yield _warning("target_modules", why, f"leave lm_head out, or {_MERGE}", _CONVERTER)
    if facts.adapts_experts:
        why = "llama.cpp has no name for the factors that PEFT writes for fused experts, and its converter stops"
        remedy = f"list modules outside of the experts in adapter.target_modules, or {_MERGE}"
        yield Obstacle("adapter.target_parameters", "error", why, remedy, _TENSOR_NAMES)


def _gguf_modules(facts: AdapterFacts) -> Iterator[Obstacle]:
    norms = [name for name in facts.modules_to_save if "_layernorm" in name or ".norm" in f".{name}"]
    others = [name for name in facts.modules_to_save if name not in norms]
    if others:
        why = f"llama.cpp's converter stops at whole modules in an adapter ({', '.join(others)})"
        yield _error("modules_to_save", why, _CONVERTER)
    if norms:
        why = f"llama.cpp leaves an adapter's norms out without a word ({', '.join(norms)})"
        yield _error("modules_to_save", why, _LOADER)


def _ollama(facts: AdapterFacts) -> Iterator[Obstacle]:
    """Ollama runs llama.cpp's adapters; what it converts by itself is less."""
    yield from _gguf(facts)
    if facts.model_type not in _OLLAMA_MODELS:
        why = f"Ollama converts adapters of {', '.join(_OLLAMA_MODELS)} only, not of {facts.model_type}"
        remedy = f"convert it with llama.cpp's convert_lora_to_gguf.py and name the .gguf in ADAPTER, or {_MERGE}"
        yield Obstacle("model.name_or_path", "warning", why, remedy, _OLLAMA_CONVERTER)


_SERVERS: dict[Target, Callable[[AdapterFacts], Iterator[Obstacle]]] = {
    "vllm": _vllm,
    "gguf": _gguf,
    "ollama": _ollama,
}


def _added_tokens(facts: AdapterFacts, server: str, source: str) -> Iterator[Obstacle]:
    if facts.adds_tokens:
        why = f"{server} takes no adapter that adds tokens: the base it is served on must have them"
        remedy = f"serve it on the base with the added tokens, not on the published one, or {_MERGE}"
        yield Obstacle("model.name_or_path", "warning", why, remedy, source)


def _embeddings(facts: AdapterFacts) -> str:
    return " and ".join(name for name in ("embed_tokens", "lm_head") if facts.adapts(name))


def _error(setting: str, why: str, source: str) -> Obstacle:
    return Obstacle(f"adapter.{setting}", "error", why, f"leave it out, or {_MERGE}", source)


def _warning(setting: str, why: str, remedy: str, source: str) -> Obstacle:
    return Obstacle(f"adapter.{setting}", "warning", why, remedy, source)
