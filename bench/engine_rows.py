"""What comes before the contestants of bench/engine.py train: the rows of every step, the models, the ceiling."""

import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trial import SEED, Sequence_, Workload

TOKENS = 2048
"""Of the products whose rate is the ceiling."""


def ceiling(request: dict[str, Any]) -> dict[str, float]:
    """The fastest of the matrix products, of 2,048 tokens by weights of these sizes, in operations a second."""
    import torch

    dtype = torch.bfloat16 if request["precision"] == "bf16" else torch.float32
    return {"flops": max(product_rate(*sizes, dtype, request["device"]) for sizes in request["sizes"])}


def product_rate(inside: int, outside: int, dtype: Any, device: str) -> float:
    import torch

    x, weight = (torch.randn(rows, inside, dtype=dtype, device=device) for rows in (TOKENS, outside))
    operations = 2 * x.numel() * outside
    times = min(200, max(1, round((2e13 if device == "cuda" else 2e10) / operations)))  # About 50 ms.

    def spell() -> float:
        start = time.perf_counter()
        for _ in range(times):
            torch.nn.functional.linear(x, weight)
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / times

    spell()
    return operations / statistics.median(spell() for _ in range(10))


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
