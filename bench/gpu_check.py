"""One command for a CUDA machine: is training right there, and how do TRL and Unsloth compare? In 9 minutes at most.

    .venv/bin/python bench/gpu_check.py [--json FILE] [--device cuda] [--rounds 3] [--only PROBE …] [--work DIR]

Probes come first, each a line: `ok`, `FAILED` or `not run`, with its numbers. Then both engines train a Llama of
about 1B random weights in turns (A B A B), each time in a new process. Models, tokenizers and rows are made here;
nothing is downloaded. A step that fails, or is not done in its time, is told, and the next one goes on; the exit
status is then 1. Where no GPU is, the same runs on the CPU with tiny sizes, which checks this script. --only runs
some probes and no comparison; --work keeps models, runs and logs.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

from truetune.listener import LogListener
from truetune.model.source import metadata_has

Device = Literal["cpu", "cuda"]
Half = Literal["bf16", "fp16"]
Backend = Literal["trl", "unsloth"]

BUDGET_S, PROBES_S = 520.0, 330.0
"""For the whole check, and for its probes; what is left of the 9 minutes ends processes and deletes files."""

EXACT = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.02}
"""How far a row's loss (about 6) may be off the same row's by another way."""
DEVICES_DIFFER, ENGINES_DIFFER = 2e-3, 0.05
"""How far ten steps' losses may be apart: on CPU and GPU in fp32, between the engines in half precision."""

NO_UNSLOTH = "Unsloth is not installed: pip install 'truetune[unsloth]'"
NO_BITSANDBYTES = "bitsandbytes is not installed: pip install 'truetune[bnb]'"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCE = "the train to Oslo leaves at seven from platform two and takes four hours with one change in Hamar"
WORDS = SENTENCE.split()


@dataclass(frozen=True)
class Sizes:
    """A Llama, rows for it of `words` words on average, and steps of `batch` sequences of up to `max_length`."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    words: int
    rows: int
    max_length: int
    batch: int = 2
    steps: int = 10
    rounds: int = 1


PROBED = {
    "cpu": Sizes(32, 64, 2, 4, vocabulary=261, words=12, rows=40, max_length=256),
    "cuda": Sizes(256, 512, 4, 4, vocabulary=512, words=12, rows=40, max_length=256),
}
COMPARED = {
    "cpu": Sizes(64, 128, 2, 4, vocabulary=512, words=20, rows=100, max_length=512, steps=5, rounds=2),
    "cuda": Sizes(2048, 8192, 16, 32, 32_000, words=60, rows=1500, max_length=2048, batch=4, steps=25, rounds=3),
}


@dataclass(frozen=True)
class Bench:
    """Where everything happens: the device, its half precision, the folders of models, rows and runs."""

    device: Device
    half: Half
    folder: Path

    @property
    def probed(self) -> Path:
        return self.folder / "probed"

    @property
    def compared(self) -> Path:
        return self.folder / "compared"


@dataclass(frozen=True)
class Finding:
    """What a step found, in words and numbers."""

    status: Literal["ok", "FAILED", "not run"]
    said: str
    numbers: dict[str, Any] = field(default_factory=dict)


def held(is_held: bool, said: str, **numbers: Any) -> Finding:
    return Finding("ok" if is_held else "FAILED", said, numbers)


# Steps run in a process beside this one, which a crash, a hang or a broken CUDA context takes along and nothing else.


class Worker:
    """A process that runs one step after the other; a new one takes its place when a step ends it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: Any = None
        self._pipe: Any = None

    def run(self, step: Callable[..., Any], *arguments: Any, limit_s: float) -> Any:
        """What the step returns; a Finding that says what went wrong if it returns nothing in time."""
        begun = time.time()
        if self._process is None:
            self._start()
        try:
            self._pipe.send((step, arguments))
            if self._pipe.poll(max(limit_s, 0.0)):
                is_done, value = self._pipe.recv()
                if is_done:
                    return value
            else:
                value = f"not done within {limit_s:.0f} s"
        except (EOFError, ConnectionError):
            self._process.join()
            value = f"its process died (exit status {self._process.exitcode})"
        self.end()
        return held(False, "\n".join([value, *self._printed_since(begun)]))

    def end(self) -> None:
        """Ends the process and those that it started; Unsloth's ends by itself when its other end does."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = None

    def _start(self) -> None:
        # Forked, so that a step is any function of this process, which has imported neither torch nor CUDA.
        context = multiprocessing.get_context("fork")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=answer_steps, args=(other, self._pipe, self._folder / "steps.log"))
        self._process.start()
        other.close()

    def _printed_since(self, begun: float) -> Iterator[str]:
        """The ends of the logs that were written to, Unsloth's among them."""
        for log in self._folder.rglob("*.log"):
            if log.stat().st_mtime >= begun:
                yield f"  the end of {log.relative_to(self._folder)}:"
                yield from (f"  | {line}" for line in log.read_text(errors="replace").splitlines()[-12:])


