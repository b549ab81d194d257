"""Every kind of adapter is PEFT's, learns, and answers on an untouched base as it did when it was trained."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file

import truetune
from conftest import CHATML, arithmetic_rows, byte_tokenizer, tiny_model, write_jsonl
from heard import FAST, Heard
from tiny_runs import LORA, ROWS, TOKENIZER, Trained, architecture, job
from truetune.config.kinds import OPTIMIZERS
from truetune.config.load import load_config
from truetune.data.collate import collate
from truetune.errors import BackendError, CheckpointError
from truetune.listener import LogListener
from truetune.model.adapter import add_adapter, load_trained_adapter, missed_experts, reached_weights, verify_adapter
from truetune.model.load import ModelOptions, load_model
from truetune.model.source import ModelSource
from truetune.pipeline import backends
from truetune.training import unsloth
from truetune.training.saving import save_adapter
from truetune.training.trl import build_engine

KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "olora": {"init_lora_weights": "olora"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa, fast": {"init_lora_weights": "pissa_niter_4"},
    "pissa, rslora": {"init_lora_weights": "pissa", "use_rslora": True},
    "pissa, dora": {"init_lora_weights": "pissa", "use_dora": True},
    "head": {"modules_to_save": ("lm_head",)},
    "embeddings": {"modules_to_save": ("embed_tokens",)},
    "both ends": {"modules_to_save": ("embed_tokens", "lm_head")},
    "norms": {"modules_to_save": ("input_layernorm", "model.norm")},
    "pissa, head": {"init_lora_weights": "pissa", "modules_to_save": ("lm_head",)},
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
ENDS = ("head", "embeddings", "both ends", "pissa, head")
of_tied_ends_too = pytest.mark.parametrize(
    ("kind", "is_tied"),
    [
        *(pytest.param(kind, False, id=name) for name, kind in KINDS.items()),
        *(pytest.param(KINDS[name], True, id=f"{name}, tied") for name in ENDS),
    ],
)
LIKE_ANOTHER = ("gaussian", "orthogonal", "pissa, fast", "pissa, rslora", "head", "embeddings")
"""Kinds that are trained and stored as another of them is: another start, or one of its parts."""
DIFFERENT = {name: kind for name, kind in KINDS.items() if name not in LIKE_ANOTHER}
different_kinds = pytest.mark.parametrize("kind", DIFFERENT.values(), ids=DIFFERENT)
PROBE = torch.arange(8).unsqueeze(0)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(PROBE).logits
    return logits.float()


def assert_close(found: torch.Tensor, expected: torch.Tensor, *, within: float = 1e-5) -> None:
    assert float((found - expected).abs().max()) <= within * max(1.0, float(expected.abs().max()))


def plain_peft(base: Any, kind: dict[str, Any], *, is_tied: bool = False) -> Any:
    """What PEFT alone makes of the same settings and seed."""
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in kind.items()}
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", ensure_weight_tying=is_tied, **given
    )
    return get_peft_model(base, config)


def gradients(engine: Any) -> dict[str, torch.Tensor]:
    """The gradient of every trained parameter for one batch, through the engine's own loss."""
    engine.model.zero_grad()
    batch = collate([engine.train_dataset[n] for n in range(4)])
    engine.compute_loss(engine.model, batch).backward()
    return {name: value.grad.clone() for name, value in engine.model.named_parameters() if value.requires_grad}


def reference_gradients(model: Any) -> dict[str, torch.Tensor]:
    """The same of plain PEFT, by cross-entropy of all logits, row by row."""
    model.zero_grad()
    total, count = torch.zeros(()), 0
    for each in ROWS[:4]:
        logits = model(input_ids=torch.tensor([each.input_ids])).logits[0, :-1]
        labels = torch.tensor(each.labels)[1:]
        total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    (total / count).backward()
    return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}


def engine_for(model: Any, folder: Path, **changes: Any) -> Any:
    return build_engine(
        job(folder, **changes), model=model, tokenizer=TOKENIZER, train=ROWS, validation=(), listener=LogListener()
    )


# --- PEFT's own -------------------------------------------------------------------------------------------


