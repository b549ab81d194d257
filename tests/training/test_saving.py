"""What is saved is what was trained, or the run does not call itself finished."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model
from tiny_runs import LORA, ROWS, TOKENIZER, Trained, job
from truetune.errors import CheckpointError
from truetune.listener import LogListener
from truetune.model.adapter import add_adapter, verify_adapter
from truetune.model.load import ModelOptions, load_model
from truetune.model.source import ModelSource, resolve_model
from truetune.training.saving import save_adapter, save_full_model
from truetune.training.trl import build_engine


def engine_for(model: Any, folder: Path) -> Any:
    return build_engine(
        job(folder), model=model, tokenizer=TOKENIZER, train=ROWS, validation=(), listener=LogListener()
    )


def learned(seed: int = 1) -> Any:
    """An adapted model whose updates are not zero."""
    model = add_adapter(tiny_model(), LORA, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    return model


def test_an_adapter_is_saved_with_tokenizer_and_template_and_without_pickles_or_paths(tmp_path: Path) -> None:
    tensors = save_adapter(
        engine_for(learned(), tmp_path),
        tmp_path / "adapter",
        base_model="org/base",
        revision="abc",
        load_base=tiny_model,
    )
    assert tensors == 2 * 7 * 2
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not {name for name in names if name.endswith((".bin", ".md", ".pt"))}
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/base", "abc")
    assert str(tmp_path) not in "".join(path.read_text(errors="ignore") for path in (tmp_path / "adapter").iterdir())


def test_an_adapter_that_learned_nothing_is_no_finished_run(tmp_path: Path) -> None:
    engine = engine_for(add_adapter(tiny_model(), LORA, seed=1), tmp_path)
    with pytest.raises(CheckpointError, match="learned nothing"):
        save_adapter(engine, tmp_path / "adapter", base_model="b", revision=None, load_base=tiny_model)
    assert not list(tmp_path.glob("*adapter*"))


def test_a_tensor_that_differs_on_disk_is_caught(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = learned()
    model.save_pretrained(tmp_path)
    assert verify_adapter(model, tmp_path) == 28
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1e-7}, file)
    with pytest.raises(CheckpointError, match="differs"):
        verify_adapter(model, tmp_path)
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    with pytest.raises(CheckpointError, match="differs"):
        verify_adapter(model, tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_model_is_saved_compared_and_stops_at_the_templates_token(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model(tie_word_embeddings=tied)
    save_full_model(engine_for(model, tmp_path), tmp_path / "model", stop_token_ids=(260, 257))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    assert loaded.generation_config.eos_token_id == [260, 257]


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.arange(8).unsqueeze(0)).logits
    return logits


def test_g26_what_was_trained_is_what_plain_peft_loads(tmp_path: Path) -> None:
    from peft import PeftModel

    model = add_adapter(tiny_model(), LORA, seed=1)
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    tensors = save_adapter(
        trained.engine, tmp_path / "adapter", base_model="org/base", revision=None, load_base=tiny_model
    )
    assert tensors == len([name for name in before if "lora_" in name]) == 28
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert model.active_adapter == "default"
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert not torch.equal(logits_of(loaded), logits_of(tiny_model()))


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_an_adapter_that_trains_biases_is_saved_and_verified_too(tmp_path: Path, bias: Any) -> None:
    from peft import PeftModel

    base = {"attention_bias": True, "mlp_bias": True}
    model = add_adapter(tiny_model(**base), replace(LORA, bias=bias), seed=1)
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model)
    expected = logits_of(model)
    assert (
        save_adapter(trained.engine, tmp_path / "adapter", base_model="b", revision=None, load_base=tiny_model) > 28
    )
    assert torch.equal(logits_of(model), expected)
    assert torch.equal(logits_of(PeftModel.from_pretrained(tiny_model(**base), tmp_path / "adapter")), expected)


def test_a_bias_that_was_not_saved_is_caught(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = add_adapter(tiny_model(attention_bias=True), replace(LORA, bias="lora_only"), seed=1)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.normal_()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    kept = {name: value for name, value in tensors.items() if "lora_" in name}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="differs"):
        verify_adapter(model, tmp_path)


def test_a_scale_that_changed_on_the_way_to_disk_is_caught_by_its_logits(tmp_path: Path) -> None:
    model = learned()
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 9}))
    with pytest.raises(CheckpointError, match="other logits"):
        verify_adapter(model, tmp_path)


def test_an_earlier_adapter_stays_when_the_new_one_fails_its_check(tmp_path: Path) -> None:
    save_adapter(
        engine_for(learned(), tmp_path), tmp_path / "adapter", base_model="b", revision=None, load_base=tiny_model
    )
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    with pytest.raises(CheckpointError, match="learned nothing"):
        save_adapter(
            engine_for(add_adapter(tiny_model(), LORA, seed=1), tmp_path),
            tmp_path / "adapter",
            base_model="b",
            revision=None,
            load_base=tiny_model,
        )
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before


def test_g26_no_file_that_is_passed_on_is_a_pickle_or_names_this_machine(tmp_path: Path) -> None:
    base = tmp_path / "a folder of this machine"
    tiny_model().save_pretrained(base)
    TOKENIZER.save_pretrained(base)
    source = resolve_model(str(base))
    for method in ("lora", "full"):
        model = load_model(source, ModelOptions("float32", "cpu"))
        model = add_adapter(model, LORA, seed=1) if method == "lora" else model
        trained = Trained(tmp_path / "checkpoints", ROWS[:4], model=model)
        folder = tmp_path / method
        if method == "lora":
            save_adapter(trained.engine, folder, base_model="org/name", revision=None, load_base=tiny_model)
        else:
            save_full_model(trained.engine, folder, stop_token_ids=(260,))
        for path in folder.rglob("*"):
            content = path.read_bytes()
            assert b"this machine" not in content, path
            assert not content.startswith((b"\x80\x02", b"\x80\x04", b"PK")), path
            assert path.suffix in {".safetensors", ".json", ".jinja"}, path


def test_g26_checkpoints_carry_tokenizer_and_template_and_verify(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = add_adapter(tiny_model(), LORA, seed=1)
    Trained(tmp_path, ROWS, model=model, save_strategy="epoch")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint-6")
    asked = [{"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert len(ids) == 21
    assert verify_adapter(model, tmp_path / "checkpoint-6") == 28


def test_a_quantised_bases_adapter_is_saved_in_fp32_and_verified(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    source = ModelSource("base", str(tmp_path / "base"))
    model = add_adapter(load_model(source, ModelOptions("float32", "cpu", "4bit")), LORA, seed=1)
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model)
    assert (
        save_adapter(trained.engine, tmp_path / "adapter", base_model="base", revision=None, load_base=tiny_model)
        == 28
    )
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize("tied", [True, False])
def test_a_fully_trained_model_changed_and_is_loaded_back_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    trained = Trained(tmp_path / "checkpoints", ROWS, model=tiny_model(tie_word_embeddings=tied))
    tensors = save_full_model(trained.engine, tmp_path / "model", stop_token_ids=(260,))
    assert tensors == len(trained.model.state_dict()) - tied
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits_of(loaded), logits_of(trained.model))
    assert not torch.equal(logits_of(loaded), logits_of(tiny_model(tie_word_embeddings=tied)))
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied


class Tampering:
    """An engine whose saved model is changed before it is verified."""

    def __init__(self, engine: Any, change: Any) -> None:
        self._engine, self._change = engine, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def save_model(self, folder: str) -> None:
        from safetensors.torch import load_file, save_file

        self._engine.save_model(folder)
        file = Path(folder) / "model.safetensors"
        tensors = load_file(file)
        self._change(tensors)
        save_file(tensors, file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors["model.norm.weight"].add_(1e-6), "differs"),
        (lambda tensors: tensors.pop("model.norm.weight"), r"lacks model\.norm\.weight"),
        (lambda tensors: tensors.update({"unknown": torch.zeros(1)}), "differs"),
        (lambda tensors: tensors.clear(), "lacks"),
    ],
)
def test_a_whole_model_that_is_not_the_trained_one_is_caught_and_not_kept(
    tmp_path: Path, change: Any, words: str
) -> None:
    engine = Tampering(engine_for(tiny_model(), tmp_path), change)
    with pytest.raises(CheckpointError, match=words):
        save_full_model(engine, tmp_path / "model", stop_token_ids=(260,))
    assert not (tmp_path / "model").exists()


def test_a_model_saved_in_shards_is_verified_shard_by_shard(tmp_path: Path) -> None:
    class Sharded(Tampering):
        def save_model(self, folder: str) -> None:
            self._engine.model.save_pretrained(folder, max_shard_size="20KB")

    tensors = save_full_model(
        Sharded(engine_for(tiny_model(), tmp_path), None), tmp_path / "model", stop_token_ids=(260,)
    )
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    assert tensors == len(tiny_model().state_dict())


def test_a_base_whose_sampling_settings_contradict_each_other_can_still_be_saved(tmp_path: Path) -> None:
    """As Llama 2 does: temperature set, sampling off. transformers loads that, and refuses to write it again."""
    tiny_model().save_pretrained(tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "generation_config.json").read_text())
    settings |= {"temperature": 0.9, "top_p": 0.6}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(settings))
    model = load_model(ModelSource("base", str(tmp_path / "base")), ModelOptions("float32", "cpu"))
    trained = Trained(tmp_path / "checkpoints", ROWS, model=model, save_strategy="steps", save_steps=3)
    assert save_full_model(trained.engine, tmp_path / "model", stop_token_ids=(260,))
