"""How fast rows become tokens: truetune's whole preparation, TRL's, and the bare tokenizer, side by side.

    .venv/bin/python bench/preparation.py [DATA …] [--rounds 5] [--model demo]

Without DATA, and without a file in $TRUETUNE_DATA, rows are made up. Each round runs all three, one after the other,
on the same rows: truetune reads, checks, renders, tokenizes, masks, splits, writes and packs; TRL (`SFTTrainer`'s
own preparation of prompt and completion messages that are in memory already) renders, tokenizes, masks and packs;
`encode_batch` only tokenizes texts that are rendered already. Ratios are medians over the rounds, with their range.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("TQDM_DISABLE", "1")

MAX_LENGTH = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    given = options.data or [path for path in [os.environ.get("TRUETUNE_DATA")] if path]
    with tempfile.TemporaryDirectory() as folder:
        for path in given or [made_up(Path(folder) / "rows.jsonl", rows=5_000)]:
            compare(Path(path), options.model, options.rounds)


def compare(path: Path, model: str, rounds: int) -> None:
    from truetune.model.source import resolve_model
    from truetune.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve_model(model))
    conversations, texts = rendered(path, tokenizer)
    tokens = sum(len(each.ids) for each in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
    ways: dict[str, Callable[[], Any]] = {
        "truetune": lambda: prepare(path, model, tokenizer),
        "TRL": trl_preparation(conversations, tokenizer),
        "encode_batch": lambda: tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            taken = timed(run)
            if number:  # The first round warms up.
                seconds[name].append(taken)
    print(f"{path.name}: {len(texts):,} rows, {tokens:,} tokens, {rounds} rounds, {os.cpu_count()} cores")
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(
            f"  {name:<13}{middle:7.2f} s ({min(values):.2f}-{max(values):.2f})"
            f"{len(texts) / middle:10,.0f} rows/s{tokens / middle:12,.0f} tokens/s"
        )
    told("faster than TRL", ratios(seconds["TRL"], seconds["truetune"]), "x", 1)
    told("of encode_batch's rate", ratios(seconds["encode_batch"], seconds["truetune"]), "%", 100)


def ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def told(what: str, values: list[float], unit: str, scale: float) -> None:
    low, middle, high = (value * scale for value in (min(values), statistics.median(values), max(values)))
    print(f"  truetune is {middle:.1f} {unit} {what} ({low:.1f}-{high:.1f})")


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def prepare(path: Path, model: str, tokenizer: Any) -> None:
    from truetune.config.load import load_config
    from truetune.data.packing import pack
    from truetune.pipeline.prepare import prepare_rows

    settings = {
        "model.name_or_path": model,
        "data.path": str(path),
        "data.max_length": MAX_LENGTH,
        "data.test_size": 0,
    }
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRUETUNE_CACHE"] = cache
        prepared = prepare_rows(load_config(None, settings=settings).config, tokenizer=tokenizer)
        pack(prepared.train, max_length=MAX_LENGTH)


def rendered(path: Path, tokenizer: Any) -> tuple[list[Any], list[str]]:
    """The usable rows as TRL wants them (prompt and completion messages) and as text."""
    from truetune.data.examples import Completion, Conversation
    from truetune.data.formats import parse_example
    from truetune.data.read import read_records
    from truetune.data.render import _as_conversation, _as_instruction, render
    from truetune.data.rules import RowError
    from truetune.data.templates import load_template

    template = load_template(tokenizer, template="model")
    conversations, texts = [], []
    for record in read_records(path):
        try:
            example = parse_example(record)
            texts.append(render(example, template=template).text)
        except RowError:
            continue
        if isinstance(example, Completion):
            example = _as_instruction(example)
        talk = example if isinstance(example, Conversation) else _as_conversation(example)
        turns = [turn.for_template() for turn in talk.messages]
        conversations.append({"prompt": turns[:-1], "completion": turns[-1:]})
    return conversations, texts


def trl_preparation(conversations: list[Any], tokenizer: Any) -> Callable[[], Any]:
    """TRL's preparation alone; the trainer around it is built once, with a model of a few weights."""
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **sizes))
    folder = tempfile.mkdtemp()
    args = SFTConfig(
        folder,
        max_length=MAX_LENGTH,
        packing=True,
        completion_only_loss=True,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    rows = datasets.Dataset.from_list(conversations)
    trainer = SFTTrainer(model, args, train_dataset=rows.select(range(8)), processing_class=tokenizer)
    return lambda: trainer._prepare_dataset(rows, tokenizer, args, True, None, "train")


def made_up(path: Path, *, rows: int) -> Path:
    """Rows of some 200 tokens."""
    sentence = "the train to Oslo leaves at seven from platform two and takes four hours with one change in Hamar"
    words = sentence.split()

    def text(seed: int, length: int) -> str:
        return " ".join(words[(seed * 7 + place * (seed % 11 + 1)) % len(words)] for place in range(length))

    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            file.write(
                json.dumps({"instruction": text(n, 60 + n % 40), "output": f"{text(n + 1, 80 + n % 60)} {n}"}) + "\n"
            )
    return path


if __name__ == "__main__":
    sys.exit(main())
