"""The loss some words at a time is cross-entropy: the same numbers and gradients, in the memory of a few logits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy, linear, log_softmax
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import tiny_model
from tiny_runs import LORA, ROWS, TOKENIZER, Largest, Trained, columns, job, token_losses
from truetune.data.collate import collate, collate_padded
from truetune.data.examples import IGNORED
from truetune.listener import LogListener
from truetune.model import loss
from truetune.model.adapter import add_adapter
from truetune.model.attention import fit_attention
from truetune.model.loss import Head, LanguageHead, log_probs, provable_head, words_at_a_time
from truetune.training.trl import build_engine

VOCABULARY, SIZE = 61, 16

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 2.0},
    "scale and softcap": {"scale": 3.0, "softcap": 1.5},
}


@pytest.fixture(params=[VOCABULARY, VOCABULARY - 1, 7, 1])
def words(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many words are counted in at a time: all, all but the last, some, one."""
    monkeypatch.setattr(loss, "words_at_a_time", lambda *_: request.param)
    return int(request.param)


def head_of(*, has_bias: bool = False, dtype: torch.dtype = torch.float32, **settings: Any) -> Head:
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, SIZE)
    bias = torch.randn(VOCABULARY) if has_bias else None
    return Head(weight.to(dtype), None if bias is None else bias.to(dtype), **settings)


