"""What bench/engine.py runs in processes of their own: the preparation, the ceiling, and each contestant's training.

    python bench/engine_trl.py TASK REQUEST.json ANSWER.json

Nothing heavy is imported before a task starts. A contestant is a function from a `Trial` to a `Measure`; one more is
one more entry of `CONTESTANTS`.
"""

import json
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

Loss = Literal["all", "answers"]
Sequence_ = dict[str, list[int]]
"""input_ids, labels and seq_lengths of samples that stand end to end."""
Row = tuple[list[int], list[int]]
"""Ids and labels of one sample."""

SEED = 7
LORA = {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear", "bias": "none"}
LEARNING_RATE = 2e-4


@dataclass(frozen=True)
class Workload:
    """Optimizer steps of `batch` sequences of up to `max_length` tokens.

    `layers` cuts the model to its first layers. If it `is_whole`, every sequence is one sample, not a pack of some.
    """

    max_length: int
    batch: int
    loss: Loss
    layers: int | None = None
    is_whole: bool = False

    @property
    def name(self) -> str:
        return f"{self.max_length}x{self.batch}-{self.loss}{'-whole' * self.is_whole}"


@dataclass(frozen=True)
class Trial:
    """One contestant's training on one workload: `data` holds its steps, `warmup` of them are not timed."""

    contestant: str
    workload: Workload
    model: str
    data: str
    warmup: int
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "cuda"]

    def steps(self) -> list[list[Sequence_]]:
        with Path(self.data).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Measure:
    """What a training took: wall and CPU seconds of its timed steps, every step's loss, the process's peak memory."""

    seconds: float
    cpu_seconds: float
    losses: list[float]
    peak_bytes: int


# Contestants.


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


def samples(sequence: Sequence_) -> Iterator[Row]:
    """The ids and labels of each sample of a pack."""
    start = 0
    for length in sequence["seq_lengths"]:
        yield sequence["input_ids"][start : start + length], sequence["labels"][start : start + length]
        start += length


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


def train_with_truetune(trial: Trial) -> Measure:
    """truetune as a run has it, from its config to its session's training: whatever is left to `auto` it decides."""
    from truetune.config.load import load_config
    from truetune.data.examples import Packed
    from truetune.listener import LogListener
    from truetune.pipeline.backends import open_session
    from truetune.pipeline.machine import ask_machine, model_request
    from truetune.pipeline.plan import plan_run, train_job
    from truetune.training.session import Tracking, TrainingRows

    folder, listener, watch = Path(trial.data).parent, LogListener(), watch_of(trial)
    sequences = [Packed(**sequence) for step in trial.steps() for sequence in step]
    config = load_config(None, settings=truetune_settings(trial, len(trial.steps()))).config
    machine = ask_machine(config, listener, has_callbacks=True)
    report = SimpleNamespace(stats={"max_length": trial.workload.max_length})
    plan = plan_run(config, machine=machine, prepared=SimpleNamespace(train=sequences, report=report))  # type: ignore[arg-type]
    session = open_session(
        machine.backend,
        device=machine.device,
        directory=folder,
        listener=listener,
        write_metrics=[].append,
    )
    model = session.load(model_request(plan.config, machine, max_length=trial.workload.max_length))
    job = train_job(
        plan, machine=machine, checkpoints=folder / "truetune", is_padding_free=model.isolates, resume_from=None
    )
    session.train(job, TrainingRows(sequences, [], machine.tokenizer), Tracking(folder), [watch])
    session.close()
    return watch.measure(trial.warmup)


def truetune_settings(trial: Trial, steps: int) -> dict[str, Any]:
    """What must be equal for all contestants; the rest is truetune's own."""
    return {
        "model.name_or_path": trial.model,
        "model.device": trial.device,
        "data.max_length": trial.workload.max_length,
        "data.packing": False,  # They are packs already.
        **{f"adapter.{name}": float(value) if name == "lora_alpha" else value for name, value in LORA.items()},
        "training.precision": trial.precision,
        "training.per_device_train_batch_size": trial.workload.batch,
        "training.gradient_accumulation_steps": 1,
        "training.max_steps": steps,
        "training.learning_rate": LEARNING_RATE,
        "training.lr_scheduler_type": "constant",
        "training.warmup_steps": 0,
        "training.weight_decay": 0.0,
        "training.max_grad_norm": 1.0,
        "training.optim": "adamw_torch_fused",
        "training.seed": SEED,
        "evaluation.eval_strategy": "no",
        "checkpoints.save_strategy": "no",
        "logging.logging_steps": 1,
    }


CONTESTANTS: dict[str, Callable[[Trial], Measure]] = {
    **{name: partial(train_with_trl, recipe) for name, recipe in RECIPES.items()},
    "trl-best": trl_best,
    "truetune": train_with_truetune,
}
EXTRA: dict[str, Callable[[Trial], Measure]] = {
    name: partial(train_with_trl, recipe) for name, recipe in TRIED.items()
}


