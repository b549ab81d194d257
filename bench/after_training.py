"""Is what is made of a run still the run? The measures of merging and exporting, by one command.

    .venv/bin/python bench/after_training.py [--run RUN] [--data FILE] [--rows 100] [--prompts 20] [--quick]

RUN is a run with an adapter; without one, the demo is trained first. Rows come from FILE, prepared as the run's own,
or are the demo's held-out ones. Everything is computed on the CPU. Measured are

- the largest difference of a logit between adapter on base and merged model, both in float32, along the answers to
  the prompts (target: 1e-4 at most); and the same where both compute in float64, as far as transformers lets them:
  what merging itself changes, without the rounding of W x + B A x against (W + B A) x (target: 1e-5 at most); beside
  them how far the adapter's own logits in float32 are from those in float64, which no merging makes smaller;
- how many prompts, of the rows and two of truetune's own, have the same greedy answer, token by token to its stop, by
  the adapter in transformers and by a GGUF in f32 in llama.cpp (target: all);
- on how many rows greedy decoding says exactly the expected answer and stops, by the adapter, the merged model, and
  GGUFs in f16 and q8_0 (target: within one point of the adapter's share). It does where every token of that answer,
  and the stop behind it, is the likeliest one after those before it: so each takes one pass.

The exit status is 1 where a target is missed.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")

_LONGEST_ANSWER = 48
_QUICK_ROWS, _QUICK_PROMPTS = 6, 4


@dataclass(frozen=True)
class Measure:
    """A line of the table; `holds` says whether the target is met, None where there is none."""

    name: str
    found: str
    target: str = ""
    holds: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "holds", False: "MISSED", None: ""}[self.holds]
        return f"{self.name:<46}{self.found:>12}  {self.target:<18}{verdict}".rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run")
    parser.add_argument("--data")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="few rows and prompts")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.prompts = _QUICK_ROWS, _QUICK_PROMPTS
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or str(trained_demo(Path(folder) / "demo"))
        measures = measured(run, options, Path(folder))
    for measure in measures:
        print(measure)
    return 1 if any(measure.holds is False for measure in measures) else 0


def trained_demo(folder: Path) -> Path:
    from truetune.listener import LogListener
    from truetune.pipeline.demo import run_demo

    print("training the demo", flush=True)
    return run_demo(output_dir=folder, listener=LogListener()).run.directory


def measured(run: str, options: argparse.Namespace, folder: Path) -> list[Measure]:
    from truetune.inference.generate import load_trained

    rows = answered_rows(run, options)
    tell(f"{len(rows)} rows; merging")
    merged = merge(run, folder / "merged")
    adapter = load_trained(run, device="cpu", dtype="float32")
    asked = fixtures(adapter, rows, options.prompts)
    expected = [fixture(adapter.tokenizer, prompt, answer) for prompt, answer in rows]
    whole = load_trained(merged, device="cpu", dtype="float32")
    tell("adapter and merged model in float32")
    difference = max(largest_difference(adapter.model, whole.model, each) for each in asked)
    right = {"adapter": exact(adapter.model, expected), "merged": exact(whole.model, expected)}
    tell("both in float64")
    of_merging, of_rounding = in_float64(adapter.model, whole.model, asked)
    del whole
    same = in_llama_cpp(gguf(merged, "f32", folder), asked, adapter)
    for quantization in ("f16", "q8_0"):
        right[f"GGUF {quantization}"] = in_llama_cpp(gguf(merged, quantization, folder), expected, adapter)
    return [
        Measure("largest logit difference, adapter and merged", f"{difference:.2g}", "<= 1e-4", difference <= 1e-4),
        Measure("the same, both computed in float64", f"{of_merging:.2g}", "<= 1e-5", of_merging <= 1e-5),
        Measure("the adapter in float32 and in float64", f"{of_rounding:.2g}"),
        Measure("same greedy answers, adapter and GGUF f32", f"{same} of {len(asked)}", "all", same == len(asked)),
        *(shares(right, len(rows))),
    ]


def shares(right: dict[str, int], rows: int) -> list[Measure]:
    """Each one's exact answers; all but the first are held against the first."""
    least = right["adapter"] / rows
    found = [Measure("exact answers, adapter", f"{right['adapter']} of {rows}")]
    for name in list(right)[1:]:
        is_near = abs(right[name] / rows - least) <= 0.01 + 1e-9
        found.append(Measure(f"exact answers, {name}", f"{right[name]} of {rows}", "within 1 point", is_near))
    return found


# --- what is asked ----------------------------------------------------------------------------------------