@of_tied_ends_too
def test_logits_and_first_gradients_are_plain_peft_s(tmp_path: Path, kind: dict[str, Any], is_tied: bool) -> None:
    ours = add_adapter(tiny_model(tie_word_embeddings=is_tied), replace(LORA, **kind), seed=1)
    ends = {"embed_tokens", "lm_head"} & {*kind.get("modules_to_save", ())}
    theirs = plain_peft(tiny_model(tie_word_embeddings=is_tied), kind, is_tied=is_tied and bool(ends))
    assert_close(logits_of(ours), logits_of(theirs), within=1e-6)
    engine = engine_for(ours, tmp_path)
    assert engine._head is not None
    found, expected = gradients(engine), reference_gradients(theirs)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient, within=2e-6)
    assert all(found[name].count_nonzero() for name in found if "lora_A" not in name), "B, magnitudes, whole modules"


@kinds
def test_every_weight_that_trains_is_fp32_over_a_base_in_bf16_and_answers_without_autocast(
    kind: dict[str, Any],
) -> None:
    base = tiny_model().bfloat16()
    expected = logits_of(base)
    model = add_adapter(base, replace(LORA, **kind), seed=1)
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}
    assert_close(logits_of(model), expected, within=0.03)


# --- trained, saved, loaded -------------------------------------------------------------------------------


@of_tied_ends_too
def test_a_trained_adapter_answers_on_an_untouched_base_as_it_was_trained(
    tmp_path: Path, kind: dict[str, Any], is_tied: bool
) -> None:
    def base() -> Any:
        return tiny_model(tie_word_embeddings=is_tied)

    model = add_adapter(base(), replace(LORA, **kind), seed=1)
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model)
    assert trained.logged("loss")[-1] < trained.logged("loss")[0] - 0.1
    changed = [name for name, value in model.named_parameters() if name in before and not value.equal(before[name])]
    assert set(changed) == set(before)
    save_adapter(trained.engine, tmp_path / "a", base_model="b", revision=None, load_base=base)
    expected = logits_of(model)
    for loaded in (load_trained_adapter(base(), tmp_path / "a"), PeftModel.from_pretrained(base(), tmp_path / "a")):
        assert_close(logits_of(loaded), expected)
        assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == is_tied
    assert not torch.allclose(expected, logits_of(base()), atol=1e-2)


@different_kinds
def test_in_bf16_it_answers_as_trained_within_the_dtype_s_rounding(tmp_path: Path, kind: dict[str, Any]) -> None:
    def base() -> Any:
        return tiny_model().bfloat16()

    model = add_adapter(base(), replace(LORA, **kind), seed=1)
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model, precision="bf16")
    assert trained.logged("loss")[-1] < trained.logged("loss")[0] - 0.2
    save_adapter(trained.engine, tmp_path / "a", base_model="b", revision=None, load_base=base)
    loaded = load_trained_adapter(base(), tmp_path / "a")
    assert_close(logits_of(loaded), logits_of(model), within=0.03)
    moved = (logits_of(model) - logits_of(base())).abs().max()
    assert moved > 10 * (logits_of(loaded) - logits_of(model)).abs().max()


@different_kinds
def test_a_run_of_each_kind_is_verified_loaded_and_resumed_to_the_bit(
    tiny_base: Path, tmp_path: Path, kind: dict[str, Any]
) -> None:
    rows = write_jsonl(tmp_path / "train.jsonl", arithmetic_rows(16))
    settings: dict[str, Any] = {**FAST, **{name: _as_given(value) for name, value in kind.items()}}
    settings |= {"learning_rate": 1e-2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    heard = Heard()
    run = truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path / "run", listener=heard, **settings)
    assert run.losses[-1] < run.losses[0]
    assert "adapters on " in heard.text()
    answers = truetune.load(run)
    stored = json.loads((run.directory / "adapter" / "adapter_config.json").read_text())
    assert (stored["use_rslora"], stored["use_dora"]) == (kind.get("use_rslora", False), kind.get("use_dora", False))
    whole = load_file(run.directory / "adapter" / "adapter_model.safetensors")
    for path in run.directory.glob("checkpoints/checkpoint-4/*"):
        path.unlink()
    resumed = truetune.train(run.directory / "config.yaml", resume="newest")
    again = load_file(resumed.directory / "adapter" / "adapter_model.safetensors")
    assert resumed.losses == run.losses
    assert all(again[name].equal(tensor) for name, tensor in whole.items())
    assert answers.generate("Add 1 and 2").text == truetune.load(resumed).generate("Add 1 and 2").text


