"""Rows, jobs and runs of tiny trainings, shared by the tests of the engine and of what becomes of a run."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode

import truetune
from conftest import CHATML, arithmetic_rows, byte_tokenizer, tiny_model
from truetune.data.examples import IGNORED, Location, Tokenized
from truetune.inference.answers import Stops
from truetune.inference.metrics import Expected
from truetune.listener import LogListener, StepEvent
from truetune.model.adapter import LoraSettings
from truetune.training.job import TrainJob, TrainResult
from truetune.training.monitor import MetricsCallback
from truetune.training.scored import ScoredRow, ScoredRows
from truetune.training.trl import Engine, build_engine, train

TOKENIZER = byte_tokenizer(chat_template=CHATML)
LORA = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", bias="none")


def row(question: str, answer: str) -> Tokenized:
    """One chat row, its answer and terminator learned."""
    prompt = TOKENIZER(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    learned = TOKENIZER(f"{answer}<|im_end|>")["input_ids"]
    newline = [ord("\n")]
    return Tokenized([*prompt, *learned, *newline], [*[IGNORED] * len(prompt), *learned, IGNORED])


ROWS = [row(f"question {number}", "answer" * (1 + number % 5)) for number in range(12)]
C1, C2 = row("hi", "yo"), row("q", "ok!")


def scored(
    rows: Sequence[Tokenized], folder: Path, *, limit: int = 8, metrics: Sequence[str] = ("exact_match",)
) -> ScoredRows:
    """Rows of `row` as a training is to answer them."""
    asked = []
    for number, each in enumerate(rows, start=1):
        learned = [place for place, label in enumerate(each.labels) if label != IGNORED]
        answer = TOKENIZER.decode(each.input_ids[learned[0] : learned[-1]])
        prompt = tuple(each.input_ids[: learned[0]])
        asked.append(ScoredRow(prompt, limit, Expected(answer), TOKENIZER.decode(prompt), Location("rows", number)))
    return ScoredRows(tuple(asked), tuple(metrics), Stops(TOKENIZER, (260,), ()), folder)


def job(folder: Path, **changes: Any) -> TrainJob:
    settings = TrainJob(
        output_dir=folder,
        num_train_epochs=1,
        max_steps=-1,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=1,
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        gradient_checkpointing=False,
        precision="fp32",
        device="cpu",
        seed=7,
        eval_strategy="no",
        eval_steps=1,
        load_best_model_at_end=False,
        early_stopping_patience=None,
        save_strategy="no",
        save_steps=4,
        save_total_limit=None,
        logging_steps=1,
        report_to=(),
        run_name=None,
        is_padding_free=True,
    )
    return replace(settings, **changes)


class Heard(LogListener):
    """A listener that remembers warnings and steps."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.steps: list[StepEvent] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def step(self, event: StepEvent) -> None:
        self.steps.append(event)


class Trained:
    """A finished training: its result, its logged lines, its model, the rows of each batch it read."""

    def __init__(
        self,
        folder: Path,
        rows: Any,
        *,
        model: Any = None,
        validation: Any = (),
        scored: ScoredRows | None = None,
        callbacks: Sequence[Any] = (),
        **changes: Any,
    ) -> None:
        self.job = job(folder, **changes)
        self.model = tiny_model() if model is None else model
        self.lines: list[dict[str, Any]] = []
        self.heard = Heard()
        self.engine: Engine = build_engine(
            self.job,
            model=self.model,
            tokenizer=TOKENIZER,
            train=rows,
            validation=validation,
            scored=scored,
            listener=self.heard,
            callbacks=callbacks,
        )
        self.batches: list[list[dict[str, Any]]] = []
        collator = self.engine.data_collator
        self.engine.data_collator = lambda batch: (self.batches.append(batch), collator(batch))[1]
        self.result: TrainResult = train(self.engine, self.job, metrics=MetricsCallback(self.lines.append))

    def read(self) -> list[tuple[int, ...]]:
        """The token ids of every sequence read, in order."""
        return [tuple(each["input_ids"]) for batch in self.batches for each in batch]

    def logged(self, name: str) -> list[float]:
        return [line[name] for line in self.lines if name in line and "loss" in line]

    def weights(self) -> torch.Tensor:
        return trained_weights(self.model)


def trained_weights(model: Any) -> torch.Tensor:
    """What is trained of a model, as one vector, in memory of its own."""
    return torch.cat([value.detach().flatten() for value in model.parameters() if value.requires_grad])


def columns(rows: Any) -> list[dict[str, Any]]:
    return [
        {
            "input_ids": each.input_ids,
            "labels": each.labels,
            "seq_lengths": getattr(each, "seq_lengths", [len(each.input_ids)]),
        }
        for each in rows
    ]


def token_losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of each supervised token, in order."""
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return losses[labels[:, 1:].flatten() != IGNORED]


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor has that is made."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return made


_SMALL = {"vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_GROUPED = {**_SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
_EXPERTS = {**_GROUPED, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_GPT = {"vocab_size": 261, "n_embd": 32, "n_layer": 2, "n_head": 4}
_DROPOUTS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

ISOLATING: dict[str, dict[str, Any]] = {
    "Llama": _GROUPED,
    "Mistral": {**_GROUPED, "sliding_window": 4},
    "Qwen2": _GROUPED,
    "Qwen3": _GROUPED,
    "Gemma2": {**_GROUPED, "sliding_window": 4},
    "Cohere": _GROUPED,
    "Granite": {**_GROUPED, "logits_scaling": 4.0},
    "GPTNeoX": {**_SMALL, "intermediate_size": 64},
    "GPT2": {**_GPT, **_DROPOUTS},
    "Mixtral": _EXPERTS,
    "Qwen3Moe": {**_EXPERTS, "moe_intermediate_size": 32},
}
"""Architectures whose attention follows restarting positions, with a tiny configuration of each."""

LEAKING: dict[str, dict[str, Any]] = {
    "Bloom": {"vocab_size": 261, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "OPT": {**_SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "Mpt": {"vocab_size": 261, "d_model": 32, "n_heads": 4, "n_layers": 2},
    "Mamba": {"vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 2},
    "Lfm2": {**_GROUPED, "layer_types": ["conv", "full_attention"]},
}
"""Architectures that let one sample see another, whole or, as Lfm2's convolutions, in part."""

# Falcon's mask knows of restarting positions from transformers 5.24 on.
_falcons = ISOLATING if Version(transformers.__version__) >= Version("5.24") else LEAKING
_falcons["Falcon"] = {**_SMALL, "alibi": True}


def architecture(name: str) -> Any:
    """A tiny random model of that architecture, in fp32 and evaluation mode."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**ISOLATING, **LEAKING}[name])
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    return getattr(transformers, kind)(config).eval()


def base_in(folder: Path, *, template: str | None = CHATML, **changes: Any) -> Path:
    """A tiny Llama in a folder, with the byte tokenizer; wide enough that what it answers is no tie."""
    tiny_model(**{"hidden_size": 64, "intermediate_size": 128, **changes}).save_pretrained(folder)
    byte_tokenizer(chat_template=template).save_pretrained(folder)
    return folder


def trained(base: Path, folder: Path, **settings: Any) -> truetune.Run:
    """A run on twelve arithmetic rows, which it learns."""
    options = {"num_train_epochs": 20, "learning_rate": 1e-2, "precision": "fp32", "save_strategy": "no", **settings}
    return truetune.train(model=str(base), data=arithmetic_rows(12), output_dir=folder, packing=False, **options)


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