def inputs_of(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, targets, and the gradient that arrives: another one for each token."""
    torch.manual_seed(1)
    hidden, targets, upstream = torch.randn(tokens, SIZE), torch.randint(VOCABULARY, (tokens,)), torch.randn(tokens)
    return hidden.requires_grad_(), targets, upstream


def plain_log_probs(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from all logits at once, by torch."""
    logits = linear(hidden, head.weight, head.bias) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return -cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets


def scored(
    score: Callable[..., tuple[torch.Tensor, torch.Tensor]], head: Head, tokens: int
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Values, top-1, and the gradients of hidden states, weight and bias where they have one."""
    hidden, targets, upstream = inputs_of(tokens)
    values, is_top1 = score(hidden, targets, head)
    learned = [each for each in (hidden, head.weight, head.bias) if each is not None and each.requires_grad]
    return values.detach(), is_top1, list(torch.autograd.grad((values * upstream).sum(), learned))


def assert_close(found: torch.Tensor, expected: torch.Tensor, *, within: float = 1e-5) -> None:
    """The largest difference, next to the largest value."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert expected.numel() == 0 or (found - expected).abs().max() <= within * max(1.0, float(expected.abs().max()))


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("tokens", [1, 7, 300])
@pytest.mark.parametrize("learns", ["hidden states", "weight", "weight and bias", "bias"])
@pytest.mark.parametrize("name", HEADS)
def test_log_probabilities_and_their_gradients_are_those_of_torch(name: str, learns: str, tokens: int) -> None:
    head = head_of(has_bias="bias" in learns, **HEADS[name])
    head.weight.requires_grad_("weight" in learns)
    if head.bias is not None:
        head.bias.requires_grad_()
    values, is_top1, gradients = scored(log_probs, head, tokens)
    expected, top1, by_autograd = scored(plain_log_probs, head, tokens)
    assert values.dtype == torch.float32
    assert_close(values, expected)
    assert is_top1.equal(top1)
    assert len(gradients) == len(by_autograd) == 1 + learns.count("weight") + learns.count("bias")
    for found, correct in zip(gradients, by_autograd, strict=True):
        assert_close(found, correct)


def test_they_are_log_softmax_at_the_target() -> None:
    hidden, targets, _ = inputs_of(9)
    head = head_of(has_bias=True)
    every = log_softmax(linear(hidden, head.weight, head.bias), dim=-1)
    assert_close(log_probs(hidden, targets, head)[0].detach(), every[range(9), targets].detach())


def test_a_frozen_bias_is_part_of_the_logits() -> None:
    head = head_of(has_bias=True, softcap=2.0)
    values, is_top1, gradients = scored(log_probs, head, 20)
    expected, top1, by_autograd = scored(plain_log_probs, head, 20)
    assert_close(values, expected)
    assert is_top1.equal(top1)
    assert_close(gradients[0], by_autograd[0])


def test_a_tied_head_has_the_gradients_of_both_its_ends() -> None:
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, SIZE, requires_grad=True)
    ids, targets, upstream = torch.randint(VOCABULARY, (40,)), torch.randint(VOCABULARY, (40,)), torch.randn(40)

    def gradient(score: Any) -> torch.Tensor:
        values, _ = score(torch.tanh(weight[ids]), targets, Head(weight))
        return torch.autograd.grad((values * upstream).sum(), weight)[0]

    assert_close(gradient(log_probs), gradient(plain_log_probs))


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("is_trained", [False, True])
def test_no_tokens_have_no_loss_and_no_gradient(is_trained: bool) -> None:
    head = head_of(has_bias=True)
    head.weight.requires_grad_(is_trained)
    values, is_top1, gradients = scored(log_probs, head, 0)
    assert values.shape == is_top1.shape == (0,)
    assert gradients[0].shape == (0, SIZE)
    assert all(not each.count_nonzero() for each in gradients)


class Shapes(TorchDispatchMode):
    """Remembers the shapes of all tensors that are made, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[torch.Size] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {each.data_ptr() for each in tree_leaves(args) if isinstance(each, torch.Tensor)}
        new = (each for each in tree_leaves(made) if isinstance(each, torch.Tensor) and each.data_ptr() not in given)
        self.shapes |= {each.shape for each in new}
        return made


def test_a_bias_learned_alone_costs_no_gradient_of_the_weight() -> None:
    head = head_of(has_bias=True)
    assert head.bias is not None
    head.bias.requires_grad_()
    hidden, targets, _ = inputs_of(3)
    with Shapes() as made:
        log_probs(hidden, targets, head)[0].sum().backward()
    assert head.bias.shape in made.shapes
    assert head.weight.shape not in made.shapes


@pytest.mark.usefixtures("words")
def test_without_gradients_the_values_are_the_same() -> None:
    hidden, targets, _ = inputs_of(30)
    head = head_of()
    head.weight.requires_grad_()
    expected, top1 = log_probs(hidden, targets, head)
    with torch.no_grad():
        values, is_top1 = log_probs(hidden, targets, head)
    assert not values.requires_grad
    assert values.equal(expected)
    assert is_top1.equal(top1)


# --- precisions -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_in_bf16_they_are_as_near_the_truth_as_torch_s(name: str, is_trained: bool) -> None:
    """The truth: fp32 arithmetic on the same bf16 numbers. torch: bf16 logits, cross-entropy in fp32."""
    head = head_of(has_bias=True, dtype=torch.bfloat16, **HEADS[name])
    exact = head_of(has_bias=True, dtype=torch.bfloat16, **HEADS[name])
    exact = Head(exact.weight.float(), exact.bias.float(), exact.scale, exact.softcap)  # type: ignore[union-attr]
    for each in (head, exact):
        each.weight.requires_grad_(is_trained)

    def as_bf16(score: Any, dtype: torch.dtype) -> Any:
        return lambda hidden, targets, head: score(hidden.bfloat16().to(dtype), targets, head)

    def torch_s(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> Any:
        logits = (linear(hidden, head.weight, head.bias) * head.scale).float()
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        return -cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets

    values, _, gradients = scored(as_bf16(log_probs, torch.bfloat16), head, 168)
    in_bf16, _, by_torch = scored(as_bf16(torch_s, torch.bfloat16), head, 168)
    truth, _, correct = scored(as_bf16(plain_log_probs, torch.float32), exact, 168)
    assert (values - truth).abs().max() <= (in_bf16 - truth).abs().max() + 1e-5
    for found, other, right in zip(gradients, by_torch, correct, strict=True):
        assert (found.float() - right).norm() <= 1.5 * (other.float() - right).norm()
        assert (found.float() - right).norm() <= 0.01 * right.norm()


@pytest.mark.parametrize("casts", [False, True])
@pytest.mark.parametrize("is_trained", [False, True])
def test_under_autocast_fp32_weights_give_bf16_s_numbers(is_trained: bool, casts: bool) -> None:
    """As in full fine-tuning; the engine casts the hidden states itself, so that no fp32 copy of them is kept."""
    head = head_of(has_bias=True)
    head.weight.requires_grad_(is_trained)

    def under_autocast(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return log_probs(hidden.bfloat16() if casts else hidden, targets, head)

    values, _, gradients = scored(under_autocast, head, 168)
    expected, _, by_autograd = scored(plain_log_probs, head, 168)
    assert values.dtype == torch.float32
    assert (values - expected).norm() <= 0.01 * expected.norm()
    for found, correct in zip(gradients, by_autograd, strict=True):
        assert found.dtype == torch.float32
        assert (found - correct).norm() <= 0.02 * correct.norm()


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_gradients_are_the_slopes_of_the_values(name: str, is_trained: bool) -> None:
    """By differences, wide enough for fp32: logits and values are fp32 in any dtype, so gradcheck has no float64."""
    head = head_of(has_bias=True, **HEADS[name])
    hidden, targets, upstream = inputs_of(5)
    learned = [hidden, *([head.weight.requires_grad_(), head.bias.requires_grad_()] if is_trained else [])]  # type: ignore[union-attr]
    gradients = torch.autograd.grad((log_probs(hidden, targets, head)[0] * upstream).sum(), learned)
    for value, gradient in zip(learned, gradients, strict=True):
        direction = torch.randn_like(value)

        def at(distance: float, value: Any = value, direction: Any = direction) -> torch.Tensor:
            with torch.no_grad():
                value += distance * direction
                total = (log_probs(hidden, targets, head)[0].double() * upstream).sum()
                value -= distance * direction
            return total

        slope = float(at(1e-2) - at(-1e-2)) / 2e-2
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=5e-3, abs=5e-3)


# --- memory -----------------------------------------------------------------------------------------------


def test_the_first_of_equally_likely_words_is_the_likeliest_as_torch_has_it(words: int) -> None:
    head = Head(torch.ones(VOCABULARY, SIZE))
    hidden, targets = torch.ones(VOCABULARY, SIZE), torch.arange(VOCABULARY)
    assert log_probs(hidden, targets, head)[1].nonzero().tolist() == [[0]]


@pytest.mark.usefixtures("words")
def test_logits_in_the_thousands_neither_overflow_nor_vanish() -> None:
    """The highest so far may be any word's: what came before shrinks to nothing, or what comes after does."""
    head = head_of(scale=1e3)
    values, is_top1, gradients = scored(log_probs, head, 40)
    expected, top1, by_autograd = scored(plain_log_probs, head, 40)
    assert_close(values, expected)
    assert is_top1.equal(top1)
    assert_close(gradients[0], by_autograd[0])


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_no_more_logits_are_held_than_some_words(is_trained: bool, softcap: float | None) -> None:
    vocabulary, tokens = 5000, 1500
    weight = torch.randn(vocabulary, SIZE, requires_grad=is_trained)
    hidden, targets, _ = inputs_of(tokens)
    head = Head(weight, softcap=softcap)
    with Largest() as made:
        log_probs(hidden, targets, head)[0].sum().backward()
    assert made.elements == words_at_a_time(tokens, "cpu") * tokens == 1024 * tokens
    with Largest() as made:
        plain_log_probs(hidden, targets, head)[0].sum().backward()
    assert made.elements == tokens * vocabulary


@pytest.mark.parametrize(
    ("tokens", "device", "words"),
    [(0, "cpu", 1 << 20), (1, "cpu", 1 << 20), (300, "cpu", 3072), (5000, "cpu", 1024), (5000, "cuda", 3072)],
)
def test_the_more_tokens_the_fewer_words_at_a_time(tokens: int, device: str, words: int) -> None:
    assert words_at_a_time(tokens, device) == words


@pytest.mark.parametrize("is_trained", [False, True])
def test_what_waits_for_the_backward_pass_has_no_logits(is_trained: bool) -> None:
    kept: dict[int, int] = {}
    head = head_of()
    head.weight.requires_grad_(is_trained)
    hidden, targets, _ = inputs_of(500)

    def keep(each: torch.Tensor) -> torch.Tensor:
        kept[each.data_ptr()] = each.numel()
        return each

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
        log_probs(hidden, targets, head)
    assert sum(kept.values()) <= hidden.numel() + 2 * len(targets)


# --- a model's own head -----------------------------------------------------------------------------------

_SMALL = {"vocab_size": 261, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_MODEL = {**_SMALL, "intermediate_size": 64, "num_key_value_heads": 2}
_DROPOUTS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

PROVABLE: dict[str, dict[str, Any]] = {
    "Llama": _MODEL,
    "Llama, tied": {**_MODEL, "tie_word_embeddings": True},
    "Gemma2": {**_MODEL, "head_dim": 8, "final_logit_softcapping": 0.5},
    "Cohere": {**_MODEL, "logit_scale": 0.3},
    "Granite": {**_MODEL, "logits_scaling": 4.0},
    "GPT2": {"vocab_size": 261, "n_embd": 32, "n_layer": 2, "n_head": 4, **_DROPOUTS},
    "Phi": {**_SMALL, "intermediate_size": 64},
}
EXPECTED: dict[str, Callable[[Head], bool]] = {
    "Gemma2": lambda head: head.softcap == 0.5,
    "Cohere": lambda head: head.scale == 0.3,
    "Granite": lambda head: head.scale == 0.25,
    "Phi": lambda head: head.bias is not None,
}


def model_of(name: str) -> Any:
    """A tiny model whose logits are large, so that what is done to them shows."""
    torch.manual_seed(0)
    kind = name.split(",")[0]
    config = getattr(transformers, f"{kind}Config")(**PROVABLE[name], bos_token_id=256, eos_token_id=257)
    model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def assert_scores_are_the_model_s(model: Any, parts: LanguageHead, *, is_padded: bool) -> None:
    batch = collate_padded(columns(ROWS[:3]), pad_token_id=258) if is_padded else collate(columns(ROWS[:3]))
    labels = batch["labels"][:, 1:]
    mask = labels != IGNORED
    values, _ = parts.log_probs(batch, mask, labels[mask])
    assert_close(-values.detach(), token_losses(model, batch))


@pytest.mark.parametrize("name", PROVABLE)
@pytest.mark.parametrize("is_padded", [False, True])
def test_a_model_in_two_parts_has_the_losses_of_the_whole(name: str, is_padded: bool) -> None:
    model = model_of(name).eval()
    parts = provable_head(model)
    assert parts is not None
    assert EXPECTED.get(name, lambda head: head.scale == 1.0 and head.softcap is None)(parts.head)
    assert parts.head.weight is model.get_output_embeddings().weight
    assert_scores_are_the_model_s(model, parts, is_padded=is_padded)


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Phi"])
def test_an_adapter_s_model_is_taken_apart_with_its_adapter(name: str) -> None:
    model = add_adapter(model_of(name), LORA, seed=1).eval()
    with torch.no_grad():
        for each, value in model.named_parameters():
            if "lora_B" in each:
                value.normal_(0.0, 0.3)
    parts = provable_head(model)
    assert parts is not None
    assert_scores_are_the_model_s(model, parts, is_padded=False)


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


@HALVES
@pytest.mark.parametrize("name", PROVABLE)
def test_in_half_precision_a_head_is_proved_too(name: str, dtype: torch.dtype) -> None:
    assert provable_head(model_of(name).to(dtype)) is not None
    assert provable_head(hardly_trained(name).to(dtype)) is not None


def hardly_trained(name: str) -> Any:
    """A model as it is initialised, whose logits are so small that a softcap of 30 does not show in them."""
    torch.manual_seed(0)
    kind, special = name.split(",")[0], {"bos_token_id": 256, "eos_token_id": 257}
    settings = {**PROVABLE[name], **({"final_logit_softcapping": 30.0} if name == "Gemma2" else {})}
    config = getattr(transformers, f"{kind}Config")(**settings, **special)
    model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config)
    bias = model.get_output_embeddings().bias
    if bias is not None:
        torch.nn.init.normal_(bias, 0.0, 1e-3)
    return model


WRONG_HEADS: dict[str, dict[str, Any]] = {
    "no bias": {"bias": None},
    "no softcap": {"softcap": None},
    "another softcap": {"softcap": 31.0},
    "1 % more": {"scale": 1.01},
    "1 % less": {"scale": 0.99},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("name", "wrong"),
    [("Phi", "no bias"), ("Gemma2", "no softcap"), ("Gemma2", "another softcap")]
    + [(name, wrong) for name in ("Llama", "Gemma2", "Phi") for wrong in ("1 % more", "1 % less")],
)
def test_a_head_that_is_not_quite_the_model_s_is_found_out(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: str, dtype: torch.dtype
) -> None:
    model = hardly_trained(name).to(dtype)
    head = replace(Head.of(model), **WRONG_HEADS[wrong])
    assert provable_head(model) is not None
    monkeypatch.setattr(Head, "of", lambda _: head)
    assert provable_head(model) is None


UNKNOWN: dict[str, dict[str, Any]] = {
    "HyperCLOVAX": {**_MODEL, "logits_scaling": 1.005},
    "FalconH1": {
        **_MODEL,
        "lm_head_multiplier": 1.01,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
}
"""Models that scale their logits in a way of their own: by 1 % else than what their heads are taken for."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name in UNKNOWN if hasattr(transformers, f"{name}Config")])
def test_a_scale_that_is_not_known_is_found_out(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**UNKNOWN[name], bos_token_id=256, eos_token_id=257)
    model = getattr(transformers, f"{name}ForCausalLM")(config).to(dtype)
    assert provable_head(model) is None
    known = config.__class__(**{**config.to_dict(), "logits_scaling": 1.0, "lm_head_multiplier": 1.0})
    assert provable_head(type(model)(known).to(dtype)) is not None


def test_a_head_is_tried_without_dropout_and_without_a_trace() -> None:
    model, drawn = tiny_model(attention_dropout=0.5).train(), torch.get_rng_state()
    assert provable_head(model) is not None
    assert model.training
    assert torch.get_rng_state().equal(drawn)
    assert not model.base_model._forward_hooks


class _Doubling(transformers.LlamaForCausalLM):
    def forward(self, *args: Any, **options: Any) -> Any:
        made = super().forward(*args, **options)
        made.logits = 2 * made.logits
        return made


class _Unwilling(transformers.LlamaForCausalLM):
    def get_output_embeddings(self) -> Any:
        return None


def other_model(kind: Any) -> Any:
    plain = tiny_model()
    model = kind(plain.config)
    model.load_state_dict(plain.state_dict())
    return model


@pytest.mark.parametrize("kind", [_Doubling, _Unwilling])
@pytest.mark.parametrize("is_training", [False, True])
def test_a_model_that_cannot_be_taken_apart_is_left_whole(kind: Any, is_training: bool) -> None:
    model = other_model(kind).train(is_training)
    assert provable_head(model) is None
    assert model.training is is_training


@pytest.mark.parametrize("is_padding_free", [False, True])
def test_the_engine_trains_a_model_that_doubles_its_logits_with_the_loss_of_those(
    tmp_path: Path, is_padding_free: bool
) -> None:
    trained = Trained(
        tmp_path,
        ROWS[:2],
        model=other_model(_Doubling),
        learning_rate=1e-9,
        is_padding_free=is_padding_free,
        validation=ROWS[2:4],
        eval_strategy="epoch",
    )
    assert trained.engine._head is None

    def mean_loss(rows: Any) -> float:
        model = other_model(_Doubling).eval()
        return float(torch.cat([token_losses(model, collate(columns([each]))) for each in rows]).mean())

    assert trained.logged("loss") == pytest.approx([mean_loss(ROWS[:2])], rel=1e-5)
    evaluated = [line["eval_loss"] for line in trained.lines if "eval_loss" in line]
    assert evaluated == pytest.approx([mean_loss(ROWS[2:4])] * 2, rel=1e-5)


@pytest.mark.parametrize("is_padding_free", [False, True])
def test_the_engine_s_gradients_are_those_of_all_logits(tmp_path: Path, is_padding_free: bool) -> None:
    def gradients(is_whole: bool) -> dict[str, torch.Tensor]:
        model = tiny_model()
        engine = build_engine(
            job(tmp_path, is_padding_free=is_padding_free),
            model=model,
            tokenizer=TOKENIZER,
            train=ROWS,
            validation=(),
            listener=LogListener(),
        )
        assert engine._head is not None
        if is_whole:
            engine._head = None
        batch = engine.data_collator(columns(ROWS[:4]))
        engine.compute_loss(model, batch, num_items_in_batch=torch.tensor(17)).backward()
        return {name: value.grad for name, value in model.named_parameters()}

    whole = gradients(is_whole=True)
    for name, found in gradients(is_whole=False).items():
        assert_close(found, whole[name], within=1e-6)


def test_the_engine_never_holds_the_logits_of_a_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "words_at_a_time", lambda *_: 100)
    base = tiny_model()
    assert fit_attention(base)
    model = add_adapter(base, LORA, seed=1)
    settings = job(tmp_path)
    engine = build_engine(
        settings, model=model, tokenizer=TOKENIZER, train=ROWS, validation=(), listener=LogListener()
    )
    batch = engine.data_collator(columns(ROWS))
    supervised = int((batch["labels"] != IGNORED).sum())
    assert 2 * supervised < batch["labels"].numel()
    with Largest() as made:
        engine.compute_loss(model, batch).backward()
    # The logits of a hundred words are fewer than what the layers make.
    assert made.elements < supervised * 261


def test_under_autocast_hidden_states_wait_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: list[torch.dtype] = []
    monkeypatch.setattr(
        loss, "log_probs", lambda hidden, *rest: (dtypes.append(hidden.dtype), log_probs(hidden, *rest))[1]
    )
    parts, batch = provable_head(tiny_model()), collate(columns(ROWS[:3]))
    assert parts is not None
    labels = batch["labels"][:, 1:]
    mask = labels != IGNORED
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts.log_probs(batch, mask, labels[mask])
    parts.log_probs(batch, mask, labels[mask])
    assert dtypes == [torch.bfloat16, torch.float32]


def test_full_fine_tuning_in_bf16_over_fp32_weights_learns(tmp_path: Path) -> None:
    in_bf16 = Trained(tmp_path / "bf16", ROWS, precision="bf16", num_train_epochs=2)
    in_fp32 = Trained(tmp_path / "fp32", ROWS, num_train_epochs=2)
    assert in_bf16.engine._head is not None
    assert all(value.dtype == torch.float32 for value in in_bf16.model.parameters())
    assert in_bf16.logged("loss") == pytest.approx(in_fp32.logged("loss"), rel=0.02)