def _as_given(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@different_kinds
def test_an_adapter_of_each_kind_can_be_gone_on_from(tmp_path: Path, kind: dict[str, Any]) -> None:
    model = add_adapter(tiny_model(), replace(LORA, **kind), seed=1)
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model)
    save_adapter(trained.engine, tmp_path / "a", base_model="b", revision=None, load_base=tiny_model)
    settings = replace(LORA, **{**kind, "init_lora_weights": "default"}, init_from=str(tmp_path / "a"))
    further = add_adapter(tiny_model(), settings, seed=9)
    assert_close(logits_of(further), logits_of(model))
    started = {name: value.detach().clone() for name, value in further.named_parameters() if value.requires_grad}
    assert any(".modules_to_save." in name for name in started) == bool(kind.get("modules_to_save"))
    again = Trained(tmp_path / "more", ROWS, model=further)
    assert all(not value.equal(started[name]) for name, value in further.named_parameters() if name in started)
    save_adapter(again.engine, tmp_path / "b", base_model="b", revision=None, load_base=tiny_model)
    assert_close(logits_of(load_trained_adapter(tiny_model(), tmp_path / "b")), logits_of(further))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_taken_out_of_the_base_is_saved_as_plain_lora_of_twice_the_rank(
    tmp_path: Path, start: str
) -> None:
    model = add_adapter(tiny_model(), replace(LORA, init_lora_weights=start), seed=1)
    weight = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert not weight.equal(tiny_model().model.layers[0].self_attn.q_proj.weight)
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model)
    save_adapter(trained.engine, tmp_path / "a", base_model="b", revision=None, load_base=tiny_model)
    stored = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (stored["r"], stored["lora_alpha"], stored["init_lora_weights"]) == (8, 16, True)


def test_the_factors_saved_are_no_larger_than_what_was_learned(tmp_path: Path) -> None:
    """bf16 could not tell the difference of two large products; r is more than half of the smallest layer here."""
    model = add_adapter(tiny_model(), replace(LORA, r=12, init_lora_weights="pissa"), seed=1)
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model, learning_rate=1e-4)
    save_adapter(trained.engine, tmp_path / "a", base_model="b", revision=None, load_base=tiny_model)
    loaded = load_trained_adapter(tiny_model(), tmp_path / "a")
    exact = logits_of(loaded)
    assert_close(exact, logits_of(model))
    learned = (exact - logits_of(tiny_model())).abs().max()
    for name, value in loaded.named_parameters():
        if "lora_" in name:
            value.data = value.data.bfloat16().float()
    assert (logits_of(loaded) - exact).abs().max() < 0.02 * learned


def test_such_an_adapter_left_unconverted_or_on_another_base_is_caught(tmp_path: Path) -> None:
    model = add_adapter(tiny_model(), replace(LORA, init_lora_weights="pissa"), seed=1)
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model, save_strategy="epoch")
    with pytest.raises(CheckpointError, match="other weights"):
        save_adapter(
            trained.engine, tmp_path / "a", base_model="b", revision=None, load_base=lambda: tiny_model(seed=5)
        )
    assert not (tmp_path / "a").exists()
    settings = replace(LORA, init_from=str(tmp_path / "checkpoints" / "checkpoint-6"))
    with pytest.raises(BackendError, match=r"init_from: .* stands on a base changed by pissa"):
        add_adapter(tiny_model(), settings, seed=1)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_such_an_adapter_that_learned_nothing_is_no_finished_run(tmp_path: Path, start: str) -> None:
    engine = engine_for(add_adapter(tiny_model(), replace(LORA, init_lora_weights=start), seed=1), tmp_path)
    with pytest.raises(CheckpointError, match="learned nothing"):
        save_adapter(engine, tmp_path / "a", base_model="b", revision=None, load_base=tiny_model)


