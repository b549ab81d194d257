"""TRL alone as a contestant of bench/engine.py: the guide's way, its defaults, and its best settings that were found.

A contestant is a function from a `Trial` to a `Measure`. Nothing heavy is imported before one starts.
"""

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from trial import LEARNING_RATE, LORA, SEED, Measure, Row, Sequence_, Trial, samples, watch_of


@dataclass(frozen=True)
class Recipe:
    """TRL settings: so many packed sequences, or so many padded rows, in a forward pass; None: the whole step's.

    Rows that are `is_grouped` stand by length, as `train_sampling_strategy="group_by_length"` has them.
    """

    weights: Literal["float32", "bfloat16"]
    autocast: bool
    checkpointing: bool
    sequences: int | None = None
    rows: int | None = None
    is_grouped: bool = False
    attention: str = "sdpa"
    compiled: bool = False

    def in_fp32(self) -> "Recipe":
        return replace(self, weights="float32", autocast=False)


PLAIN = Recipe("bfloat16", autocast=True, checkpointing=False)
"""bf16 weights and autocast, packed, no checkpointing: where the search for TRL's best starts."""

RECIPES = {
    "guide": Recipe("float32", autocast=False, checkpointing=False, rows=4),
    "trl": Recipe("float32", autocast=True, checkpointing=True),
}

TRIED = {
    "trl-packs": PLAIN,
    "trl-pack": replace(PLAIN, sequences=1),
    "trl-pack-eager": replace(PLAIN, sequences=1, attention="eager"),
    "trl-pack-pure": replace(PLAIN, sequences=1, autocast=False),
    "trl-pack-compiled": replace(PLAIN, sequences=1, compiled=True),
    "trl-rows-1": replace(PLAIN, rows=1),
    "trl-rows-4": replace(PLAIN, rows=4),
    "trl-rows-8": replace(PLAIN, rows=8),
    "trl-rows-4-grouped": replace(PLAIN, rows=4, is_grouped=True),
}
"""What was tried for TRL's best; each is a contestant too, if it is asked for by name."""

BEST_ON_CPU = (
    (512, "trl-pack"),
    (sys.maxsize, "trl-rows-4-grouped"),
)
"""TRL's best for sequences of up to so many tokens, measured on two cores with AMX, rows of 150 tokens, loss on all:

CPU seconds a step of 2,048 tokens, and peak GB:
                            4 x 512        1 x 2,048
    trl-packs            18.7   6.3        19.5   6.4     its mask holds every pair of the step's tokens
    trl-pack             13.7   2.4                       a mask of one pack only: a quarter of the pairs
    trl-pack-eager       14.3   3.0
    trl-pack-pure        15.0   2.8                       PEFT then computes the adapters in fp32
    trl-rows-1           17.0   2.0        18.3   1.6     no mask, no padding, but small matrix products
    trl-rows-4           20.4   3.4                       a fifth is padding
    trl-rows-8           17.0   5.0                       the same
    trl-rows-4-grouped   17.4   3.4        14.9   2.8     8 % is padding, a mask of a row's pairs only

trl-pack-compiled was given up after five minutes, which had not been enough for the first steps.
"""


def trl_best(trial: Trial) -> Measure:
    """On CUDA, where the mask costs little and launches do not, a step's packs go through together (not measured)."""
    if trial.device == "cuda":
        return train_with_trl(TRIED["trl-packs"], trial)
    name = next(name for limit, name in BEST_ON_CPU if trial.workload.max_length <= limit)
    return train_with_trl(TRIED[name], trial)


