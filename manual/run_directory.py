"""The reference of a run's directory, from the paths that the code writes and the records that it keeps."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from truetune.runs.directory import RunDirectory
from truetune.training.job import TrainResult

HEAD = """# A run's directory

Everything about one training lies in one folder, written so that no reader ever sees half a file. No database knows
of it: `truetune runs`, `report` and `compare` read these files each time. [Runs, checkpoints, resuming](../runs.md)
explains how they are used.

## Files
"""

CHECKPOINT = """
Beside them lie `tensorboard/` and `wandb/`, the files of those trackers, and `unsloth.log`, what Unsloth's process
said where the run was started from Python.

## A checkpoint

`checkpoints/checkpoint-500/` holds weights, optimizer, schedule, random states, tokenizer, template and counters,
and `manifest.json`: every file with its size and SHA-256. It is written under a hidden name, and renamed when it is
whole.
"""

RECORD = {
    "status": "`running`, `finished`, `stopped` (on request, can go on) or `failed`",
    "error": "what ended a run that failed",
    "started": "when, in UTC",
    "ended": "when, in UTC; missing while it runs, and where its process was killed",
    "command": "the words it was started with, without keys and tokens",
    "resumed_from": "the checkpoint that it went on from, or null",
    "model": "the base: `name_or_path`, `revision` (the commit), `fingerprint`, `dtype`",
    "backend": "the engine: `trl` or `unsloth`",
    "precision": "how it computed: `fp32`, `bf16` or `fp16`",
    "device": "where: `cpu`, `cuda` or `mps`",
    "num_processes": "how many processes trained",
    "hardware": "processor, memory and GPUs",
    "versions": "of the libraries that it stood on",
    "data": "`path`, `fingerprint` of the prepared rows, `rows_read`, `rows_kept`",
    "total_steps": "the optimizer steps that were planned",
    "effective_batch_size": "rows, or packed sequences, a step: per device × accumulated × processes",
    "config": "every setting, resolved",
    "settings": "each chosen setting with `name`, `value`, `reason`, `source`, `limit`",
    "planned": "what was planned of memory, time and disk",
    "adapter": "the folder of the weights, in this directory",
    "steps": "the optimizer steps that were done",
    "final_loss": "the last logged training loss",
    "eval_loss": "the last validation loss",
    "best_eval_loss": "the lowest validation loss",
    "tokens": "all tokens that were read, padding never among them",
    "supervised_tokens": "the tokens that were learned",
    "tokens_per_second": "real tokens over step time; the first step, evaluation and saving are left out",
    "seconds": "from the first step to the last",
    "peak_memory_bytes": "the process's peak resident memory, on CUDA the allocator's peak",
    "stopped_by": "the signal that stopped it, or null",
    "metric_for_best_model": "the figure by which a checkpoint is the best",
    "best_metric": "its best value",
    "best_step": "the step where that was reached",
}
"""The keys of run.json. A test holds them against those of a run."""

METRICS = {
    "step": "the optimizer step, counted from 1; 0 is the evaluation before the first one",
    "epoch": "passes over the rows so far",
    "loss": "the mean over the supervised tokens since the line before; null where it is no number",
    "learning_rate": "of the step",
    "grad_norm": "of the step, before it was clipped",
    "mean_token_accuracy": "the share of supervised tokens that the model thought the likeliest",
    "num_tokens": "tokens read so far",
    "supervised_tokens": "tokens learned so far",
    "tokens_per_second": "as in run.json, so far",
    "memory_bytes": "what the process holds (on a GPU, what it holds there)",
    "eval_loss": "on a line of an evaluation: the mean over all supervised tokens of the validation rows",
    "eval_mean_token_accuracy": "the same share, on the validation rows",
    "eval_supervised_tokens": "how many tokens that is over",
    "eval_runtime": "seconds that it took",
    "eval_samples_per_second": "Trainer's own count",
    "eval_steps_per_second": "Trainer's own count",
}
"""The keys of a line of metrics.jsonl, but for scores of answers. A test holds them against those of a run."""


def page() -> str:
    """The files, then what the two that scripts read most hold."""
    parts = [HEAD, *_files(), CHECKPOINT]
    parts += ["## run.json\n", *(f"- `{key}`: {text}" for key, text in RECORD.items()), ""]
    parts += ["## metrics.jsonl\n", "A line for each logged step, and one for each evaluation.\n"]
    parts += [*(f"- `{key}`: {text}" for key, text in METRICS.items())]
    parts += ["- `eval_exact_match`, `eval_json` …: scores of answers, with `evaluation.generate`", ""]
    return "\n".join(parts)


def outcome_keys() -> set[str]:
    """What a training tells at its end, all of it kept in run.json."""
    return {each.name for each in fields(TrainResult)}


def _files() -> Iterator[str]:
    """Each path of a RunDirectory with its docstring, in the order of the class."""
    run = RunDirectory(Path("RUN"))
    source = ast.parse(textwrap.dedent(inspect.getsource(RunDirectory))).body[0]
    assert isinstance(source, ast.ClassDef)
    for each in source.body:
        member = vars(RunDirectory).get(getattr(each, "name", ""))
        if isinstance(member, property):
            path: Path = getattr(run, member.fget.__name__)  # type: ignore[union-attr]
            yield f"- `{path.relative_to('RUN')}{'' if path.suffix else '/'}`: {_told(member)}"


def _told(member: property) -> str:
    text = " ".join((member.__doc__ or "").split())
    is_word = text[1:2].islower() or text[1:2] == " "
    return (text[:1].lower() + text[1:] if is_word else text).removesuffix(".")