# --- modules trained whole --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_of_tied_embeddings_one_name_trains_both_ends_as_one(tmp_path: Path, name: str) -> None:
    model = add_adapter(tiny_model(tie_word_embeddings=True), replace(LORA, modules_to_save=(name,)), seed=1)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.get_output_embeddings().weight.requires_grad
    trained = Trained(tmp_path, ROWS, model=model)
    assert trained.engine._head is not None
    assert trained.engine._head.head.weight is model.get_output_embeddings().weight
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_a_layer_named_for_both_is_trained_whole_and_has_no_adapter() -> None:
    model = add_adapter(tiny_model(), replace(LORA, modules_to_save=("mlp",)), seed=1)
    assert not [name for name, _ in model.named_parameters() if "mlp" in name and "lora_" in name]
    attention = tiny_model().model.layers[0].self_attn
    assert reached_weights(model) == 2 * sum(each.numel() for each in attention.parameters())
    whole = [value for name, value in model.named_parameters() if "mlp.modules_to_save" in name]
    assert len(whole) == 2 * 3
    assert all(value.requires_grad for value in whole)


def test_tied_ends_that_peft_would_part_are_refused_by_their_names() -> None:
    with pytest.raises(BackendError, match=r"modules_to_save: .*one tensor") as caught:
        add_adapter(architecture("GPT2"), replace(LORA, modules_to_save=("wte",)), seed=1)
    assert "wte" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modules_to_save": ("embed_tokenz",)}, ["no module embed_tokenz", "embed_tokens", "lm_head"]),
        ({"target_parameters": ("experts.up",)}, ["target_parameters", "no parameter experts.up", "no mixture"]),
        ({"r": 40, "init_lora_weights": "pissa"}, ["adapter.r", "40", "pissa"]),
    ],
)  # fmt: skip
def test_what_a_model_does_not_have_is_refused_by_its_setting(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(BackendError) as caught:
        add_adapter(tiny_model(), replace(LORA, **settings), seed=1)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_start_that_peft_gets_wrong_for_a_layer_is_refused() -> None:
    """OLoRA of GPT-2's transposed layers, where they are square."""
    settings = replace(LORA, target_modules=r".*attn\.c_proj", init_lora_weights="olora")
    with pytest.raises(BackendError, match="olora is wrong for the transposed layers"):
        add_adapter(architecture("GPT2"), settings, seed=1)


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"use_rslora": True}], ids=str)
def test_the_transposed_layers_of_gpt_2_take_these_kinds_too(tmp_path: Path, kind: dict[str, Any]) -> None:
    model = add_adapter(architecture("GPT2"), replace(LORA, **kind), seed=1)
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model)
    load_base = lambda: architecture("GPT2")  # noqa: E731
    save_adapter(trained.engine, tmp_path / "a", base_model="b", revision=None, load_base=load_base)
    assert_close(logits_of(load_trained_adapter(load_base(), tmp_path / "a")), logits_of(model))


# --- a mixture's experts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe"])
def test_experts_that_a_list_of_modules_misses_are_reached_by_their_parameters(tmp_path: Path, name: str) -> None:
    queries = replace(LORA, target_modules=("q_proj",))
    missed = missed_experts(add_adapter(architecture(name), queries, seed=1))
    settings = replace(queries, target_parameters=missed)
    model = add_adapter(architecture(name), settings, seed=1)
    assert missed_experts(model) == ()
    experts = sum(each.numel() for each in architecture(name).parameters() if each.dim() == 3)
    assert reached_weights(model) == experts + reached_weights(add_adapter(architecture(name), queries, seed=1))
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model)
    load_base = lambda: architecture(name)  # noqa: E731
    save_adapter(trained.engine, tmp_path / "a", base_model="b", revision=None, load_base=load_base)
    assert_close(logits_of(load_trained_adapter(load_base(), tmp_path / "a")), logits_of(model))
    assert all(value.count_nonzero() for name, value in model.named_parameters() if "experts" in name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora: the experts of a mixture take no DoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: the experts of a mixture take no pissa"),
        ({"init_lora_weights": "orthogonal"}, "take no orthogonal"),
    ],
)
def test_what_experts_cannot_take_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BackendError, match=words) as caught:
        add_adapter(architecture("Mixtral"), replace(LORA, **settings), seed=1)
    assert "target_modules" in str(caught.value)
    add_adapter(architecture("Mixtral"), replace(LORA, **settings, target_modules=("q_proj",)), seed=1)


# --- quantised bases --------------------------------------------------------------------------------------