def train_with_trl(recipe: Recipe, trial: Trial) -> Measure:
    """TRL alone, on rows that are tokens already."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = recipe if trial.precision == "bf16" else recipe.in_fp32()
    model = AutoModelForCausalLM.from_pretrained(
        trial.model, dtype=getattr(torch, recipe.weights), attn_implementation=recipe.attention
    )
    watch = watch_of(trial)
    build = row_trainer if recipe.rows else packed_trainer
    trainer = build(
        recipe,
        trial,
        model=model,
        processing_class=AutoTokenizer.from_pretrained(trial.model),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        callbacks=[watch],
    )
    trainer.train()
    return watch.measure(trial.warmup)


def packed_trainer(recipe: Recipe, trial: Trial, **options: Any) -> Any:
    """TRL's trainer with its own padding-free collator, on packs."""
    from datasets import Dataset
    from trl import SFTTrainer

    sequences = [sequence for step in trial.steps() for sequence in step]
    together = min(recipe.sequences or trial.workload.batch, trial.workload.batch)
    args = sft_config(recipe, trial, together, trial.workload.batch // together)
    return SFTTrainer(args=args, train_dataset=Dataset.from_list(sequences), **options)


def row_trainer(recipe: Recipe, trial: Trial, **options: Any) -> Any:
    """TRL's trainer with its own padding collator, on the rows of each step, some at a time.

    A step has as many rows as its packs have, which varies and so cannot be Trainer's gradient_accumulation_steps:
    the trainer is given a step at once and goes through it itself.
    """
    from datasets import Dataset
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    class RowTrainer(SFTTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            loss = 0.0
            for some in row_groups(inputs, recipe.rows or 1):
                loss = loss + super().training_step(model, some, num_items_in_batch)
            return loss

    pad = DataCollatorForLanguageModeling(pad_token_id=options["processing_class"].pad_token_id)
    order = by_length if recipe.is_grouped else shuffled
    steps = [step_of_rows(step, order) for step in trial.steps()]
    return RowTrainer(
        args=sft_config(recipe, trial, 1, 1),
        train_dataset=Dataset.from_list(steps),
        data_collator=lambda given: pad(rows_of_step(given[0])),
        **options,
    )


def shuffled(rows: list[Row]) -> list[Row]:
    """As chance has them: packs hold their longest first."""
    return random.Random(SEED).sample(rows, len(rows))


def by_length(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: len(row[0]), reverse=True)


def step_of_rows(
    step: list[Sequence_], order: Callable[[list[Row]], list[Row]] = shuffled
) -> dict[str, list[list[int]]]:
    """The rows of a step's packs, in this order."""
    rows = order([row for sequence in step for row in samples(sequence)])
    return {"input_ids": [ids for ids, _ in rows], "labels": [labels for _, labels in rows]}


def rows_of_step(step: dict[str, list[list[int]]]) -> list[dict[str, list[int]]]:
    pairs = zip(step["input_ids"], step["labels"], strict=True)
    return [{"input_ids": ids, "labels": labels} for ids, labels in pairs]


def row_groups(inputs: dict[str, Any], rows: int) -> Iterator[dict[str, Any]]:
    """A padded batch, so many rows at a time, each time padded to the longest of these only."""
    for start in range(0, len(inputs["input_ids"]), rows):
        longest = int(inputs["attention_mask"][start : start + rows].sum(1).max())
        yield {name: values[start : start + rows, :longest] for name, values in inputs.items()}


def sft_config(recipe: Recipe, trial: Trial, batch: int, accumulated: int) -> Any:
    """Every value explicit: SFTConfig's own defaults are neither the guide's nor TrainingArguments'."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(Path(trial.data).parent / "trl"),
        max_steps=len(trial.steps()),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=recipe.autocast,
        fp16=False,
        use_cpu=trial.device == "cpu",
        seed=SEED,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=trial.device == "cuda",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=trial.workload.max_length,
        packing=not recipe.rows,
        gradient_checkpointing=recipe.checkpointing,
        torch_compile=recipe.compiled,
    )


TRL: dict[str, Callable[[Trial], Measure]] = {
    **{name: partial(train_with_trl, recipe) for name, recipe in RECIPES.items()},
    "trl-best": trl_best,
}
EXTRA: dict[str, Callable[[Trial], Measure]] = {
    name: partial(train_with_trl, recipe) for name, recipe in TRIED.items()
}
