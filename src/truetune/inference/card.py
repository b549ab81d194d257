"""A model's card (README.md): what a run wrote down about it, nothing else; what is not known is said to be so."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from truetune.errors import CheckpointError, first_line

Kind = Literal["adapter", "model", "merged", "gguf", "gguf-adapter"]
Rows = Mapping[str, str | None]
"""A table of two columns. None is told as not known."""

_UNKNOWN = "not known"
_KINDS: Mapping[Kind, str] = {
    "adapter": "A LoRA adapter for",
    "model": "A model, fine-tuned from",
    "merged": "A LoRA adapter merged into",
    "gguf": "A model in GGUF, fine-tuned from",
    "gguf-adapter": "A LoRA adapter in GGUF for",
}


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """The model that was trained: `hub_id` is None where it is none of the hub's, `note` says what else is known.

    `fingerprint` is the digest that a run takes of a local base's files.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None
    fingerprint: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class PromptFacts:
    """How training put its prompts: `example` is one as the model read it, `is_served` if its chat template makes it.

    `stop_token_ids` end an answer.
    """

    row_format: str
    example: str | None = None
    terminator: str | None = None
    is_served: bool = False
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file of weights."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card tells. `repository` is its place on the hub (org/name); the tables are told as they stand.

    `license` is the identifier the hub knows; `license_reason` says where it is from. `datasets` are hub ids.
    """

    repository: str
    kind: Kind
    base: BaseFacts | None = None
    version: str | None = None
    license: str | None = None
    license_reason: str | None = None
    datasets: tuple[str, ...] = ()
    data: Rows = field(default_factory=dict)
    settings: Rows = field(default_factory=dict)
    results: Rows = field(default_factory=dict)
    evaluations: Mapping[str, Rows] = field(default_factory=dict)
    made: Rows = field(default_factory=dict)
    prompt: PromptFacts | None = None
    files: Sequence[FileFacts] = ()
    limits: Sequence[str] = ()


def facts_document(facts: CardFacts) -> dict[str, Any]:
    """The facts as a JSON file holds them."""
    return asdict(facts)


def facts_of(document: Mapping[str, Any]) -> CardFacts:
    """The facts that `facts_document` made this of. CheckpointError for anything else."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(CardFacts).validate_python(document)
    except ValidationError as error:
        raise CheckpointError(f"these are no facts of a card: {first_line(error)}") from error


def model_card(facts: CardFacts) -> str:
    """The card's text: a YAML header as the hub reads it, then Markdown."""
    sections = (
        _opening(facts),
        _base(facts),
        _data(facts),
        _section("Training", _table(facts.settings)),
        _results(facts),
        _section("How to use it", "\n\n".join(_use(facts))),
        _section("Limits", "\n".join(f"- {_line(limit)}" for limit in _limits(facts))),
        _section("How it was made", _table(facts.made)),
        _files(facts.files),
    )
    return f"---\n{_header(facts)}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _header(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    adapter, gguf = "adapter" in facts.kind, "gguf" in facts.kind
    data = ModelCardData(
        base_model=facts.base and facts.base.hub_id,
        datasets=list(facts.datasets) or None,
        library_name=None if gguf else "peft" if adapter else "transformers",
        license=facts.license,
        pipeline_tag="text-generation",
        tags=["truetune", *(["lora"] if adapter else []), *(["gguf"] if gguf else [])],
        # The hub takes a model with a base for its fine-tune, where nothing is said.
        **({"base_model_relation": "adapter" if adapter else "finetune"} if facts.base and facts.base.hub_id else {}),
    )
    return str(data.to_yaml()).strip()


def _opening(facts: CardFacts) -> str:
    base = f"`{_code(facts.base.name)}`" if facts.base else "a base that is not known"
    by = f", trained with truetune {facts.version}" if facts.version else ""
    name = facts.repository.rpartition("/")[2]
    return (
        f"# {_line(name)}\n\n{_KINDS[facts.kind]} {base}{by}. This card was written from the run's own records; "
        "what they do not hold is said to be not known."
    )


def _base(facts: CardFacts) -> str:
    base = facts.base
    if base is None:
        return _section("Base model", "The base model is not known.")
    rows = {
        "name": base.name,
        "revision": base.revision or (None if base.hub_id else "none: it was a local model"),
        **({"fingerprint (SHA-256, sampled)": base.fingerprint} if base.fingerprint else {}),
        "license of this model": facts.license and f"{facts.license} ({facts.license_reason})",
    }
    return _section("Base model", _table(rows) + (f"\n\n{_line(base.note)}" if base.note else ""))


def _data(facts: CardFacts) -> str:
    if not facts.data:
        return _section("Data", "What it was trained on is not known.")
    return _section("Data", f"{_table(facts.data)}\n\nThe rows themselves are not part of this repository.")


def _results(facts: CardFacts) -> str:
    if not facts.results:
        return _section("Results", "No figures of the training are known.")
    tables = [_table(facts.results)]
    for name, rows in facts.evaluations.items():
        tables.append(f"### Evaluated on {_line(name)}\n\n{_table(rows)}")
    return _section("Results", "\n\n".join(tables))


