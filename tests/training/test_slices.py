"""A batch in slices is the batch: the same tokens, loss, gradient and weights, wherever it is cut."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model
from tiny_runs import LORA, ROWS, Trained, architecture, columns, row
from truetune.data.collate import collate, collate_padded
from truetune.data.examples import IGNORED, Tokenized
from truetune.data.packing import pack
from truetune.model.adapter import add_adapter
from truetune.model.slices import largest, slices

SGD = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
WEIGHTED = [replace(each, weight=0.5 + index % 3) for index, each in enumerate(ROWS)]
padded = partial(collate_padded, pad_token_id=258)


def lengths(*counts: int) -> dict[str, torch.Tensor]:
    """Samples of so many tokens, end to end; every token is another one."""
    tokens = iter(range(sum(counts)))
    rows = [[next(tokens) for _ in range(count)] for count in counts]
    return collate([{"input_ids": ids, "labels": ids, "seq_lengths": [len(ids)]} for ids in rows])


def complete(each: Any) -> dict[str, Any]:
    """A row's columns, with its weights."""
    (found,) = columns([each])
    weights = getattr(each, "weights", None) or [getattr(each, "weight", 1.0)] * len(found["seq_lengths"])
    return {**found, "weights": weights}


def sizes(batch: dict[str, torch.Tensor], tokens: int | None) -> list[int]:
    return [each["input_ids"].numel() for each in slices(batch, tokens)]