def answered_rows(run: str, options: argparse.Namespace) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of each row the ids before its first learned token, and the learned ones: the answer and its stop."""
    from truetune.data.demo import demo_rows
    from truetune.data.examples import IGNORED
    from truetune.listener import LogListener
    from truetune.pipeline.evaluation.rows import evaluation_rows, read_subject

    listener = LogListener()
    own = None if options.data else list(demo_rows(held_out_rows=options.rows).held_out)
    subject = read_subject(run, base_model=None, listener=listener)
    found = evaluation_rows(subject, data=options.data, rows=own, formatting=None, listener=listener)
    rows = []
    for row in list(found.stored)[: options.rows]:
        first = next(place for place, label in enumerate(row.labels) if label != IGNORED)
        learned = [label for label in row.labels[first:] if label != IGNORED]
        rows.append((tuple(row.input_ids[:first]), tuple(learned)))
    return rows


def fixture(tokenizer: Any, prompt: Sequence[int], answer: Sequence[int], margins: Sequence[float] = ()) -> Any:
    from truetune.model.fixtures import Fixture

    return Fixture(tuple(prompt), tuple(answer), tuple(margins) or (0.0,) * len(answer), tokenizer.decode(prompt))


def fixtures(trained: Any, rows: Sequence[Any], count: int) -> list[Any]:
    """So many prompts with the model's greedy answers: truetune's own two, where the format has some, and rows'."""
    from truetune.model.greedy import drafts, greedy_answer
    from truetune.pipeline.fixed_prompts import own_prompts

    own = [each.prompt_ids for each in own_prompts(trained.template, trained.prompt_format.row_format)]
    prompts = [*own, *(prompt for prompt, _ in rows)][:count]
    limits = {"stop_token_ids": trained.template.stop_token_ids, "max_new_tokens": _LONGEST_ANSWER}
    drafted = drafts(trained.model, prompts, **limits)
    answers = [
        greedy_answer(trained.model, prompt, draft=draft, **limits)
        for prompt, draft in zip(prompts, drafted, strict=True)
    ]
    return [
        fixture(trained.tokenizer, prompt, answer.answer_ids, answer.margins)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


# --- what answers -----------------------------------------------------------------------------------------


def largest_difference(one: Any, other: Any, asked: Any) -> float:
    from truetune.model.greedy import answer_logits

    left, right = (answer_logits(model, asked.prompt_ids, asked.answer_ids) for model in (one, other))
    return float((left - right).abs().max())


def in_float64(adapter: Any, merged: Any, asked: Sequence[Any]) -> tuple[float, float]:
    """The largest difference of both in float64, and of the adapter from itself in float32.

    Both models are left in float64 no longer than this takes.
    """
    narrow = [wide_logits(adapter, each) for each in asked]
    adapter.double(), merged.double()
    try:
        wide = [wide_logits(adapter, each) for each in asked]
        others = (wide_logits(merged, each) for each in asked)
        return farthest(wide, others), farthest(wide, narrow)
    finally:
        adapter.float(), merged.float()


def farthest(some: Iterable[Any], others: Iterable[Any]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))


def wide_logits(model: Any, asked: Any) -> Any:
    """The logits along the answer, (tokens + 1, vocabulary), in the weights' own dtype."""
    import torch

    ids, kept = [*asked.prompt_ids, *asked.answer_ids], len(asked.answer_ids) + 1
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=kept).logits[0]


def exact(model: Any, expected: Sequence[Any]) -> int:
    """Of how many rows every token of the answer is the likeliest at its place."""
    from truetune.model.greedy import answer_logits

    return sum(
        answer_logits(model, each.prompt_ids, each.answer_ids[:-1]).argmax(-1).tolist() == list(each.answer_ids)
        for each in expected
    )


def in_llama_cpp(path: Path, asked: Sequence[Any], trained: Any) -> int:
    """How many prompts llama.cpp answers by these tokens, and stops where they end."""
    from truetune.inference.llama_cpp import Asked, ask
    from truetune.listener import LogListener

    stops = tuple(trained.template.stop_token_ids)
    found = ask(path, Asked(tuple(asked), (), (), stops), is_tie=lambda *_: False, listener=LogListener())
    path.unlink()
    return found.equal


def merge(run: str, folder: Path) -> Path:
    from truetune.pipeline.delivery.merge import merge_run

    return merge_run(run, folder, dtype="float32", device="cpu").path


def gguf(model: Path, quantization: str, folder: Path) -> Path:
    from truetune.pipeline.delivery.export import ExportSettings, export_run

    tell(f"GGUF {quantization}")
    settings = ExportSettings(to="gguf", quantize=quantization, check="skip", device="cpu")
    return export_run(model, folder / f"{quantization}.gguf", settings).path


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
