"""How fast `truetune eval` takes losses: beside training's own evaluation, on the same rows and weights.

    .venv/bin/python bench/evaluate.py [--rows 1000] [--rounds 3] [--model demo] [--data FILE]

Without DATA, rows are made up. Both read the model with a LoRA adapter: training's way is what the engine does of a
validation set (batches of 8 rows, its slices, its head, its fused blocks); evaluation's is `row_losses`, which sorts
rows and keeps each one's sum. They are run in turns; the first round warms up. Printed are tokens a second, and the
ratio of each round: its median with the range. The sums of both have to agree.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

BATCH = 8
WORDS = ["the", "river", "stone", "walks", "under", "light", "of", "many", "old", "birds", "that", "never", "sleep"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(options.data) if options.data else made_up(Path(folder) / "rows.jsonl", options.rows)
        compare(data, options)


def compare(data: Path, options: argparse.Namespace) -> None:
    from truetune.inference.losses import row_losses
    from truetune.model.tokenizer import pad_token_id

    rows, tokenizer = prepared(data, options.model, options.rows)
    tokens = sum(len(row.input_ids) for row in rows)
    for_training, for_evaluation = adapted(options.model, as_for_training=True), adapted(options.model)
    seconds: dict[str, list[float]] = {"training": [], "eval": []}
    for number in range(options.rounds + 1):
        expected, training = timed(lambda: evaluated_by_training(for_training, rows))
        found, evaluation = timed(
            lambda: float(row_losses(for_evaluation, rows, pad_token_id=pad_token_id(tokenizer)).sums.sum())
        )
        assert abs(found - expected) < 0.01 * expected, f"{found} nats, and {expected} by training's evaluation"
        if number:
            seconds["training"].append(training)
            seconds["eval"].append(evaluation)
    print(f"{len(rows):,} rows, {tokens:,} tokens, {options.rounds} rounds, {os.cpu_count()} cores")
    for name, taken in seconds.items():
        rates = [tokens / each for each in taken]
        print(f"{name:<10}{statistics.median(rates):>8,.0f} tokens/s ({min(rates):,.0f} to {max(rates):,.0f})")
    ratios = [one / other for one, other in zip(seconds["training"], seconds["eval"], strict=True)]
    print(f"eval is {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times as fast")


def evaluated_by_training(model: Any, rows: list[Any]) -> float:
    """The sum of the losses as training's evaluation computes them."""
    import torch

    from truetune.data.collate import collate
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
        total += sum(side_by_side(sum_of, slices(batch, TOKENS["cpu"]), workers=workers))
    return total


def adapted(name: str, *, as_for_training: bool = False) -> Any:
    from truetune.model.adapter import LoraSettings, add_adapter
    from truetune.model.attention import fit_attention
    from truetune.model.fused_blocks import fuse_blocks
    from truetune.model.hardware import DTYPES, resolve_precision
    from truetune.model.load import ModelOptions, load_model
    from truetune.model.source import resolve_model

    model = load_model(resolve_model(name), ModelOptions(DTYPES[resolve_precision("auto", "cpu")], "cpu"))
    if as_for_training:
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


def timed(run: Any) -> tuple[float, float]:
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