def quantised(folder: Path, quantization: Any) -> Callable[[], Any]:
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    return lambda: load_model(ModelSource("base", str(folder)), ModelOptions("float32", "cpu", quantization))


@pytest.mark.parametrize(
    ("kind", "quantization"),
    [
        *((kind, bits) for kind in ("rslora", "gaussian", "head", "both ends") for bits in ("4bit", "8bit")),
        ("dora", "4bit"),
    ],
)
def test_a_quantised_base_takes_what_leaves_its_weights_alone(tmp_path: Path, kind: str, quantization: Any) -> None:
    base = quantised(tmp_path / "base", quantization)
    model = add_adapter(base(), replace(LORA, **KINDS[kind]), seed=1)
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model)
    assert trained.logged("loss")[-1] < trained.logged("loss")[0] - 0.2
    assert all(not value.equal(before[name]) for name, value in model.named_parameters() if name in before)
    save_adapter(trained.engine, tmp_path / "a", base_model="b", revision=None, load_base=base)
    assert_close(logits_of(load_trained_adapter(base(), tmp_path / "a")), logits_of(model))


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantised_base_refuses_what_reads_or_trains_its_weights(tmp_path: Path, quantization: Any) -> None:
    base = quantised(tmp_path / "base", quantization)
    for start in ("pissa", "olora", "orthogonal", "pissa_niter_4"):
        with pytest.raises(BackendError, match=f"init_lora_weights: {start} reads weights"):
            add_adapter(base(), replace(LORA, init_lora_weights=start), seed=1)
    if quantization == "8bit":
        with pytest.raises(BackendError, match="use_dora: it does not train over a base in 8 bits"):
            add_adapter(base(), replace(LORA, use_dora=True), seed=1)
        sizes = {"hidden_size": 64, "intermediate_size": 128}
        add_adapter(tiny_model(**sizes), replace(LORA, use_dora=True), seed=1).save_pretrained(tmp_path / "dora")
        with pytest.raises(BackendError, match="use_dora: it does not train over a base in 8 bits"):
            add_adapter(base(), replace(LORA, init_from=str(tmp_path / "dora")), seed=1)
    with pytest.raises(BackendError, match="modules_to_save: down_proj is quantised"):
        add_adapter(base(), replace(LORA, target_modules=("q_proj",), modules_to_save=("down_proj",)), seed=1)


# --- going on with another kind ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked", [{"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ("lm_head",)}], ids=str
)
def test_a_stored_adapter_of_another_kind_than_asked_for_is_refused(tmp_path: Path, asked: dict[str, Any]) -> None:
    add_adapter(tiny_model(), LORA, seed=1).save_pretrained(tmp_path)
    with pytest.raises(BackendError, match=f"adapter.{next(iter(asked))}: the adapter in .* was made without it"):
        add_adapter(tiny_model(), replace(LORA, **asked, init_from=str(tmp_path)), seed=1)


