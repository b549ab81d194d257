"""Rows and jobs of tiny trainings, shared by the tests of the engine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import CHATML, byte_tokenizer
from truetune.data.examples import IGNORED, Tokenized
from truetune.model.adapter import LoraSettings
from truetune.training.job import TrainJob

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
