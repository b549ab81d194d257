"""Twenty steps of the engine, with all that makes it fast, are those of plain TRL and of a plain loop of PyTorch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from conftest import tiny_model
from tiny_runs import LORA, ROWS, TOKENIZER, Trained, row, trained_weights
from truetune.data.examples import Tokenized
from truetune.model import slices
from truetune.model.adapter import add_adapter
from truetune.model.attention import fit_attention
from truetune.model.fused_blocks import fuse_blocks

STEPS, BATCH, ACCUMULATED, RATE = 20, 3, 2, 5e-3
MANY = [*ROWS, *(row(f"why {number}?", "because " * (1 + number % 7)) for number in range(30))]


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(slices.TOKENS, "cpu", 60)


def trained(folder: Path, rows: list[Tokenized]) -> Trained:
    """The engine on a model fused as in a run."""
    model = tiny_model()
    assert fuse_blocks(model) == 7
    assert fit_attention(model)
    adapted = add_adapter(model, LORA, seed=1)
    return Trained(
        folder / "ours",
        rows,
        model=adapted,
        num_train_epochs=3,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATED,
        learning_rate=RATE,
        warmup_steps=4,
        weight_decay=0.1,
    )


def plain() -> Any:
    """The same base and adapter, all of it transformers' and PEFT's own."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=LORA.r, lora_alpha=LORA.lora_alpha, target_modules=targets, task_type="CAUSAL_LM")
    start = {name: value.clone() for name, value in add_adapter(tiny_model(), LORA, seed=1).state_dict().items()}
    model = get_peft_model(tiny_model(), config)
    model.load_state_dict(start)
    return model.train()


def rows_read(ours: Trained) -> list[dict[str, list[int]]]:
    """The rows in the order in which the engine read them."""
    return [{"input_ids": each["input_ids"], "labels": each["labels"]} for batch in ours.batches for each in batch]


def test_twenty_steps_are_those_of_plain_trl(tmp_path: Path) -> None:
    ours = trained(tmp_path, MANY)  # Seven whole steps an epoch: TRL is given all epochs as one.
    settings = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATED,
        learning_rate=RATE,
        lr_scheduler_type="linear",
        warmup_steps=4,
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
    )
    trainer = SFTTrainer(
        model=plain(),
        args=settings,
        train_dataset=Dataset.from_list(rows_read(ours)),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=258),
        processing_class=TOKENIZER,
    )
    trainer.train()
    expected = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(expected) == STEPS
    assert ours.logged("loss") == pytest.approx(expected, abs=1e-4)
    assert expected[-1] < expected[0] - 0.2


@pytest.mark.parametrize("rows", [len(MANY), 40])
def test_twenty_steps_are_those_of_a_plain_loop(tmp_path: Path, rows: int) -> None:
    ours, model = trained(tmp_path, MANY[:rows]), plain()
    learned = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.1)
    rising_then_falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / 4, (STEPS - step) / (STEPS - 4))
    )
    read, losses = iter(rows_read(ours)), []
    for step in range(STEPS):
        losses.append(one_step(model, [next(read) for _ in range(rows_in(step, rows))]))
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        rising_then_falling.step()
        optimizer.zero_grad()
    assert ours.logged("loss") == pytest.approx(losses, abs=1e-5)
    assert torch.allclose(ours.weights(), trained_weights(model), rtol=1e-3, atol=1e-4)


def one_step(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """Each row by itself; the mean over all supervised tokens of the step."""
    labels = [torch.tensor(each["labels"][1:]) for each in rows]
    count = sum(int((each != -100).sum()) for each in labels)
    total = 0.0
    for each, wanted in zip(rows, labels, strict=True):
        logits = model(input_ids=torch.tensor([each["input_ids"]]), use_cache=False).logits[0, :-1]
        loss = cross_entropy(logits, wanted, reduction="sum") / count
        loss.backward()
        total += float(loss.detach())
    return total


def rows_in(step: int, rows: int) -> int:
    """The rows of a step: the last of an epoch may have fewer."""
    whole = BATCH * ACCUMULATED
    an_epoch = -(-rows // whole)
    return min(whole, rows - step % an_epoch * whole)
