"""A LoRA's GGUF over its base's is, in llama.cpp, the model that base and adapter are here; or it is refused."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from test_gguf import PROMPTS, Saved, random_model, saved

from conftest import CHATML, byte_tokenizer
from truetune.errors import BackendError
from truetune.inference.gguf import write_gguf
from truetune.inference.gguf_adapter import GgufAdapter, NamedBase, require_convertible, write_gguf_adapter
from truetune.inference.llama_cpp import Asked, LlamaCppCheck, ask, texts_of
from truetune.inference.quantization import QUANTIZATIONS
from truetune.listener import LogListener
from truetune.model.fixtures import FixedPrompt, record

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Adapted:
    """A base in a folder, and an adapter on it whose every factor counts."""

    base: Saved
    model: Any
    adapter: GgufAdapter


def adapted(folder: Path, kind: str = "llama", *, base: dict[str, Any] | None = None, **settings: Any) -> Adapted:
    import torch
    from peft import LoraConfig, get_peft_model

    made = saved(folder / "base", random_model(kind, **(base or {})), byte_tokenizer(chat_template=CHATML))
    torch.manual_seed(1)
    model = get_peft_model(made.model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ALL, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder / "adapter")
    named = NamedBase("org/base", "abc123", "https://huggingface.co/org/base")
    return Adapted(made, model.eval(), GgufAdapter(folder / "adapter", made.gguf, "desk", named))


def checked(made: Adapted, folder: Path, *, is_put_on: bool = True) -> LlamaCppCheck:
    """What llama.cpp answers with the adapter over the base, held against PEFT."""
    base, adapter = folder / "base.gguf", folder / "adapter.gguf"
    write_gguf(made.base.gguf, base, quantization=QUANTIZATIONS["f32"], listener=LogListener())
    write_gguf_adapter(made.adapter, adapter, listener=LogListener())
    tokenizer = made.base.tokenizer
    prompts = [FixedPrompt(tuple(tokenizer(each)["input_ids"]), each) for each in (*PROMPTS, "a longer one, " * 8)]
    fixtures = record(made.model, prompts, stop_token_ids=made.base.gguf.stop_token_ids).fixtures
    asked = Asked(fixtures, texts_of(tokenizer, fixtures), (), made.base.gguf.stop_token_ids)
    put_on = adapter if is_put_on else None
    return ask(base, asked, is_tie=lambda *_: False, listener=LogListener(), adapter=put_on)


@pytest.mark.parametrize("kind", ["llama", "llama-wide-heads", "mistral", "qwen2", "qwen3", "gemma", "gemma3"])
def test_in_llama_cpp_base_and_adapter_answer_as_they_do_here(kind: str, tmp_path: Path) -> None:
    found = checked(adapted(tmp_path, kind), tmp_path)
    assert (found.prompts, found.equal, found.token_ids_equal) == (4, 4, 4), found.first_difference
    assert found.max_abs_logit_difference is not None
    # llama.cpp looks Gemma's GELU up in a table of f16.
    assert found.max_abs_logit_difference < (1e-2 if kind.startswith("gemma") else 2e-4)


def test_without_the_adapter_the_base_answers_otherwise(tmp_path: Path) -> None:
    assert not checked(adapted(tmp_path), tmp_path, is_put_on=False).is_same


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 8}, "alpha_pattern": {"v_proj": 32}},
        {"target_modules": ["k_proj", "down_proj"], "lora_alpha": 3},
    ],
    ids=["rslora", "patterns", "few modules"],
)
def test_whatever_peft_scales_by_is_in_the_file(settings: dict[str, Any], tmp_path: Path) -> None:
    found = checked(adapted(tmp_path, **settings), tmp_path)
    assert (found.prompts, found.equal) == (4, 4), found.first_difference


def test_an_untied_output_layer_may_have_an_adapter_and_a_tied_one_may_not(tmp_path: Path) -> None:
    modules = {"target_modules": [*ALL, "lm_head"]}
    found = checked(adapted(tmp_path, **modules), tmp_path)
    assert (found.prompts, found.equal) == (4, 4), found.first_difference
    tied = adapted(tmp_path / "tied", "llama-tied", **modules)
    with pytest.raises(BackendError, match="output layer is its embeddings"):
        require_convertible(tied.adapter)


def test_the_file_says_that_it_is_an_adapter_and_of_which_base(tmp_path: Path) -> None:
    from gguf import GGUFReader

    made = adapted(tmp_path)
    size = write_gguf_adapter(made.adapter, tmp_path / "x.gguf", listener=LogListener())
    assert size == (tmp_path / "x.gguf").stat().st_size
    read = GGUFReader(tmp_path / "x.gguf")
    said = {name: field.contents() for name, field in read.fields.items()}
    assert (said["general.type"], said["adapter.type"], said["general.architecture"]) == ("adapter", "lora", "llama")
    assert said["adapter.lora.alpha"] == 8.0
    assert said["general.base_model.0.name"] == "org/base"
    assert said["general.base_model.0.version"] == "abc123"
    assert said["general.base_model.0.repo_url"] == "https://huggingface.co/org/base"
    assert str(tmp_path) not in repr(said)
    shapes = {tensor.name: tensor.data.shape for tensor in read.tensors}
    assert shapes["blk.1.ffn_down.weight.lora_a"] == (4, 96)
    assert shapes["blk.1.ffn_down.weight.lora_b"] == (64, 4)
    assert len(shapes) == 2 * 2 * len(ALL)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_dora": True}, "DoRA's magnitudes"),
        ({"bias": "lora_only"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "trained whole"),
        ({"modules_to_save": ["norm"]}, "trained whole"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "LoRA on tied embeddings"),
        ({"trainable_token_indices": [5, 6]}, "single tokens"),
    ],
    ids=["dora", "bias", "lm_head", "norm", "embeddings", "tokens"],
)
def test_what_llama_cpp_would_leave_out_is_refused_with_the_reason(
    settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    base = {"attention_bias": True} if "bias" in settings else {}
    made = adapted(tmp_path, base=base, **settings)
    with pytest.raises(BackendError, match=told) as caught:
        write_gguf_adapter(made.adapter, tmp_path / "x.gguf", listener=LogListener())
    assert "truetune merge" in str(caught.value.hint)
    assert not (tmp_path / "x.gguf").exists()


def test_an_adapter_of_another_kind_is_refused_by_its_name(tmp_path: Path) -> None:
    from peft import IA3Config, get_peft_model

    made = adapted(tmp_path)
    other = get_peft_model(random_model("llama"), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    other.save_pretrained(tmp_path / "ia3")
    with pytest.raises(BackendError, match="of the kind IA3"):
        require_convertible(replace(made.adapter, folder=tmp_path / "ia3"))


def test_an_adapter_over_another_base_is_told_by_llama_cpp(tmp_path: Path) -> None:
    made = adapted(tmp_path)
    wide = saved(tmp_path / "wide", random_model("llama-wide-heads"), byte_tokenizer(chat_template=CHATML))
    with pytest.raises(BackendError, match="wrong base model"):
        checked(replace(made, base=wide), tmp_path)


def test_numbers_that_are_not_finite_are_told_by_the_factors_name(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made = adapted(tmp_path)
    file = made.adapter.folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(BackendError, match=r"lora_B.*not finite"):
        write_gguf_adapter(made.adapter, tmp_path / "x.gguf", listener=LogListener())


def test_settings_that_are_damaged_are_our_error(tmp_path: Path) -> None:
    made = adapted(tmp_path)
    (made.adapter.folder / "adapter_config.json").write_text(json.dumps({"peft_type": "NO SUCH"}))
    with pytest.raises(BackendError, match="cannot be read"):
        require_convertible(made.adapter)