def _limits(facts: CardFacts) -> Iterator[str]:
    yield from facts.limits
    if facts.license is None:
        yield "The license is not known: the base model's holds for what is made of it."
    if not facts.evaluations:
        yield "Nothing but the loss was measured: no task, no comparison with the base, no forgetting."
    yield "Bias, safety and factual correctness were not examined."


# --- how to use it ----------------------------------------------------------------------------------------


def _use(facts: CardFacts) -> Iterator[str]:
    prompt = facts.prompt
    if prompt is None:
        yield "How its prompts were put in training is not known."
    else:
        yield _prompt_words(prompt)
        if prompt.example:
            yield f"A prompt as the model read it:\n\n{_fenced(prompt.example)}"
    if "gguf" in facts.kind:
        yield _in_llama_cpp(facts.kind)
        return
    yield _fenced(_code_for(facts), "python")
    if prompt is not None:
        yield "Or with truetune, which puts prompts as training did:\n\n" + _fenced(
            _commands(facts.repository), "bash"
        )


def _in_llama_cpp(kind: Kind) -> str:
    if kind == "gguf":
        return "It runs in llama.cpp, and in whatever is built on it."
    return "llama.cpp puts it over a GGUF of the base:\n\n" + _fenced(
        "llama-server -m BASE.gguf --lora ADAPTER.gguf", "bash"
    )


def _prompt_words(prompt: PromptFacts) -> str:
    ends = f" Answers end with `{_code(prompt.terminator)}`." if prompt.terminator else ""
    how = {
        "chat": "It was trained on conversations",
        "instruction": "It was trained on instructions",
        "completion": "It was trained on prompts and their completions",
        "text": "It was trained on plain text",
    }[prompt.row_format]
    by = ", put to it by the tokenizer's chat template." if prompt.is_served else ", put to it as below."
    return how + (by if prompt.example or prompt.is_served else ".") + ends


def _code_for(facts: CardFacts) -> str:
    name = facts.repository
    loads = "AutoModelForCausalLM"
    lines = [f"from transformers import {loads}, AutoTokenizer", ""]
    if facts.kind == "adapter":
        lines.insert(0, "from peft import PeftModel")
        base = facts.base.hub_id if facts.base and facts.base.hub_id else "the folder of the base model"
        revision = (
            f", revision={facts.base.revision!r}" if facts.base and facts.base.hub_id and facts.base.revision else ""
        )
        lines += [
            f"base = {loads}.from_pretrained({base!r}{revision})",
            f"model = PeftModel.from_pretrained(base, {name!r})",
        ]
    else:
        lines.append(f"model = {loads}.from_pretrained({name!r})")
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained({name!r})")
    return "\n".join([*lines, *_prompting(facts.prompt), *_answering(facts.prompt)])


def _answering(prompt: PromptFacts | None) -> list[str]:
    stops = f", eos_token_id={list(prompt.stop_token_ids)}" if prompt and prompt.stop_token_ids else ""
    return [
        f"answer = model.generate(**inputs, max_new_tokens=256, do_sample=False{stops})",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
    ]


def _prompting(prompt: PromptFacts | None) -> list[str]:
    if prompt is not None and prompt.is_served:
        return [
            'messages = [{"role": "user", "content": "What is the capital of France?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    text = prompt.example if prompt and prompt.example else "The capital of France is"
    return [
        f"prompt = {text!r}",
        'inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")',
    ]


def _commands(repository: str) -> str:
    folder = repository.rpartition("/")[2]
    fetch = f"hf download {repository} --local-dir {folder}\n" if "/" in repository else ""
    return fetch + f'truetune generate {folder} --prompt "What is the capital of France?"'


# --- Markdown ---------------------------------------------------------------------------------------------


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _table(rows: Rows) -> str:
    if not rows:
        return ""
    lines = (f"| {_cell(name)} | {_cell(_UNKNOWN if value is None else value)} |" for name, value in rows.items())
    return "\n".join(["| | |", "|---|---|", *lines])


def _files(files: Sequence[FileFacts]) -> str:
    if not files:
        return ""
    lines = (f"| {_cell(file.name)} | {file.bytes:,} | `{file.sha256}` |" for file in files)
    return _section("Weights", "\n".join(["| file | bytes | SHA-256 |", "|---|---|---|", *lines]))


def _cell(text: Any) -> str:
    return _line(str(text)).replace("|", "\\|")


def _line(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")


def _code(text: str) -> str:
    return text.replace("\n", "\\n").replace("`", "'")


def _fenced(text: str, language: str = "text") -> str:
    """A block of code, by a fence that is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


# --- whose card it is -------------------------------------------------------------------------------------

_SEAL = "\n<!-- truetune's card, as it was written: {} -->\n"


def sealed(card: str) -> str:
    """The card with a digest of itself, by which it is known later whether somebody has changed it."""
    return card + _SEAL.format(hashlib.sha256(card.encode()).hexdigest())


def is_untouched(text: str) -> bool:
    """True for a sealed card that is as it was written, and for a header alone, which says nothing yet."""
    body, mark, _ = text.rpartition(_SEAL.partition("{}")[0])
    parts = text.split("---", 2)
    is_header = len(parts) == 3 and not parts[0].strip() and not parts[2].strip()
    return not text.strip() or is_header or (bool(mark) and text == sealed(body))