def test_a_stored_adapter_that_unsloth_would_make_another_of_is_refused_there(tmp_path: Path) -> None:
    for number, kind in enumerate(({"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ("lm_head",)})):
        folder = tmp_path / str(number)
        add_adapter(tiny_model(), replace(LORA, **kind), seed=1).save_pretrained(folder)
        with pytest.raises(BackendError, match=f"has {next(iter(kind))}, which trains with TRL only"):
            unsloth._stored(str(folder))
    add_adapter(tiny_model(), LORA, seed=1).save_pretrained(tmp_path / "plain")
    assert unsloth._stored(str(tmp_path / "plain"))["r"] == 4


def test_a_module_trained_whole_is_read_back_to_the_bit_over_a_base_in_bf16(tmp_path: Path) -> None:
    model = add_adapter(tiny_model().bfloat16(), replace(LORA, modules_to_save=("lm_head",)), seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.01 * torch.randn_like(value))
    model.save_pretrained(tmp_path)
    assert verify_adapter(model, tmp_path) == 28 + 1
    trained = model.get_output_embeddings().weight
    for loaded in (
        load_trained_adapter(tiny_model().bfloat16(), tmp_path),
        add_adapter(tiny_model().bfloat16(), replace(LORA, init_from=str(tmp_path)), seed=1),
    ):
        assert loaded.get_output_embeddings().weight.equal(trained)
    assert loaded.get_output_embeddings().weight.requires_grad


SETTINGS: list[dict[str, Any]] = [
    {"use_rslora": True},
    {"use_dora": True},
    {"init_lora_weights": "pissa"},
    {"loraplus_lr_ratio": 4.0},
    {"modules_to_save": ["lm_head"]},
    {"target_parameters": ["experts.up"]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_unsloth_is_not_sent_goes_to_trl_or_is_refused(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """A GPU with Unsloth is pretended."""
    monkeypatch.setattr(backends, "metadata_has", lambda name: True)
    monkeypatch.setattr(backends, "_capability", lambda: (8, 0))
    monkeypatch.setattr(backends, "_has_own_model", lambda model_type: True)
    gpu = backends.Situation(device="cuda", model_type="llama")
    given = {"model.name_or_path": "m", "data.path": "d.jsonl"}
    assert backends.choose_backend(load_config(settings=given).config, gpu)[0] == "unsloth"
    (name,) = settings
    assert backends.choose_backend(load_config(settings={**given, **settings}).config, gpu) == (
        "trl",
        f"adapter.{name} trains with TRL only",
    )
    with pytest.raises(BackendError, match=f"unsloth cannot train this run: adapter.{name} trains with TRL only"):
        backends.choose_backend(load_config(settings={**given, **settings, "backend": "unsloth"}).config, gpu)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_rslora": True}, "adapter.use_rslora was False and is True"),
        ({"init_lora_weights": "gaussian"}, "adapter.init_lora_weights was default and is gaussian"),
        ({"loraplus_lr_ratio": 2.0}, "adapter.loraplus_lr_ratio was None and is 2.0"),
        ({"modules_to_save": ["lm_head"]}, "adapter.modules_to_save was .* and is "),
    ],
)
def test_a_run_is_not_resumed_as_one_of_another_kind(
    tiny_base: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    rows = write_jsonl(tmp_path / "train.jsonl", arithmetic_rows(8))
    settings: dict[str, Any] = {**FAST, "num_train_epochs": 1, "max_steps": 1}
    run = truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path / "run", **settings)
    assert truetune.train(run.directory / "config.yaml", resume="newest").status == "finished"
    with pytest.raises(CheckpointError, match=named):
        truetune.train(run.directory / "config.yaml", resume="newest", max_steps=2, **changes)


def test_the_best_checkpoint_of_a_start_in_the_base_is_what_is_saved(tiny_base: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "train.jsonl", arithmetic_rows(24))
    rhythm = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "test_size": 8}
    settings: dict[str, Any] = {**FAST, **rhythm, "learning_rate": 0.5, "max_steps": 3}
    kind = {"init_lora_weights": "pissa", "modules_to_save": ["lm_head"]}
    run = truetune.train(
        model=str(tiny_base), data=rows, output_dir=tmp_path / "run", load_best_model_at_end=True, **kind, **settings
    )
    evaluated = {line["step"]: line["eval_loss"] for line in run.metrics if "eval_loss" in line and line["step"]}
    best = min(evaluated, key=evaluated.__getitem__)
    assert best < 3, "the rate is meant to ruin it"
    checkpoint = load_file(run.directory / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors")
    saved = load_file(run.directory / "adapter" / "adapter_model.safetensors")
    last = load_file(run.directory / "checkpoints" / "checkpoint-3" / "adapter_model.safetensors")
    (head,) = [name for name in saved if "lm_head" in name]
    assert saved[head].equal(checkpoint[head])
    assert not saved[head].equal(last[head])


def test_tokens_that_a_base_was_given_are_learned_through_modules_trained_whole(tmp_path: Path) -> None:
    """What the refusal of new_tokens says to do."""
    tokenizer = byte_tokenizer(chat_template=CHATML)
    tokenizer.add_tokens(["<yes>", "<no>"])
    base = tiny_model()
    base.resize_token_embeddings(len(tokenizer))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"instruction": f"is {n} even", "output": "<no>" if n % 2 else "<yes>"} for n in range(12)]
    data = write_jsonl(tmp_path / "train.jsonl", rows)
    run = truetune.train(
        model=str(tmp_path / "base"),
        data=data,
        output_dir=tmp_path / "run",
        modules_to_save=["embed_tokens", "lm_head"],
        **{**FAST, "learning_rate": 1e-2, "max_steps": 30},
    )
    loaded = truetune.load(run)
    assert loaded.generate("is 4 even").text in {"<yes>", "<no>"}


# --- LoRA+ ------------------------------------------------------------------------------------------------


def rates(optimizer: Any, model: Any) -> dict[str, tuple[float, float]]:
    """The rate and the weight decay of each trained parameter."""
    names = {id(value): name for name, value in model.named_parameters()}
    return {
        names[id(value)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for value in group["params"]
    }


def test_loraplus_gives_each_factor_peft_s_rate_and_the_rest_trainer_s(tmp_path: Path) -> None:
    settings = replace(LORA, modules_to_save=("model.norm", "lm_head"), bias="lora_only")
    model = add_adapter(tiny_model(attention_bias=True), settings, seed=1)
    plain = rates(engine_for(model, tmp_path, weight_decay=0.1).create_optimizer(), model)
    found = rates(engine_for(model, tmp_path, weight_decay=0.1, loraplus_lr_ratio=16.0).create_optimizer(), model)
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    peft_s = rates(optimizer, model)
    assert found.keys() == plain.keys() == peft_s.keys()
    for name, value in found.items():
        assert value == (peft_s[name] if "lora_" in name else plain[name]), name
    assert plain["base_model.model.model.norm.modules_to_save.default.weight"][1] == 0


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_loraplus_gives_every_optimizer_its_rates_and_it_steps(tmp_path: Path, optim: str) -> None:
    model = add_adapter(tiny_model(), LORA, seed=1)
    engine = engine_for(model, tmp_path, optim=optim, loraplus_lr_ratio=4.0)
    optimizer = engine.create_optimizer()
    found = rates(optimizer, model)
    assert {rate for name, (rate, _) in found.items() if "lora_B" in name} == {4e-2}
    assert {rate for name, (rate, _) in found.items() if "lora_A" in name} == {1e-2}
    gradients(engine)
    optimizer.step()
    assert all(value.count_nonzero() for name, value in model.named_parameters() if "lora_B" in name)


def test_loraplus_of_a_config_is_in_the_run_s_optimizer(tiny_base: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "train.jsonl", arithmetic_rows(8))
    run = truetune.train(
        model=str(tiny_base), data=rows, output_dir=tmp_path / "run", loraplus_lr_ratio=4.0, max_steps=2, **FAST
    )
    (checkpoint,) = run.directory.glob("checkpoints/checkpoint-*")
    groups = torch.load(checkpoint / "optimizer.pt", weights_only=True)["param_groups"]
    assert sorted({group["initial_lr"] for group in groups}) == [FAST["learning_rate"], 4 * FAST["learning_rate"]]


def test_loraplus_resumes_to_the_bit_and_logs_the_plain_rate(tmp_path: Path) -> None:
    def trained(folder: Path, **changes: Any) -> Trained:
        settings = {"loraplus_lr_ratio": 4.0, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, **changes}
        return Trained(folder, ROWS, model=add_adapter(tiny_model(), LORA, seed=1), **settings)

    whole = trained(tmp_path)
    plain = trained(tmp_path / "plain", loraplus_lr_ratio=None)
    assert whole.logged("learning_rate") == plain.logged("learning_rate")
    assert whole.logged("loss")[0] == plain.logged("loss")[0]
    assert whole.logged("loss")[-1] < plain.logged("loss")[-1]
    resumed = trained(tmp_path, resume_from=tmp_path / "checkpoint-2")
    assert torch.equal(resumed.weights(), whole.weights())


def test_loraplus_moves_b_by_its_ratio_in_a_first_step_of_sgd(tmp_path: Path) -> None:
    moved = []
    for ratio in (None, 8.0):
        model = add_adapter(tiny_model(), LORA, seed=1)
        settings = {"optim": "sgd", "max_steps": 1, "loraplus_lr_ratio": ratio, "max_grad_norm": 0.0}
        Trained(tmp_path, ROWS, model=model, **settings)
        moved.append(torch.cat([value.flatten() for name, value in model.named_parameters() if "lora_B" in name]))
    assert_close(moved[1], 8 * moved[0], within=1e-6)
    assert moved[0].count_nonzero()
