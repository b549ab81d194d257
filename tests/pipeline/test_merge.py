"""`truetune merge` writes the model that was trained, or nothing."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import truetune
from conftest import CHATML, byte_tokenizer, tiny_model
from hub import running_hub
from tiny_runs import architecture, base_in, digests, trained
from truetune.cli import main
from truetune.inference.card import is_untouched
from truetune.inference.parity import read_fixtures, replay
from truetune.model import merging
from truetune.model.adapter import load_trained_adapter
from truetune.model.load import ModelOptions, load_model
from truetune.model.probe import farthest
from truetune.model.source import ModelSource
from truetune.runs.checkpoints import problems, read_manifest


@pytest.fixture(scope="module")
def run(tiny_run: truetune.Run) -> truetune.Run:
    return tiny_run


def base_of(run: truetune.Run) -> Path:
    return Path(run.config.model.name_or_path)


def loaded(folder: Path, dtype: str = "float32") -> Any:
    return load_model(ModelSource(str(folder), str(folder)), ModelOptions(dtype, "cpu"))


def farthest_logit(merged: Path, base: Path, adapter: Path) -> float:
    """The largest difference on three prompts, in fp32: by transformers and PEFT alone."""
    one, other = loaded(merged), load_trained_adapter(loaded(base), adapter)
    prompts = [torch.arange(start, start + 12).unsqueeze(0) for start in (1, 60, 120)]
    with torch.no_grad():
        return max(float((one(each).logits - other(each).logits).abs().max()) for each in prompts)


def of_one_thousandth(run: truetune.Run, folder: Path) -> Path:
    """The run's adapter with updates whose largest number is 1e-3."""
    assert run.adapter is not None
    shutil.copytree(run.adapter, folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    settings = json.loads((folder / "adapter_config.json").read_text())
    scaling = settings["lora_alpha"] / settings["r"]
    for name in [name for name in tensors if "lora_B" in name]:
        update = scaling * tensors[name] @ tensors[name.replace("lora_B", "lora_A")]
        tensors[name] *= 1e-3 / update.abs().max()
    save_file(tensors, file, {"format": "pt"})
    (folder / "parity.json").unlink()
    return folder


def test_a_merged_run_answers_as_it_did_and_generates_without_its_base(run: truetune.Run, tmp_path: Path) -> None:
    assert run.adapter is not None
    expected = truetune.load(run).generate("Add 3 and 4")
    merged = truetune.merge(run, tmp_path / "merged")
    check = merged.check
    assert (check.prompts, check.equal, check.ties) == (6, 6, 0)
    assert check.max_abs_logit_difference is not None
    assert check.max_abs_logit_difference <= 1e-4
    answer = truetune.load(merged.path).generate("Add 3 and 4")
    assert answer == expected
    assert answer.stop_reason == "stop"
    assert not (merged.path / "adapter_config.json").exists()


def test_the_merged_folder_takes_along_what_the_training_knew(run: truetune.Run, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    assert run.adapter is not None
    merged = truetune.merge(run, tmp_path / "merged").path
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(run.adapter).chat_template
    assert 260 in GenerationConfig.from_pretrained(merged).eos_token_id
    before, after = (json.loads((each / "truetune.json").read_text()) for each in (run.adapter, merged))
    assert before == after
    fixtures = read_fixtures(merged)
    assert fixtures == read_fixtures(run.adapter)
    assert fixtures is not None
    assert replay(loaded(merged), fixtures).is_same
    card = (merged / "README.md").read_text()
    assert is_untouched(card)
    assert "| check of the merge | 6 of 6 answers are the same" in card
    assert str(base_of(run)) not in card + (merged / "card.json").read_text()
    assert problems(merged) == []
    off, rounding = farthest(loaded(merged), read_manifest(merged)["logits"])
    assert off <= rounding


def test_the_command_prints_what_scripts_read(
    run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(run.directory), "-o", str(tmp_path / "merged"), "--dtype", "bfloat16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(tmp_path / "merged")
    assert told["check"].keys() == {"prompts", "equal", "ties", "max_abs_logit_difference"}
    assert told["check"]["equal"] + told["check"]["ties"] == told["check"]["prompts"] == 6
    assert 0 < told["check"]["max_abs_logit_difference"] < 0.1
    assert (told["dtype"], told["shards"], told["tensors"]) == ("bfloat16", 1, 21)
    assert told["base"] == str(base_of(run))
    assert told["bytes"] == 2 * sum(each.numel() for each in loaded(base_of(run)).parameters())


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_weights_are_stored_as_the_bases_unless_told_otherwise(
    run: truetune.Run, tmp_path: Path, stored: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_of(run), base)
    loaded(base).to(getattr(torch, stored)).save_pretrained(base)
    assert run.adapter is not None
    adapter = tmp_path / "adapter"
    shutil.copytree(run.adapter, adapter)
    for name, expected in (("auto", stored), ("float32", "float32")):
        merged = truetune.merge(adapter, tmp_path / name, base_model=str(base), dtype=name)  # type: ignore[arg-type]
        kinds = {each.dtype for each in load_file(merged.path / "model.safetensors").values()}
        assert kinds == {getattr(torch, expected)}
        assert json.loads((merged.path / "config.json").read_text())["dtype"] == merged.dtype == expected


def test_a_model_that_does_not_fit_in_fp32_is_checked_in_the_dtype_that_it_is_stored_in(
    run: truetune.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_of(run), base)
    loaded(base).bfloat16().save_pretrained(base)
    asked: list[str] = []
    right = load_model
    monkeypatch.setattr("truetune.pipeline.delivery.merge.free_memory", lambda _: 1000)
    monkeypatch.setattr(
        "truetune.pipeline.delivery.merge.load_model",
        lambda source, options: (asked.append(options.dtype), right(source, options))[1],
    )
    merged = truetune.merge(run, tmp_path / "merged", base_model=str(base))
    assert asked == ["bfloat16", "bfloat16"]
    assert merged.check.is_same


# --- G25 --------------------------------------------------------------------------------------------------


def test_g25_what_was_trained_over_4_bits_is_merged_into_the_unquantised_base(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    run = trained(base, tmp_path / "run", load_in_4bit=True)
    assert run.adapter is not None
    before = digests(base), digests(run.directory)
    merged = truetune.merge(run, tmp_path / "merged")
    assert "quantization_config" not in json.loads((merged.path / "config.json").read_text())
    assert merged.dtype == "float32"
    assert {each.dtype for each in loaded(merged.path).state_dict().values()} == {torch.float32}
    assert farthest_logit(merged.path, base, run.adapter) <= 1e-4
    assert merged.check.prompts >= 3
    assert merged.check.is_same
    assert merged.check.max_abs_logit_difference is not None
    assert merged.check.max_abs_logit_difference <= 1e-4
    assert (digests(base), digests(run.directory)) == before
    fixtures = read_fixtures(merged.path)
    assert fixtures is not None
    assert replay(loaded(merged.path), fixtures).is_same


def test_g25_an_update_of_one_thousandth_survives(run: truetune.Run, tmp_path: Path) -> None:
    adapter = of_one_thousandth(run, tmp_path / "adapter")
    merged = truetune.merge(adapter, tmp_path / "merged", base_model=str(base_of(run)))
    assert farthest_logit(merged.path, base_of(run), adapter) <= 1e-4
    before, after = (load_file(each / "model.safetensors") for each in (base_of(run), merged.path))
    moved = [float((after[name] - before[name]).abs().max()) for name in before if "proj" in name]
    assert max(moved) == pytest.approx(1e-3, rel=0.01)
    assert min(moved) > 1e-5


def test_g25_a_quantised_base_is_refused_before_weights_load_and_another_can_be_named(
    run: truetune.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_in(tmp_path / "base")
    quantised = tmp_path / "quantised"
    load_model(ModelSource("base", str(base)), ModelOptions("float32", "cpu", "4bit")).save_pretrained(quantised)
    byte_tokenizer(chat_template=CHATML).save_pretrained(quantised)
    over_4_bits = trained(quantised, tmp_path / "run", num_train_epochs=2)
    with monkeypatch.context() as patched:
        patched.setattr("truetune.pipeline.delivery.merge.load_model", lambda *_: pytest.fail("weights were loaded"))
        for named in (None, str(quantised)):
            with pytest.raises(truetune.BackendError, match=r"quantized.*4-bit") as caught:
                truetune.merge(over_4_bits, tmp_path / "merged", base_model=named)
            assert "--base" in str(caught.value)
    assert not (tmp_path / "merged").exists()
    merged = truetune.merge(over_4_bits, tmp_path / "merged", base_model=str(base))
    assert over_4_bits.adapter is not None
    assert farthest_logit(merged.path, base, over_4_bits.adapter) <= 1e-4
    assert merged.base == str(base)


def test_g25_answers_that_only_quantised_weights_gave_are_told_and_recorded_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trained(base_in(tmp_path / "base"), tmp_path / "run", load_in_4bit=True, num_train_epochs=5)
    _answer_otherwise(run.directory / "adapter" / "parity.json")
    merged = truetune.merge(run, tmp_path / "merged")
    assert "trained over quantised weights: 5 of 6 recorded answers are the same" in caplog.text
    assert merged.check.equal == 6
    fixtures = read_fixtures(merged.path)
    assert fixtures is not None
    assert replay(loaded(merged.path), fixtures).is_same


def _answer_otherwise(file: Path) -> None:
    """As if the model had answered with another first token, and been sure of it."""
    document = json.loads(file.read_text())
    document["fixtures"][0]["answer_ids"][0] ^= 1
    document["fixtures"][0]["margins"][0] = 100.0
    file.write_text(json.dumps(document))


# --- G26 --------------------------------------------------------------------------------------------------


def test_g26_alpaca_prompts_come_along(tmp_path: Path) -> None:
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    run = trained(tmp_path / "base", tmp_path / "run", num_train_epochs=2)
    expected = truetune.load(run).generate("hi", input="there")
    merged = truetune.merge(run, tmp_path / "merged")
    found = truetune.load(merged.path).generate("hi", input="there")
    assert b"### Instruction:\nhi\n\n### Input:\nthere" in bytes(found.prompt_ids)
    assert found == expected


def test_g26_a_base_that_is_gone_is_named_and_another_place_can_be(run: truetune.Run, tmp_path: Path) -> None:
    for folder, source in (("base", base_of(run)), ("run", run.directory)):
        shutil.copytree(source, tmp_path / folder)
    adapter = tmp_path / "run" / "adapter"
    text = (adapter / "truetune.json").read_text().replace(str(base_of(run)), str(tmp_path / "base"))
    (adapter / "truetune.json").write_text(text)
    shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    with pytest.raises(truetune.BackendError) as caught:
        truetune.merge(adapter, tmp_path / "merged")
    assert str(tmp_path / "base") in str(caught.value)
    assert "--base" in str(caught.value)
    merged = truetune.merge(adapter, tmp_path / "merged", base_model=str(tmp_path / "elsewhere"))
    expected = truetune.load(run).generate("Add 1 and 2")
    shutil.move(tmp_path / "elsewhere", tmp_path / "gone")
    assert truetune.load(merged.path).generate("Add 1 and 2") == expected


# --- what goes in -----------------------------------------------------------------------------------------


def test_a_checkpoint_is_merged_and_held_against_its_own_answers(run: truetune.Run, tmp_path: Path) -> None:
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in (run.directory / "checkpoints").iterdir())
    name = f"{run.directory}@{steps[0]}"
    merged = truetune.merge(name, tmp_path / "merged")
    checkpoint = run.directory / "checkpoints" / f"checkpoint-{steps[0]}"
    assert merged.check.prompts == merged.check.equal == 6
    assert farthest_logit(merged.path, base_of(run), checkpoint) <= 1e-4
    assert truetune.load(merged.path).prompt_format == truetune.load(run).prompt_format
    fixtures = read_fixtures(merged.path)
    assert fixtures is not None
    assert replay(loaded(merged.path), fixtures).is_same
    with pytest.raises(truetune.CheckpointError, match="no complete checkpoint of step 7777") as caught:
        truetune.merge(f"{run.directory}@7777", tmp_path / "none")
    assert f"there are {steps[0]}, {steps[1]}" in str(caught.value)
    recorded = read_fixtures(run.directory / "adapter")
    assert recorded is not None
    assert [each.prompt_ids for each in fixtures.fixtures] == [each.prompt_ids for each in recorded.fixtures]
    assert fixtures.fixtures[0].margins != recorded.fixtures[0].margins


def test_a_checkpoint_of_a_run_that_has_not_finished_is_merged_with_its_prompts(
    run: truetune.Run, tmp_path: Path
) -> None:
    assert run.adapter is not None
    stopped = tmp_path / "run"
    shutil.copytree(run.directory, stopped)
    shutil.rmtree(stopped / "adapter")
    shutil.copytree(base_of(run), tmp_path / "moved")
    _name_base(stopped / "config.yaml", base_of(run), tmp_path / "gone")
    (step, *_) = sorted(int(path.name.removeprefix("checkpoint-")) for path in (stopped / "checkpoints").iterdir())
    merged = truetune.merge(f"{stopped}@{step}", tmp_path / "merged", base_model=str(tmp_path / "moved"))
    assert merged.check.prompts == merged.check.equal > 0
    expected = truetune.load(run).prompt_format
    assert replace(truetune.load(merged.path).prompt_format, base_model=expected.base_model) == expected


def _name_base(config: Path, now: Path, then: Path) -> None:
    config.write_text(config.read_text().replace(str(now), str(then)))


def test_an_adapter_of_peft_s_own_is_merged_and_its_prompts_are_said_to_be_unknown(
    run: truetune.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from peft import LoraConfig, get_peft_model

    base = base_of(run)
    adapted = get_peft_model(loaded(base), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=True))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = truetune.merge(tmp_path / "adapter", tmp_path / "merged")
    assert farthest_logit(merged.path, base, tmp_path / "adapter") <= 1e-4
    assert merged.check.prompts == merged.check.equal == 3
    assert "how its prompts were written is not known" in caplog.text
    assert read_fixtures(merged.path) is not None
    assert not (merged.path / "truetune.json").exists()


def test_a_base_on_the_hub_is_fetched_without_what_it_keeps_beside(run: truetune.Run, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in base_of(run).iterdir()}
    others = dict.fromkeys(("pytorch_model.bin", "flax_model.msgpack", "model.gguf", "onnx/model.onnx"), b"x" * 1000)
    with running_hub() as hub:
        hub.add("org/base", {**files, **others}, kind="models")
        command = ["merge", str(run.adapter), "-o", str(tmp_path / "merged"), "--base", "org/base", "--json"]
        environment = {**os.environ, **hub.environment(), "HF_HOME": str(tmp_path / "hub")}
        done = subprocess.run(
            [sys.executable, "-m", "truetune", *command], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["base"] == "org/base"
    assert told["check"]["equal"] == told["check"]["prompts"] == 6
    assert not [name for name in hub.sent if any(other in name for other in others)]
    assert json.loads((tmp_path / "merged" / "truetune.json").read_text())["base_model"] == "org/base"


def test_a_mixture_is_merged_in_the_names_that_it_is_stored_under(tmp_path: Path) -> None:
    base = tmp_path / "base"
    architecture("Mixtral").save_pretrained(base)
    byte_tokenizer(chat_template=CHATML).save_pretrained(base)
    run = trained(base, tmp_path / "run", num_train_epochs=3)
    assert run.adapter is not None
    merged = truetune.merge(run, tmp_path / "merged")
    assert merged.check.is_same
    assert farthest_logit(merged.path, base, run.adapter) <= 1e-4
    before, after = (set(load_file(each / "model.safetensors")) for each in (base, merged.path))
    assert before == after


def test_an_older_run_without_answers_is_asked_fixed_prompts(run: truetune.Run, tmp_path: Path) -> None:
    shutil.copytree(run.directory, tmp_path / "run")
    for file in ("parity.json", "adapter/parity.json"):
        (tmp_path / "run" / file).unlink()
    merged = truetune.merge(tmp_path / "run", tmp_path / "merged")
    assert merged.check.prompts == merged.check.equal == 2


def test_after_full_fine_tuning_there_is_nothing_to_merge(tmp_path: Path, tiny_base: Path) -> None:
    run = trained(tiny_base, tmp_path / "run", method="full", num_train_epochs=1, learning_rate=1e-3)
    with pytest.raises(truetune.CheckpointError, match="nothing to merge") as caught:
        truetune.merge(run, tmp_path / "merged")
    assert str(run.directory / "model") in str(caught.value)


# --- what is refused --------------------------------------------------------------------------------------


def test_another_base_is_not_the_trained_model(run: truetune.Run, tmp_path: Path) -> None:
    other = base_in(tmp_path / "other", seed=5)
    with pytest.raises(truetune.CheckpointError, match="it is not the trained model") as caught:
        truetune.merge(run, tmp_path / "merged", base_model=str(other))
    assert "--base" in str(caught.value)
    assert list(tmp_path.iterdir()) == [other]


@pytest.mark.parametrize("scale", [0.0, 0.999])
def test_a_merge_that_went_wrong_leaves_nothing(
    run: truetune.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    right = merging._merged

    def wrong(plan: Any, name: str, weight: Any, *, dtype: str | None) -> Any:
        made = right(plan, name, weight, dtype=dtype)
        return weight + scale * (made - weight) if name.endswith("1.self_attn.v_proj.weight") else made

    monkeypatch.setattr(merging, "_merged", wrong)
    with pytest.raises(truetune.CheckpointError, match="the merged model") as caught:
        truetune.merge(run, tmp_path / "merged")
    assert "nothing was written" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over_what_is_no_merged_model(run: truetune.Run, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("all there is")
    for overwrite in (False, True):
        with pytest.raises(truetune.ConfigError):
            truetune.merge(run, tmp_path / "notes", overwrite=overwrite)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "all there is"
    assert run.adapter is not None
    for place in (run.directory, run.adapter, run.adapter / "merged", base_of(run), base_of(run).parent):
        with pytest.raises(truetune.ConfigError, match="what is to be merged"):
            truetune.merge(run, place, overwrite=True)


def test_a_merged_model_is_replaced_only_when_asked_to(run: truetune.Run, tmp_path: Path) -> None:
    first = truetune.merge(run, tmp_path / "merged")
    with pytest.raises(truetune.ConfigError, match="there already"):
        truetune.merge(run, tmp_path / "merged")
    again = truetune.merge(run, tmp_path / "merged", dtype="bfloat16", overwrite=True)
    assert again.bytes * 2 == first.bytes


def test_a_full_disk_is_told_before_weights_load(
    run: truetune.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    monkeypatch.setattr("truetune.pipeline.delivery.merge.load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(truetune.CheckpointError, match="free on its disk"):
        truetune.merge(run, tmp_path / "merged")
