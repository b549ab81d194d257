"""Compiled layers compute what the model's own do, packed samples and windows too, or are left alone."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import tiny_model
from tiny_runs import LORA, ROWS, TOKENIZER, Heard, Trained, architecture, job, trained_weights
from truetune.data.packing import pack
from truetune.model.adapter import add_adapter
from truetune.model.attention import fit_attention
from truetune.model.compiled import CompiledLayers
from truetune.model.fused_blocks import fuse_blocks
from truetune.model.hardware import DTYPES, resolve_precision
from truetune.model.slices import TOKENS
from truetune.training.monitor import MetricsCallback
from truetune.training.trl import build_engine, train

PACKS = pack(ROWS, max_length=150)


def fitted(dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model as a run has it, with an adapter that is no longer nothing."""
    model = architecture("Gemma2").to(dtype)
    fuse_blocks(model)
    assert fit_attention(model)
    adapted = add_adapter(model, LORA, seed=1)
    draw = torch.Generator().manual_seed(0)
    for parameter_name, value in adapted.named_parameters():
        if "lora_B" in parameter_name:
            value.data.normal_(std=0.02, generator=draw)
    return adapted


def trained(folder: Path, **changes: Any) -> Trained:
    settings: dict[str, Any] = {"is_padding_free": True, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    return Trained(folder, PACKS, model=fitted(), **{**settings, **changes})


def test_a_training_with_compiled_layers_is_the_training_without(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain")
    before = graphs()
    compiled = trained(tmp_path / "compiled", torch_compile=True)
    assert graphs() - before == 1
    assert compiled.heard.warnings == plain.heard.warnings == []
    assert compiled.engine._layers._forwards
    assert compiled.logged("loss") == pytest.approx(plain.logged("loss"), rel=1e-5)
    assert (compiled.weights() - plain.weights()).norm() <= 1e-3 * (
        plain.weights() - trained_weights(fitted())
    ).norm()


def graphs() -> int:
    """How many graphs torch has compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_a_resumed_training_with_compiled_layers_ends_at_the_same_bits(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", torch_compile=True)
    resumed = trained(tmp_path / "resumed", torch_compile=True, resume_from=whole.job.output_dir / "checkpoint-2")
    assert torch.equal(resumed.weights(), whole.weights())


def test_outside_of_training_steps_and_after_them_the_layers_are_as_before(tmp_path: Path) -> None:
    run = trained(tmp_path, torch_compile=True)
    layers = [layer for layer in run.model.modules() if type(layer).__name__ == "Gemma2DecoderLayer"]
    assert len(layers) == 2
    assert not any("forward" in vars(layer) for layer in layers)


def test_layers_that_go_on_without_their_activations_are_no_longer_compiled(tmp_path: Path) -> None:
    run = trained(tmp_path, torch_compile=True)
    run.engine._room.tokens = 1  # Nothing is left to cut.
    run.engine._give_way(
        "no room", [run.engine.data_collator([run.engine.train_dataset[0]])], "step 5", model=run.model
    )
    assert "gradient checkpointing" in run.heard.warnings[-1]
    assert not run.engine._layers._forwards


# --- refusals ---------------------------------------------------------------------------------------------


class Blocks(nn.Module):
    """Two equal blocks, whose inputs need a gradient."""

    def __init__(self, block: Callable[[], nn.Module] = lambda: nn.Linear(4, 4)) -> None:
        super().__init__()
        self.layers = nn.ModuleList([block(), block()])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            rows = layer(rows)
        return rows


def problem(model: nn.Module) -> str | None:
    return CompiledLayers(model).problem(lambda: model(torch.ones(3, 4, requires_grad=True)))


class Otherwise(nn.Linear):
    """A layer that computes something else when it is compiled."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        made = super().forward(rows)
        return made * 1.01 if torch.compiler.is_compiling() else made


def test_layers_that_compute_otherwise_or_cannot_be_compiled_are_left_alone() -> None:
    assert problem(Blocks()) is None
    assert problem(Blocks(lambda: Otherwise(4, 4))) == "what they compute is not the same then"
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        assert "no-such-compiler" in (problem(Blocks(lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU()))) or "")
    assert problem(nn.Sequential(nn.Linear(4, 4))) == "it has no layers that repeat and learn"


def test_a_training_whose_layers_cannot_be_compiled_says_why_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    run = trained(tmp_path, max_steps=1, torch_compile=True)
    (warning,) = run.heard.warnings
    assert warning.startswith("the model's layers are not compiled: torch compiles with no-such-compiler")
    assert math.isfinite(run.logged("loss")[0])


def test_padded_rows_and_dropout_are_not_compiled(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 1, "torch_compile": True}
    padded = Trained(tmp_path / "padded", ROWS, model=tiny_model(), is_padding_free=False, **settings)
    assert "rows are padded" in padded.heard.warnings[0]
    model = add_adapter(tiny_model(), replace(LORA, lora_dropout=0.1), seed=1)
    dropping = Trained(tmp_path / "dropping", ROWS, model=model, **settings)
    assert "another dropout" in dropping.heard.warnings[0]


def test_what_is_tried_draws_no_random_numbers_of_the_run(tmp_path: Path) -> None:
    plain, tried = (
        build_engine(
            job(tmp_path, torch_compile=compiled),
            model=fitted(),
            tokenizer=TOKENIZER,
            train=PACKS,
            validation=(),
            listener=Heard(),
        )
        for compiled in (False, True)
    )
    assert tried._layers._forwards
    assert not plain._layers._forwards
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)

    def draw(*_: Any) -> None:
        torch.rand(3)

    next(iter(tried._layers._forwards)).register_forward_pre_hook(draw)
    tried.compile_layers()
    assert torch.equal(torch.rand(1), expected)


# --- last, since it forgets what is compiled ------------------------------------------------------------------


def test_what_is_tried_is_what_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled anew in a step, for other lengths neither, in the precision that auto takes here: under
    autocast, where the machine has bf16. A slice at most is tried."""
    precision = resolve_precision("auto", "cpu")
    monkeypatch.setitem(TOKENS, "cpu", 60)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings = job(tmp_path, torch_compile=True, precision=precision, max_steps=4)
    engine = build_engine(
        settings,
        model=fitted(dtype=getattr(torch, DTYPES[precision])),
        tokenizer=TOKENIZER,
        train=PACKS,
        validation=(),
        listener=Heard(),
    )
    before = graphs()
    assert before == 1
    train(engine, settings, metrics=MetricsCallback([].append))
    assert graphs() == before
    assert engine._first_slice()["input_ids"].numel() < 120
