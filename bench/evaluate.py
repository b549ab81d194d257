"""How fast `truetune eval` takes losses: beside the forward pass of training, on the same rows and weights.

    .venv/bin/python bench/evaluate.py [--rows 40] [--rounds 4] [--model demo] [--data FILE] [--tokens N] [--as-peft]

The measure: evaluation's tokens a second over 1,000 rows are at least the training forward's. Without DATA, rows of
some 180 tokens are made up: 40 of them take two to three minutes on two cores, 1,000 an hour. So fewer are computed,
and of evaluation two things are told: what it takes before the first row (it proves on the model what it computes by,
once, however many rows there are) and its rate behind that. From both follow the seconds of 1,000 such rows.

Both read the same base with the same LoRA adapter. `training` is what the engine computes of these rows before it
goes backward: batches of 8, its slices, its head, its fused blocks, no gradient. `eval` is `row_losses` on the model
as `truetune eval` loads it: rows sorted by length, each one's sum kept. A few rows warm both up; then they take
turns, the one that begins changing from round to round, since a machine slows down as it works. Each round prints
tokens a second and their ratio, over these rows and over 1,000. The sums of both have to agree.

`--tokens` is how many evaluation computes at a time; `--as-peft` computes its adapter by PEFT's own forward.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

BATCH, WARMING = 8, 4
LEAST, MEASURED_ROWS = 1.0, 1_000
WORDS = ["the", "river", "stone", "walks", "under", "light", "of", "many", "old", "birds", "that", "never", "sleep"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--as-peft", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(options.data) if options.data else made_up(Path(folder) / "rows.jsonl", options.rows)
        compare(data, Path(folder) / "adapter", options)


@dataclass(frozen=True)
class Round:
    """Seconds of both ways over the same tokens; `ready` are those of evaluation before its first row."""

    tokens: int
    training: float
    evaluation: float
    ready: float

    def ratio(self, times: float = 1.0) -> float:
        """How many times as fast evaluation is, over so many times the tokens."""
        return self.training * times / (self.ready + (self.evaluation - self.ready) * times)


class Clock:
    """Listens to evaluation's progress, to tell what it took before the first row from what rows take."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = sorted(tokens, reverse=True)  # As evaluation takes them: the longest first.
        self._started = time.perf_counter()
        self._seen: list[tuple[int, float]] = []

    def __call__(self, done: int, _total: int) -> None:
        self._seen.append((sum(self._tokens[:done]), time.perf_counter() - self._started))

    def ready(self) -> float:
        """Seconds before the first row, if its batch was computed at the rate of those behind it."""
        (first, at_first), (last, at_last) = self._seen[0], self._seen[-1]
        return max(0.0, at_first - first * (at_last - at_first) / (last - first))


def compare(data: Path, adapter: Path, options: argparse.Namespace) -> None:
    rows, tokenizer = prepared(data, options.model, options.rows)
    ways = ways_of(adapter, tokenizer, options)
    for way in ways.values():
        way(rows[:WARMING], None)
    lengths = [len(row.input_ids) for row in rows]
    print(f"{len(rows):,} rows, {sum(lengths):,} tokens, {options.rounds} rounds, {os.cpu_count()} cores", flush=True)
    rounds: list[Round] = []
    for number in range(options.rounds):
        sums, seconds = {}, {}
        for name in list(ways) if number % 2 == 0 else reversed(ways):
            clock = Clock(lengths)
            sums[name], seconds[name] = timed(partial(ways[name], rows, clock))
            ready = clock.ready() if name == "eval" else 0.0
            seconds["ready"] = max(ready, seconds.get("ready", 0.0))
        assert abs(sums["eval"] - sums["training"]) < 0.01 * sums["training"], f"the sums differ: {sums}"
        rounds.append(Round(sum(lengths), seconds["training"], seconds["eval"], seconds["ready"]))
        tell_round(number + 1, rounds[-1], MEASURED_ROWS / len(rows))
    tell(rounds, MEASURED_ROWS / len(rows))


def tell_round(number: int, found: Round, times: float) -> None:
    rates = f"training {found.tokens / found.training:,.0f}, eval {found.tokens / found.evaluation:,.0f} tokens/s"
    print(
        f"round {number}: {rates}, {found.ready:.1f} s before its first row; eval is {found.ratio():.3f} times as "
        f"fast, over {MEASURED_ROWS:,} rows {found.ratio(times):.3f}",
        flush=True,
    )