def answer_steps(pipe: Connection, other: Connection, log: Path) -> None:
    """In the worker: runs what it is sent; what libraries print goes to the log."""
    other.close()
    os.setpgid(0, 0)
    with log.open("ab") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    with suppress(EOFError):
        while True:
            step, arguments = pipe.recv()
            try:
                pipe.send((True, step(*arguments)))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told and the next step goes on
                pipe.send((False, traceback.format_exc(limit=-8) + (getattr(error, "hint", None) or "")))


# Models, tokenizers and rows, made here.


def make(folder: Path, sizes: Sizes, device: Device, dtype: str) -> int:
    """Fills the folder: a random model, the byte tokenizer, rows and validation rows. Returns the model's weights."""
    model = random_llama(sizes, device, dtype)
    model.save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    made_up(folder / "rows.jsonl", sizes.words, range(sizes.rows))
    made_up(folder / "validation.jsonl", sizes.words, range(sizes.rows, sizes.rows + 6))
    return int(model.num_parameters())


def random_llama(sizes: Sizes, device: Device, dtype: str) -> Any:
    """A model whose layers, attention too, move the logits by about one each, and so does what they get wrong."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=max(sizes.heads // 4, 2),
        initializer_range=sizes.hidden**-0.5,
        max_position_embeddings=4096,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    with torch.device(device):
        return LlamaForCausalLM(config).to(getattr(torch, dtype))


def byte_tokenizer() -> Any:
    """A byte-level BPE: id = byte value, then <s>=256 </s>=257 <pad>=258 <|im_start|>=259 <|im_end|>=260."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters = bytes_to_unicode()
    tokenizer = Tokenizer(models.BPE(vocab={characters[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    built = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    built.chat_template = CHATML
    return built


def made_up(path: Path, words: int, numbers: range) -> None:
    """Rows of half to one and a half times so many words, all different."""

    def text(seed: int, length: int) -> str:
        return " ".join(WORDS[(seed * 7 + place * (seed % 11 + 1)) % len(WORDS)] for place in range(length))

    with path.open("w", encoding="utf-8") as file:
        for n in numbers:
            length = words // 2 + n * 5 % words
            row = {"instruction": f"{n}: {text(n, length // 2)}", "output": text(n + 1, length - length // 2)}
            file.write(json.dumps(row) + "\n")


# Trainings.


class Heard(LogListener):
    """Remembers the warnings of a run."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        super().warn(message)


def settings(folder: Path, sizes: Sizes, device: Device) -> dict[str, Any]:
    """A run on what `make` made: nothing that matters is left to a default."""
    return {
        "model.name_or_path": str(folder / "base"),
        "model.device": device,
        "data.path": str(folder / "rows.jsonl"),
        "data.max_length": sizes.max_length,
        "data.packing": False,
        "data.test_size": 0,
        "data.num_proc": 1,
        "adapter.r": 8,
        "adapter.lora_alpha": 16.0,
        "training.backend": "trl",
        "training.precision": "fp32",
        "training.per_device_train_batch_size": sizes.batch,
        "training.gradient_accumulation_steps": 1,
        "training.max_steps": sizes.steps,
        "training.learning_rate": 1e-3,
        "training.lr_scheduler_type": "constant",
        "training.warmup_steps": 0,
        "training.optim": "adamw_torch",
        "training.gradient_checkpointing": False,
        "evaluation.eval_strategy": "no",
        "checkpoints.save_strategy": "no",
        "logging.logging_steps": 1,
    }


def probed(bench: Bench, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A run on the small model; it starts from `started`'s adapter unless told otherwise."""
    start = {} if "adapter.init_from" in changes else {"adapter.init_from": started(bench)}
    return {**settings(bench.probed, PROBED[bench.device], bench.device), **start, **changes}


def started(bench: Bench) -> str:
    """An adapter of one step, from which runs start alike, however an engine draws its random numbers."""
    first = {"adapter.init_from": None, "training.max_steps": 1, "training.learning_rate": 1e-2}
    return str(trained(bench, "start", first).directory)


def trained(bench: Bench, name: str, changes: Mapping[str, Any], listener: LogListener | None = None) -> Any:
    """The finished run of that name on the small model, made if it is not there."""
    import truetune

    folder = bench.probed / name
    if (folder / "adapter").is_dir() and (run := truetune.open_run(folder)).status == "finished":
        return run
    return truetune.train(probed(bench, changes), output_dir=folder, overwrite=True, listener=listener)


def in_fp32(bench: Bench) -> Any:
    saving = {"checkpoints.save_strategy": "steps", "checkpoints.save_steps": 5}
    return trained(bench, "fp32", {**validated(bench), **saving})


def in_half(bench: Bench, backend: Backend) -> Any:
    engine = {"training.backend": backend, "training.precision": bench.half}
    return trained(bench, f"{bench.half}-{backend}", {**validated(bench), **engine})


def validated(bench: Bench) -> dict[str, Any]:
    """Settings of a run that ends with the loss of other rows."""
    return {
        "data.validation_path": str(bench.probed / "validation.jsonl"),
        "evaluation.eval_strategy": "steps",
        "evaluation.eval_steps": PROBED[bench.device].steps,
    }


# The probes.


def furthest(got: Sequence[float], expected: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(got, expected, strict=True))


def agree(got: Sequence[float], expected: Sequence[float], *, within: float) -> Finding:
    """Whether the losses of the steps are the same, within a tolerance."""
    apart, ends = furthest(got, expected), f"{expected[0]:.4f} to {expected[-1]:.4f}"
    said = f"{len(got)} losses, {ends}: at most {apart:.1e} apart (allowed {within:g})"
    return held(apart <= within, said, apart=apart, allowed=within)


def small_model(bench: Bench) -> Finding:
    weights = make(bench.probed, PROBED[bench.device], bench.device, "float32")
    return held(True, f"a Llama of {weights:,} random weights, a byte tokenizer, rows", weights=weights)


def isolation(precision: str, bench: Bench) -> Finding:
    """Rows packed, padded and alone through the engine's scoring, against the model's own logits of the row alone."""
    from truetune.data.collate import collate, collate_padded
    from truetune.training.scores import score_logits

    engine, rows = engine_with_rows(bench, {"training.precision": precision})
    losses, lengths = partial(row_losses, engine.score, engine.model), [len(row["input_ids"]) for row in rows]
    beside = [(line, 0, length) for line, length in enumerate(lengths)]
    behind = [(0, sum(lengths[:place]), length) for place, length in enumerate(lengths)]
    alone = [(collate([row]), [(0, 0, length)]) for row, length in zip(rows, lengths, strict=True)]
    expected = [row_losses(score_logits, engine.model, *one)[0] for one in alone]
    apart = {
        "alone": furthest([losses(*one)[0] for one in alone], expected),
        "packed": furthest(losses(collate(rows), behind), expected),
        "padded": furthest(losses(collate_padded(rows, pad_token_id=258), beside), expected),
    }
    leak, allowed = furthest(losses(leaking(collate(rows)), behind), expected), EXACT[precision]
    return held(
        max(apart.values()) <= allowed and leak > 2 * allowed,
        f"{len(rows)} rows off by at most: {', '.join(f'{way} {value:.1e}' for way, value in apart.items())} "
        f"(allowed {allowed:g}); a leak moves one by {leak:.2f}",
        **apart,
        leak=leak,
        allowed=allowed,
    )


def leaking(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with positions that go on, so that every sample sees those before it."""
    import torch

    return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]}


def row_losses(
    score: Callable[..., Any], model: Any, batch: Mapping[str, Any], spans: Sequence[tuple[int, int, int]]
) -> list[float]:
    """Each row's mean loss; a span is the row's place in the batch: its line, first token and length."""
    import torch

    with torch.no_grad():
        scores = score(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
    parts = [(line, slice(first, first + length - 1)) for line, first, length in spans]
    return [float(-scores.log_probs[part].float().sum() / scores.label_mask[part].sum()) for part in parts]


def engine_with_rows(bench: Bench, changes: Mapping[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """TRL's engine as a run has it before its first step, and eight rows (or packs) for its collators."""
    from truetune.config.load import load_config
    from truetune.pipeline.job import train_job
    from truetune.pipeline.machine import ask_machine, model_request
    from truetune.pipeline.plan import plan_run
    from truetune.pipeline.prepare import prepare_rows
    from truetune.training.trl import build_engine

    config = load_config(probed(bench, changes)).config
    machine, listener = ask_machine(config, LogListener()), LogListener()
    prepared = prepare_rows(config, tokenizer=machine.tokenizer)
    plan = plan_run(config, machine=machine, prepared=prepared)
    checkpoints = bench.folder / "checkpoints"
    job = train_job(plan, machine=machine, checkpoints=checkpoints, is_padding_free=True, resume_from=None)
    engine = build_engine(
        job,
        model=adapted_model(model_request(config, machine, max_length=config.data.max_length)),
        tokenizer=machine.tokenizer,
        train=plan.sequences,
        validation=(),
        listener=listener,
    )
    engine.model.eval()
    return engine, [columns(plan.sequences[place]) for place in range(8)]


def adapted_model(request: Any) -> Any:
    from truetune.model.adapter import add_adapter
    from truetune.model.load import load_model

    return add_adapter(load_model(request.source, request.options), request.adapter, seed=request.seed)


def columns(row: Any) -> dict[str, Any]:
    """A row, or a pack of rows, as the collators take it."""
    from truetune.data.examples import Packed

    lengths = row.seq_lengths if isinstance(row, Packed) else [len(row.input_ids)]
    return {"input_ids": row.input_ids, "labels": row.labels, "seq_lengths": lengths}


def accumulation(bench: Bench) -> Finding:
    """One row at a time, four times a step, against four rows at a time."""
    size, times = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"
    one = trained(bench, "1x4", {size: 1, times: 4})
    return agree(one.losses, trained(bench, "4x1", {size: 4, times: 1}).losses, within=5e-4)


def against_cpu(bench: Bench) -> Finding:
    """The device's losses against those of a process that sees no GPU, by the command line."""
    import truetune

    folder, file = bench.probed / "on-cpu", bench.probed / "on-cpu.json"
    file.write_text(json.dumps(probed(bench, {"model.device": "cpu", "output_dir": str(folder)})))
    subprocess.run(
        [sys.executable, "-m", "truetune", "train", str(file)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    return agree(in_fp32(bench).losses, truetune.open_run(folder).losses, within=DEVICES_DIFFER)


def resumption(bench: Bench) -> Finding:
    """A copy of a run goes on from the checkpoint of its fifth step."""
    import truetune

    whole, copy = in_fp32(bench), bench.probed / "resumed"
    shutil.copytree(whole.directory, copy)
    checkpoint = copy / "checkpoints" / "checkpoint-5"
    again = truetune.train(copy / "config.yaml", output_dir=copy, resume=checkpoint)
    has_resumed = read_record(again)["resumed_from"] == str(checkpoint)
    return agree(again.losses, whole.losses, within=1e-4) if has_resumed else held(False, "it began anew")


def read_record(run: Any) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run.directory / "run.json").read_text())
    return record


def reloading(train: Callable[[Bench], Any], bench: Bench) -> Finding:
    """A finished run has held its saved adapter's logits against the trained ones; plain PEFT has to agree."""
    run = train(bench)
    base, plain = plain_losses(bench, run)
    apart, allowed = abs(plain - run.eval_loss), EXACT[run.config.training.precision]
    said = (
        f"{run.status}, so saved = trained; validation loss {run.eval_loss:.4f} at the end of training, {plain:.4f} "
        f"in plain PEFT, {apart:.1e} apart (allowed {allowed:g}); {base:.4f} without the adapter"
    )
    is_held = run.status == "finished" and apart <= allowed < abs(base - plain)
    return held(is_held, said, apart=apart, allowed=allowed, base=base)


def plain_losses(bench: Bench, run: Any) -> tuple[float, float]:
    """The validation rows' loss without and with the adapter, each row alone, by transformers and PEFT only."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from truetune import prepare
    from truetune.model.hardware import DTYPES

    dtype = getattr(torch, DTYPES[run.config.training.precision])
    rows = [(row.input_ids, row.labels) for row in prepare(run.config).validation]
    model = AutoModelForCausalLM.from_pretrained(bench.probed / "base", dtype=dtype).to(bench.device)
    adapted = PeftModel.from_pretrained(model, str(run.adapter)).eval()
    with torch.no_grad(), torch.autocast(bench.device, dtype=dtype, enabled=dtype != torch.float32):
        with adapted.disable_adapter():
            base = mean_loss(adapted, rows)
        return base, mean_loss(adapted, rows)


def mean_loss(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> float:
    """The mean over all supervised tokens of all rows (ids and labels), from the logits."""
    import torch

    total, count = 0.0, 0
    for ids, labels in rows:
        targets = torch.tensor(labels[1:], device=model.device)
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        count += int((targets != -100).sum())
    return total / count


def four_bits(bench: Bench) -> Finding:
    """NF4: the loss falls, from near that of the unquantised base and not from the same."""
    if not metadata_has("bitsandbytes"):
        return Finding("not run", NO_BITSANDBYTES)
    run = trained(bench, "nf4", {**FAST, "model.load_in_4bit": True, "training.precision": bench.half})
    found, moved = falling(run), abs(run.losses[0] - in_fp32(bench).losses[0])
    said = f"{found.said}; the first is {moved:.3f} off the unquantised one"
    return held(found.status == "ok" and 1e-3 < moved < 1, said, **found.numbers, moved=moved)


def eight_bit_optimizer(bench: Bench) -> Finding:
    """The loss falls, and the optimizer's state is stored in bytes."""
    if not metadata_has("bitsandbytes"):
        return Finding("not run", NO_BITSANDBYTES)
    # bitsandbytes keeps the state of matrices with fewer than 4096 weights in 32 bits.
    large = {"adapter.init_from": None, "adapter.r": 4096 // PROBED[bench.device].hidden}
    stored = {"training.optim": "adamw_8bit", "checkpoints.save_strategy": "epoch"}
    run = trained(bench, "8bit", {**FAST, **large, **stored})
    found, count = falling(run), stored_bytes(run.directory / "checkpoints" / f"checkpoint-{run.steps}")
    said = f"{found.said}; {count} of the optimizer's tensors are bytes"
    return held(found.status == "ok" and count > 0, said, **found.numbers, stored=count)


FAST = {"training.learning_rate": 1e-2, "training.max_steps": 20}


def falling(run: Any) -> Finding:
    first, last = statistics.mean(run.losses[:4]), statistics.mean(run.losses[-4:])
    said = f"{run.status}; mean loss of the first four steps {first:.4f}, of the last four {last:.4f}"
    return held(run.status == "finished" and last < first, said, first=first, last=last)


def sharded(bench: Bench) -> Finding:
    """FSDP2, in one process, of an adapter's base and of all weights: the losses of a model that is held whole."""
    own = {"adapter.init_from": None, "adapter.method": "full", "training.learning_rate": 1e-4}
    whole = {"ddp": {}, "fsdp": {"training.strategy": "fsdp"}}
    kinds: dict[str, dict[str, Any]] = {"adapter": {}, "all weights": own}
    offloaded = {**own, "training.strategy": "fsdp", "training.fsdp_cpu_offload": True}
    runs = {
        (kind, name): trained(bench, f"{name}-{kind.split()[0]}", {**changes, **how}).losses
        for kind, changes in kinds.items()
        for name, how in whole.items()
    }
    apart = {kind: furthest(runs[kind, "fsdp"], runs[kind, "ddp"]) for kind in kinds}
    apart["in the CPU's memory"] = furthest(trained(bench, "fsdp-cpu", offloaded).losses, runs["all weights", "ddp"])
    said = ", ".join(f"{kind} {each:.1e}" for kind, each in apart.items())
    return held(max(apart.values()) <= EXACT["fp32"], f"losses at most apart: {said}", **apart)


def sharded_four_bits(bench: Bench) -> Finding:
    """NF4 under FSDP2: the losses of NF4 that is held whole."""
    if not metadata_has("bitsandbytes"):
        return Finding("not run", NO_BITSANDBYTES)
    changes = {**FAST, "model.load_in_4bit": True, "training.precision": "fp32" if bench.half == "fp16" else "bf16"}
    whole, shared = (
        trained(bench, f"nf4-{strategy}", {**changes, "training.strategy": strategy}) for strategy in ("ddp", "fsdp")
    )
    return agree(shared.losses, whole.losses, within=EXACT["bf16"])


def several_gpus(bench: Bench) -> Finding:
    """Two processes with a GPU each, by FSDP2 and by DDP, against one that has the rows of both."""
    import torch

    if bench.device != "cuda" or torch.cuda.device_count() < 2:
        return Finding("not run", "there is one GPU, or none")
    two = {"training.num_processes": 2, "training.per_device_train_batch_size": PROBED["cuda"].batch // 2}
    expected = in_fp32(bench).losses
    apart = {}
    for strategy in ("ddp", "fsdp"):
        given = {**probed(bench, {**two, "training.strategy": strategy}), "output_dir": str(bench.probed / strategy)}
        words = [f"{name}={json.dumps(value)}" for name, value in given.items()]
        subprocess.run([sys.executable, "-m", "truetune", "train", *words, "--overwrite"], check=True)
        apart[strategy] = furthest(read_losses(bench.probed / strategy), expected)
    said = ", ".join(f"{strategy} {each:.1e}" for strategy, each in apart.items())
    return held(max(apart.values()) <= EXACT["fp32"], f"losses at most apart: {said}", **apart)


def read_losses(run: Path) -> list[float]:
    import truetune

    return truetune.open_run(run).losses


def stored_bytes(checkpoint: Path) -> int:
    """How many tensors of the optimizer's state are bytes."""
    import torch

    state = torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")["state"]
    return sum(value.dtype == torch.uint8 for value in leaves(state) if isinstance(value, torch.Tensor))


def leaves(value: Any) -> Iterator[Any]:
    """What nested mappings hold in the end."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from leaves(each)
    else:
        yield value


def unsloth_losses(bench: Bench) -> Finding:
    """The same rows, adapter and order through both engines."""
    return agree(in_half(bench, "unsloth").losses, in_half(bench, "trl").losses, within=ENGINES_DIFFER)


def unsloth_packing(bench: Bench) -> Finding:
    """Both pack, and a sample that sees its neighbour would move the loss; or Unsloth does not pack and says so."""
    from truetune.errors import BackendError

    changes = {"training.precision": bench.half, "data.packing": True, "training.per_device_train_batch_size": 1}
    expected, leak, heard = trained(bench, "packed-trl", changes).losses, leak_of_packs(bench, changes), Heard()
    try:
        run = trained(bench, "packed-unsloth", {**changes, "training.backend": "unsloth"}, heard)
    except BackendError as error:
        if "packing" not in str(error):
            raise
        return held(True, f"refused and told: {error}")
    if not run.config.data.packing:
        told = "; ".join(warning for warning in heard.warnings if "pack" in warning)
        return held(bool(told), f"given up, told: {told or 'nothing'}")
    found = agree(run.losses, expected, within=ENGINES_DIFFER)
    is_held = found.status == "ok" and leak > 2 * ENGINES_DIFFER
    return held(is_held, f"{found.said}; a leak moves one by {leak:.2f}", **found.numbers, leak=leak)


def leak_of_packs(bench: Bench, changes: Mapping[str, Any]) -> float:
    """How far a pack's mean loss moves if its samples see each other."""
    from truetune.data.collate import collate

    engine, packs = engine_with_rows(bench, changes)
    losses = partial(row_losses, engine.score, engine.model)
    batches = [(collate([pack]), [(0, 0, len(pack["input_ids"]))]) for pack in packs]
    together = [losses(leaking(batch), span)[0] for batch, span in batches]
    return furthest(together, [losses(batch, span)[0] for batch, span in batches])


@dataclass(frozen=True)
class Probe:
    """A check with a title and a limit of its own."""

    title: str
    check: Callable[[Bench], Finding]
    limit_s: float
    needs_unsloth: bool = False


def probes(half: str) -> dict[str, Probe]:
    """All probes by name, in their order."""
    adapter_of_unsloth = partial(reloading, partial(in_half, backend="unsloth"))
    return {
        "models": Probe("made here", small_model, 90),
        "isolation-fp32": Probe("packed = padded = alone, fp32", partial(isolation, "fp32"), 120),
        "isolation-half": Probe(f"packed = padded = alone, {half}", partial(isolation, half), 60),
        "accumulation": Probe("1x4 = 4x1, fp32", accumulation, 60),
        "cpu": Probe("this device = CPU, fp32", against_cpu, 120),
        "resume": Probe("resumed = uninterrupted, fp32", resumption, 60),
        "adapter": Probe("the adapter reloads, fp32", partial(reloading, in_fp32), 60),
        "4bit": Probe(f"NF4, {half}", four_bits, 60),
        "8bit": Probe("8-bit AdamW, fp32", eight_bit_optimizer, 60),
        "fsdp": Probe("shared out = whole, fp32", sharded, 120),
        "fsdp-4bit": Probe("shared out = whole, NF4", sharded_four_bits, 60),
        "gpus": Probe("two GPUs = one, fp32", several_gpus, 180),
        "unsloth-losses": Probe(f"Unsloth = TRL, {half}", unsloth_losses, 180, needs_unsloth=True),
        "unsloth-packing": Probe(
            f"Unsloth keeps packed rows apart, {half}", unsloth_packing, 120, needs_unsloth=True
        ),
        "unsloth-adapter": Probe(f"Unsloth's adapter reloads, {half}", adapter_of_unsloth, 120, needs_unsloth=True),
    }


# The comparison.


@dataclass(frozen=True)
class Measured:
    """One training of the large model."""

    tokens_per_second: float
    peak_memory_bytes: int
    losses: list[float]
    is_packed: bool


Rounds = dict[Backend, dict[int, Measured]]


def train_large(bench: Bench, backend: Backend, name: str) -> Measured:
    """A new adapter on the large model, by this engine; the rows are not packed where the engine refuses to."""
    import truetune
    from truetune.errors import BackendError

    train = partial(truetune.train, large_settings(bench, backend), output_dir=bench.compared / name)
    try:
        run = train()
    except BackendError as error:
        if "packing" not in str(error):
            raise
        run = train(packing=False)
    record = read_record(run)
    return Measured(
        tokens_per_second=record["tokens_per_second"],
        peak_memory_bytes=record["peak_memory_bytes"],
        losses=run.losses,
        is_packed=bool(run.config.data.packing),
    )


def large_settings(bench: Bench, backend: Backend) -> dict[str, Any]:
    return {
        **settings(bench.compared, COMPARED[bench.device], bench.device),
        "adapter.r": 16,
        "data.packing": True,
        "training.backend": backend,
        "training.precision": bench.half,
        "training.gradient_checkpointing": True,
    }


def take_turns(bench: Bench, worker: Worker, clock: "Clock", rounds: int) -> tuple[Rounds, list[str]]:
    """Each engine's rounds, as many as there is time for, each in a new process; and what went wrong."""
    engines: list[Backend] = ["trl", "unsloth"] if metadata_has("unsloth") else ["trl"]
    measured: Rounds = {engine: {} for engine in engines}
    failures = []
    for number in range(1, rounds + 1):
        begun = time.monotonic()
        for engine in engines:
            worker.end()
            found = worker.run(train_large, bench, engine, f"{engine}-{number}", limit_s=clock.left(150))
            if isinstance(found, Measured):
                measured[engine][number] = found
            else:
                failures.append(f"{engine}, round {number}: {found.said}")
        if number < rounds and clock.left() < time.monotonic() - begun:
            print(f"  no time for more than {number} of {rounds} rounds")
            break
    return measured, failures


def summary(rounds: Mapping[int, Measured]) -> dict[str, Any] | None:
    """An engine's numbers, a list over its rounds each; None if there were none."""
    if not rounds:
        return None
    first = next(iter(rounds.values()))
    return {
        "tokens_per_second": [each.tokens_per_second for each in rounds.values()],
        "peak_memory_bytes": [each.peak_memory_bytes for each in rounds.values()],
        "final_loss": [each.losses[-1] for each in rounds.values()],
        "losses": first.losses,
        "is_packed": first.is_packed,
    }


def ratios(measured: Rounds) -> dict[str, list[float]] | None:
    """Unsloth's numbers over TRL's, round by round."""
    trl, unsloth = measured.get("trl", {}), measured.get("unsloth", {})
    pairs = [(unsloth[number], trl[number]) for number in trl if number in unsloth]
    if not pairs:
        return None
    return {
        "tokens_per_second": [a.tokens_per_second / b.tokens_per_second for a, b in pairs],
        "peak_memory_bytes": [a.peak_memory_bytes / b.peak_memory_bytes for a, b in pairs],
        "final_loss": [a.losses[-1] / b.losses[-1] for a, b in pairs],
    }


def tell_comparison(found: Mapping[str, Any]) -> None:
    for engine in ("trl", "unsloth"):
        if rounds := found[engine]:
            speed, peak = (
                ranged(rounds["tokens_per_second"], ",.0f"),
                ranged(rounds["peak_memory_bytes"], ".2f", 2**30),
            )
            loss, packed = ranged(rounds["final_loss"], ".4f"), "" if rounds["is_packed"] else ", not packed"
            print(f"  {engine:<8}{speed} tokens/s, peak {peak} GiB, last loss {loss}{packed}")
    if over := found["ratios"]:
        speed, peak, loss = (ranged(values, ".2f") for values in over.values())
        print(f"  unsloth / trl: tokens/s {speed}, peak memory {peak}, last loss {loss}")
    if not metadata_has("unsloth"):
        print(f"  {NO_UNSLOTH}")
    for failure in found["failures"]:
        print(f"FAILED  {failure}")


def ranged(values: Sequence[float], form: str, unit: float = 1.0) -> str:
    low, middle, high = (value / unit for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


# The whole.


@dataclass(frozen=True)
class Clock:
    """What is left of a budget of seconds."""

    ends: float

    def left(self, limit_s: float = BUDGET_S) -> float:
        return min(limit_s, self.ends - time.monotonic())


def look_around() -> dict[str, str]:
    """The machine and the libraries' versions."""
    import torch

    from truetune.model.hardware import describe
    from truetune.pipeline.machine import versions

    has_cuda = torch.cuda.is_available()
    memory = f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB" if has_cuda else "none"
    return {**{name: str(value) for name, value in describe().items()}, "gpu_memory": memory, **versions()}


def open_bench(wanted: str, machine: Mapping[str, str], folder: Path) -> Bench:
    """The GPU's, or the CPU's where there is none. Half precision is bf16, or fp16 where a GPU has no bf16."""
    has_gpu = machine["gpu_memory"] != "none"
    if wanted == "cuda" and not has_gpu:
        sys.exit("--device cuda: no CUDA GPU here")
    if not has_gpu:
        print("no CUDA GPU here: checking this script on the CPU with tiny sizes")
    device: Device = "cuda" if has_gpu and wanted != "cpu" else "cpu"
    # One GPU, chosen before CUDA starts: Trainer would split batches over several.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    os.environ["CUDA_VISIBLE_DEVICES"] = visible if device == "cuda" else ""
    os.environ["TRUETUNE_CACHE"] = str(folder / "cache")
    bench = Bench(device, "bf16" if device == "cpu" or machine["native_bf16"] == "true" else "fp16", folder)
    bench.probed.mkdir()
    bench.compared.mkdir()
    return bench


def run_probes(bench: Bench, worker: Worker, clock: Clock, only: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each probe's finding, printed as it comes."""
    found = {}
    for name, probe in probes(bench.half).items():
        if only and name not in ("models", *only):
            continue
        begun = time.monotonic()
        finding = run_probe(probe, bench, worker, clock)
        seconds = time.monotonic() - begun
        print(f"{finding.status:<8}{name} ({probe.title}): {finding.said.rstrip()} [{seconds:.0f} s]", flush=True)
        found[name] = {**asdict(finding), "seconds": seconds}
    return found


def run_probe(probe: Probe, bench: Bench, worker: Worker, clock: Clock) -> Finding:
    if probe.needs_unsloth and not metadata_has("unsloth"):
        return Finding("not run", NO_UNSLOTH)
    if clock.left() < 1:
        return held(False, "no time was left for it")
    finding: Finding = worker.run(probe.check, bench, limit_s=clock.left(probe.limit_s))
    return finding


def run_comparison(bench: Bench, worker: Worker, clock: Clock, rounds: int | None) -> dict[str, Any]:
    """Makes the large model, has both engines train it, and tells."""
    from truetune.model.hardware import DTYPES

    sizes, measured = COMPARED[bench.device], Rounds()
    dtype = DTYPES[bench.half]
    weights = worker.run(make, bench.compared, sizes, bench.device, dtype, limit_s=clock.left(90))
    if isinstance(weights, Finding):
        failures = [weights.said]
    else:
        print(
            f"\nLlama of {weights:,} random weights, {bench.half} on {bench.device}, LoRA r=16, gradient "
            f"checkpointing, {sizes.steps} steps of {sizes.batch} sequences packed to {sizes.max_length}:",
            flush=True,
        )
        measured, failures = take_turns(bench, worker, clock, rounds or sizes.rounds)
    found = {
        "trl": summary(measured.get("trl", {})),
        "unsloth": summary(measured.get("unsloth", {})),
        "ratios": ratios(measured),
        "failures": failures,
    }
    tell_comparison(found)
    return found


def run_check(options: argparse.Namespace, folder: Path, worker: Worker) -> dict[str, Any]:
    """The whole check, as it goes into the JSON file."""
    begun = time.monotonic()
    machine = worker.run(look_around, limit_s=90)
    if isinstance(machine, Finding):
        sys.exit(f"the libraries do not load:\n{machine.said}")
    worker.end()  # The next one sees the device alone.
    bench = open_bench(options.device, machine, folder)
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    found = run_probes(bench, worker, Clock(begun + PROBES_S), options.only)
    engines = None if options.only else run_comparison(bench, worker, Clock(begun + BUDGET_S), options.rounds)
    has_failed = any(each["status"] == "FAILED" for each in found.values()) or bool(engines and engines["failures"])
    return {
        "device": bench.device,
        "half_precision": bench.half,
        "machine": machine,
        "probes": found,
        "side_by_side": engines,
        "seconds": time.monotonic() - begun,
        "has_failed": has_failed,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--rounds", type=int, metavar="N", help="of the comparison (default: 3, on a CPU 2)")
    parser.add_argument("--only", nargs="+", choices=list(probes("bf16")), default=[], metavar="PROBE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--work", type=Path, metavar="DIR", help="a new folder, kept; else a temporary one")
    options = parser.parse_args(arguments)
    if options.work:
        options.work.mkdir(parents=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = (options.work or Path(temporary)).resolve()
        worker = Worker(folder)
        try:
            found = run_check(options, folder, worker)
        finally:
            worker.end()
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(f"\n{'FAILED' if found['has_failed'] else 'all held'}, in {found['seconds']:.0f} s")
    return int(found["has_failed"])


if __name__ == "__main__":
    sys.exit(main())