def cut(tokens: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the engines built from here on compute so many tokens at a time."""
    monkeypatch.setattr("truetune.training.computing.TOKENS", {"cpu": tokens})


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that the layers of a Llama computed at a time, padding among them."""
    from transformers import LlamaModel

    found: list[int] = []
    forward = LlamaModel.forward

    def spied(self: Any, input_ids: Any = None, **options: Any) -> Any:
        found.append(input_ids.numel())
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(LlamaModel, "forward", spied)
    return found


# --- where it is cut --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 7, 30, 64, 100, 500, 10_000, None])
@pytest.mark.parametrize("rows", [ROWS, WEIGHTED, [*pack(ROWS[:8], max_length=120), *ROWS[8:]]])
def test_slices_end_to_end_are_the_batch_and_begin_with_a_sample(tokens: int | None, rows: Any) -> None:
    batch = collate([complete(each) for each in rows])
    parts = slices(batch, tokens)
    for name, value in batch.items():
        assert torch.equal(torch.cat([part[name] for part in parts], dim=1), value)
    assert all(part["position_ids"][0, 0] == 0 for part in parts)
    assert all(part["labels"][0, 0] == IGNORED for part in parts)


@pytest.mark.parametrize("tokens", [1, 50, 100, 200, 10_000, None])
def test_slices_of_padded_rows_hold_every_row_and_no_more_padding_than_theirs(tokens: int | None) -> None:
    batch = padded([complete(each) for each in WEIGHTED])
    parts = slices(batch, tokens)
    found = [
        (ids[mask.bool()].tolist(), labels[mask.bool()].tolist(), weights[0].item())
        for part in parts
        for ids, labels, mask, weights in zip(*(part[name] for name in NAMES), strict=True)
    ]
    assert found == [(each.input_ids, each.labels, each.weight) for each in WEIGHTED]
    assert all(part["attention_mask"].sum(1).max() == part["input_ids"].shape[1] for part in parts)


def test_padded_rows_are_cut_into_about_as_many_slices_as_were_asked_for() -> None:
    rows = padded([complete(each) for each in WEIGHTED] * 2)
    everything, several = rows["input_ids"].numel(), len(rows["input_ids"])
    assert several > 3
    for count in (2, 3, several, 4 * several):
        assert len(slices(rows, everything // count)) == min(count, several)


NAMES = ("input_ids", "labels", "attention_mask", "loss_weights")


def test_no_cut_of_uneven_samples_loses_a_token_or_a_sample() -> None:
    batch = lengths(1, 9, 2, 2, 40, 1, 1, 17)
    samples = {0, 1, 10, 12, 14, 54, 55, 56, 73}
    for tokens in range(1, 80):
        edges = [0]
        for size in sizes(batch, tokens):
            edges.append(edges[-1] + size)
        assert edges[-1] == 73
        assert set(edges) <= samples
        assert all(first < last for first, last in pairwise(edges))


def test_slices_are_about_even_and_about_as_long_as_asked() -> None:
    draw = torch.Generator().manual_seed(0)
    batch = lengths(*torch.randint(20, 120, (100,), generator=draw).tolist())
    whole = batch["input_ids"].numel()
    for tokens in (256, 512, 1024, 2048):
        found = sizes(batch, tokens)
        assert len(found) == round(whole / tokens)
        assert max(abs(size - whole / len(found)) for size in found) <= 120


def test_what_is_little_longer_than_a_slice_stays_whole() -> None:
    assert sizes(lengths(*[100] * 15), 1024) == [1500]
    assert sizes(lengths(*[100] * 16), 1024) == [800, 800]


def test_no_sample_is_cut_however_long() -> None:
    assert sizes(lengths(3, 5000, 3), 100) == [3, 5000, 3]
    assert sizes(lengths(5000), 100) == [5000]
    (one,) = slices(padded([{"input_ids": [1] * 50, "labels": [1] * 50, "seq_lengths": [50]}]), 10)
    assert one["input_ids"].shape == (1, 50)


def test_one_token_at_a_time_means_every_sample_alone() -> None:
    counts = (1, 2, 1, 30, 1, 1, 5)
    assert sizes(lengths(*counts), 1) == list(counts)


def test_the_largest_slice_is_the_largest_of_all_batches() -> None:
    batches = [lengths(10, 10), lengths(5, 40, 5)]
    assert [largest(batches, tokens) for tokens in (None, 25, 10)] == [50, 45, 40]


def test_a_batch_that_is_not_cut_is_not_read() -> None:
    """Reading where samples end would wait for a GPU. Meta tensors have nothing to read."""
    for batch in (lengths(5, 5), padded(columns(ROWS[:2]))):
        hollow = {name: value.to("meta") for name, value in batch.items()}
        assert slices(hollow, None) == slices(hollow, 10_000) == [hollow]


# --- what it gives ----------------------------------------------------------------------------------------


def packs(folder: Path, **changes: Any) -> Trained:
    return Trained(folder, pack(WEIGHTED, max_length=150), **changes)


def rows_of_four(folder: Path, **changes: Any) -> Trained:
    return Trained(folder, WEIGHTED, per_device_train_batch_size=4, **changes)


def accumulated(folder: Path, **changes: Any) -> Trained:
    return Trained(folder, ROWS, per_device_train_batch_size=3, gradient_accumulation_steps=2, **changes)


def rows_padded(folder: Path, **changes: Any) -> Trained:
    return rows_of_four(folder, is_padding_free=False, **changes)


@pytest.mark.parametrize("tokens", [1, 70])
@pytest.mark.parametrize("trained", [packs, rows_of_four, accumulated, rows_padded])
def test_any_cut_trains_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[int], trained: Any, tokens: int
) -> None:
    cut(None, monkeypatch)
    whole = trained(tmp_path / "whole", validation=ROWS[:5], eval_strategy="epoch", **SGD)
    at_once = computed.copy()
    computed.clear()
    cut(tokens, monkeypatch)
    sliced = trained(tmp_path / "cut", validation=ROWS[:5], eval_strategy="epoch", **SGD)
    assert len(computed) > len(at_once)
    assert max(computed) < max(at_once)
    for name in ("loss", "grad_norm", "mean_token_accuracy", "supervised_tokens", "num_tokens"):
        assert sliced.logged(name) == pytest.approx(whole.logged(name), rel=1e-5)
    assert sliced.result.eval_loss == pytest.approx(whole.result.eval_loss, rel=1e-5)
    assert torch.allclose(sliced.weights(), whole.weights(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_logits", [False, True])
def test_a_slice_in_which_nothing_is_learned_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_logits: bool
) -> None:
    if is_logits:
        monkeypatch.setattr("truetune.training.computing.provable_head", lambda _: None)
    silent = [Tokenized(each.input_ids, [IGNORED] * len(each.input_ids)) for each in ROWS[:2]]
    rows = [silent[0], ROWS[2], silent[1]]

    def trained(folder: str) -> Trained:
        model = add_adapter(tiny_model(), LORA, seed=1)
        options = {"model": model, "per_device_train_batch_size": 3, "validation": rows, "eval_strategy": "epoch"}
        return Trained(tmp_path / folder, rows, **options, **SGD)

    cut(None, monkeypatch)
    whole = trained("whole")
    cut(1, monkeypatch)
    sliced = trained("cut")
    assert sliced.logged("grad_norm") == pytest.approx(whole.logged("grad_norm"), rel=1e-5)
    assert sliced.result.eval_loss == pytest.approx(whole.result.eval_loss, rel=1e-5)
    assert torch.allclose(sliced.weights(), whole.weights(), rtol=1e-5, atol=1e-7)


def test_dropout_draws_on_from_slice_to_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal rows in two slices lose other elements: their gradients together are not twice one's."""
    drawn: list[torch.Tensor] = []
    dropout = torch.nn.functional.dropout

    def spied(value: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        made = dropout(value, p, training, inplace)
        if training and p:
            drawn.append(made == 0)
        return made

    monkeypatch.setattr(torch.nn.functional, "dropout", spied)
    cut(1, monkeypatch)
    model = add_adapter(tiny_model(), replace(LORA, lora_dropout=0.5), seed=1)
    Trained(tmp_path, [ROWS[0], ROWS[0]], model=model)
    first, second = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    assert first[0].shape == second[0].shape
    assert not torch.equal(first[0], second[0])


def test_on_a_cpu_batches_are_cut_and_short_ones_left_whole(tmp_path: Path, computed: list[int]) -> None:
    rows = [row("q", "a" * 180)] * 8
    length = len(rows[0].input_ids)
    Trained(tmp_path, rows, per_device_train_batch_size=8)
    assert computed[-3:] == [3 * length, 2 * length, 3 * length]
    Trained(tmp_path / "short", ROWS, per_device_train_batch_size=12)
    assert computed[-1] == sum(len(each.input_ids) for each in ROWS)


def test_a_mixture_with_a_router_loss_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its router loss hangs on the batch as a whole."""
    cut(1, monkeypatch)
    trained = Trained(tmp_path, ROWS[:2], model=mixture(router_aux_loss_coef=0.1))
    assert trained.engine.aux_loss_enabled
    assert trained.engine._room.tokens is None


def mixture(**changes: Any) -> Any:
    """A tiny Mixtral whose router loss is asked for."""
    model = architecture("Mixtral").train()
    model.config.output_router_logits = True
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model
