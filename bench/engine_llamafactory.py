"""LLaMA-Factory as a contestant of bench/engine.py: its own workflow in its own environment, on truetune's packs.

Of LLaMA-Factory's parts one is another: instead of reading and tokenizing rows it is handed packs of ids, in the form
in which its PackedSupervisedDatasetProcessor makes them for `neat_packing`. Model, adapter, collator with its mask of
blocks, trainer and loss are what `llamafactory-cli train` would use.
"""

from pathlib import Path
from typing import Any

from trial import LEARNING_RATE, LORA, SEED, Measure, Sequence_, Trial, watch_of

IGNORED = -100


def train_with_llamafactory(trial: Trial) -> Measure:
    from unittest.mock import patch

    from datasets import Dataset
    from llamafactory.hparams import get_train_args
    from llamafactory.train.sft import workflow

    model, data, training, finetuning, generating = get_train_args(arguments(trial))
    counts, watch = counter(), watch_of(trial)

    def ready_packs(*_: Any, tokenizer: Any, **__: Any) -> dict[str, Any]:
        packs = [pack(each, data.cutoff_len + 1, tokenizer.pad_token_id) for step in trial.steps() for each in step]
        return {"train_dataset": Dataset.from_list(packs)}

    with patch.object(workflow, "get_dataset", ready_packs):
        workflow.run_sft(model, data, training, finetuning, generating, [watch, counts])
    measure = watch.measure(trial.warmup)
    return Measure(**{**vars(measure), "counted": counts.total})


def arguments(trial: Trial) -> dict[str, Any]:
    """Of `llamafactory-cli train`: what must be equal for all contestants, and its fastest settings.

    Its default is gradient checkpointing, which costs a third of the time.
    """
    return {
        "model_name_or_path": trial.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": LORA["r"],
        "lora_alpha": LORA["lora_alpha"],
        "lora_dropout": LORA["lora_dropout"],
        "lora_target": "all",
        "dataset": "ready_packs",
        "template": "empty",
        "cutoff_len": width(trial),
        "packing": True,
        "neat_packing": True,
        "flash_attn": "sdpa",
        "disable_gradient_checkpointing": True,
        "disable_shuffling": True,
        "output_dir": str(Path(trial.data).parent / "llamafactory"),
        "per_device_train_batch_size": trial.workload.batch,
        "gradient_accumulation_steps": 1,
        "max_steps": len(trial.steps()),
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "bf16": trial.precision == "bf16",
        "use_cpu": trial.device == "cpu",
        "seed": SEED,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": trial.device == "cuda",
    }


def width(trial: Trial) -> int:
    """Of its packs: each ends in one token of padding at least, and only multiples of 8 train with sdpa (0.9.5)."""
    longest = max(len(each["input_ids"]) for step in trial.steps() for each in step)
    return 8 * (longest // 8 + 1)


def pack(sequence: Sequence_, width: int, pad: int) -> dict[str, Any]:
    """As PackedSupervisedDatasetProcessor (0.9.5) has it: samples are numbered from 1 in the mask, padding is 0."""
    ids, labels, lengths = sequence["input_ids"], sequence["labels"], sequence["seq_lengths"]
    padding = width - len(ids)
    return {
        "input_ids": [*ids, *[pad] * padding],
        "labels": [*labels, *[IGNORED] * padding],
        "attention_mask": [
            *(number for number, length in enumerate(lengths, start=1) for _ in range(length)),
            *[0] * padding,
        ],
        "position_ids": [*(place for length in lengths for place in range(length)), *[0] * padding],
    }


def counter() -> Any:
    """A callback that counts what arrives at the model: tokens, supervised ones, pairs that attend to each other."""
    from transformers import TrainerCallback

    class Counter(TrainerCallback):
        def __init__(self) -> None:
            self.total = {"tokens": 0, "supervised": 0, "pairs": 0}

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            model.register_forward_pre_hook(self.count, with_kwargs=True)

        def count(self, _model: Any, _args: Any, inputs: dict[str, Any]) -> None:
            seen = inputs["attention_mask"] == 0  # What is added to the scores: 0, or the lowest number.
            self.total["tokens"] += int(seen.diagonal(dim1=-2, dim2=-1).sum())
            self.total["supervised"] += int((inputs["labels"] != IGNORED).sum())
            self.total["pairs"] += int(seen.sum())

    return Counter()