def tell(rounds: Sequence[Round], times: float) -> None:
    for what, ratios in {
        "these rows": [each.ratio() for each in rounds],
        f"{MEASURED_ROWS:,} rows": [each.ratio(times) for each in rounds],
    }.items():
        middle = statistics.median(ratios)
        print(f"over {what}, eval is {middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f}) times as fast")
    print(f"the measure, at least {LEAST:g} over {MEASURED_ROWS:,}: {'holds' if middle >= LEAST else 'MISSED'}")


def ways_of(
    adapter: Path, tokenizer: Any, options: argparse.Namespace
) -> dict[str, Callable[[Sequence[Any], Any], float]]:
    """Each way of taking the sum of the rows' losses, with a model of its own; evaluation's tells its progress."""
    from truetune.inference.losses import row_losses
    from truetune.model.adapter import load_trained_adapter
    from truetune.model.fused_lora import as_peft
    from truetune.model.tokenizer import pad_token_id

    training = for_training(options.model)
    training.save_pretrained(adapter)
    evaluated = load_trained_adapter(base_of(options.model), adapter)
    sizes = {"pad_token_id": pad_token_id(tokenizer), "tokens_at_a_time": options.tokens}

    def evaluate(rows: Sequence[Any], progress: Any) -> float:
        with as_peft(evaluated) if options.as_peft else nullcontext():
            return float(row_losses(evaluated, rows, **sizes, progress=progress).sums.sum())

    return {"training": partial(computed_by_training, training), "eval": evaluate}


def computed_by_training(model: Any, rows: Sequence[Any], _progress: Any) -> float:
    """The sum of the losses as training computes them."""
    import torch

    from truetune.data.collate import collate
    from truetune.model.fused_lora import cast_once
    from truetune.model.loss import provable_head
    from truetune.model.portions import TOKENS, WORKERS
    from truetune.model.side_by_side import obstacle, side_by_side
    from truetune.model.slices import slices
    from truetune.training.scores import score_supervised

    head, total = provable_head(model), 0.0
    workers = WORKERS if obstacle(model) is None else 1

    def sum_of(piece: dict[str, Any]) -> float:
        with torch.no_grad():
            return -float(score_supervised(head, piece).log_probs.float().sum())

    for start in range(0, len(rows), BATCH):
        batch = collate(
            [
                {"input_ids": row.input_ids, "labels": row.labels, "seq_lengths": [len(row.input_ids)]}
                for row in rows[start : start + BATCH]
            ]
        )
        with cast_once(model):
            total += sum(side_by_side(sum_of, slices(batch, TOKENS["cpu"]), workers=workers))
    return total


def base_of(name: str) -> Any:
    from truetune.model.hardware import DTYPES, resolve_precision
    from truetune.model.load import ModelOptions, load_model
    from truetune.model.source import resolve_model

    return load_model(resolve_model(name), ModelOptions(DTYPES[resolve_precision("auto", "cpu")], "cpu"))


def for_training(name: str) -> Any:
    """The model with an adapter, as the engine has it."""
    from truetune.model.adapter import LoraSettings, add_adapter
    from truetune.model.attention import fit_attention
    from truetune.model.fused_blocks import fuse_blocks

    model = base_of(name)
    fuse_blocks(model)
    fit_attention(model)
    lora = LoraSettings(r=16, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", bias="none")
    return add_adapter(model, lora, seed=0).eval()


def prepared(data: Path, model: str, rows: int) -> tuple[list[Any], Any]:
    from truetune.config.load import load_config
    from truetune.pipeline.check import prepare

    settings = {"model.name_or_path": model, "data.path": str(data), "data.test_size": 0}
    found = prepare(load_config(None, settings=settings).config)
    return list(found.train)[:rows], found.template.tokenizer


def timed(run: Callable[[], float]) -> tuple[float, float]:
    started = time.perf_counter()
    return run(), time.perf_counter() - started


def made_up(path: Path, rows: int) -> Path:
    """Instruction rows of 40 to 300 tokens."""
    import json
    import random

    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(count))

    lines = [
        json.dumps({"instruction": f"{number}: {text(draw.randint(5, 60))}", "output": text(draw.randint(5, 200))})
        for number in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