def watch_of(trial: Trial) -> Any:
    """A callback for any of transformers' trainers: their steps' ends, their losses, their rows in the same order."""
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[tuple[float, float]] = []
            self.losses: dict[int, float] = {}

        def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            args.train_sampling_strategy = "sequential"

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trial.device == "cuda":
                torch.cuda.synchronize()
            self.ends.append((time.perf_counter(), time.process_time()))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.losses[state.global_step] = float(logs["loss"])

        def measure(self, warmup: int) -> Measure:
            wall, cpu = (end - start for start, end in zip(self.ends[warmup - 1], self.ends[-1], strict=True))
            return Measure(wall, cpu, list(self.losses.values()), peak_bytes(trial.device))

    return Watch()


def peak_bytes(device: str) -> int:
    """The allocator's peak on CUDA, else this process's peak resident memory."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# What comes before.


def train(request: dict[str, Any]) -> dict[str, Any]:
    trial = Trial(**{**request, "workload": Workload(**request["workload"])})
    return asdict((CONTESTANTS | EXTRA)[trial.contestant](trial))


def ceiling(request: dict[str, Any]) -> dict[str, float]:
    """The matrix products of the model's MLP, 2,048 tokens, in FLOP/s."""
    import torch

    dtype = torch.bfloat16 if request["precision"] == "bf16" else torch.float32
    hidden, intermediate, device = request["hidden"], request["intermediate"], request["device"]
    x, weight = (torch.randn(size, dtype=dtype, device=device) for size in ((2048, hidden), (intermediate, hidden)))

    def spell(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            torch.nn.functional.linear(x, weight)
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / times

    spell(20)
    return {"flops": 2 * x.numel() * intermediate / statistics.median(spell(20) for _ in range(40))}


def prepare(request: dict[str, Any]) -> dict[str, Any]:
    """Writes every workload's steps as lines of JSON, and the models; tells what they hold."""
    from truetune.model.hardware import resolve_device, resolve_precision

    folder = Path(request["folder"])
    device = resolve_device(request["device"])
    precision = "fp32" if request["is_quick"] else resolve_precision("auto", device)
    model = tiny(folder / "tiny") if request["is_quick"] else demo(request["model"])
    workloads = [Workload(**each) for each in request["workloads"]]
    depths = {each.layers for each in workloads if each.layers}
    return {
        "device": device,
        "precision": precision,
        "models": {"": str(model), **{str(depth): str(cut(model, folder, depth)) for depth in depths}},
        "counts": {
            each.name: write_steps(folder, each, model, request)
            for each in {workload.name: workload for workload in workloads}.values()
        },
    }


def write_steps(folder: Path, workload: Workload, model: Path, request: dict[str, Any]) -> list[dict[str, int]]:
    """The workload's steps; of each, the tokens, the supervised ones, and the pairs that attend to each other."""
    steps = list(packed_steps(workload, model, request))
    (folder / f"{workload.name}.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), "utf-8")
    return [
        {
            "tokens": sum(len(each["input_ids"]) for each in step),
            "supervised": sum(label != -100 for each in step for label in each["labels"]),
            "pairs": sum(length * (length + 1) // 2 for each in step for length in each["seq_lengths"]),
        }
        for step in steps
    ]


def packed_steps(workload: Workload, model: Path, request: dict[str, Any]) -> Iterator[list[Sequence_]]:
    """Rows as truetune prepares and packs them, the packs in an order as chance has it."""
    import truetune
    from truetune.data.packing import pack

    settings = {"data.test_size": 0, "data.max_length": workload.max_length, "data.num_proc": 1}
    rows = truetune.prepare(model=str(model), data=request["data"], **settings).train
    packs = [sequence(each, workload) for each in pack(rows, max_length=workload.max_length)]
    random.Random(SEED).shuffle(packs)
    for step in range(request["steps"]):
        yield [packs[(step * workload.batch + place) % len(packs)] for place in range(workload.batch)]


def sequence(packed: Any, workload: Workload) -> Sequence_:
    ids, lengths = list(packed.input_ids), list(packed.seq_lengths)
    if workload.is_whole:
        lengths = [len(ids)]
    labels = list(ids) if workload.loss == "all" else list(packed.labels)
    start = 0
    for length in lengths:
        labels[start] = -100
        start += length
    return {"input_ids": ids, "labels": labels, "seq_lengths": lengths}


def demo(name: str) -> Path:
    from truetune.model.source import resolve_model

    return Path(resolve_model(name).path)


def tiny(folder: Path) -> Path:
    """A Llama of a few thousand random weights with a byte tokenizer."""
    from gpu_check import Sizes, byte_tokenizer, random_llama

    sizes = Sizes(hidden=16, intermediate=32, layers=2, heads=2, vocabulary=261, words=12, rows=0, max_length=256)
    random_llama(sizes, "cpu", "float32").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def cut(model: Path, folder: Path, layers: int) -> Path:
    """The model's first layers, as a folder; its weights are linked."""
    shallow = folder / f"layers-{layers}"
    shallow.mkdir()
    for file in model.iterdir():
        if file.name != "config.json":
            (shallow / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text("utf-8"))
    config.pop("layer_types", None)
    (shallow / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}), "utf-8")
    return shallow


TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "prepare": prepare,
    "ceiling": ceiling,
    "train": train,
}


def main(task: str, request: str, answer: str) -> None:
    done = TASKS[task](json.loads(Path(request).read_text("utf-8")))
    Path(answer).write_text(json.dumps(done), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
