"""`truetune export` writes what other programs load, proved in llama.cpp, or nothing."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import truetune
import warm
from commanded import printed_json, refusal
from conftest import CHATML, byte_tokenizer, tiny_model
from tiny_runs import architecture, base_in, digests, trained
from truetune.inference.go_template import render_go
from truetune.inference.ollama import as_ollama, parse_modelfile


@pytest.fixture(scope="module")
def run(tiny_run: truetune.Run) -> truetune.Run:
    return tiny_run


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> truetune.Run:
    folder = tmp_path_factory.mktemp("export-full")
    return trained(base_in(folder / "base"), folder / "run", method="full")


def exported(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    return printed_json(capsys, "export", *words)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    return refusal(capsys, "export", *words)


def test_an_adapter_is_merged_and_has_its_training_s_answers_in_llama_cpp(
    run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(run.directory)
    made = exported(capsys, run.directory, "--to", "gguf", "-o", tmp_path / "out.gguf")
    assert made["path"] == str(tmp_path / "out.gguf")
    assert made["bytes"] == (tmp_path / "out.gguf").stat().st_size
    assert (made["format"], made["quantization"]) == ("gguf", "f32")
    check = made["check"]
    assert check["prompts"] == check["equal"] == check["token_ids_equal"] > 3
    assert (check["tokens_equal_rate"], check["template_equal"]) == (1.0, True)
    assert check["max_abs_logit_difference"] < 1e-4
    assert digests(run.directory) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_a_whole_model_is_exported_as_it_is(
    full_run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = exported(capsys, full_run.directory, "--to", "gguf", "-o", tmp_path / "dir", "--quantize", "q8_0")
    assert made["path"] == str(tmp_path / "dir" / "run-q8_0.gguf")
    assert made["check"]["prompts"] == made["check"]["token_ids_equal"]


def test_a_checkpoint_is_exported_by_its_step(
    run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = sorted(int(path.name.rpartition("-")[2]) for path in (run.directory / "checkpoints").iterdir())
    made = exported(capsys, f"{run.directory}@{steps[0]}", "--to", "gguf", "-o", tmp_path / "out.gguf")
    assert made["check"]["prompts"] == made["check"]["equal"] > 0


def test_weights_that_were_changed_since_are_refused(
    full_run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "run"
    shutil.copytree(full_run.directory, other)
    tiny_model(hidden_size=64, intermediate_size=128, seed=3).save_pretrained(other / "model")
    status, told = refused(capsys, other, "--to", "gguf", "-o", tmp_path / "out.gguf")
    assert status == 1
    assert "is not what was written" in told
    (other / "model" / "manifest.json").unlink()
    status, told = refused(capsys, other, "--to", "gguf", "-o", tmp_path / "out.gguf")
    assert status == 1
    assert "in llama.cpp it is not the trained model" in told
    assert not (tmp_path / "out.gguf").exists()
    assert not list(tmp_path.glob(".unfinished*"))


def test_a_model_without_recorded_answers_is_asked_now(
    full_run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(full_run.directory / "model", tmp_path / "alone")
    for name in ("parity.json", "manifest.json", "truetune.json"):
        (tmp_path / "alone" / name).unlink(missing_ok=True)
    made = exported(capsys, tmp_path / "alone", "--to", "gguf", "-o", tmp_path / "out.gguf")
    assert made["check"]["prompts"] == made["check"]["equal"] == 3


def test_a_run_in_bf16_is_stored_so_and_known_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    base = base_in(tmp_path / "base")
    tiny_model(hidden_size=64, intermediate_size=128).to(torch.bfloat16).save_pretrained(base)
    run = trained(base, tmp_path / "run", precision="bf16", dtype="bfloat16", num_train_epochs=4)
    made = exported(capsys, run.directory, "--to", "gguf", "-o", tmp_path / "out.gguf")
    assert made["quantization"] == "bf16"
    assert made["check"]["equal"] + made["check"]["ties"] == made["check"]["prompts"]


def test_ollama_s_folder_prompts_and_stops_as_training_did(
    run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = exported(capsys, run.directory, "--to", "ollama", "-o", tmp_path / "folder")
    assert made["check"]["equal"] == made["check"]["prompts"]
    modelfile = parse_modelfile((tmp_path / "folder" / "Modelfile").read_text(encoding="utf-8"))
    assert (tmp_path / "folder" / modelfile.model).is_file()
    assert ("num_ctx", 256) in modelfile.parameters
    assert {value for name, value in modelfile.parameters if name == "stop"} == {"<|im_end|>", "</s>"}
    asked = render_go(modelfile.template, as_ollama([{"role": "user", "content": "Add 1 and 2"}]))
    ids = byte_tokenizer()(asked, add_special_tokens=False)["input_ids"]
    assert tuple(ids) == truetune.load(run).generate("Add 1 and 2").prompt_ids
    assert any("2,048" in note for note in modelfile.notes)


def test_ollama_is_refused_before_weights_load_where_the_template_cannot_be_put_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = CHATML.replace("{{ m['content'] }}", "{{ loop.index }} {{ m['content'] }}")
    run = trained(base_in(tmp_path / "base", template=template), tmp_path / "run", max_steps=1)
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "base").mkdir()
    base_in(tmp_path / "base", template=template)
    for weights in (tmp_path / "base").glob("*.safetensors"):
        weights.unlink()
    status, told = refused(capsys, run.directory, "--to", "ollama", "-o", tmp_path / "folder")
    assert status == 1
    assert "cannot be put into Ollama's words" in told
    assert not (tmp_path / "folder").exists()


def test_the_adapter_alone_names_its_base_as_the_user_did(
    run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = exported(capsys, run.directory, "--to", "adapter", "-o", tmp_path / "adapter")
    assert made["check"]["equal"] == made["check"]["prompts"] > 3
    assert made["quantization"] is None
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == run.config.model.name_or_path
    assert run.adapter
    written = digests(tmp_path / "adapter")
    assert set(written) - set(digests(run.adapter)) == {"README.md", "card.json"}
    assert digests(run.adapter).items() <= written.items()
    card = (tmp_path / "adapter" / "README.md").read_text()
    count = made["check"]["prompts"]
    assert f"| check on its base | {count} of {count} answers are the same |" in card
    assert str(run.config.model.name_or_path) not in card


def test_of_a_checkpoint_the_adapter_goes_with_its_prompts_and_without_its_optimizer(
    run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = max(int(path.name.rpartition("-")[2]) for path in (run.directory / "checkpoints").iterdir())
    made = exported(capsys, f"{run.directory}@{step}", "--to", "adapter", "-o", tmp_path / "adapter")
    assert made["check"] is None
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "truetune.json", "tokenizer.json", "README.md"} <= names
    left_out = (".pt", ".pth", "trainer_state.json", "manifest.json")
    assert not [name for name in names if name.endswith(left_out)]
    assert truetune.load(tmp_path / "adapter").generate("Add 3 and 4") == truetune.load(run).generate("Add 3 and 4")


def test_the_adapter_on_another_base_is_not_exported(
    run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = base_in(tmp_path / "other", seed=5)
    out = tmp_path / "adapter"
    status, told = refused(capsys, run.directory, "--to", "adapter", "-o", out, "--base", other)
    assert status == 1
    assert "is not the trained model" in told
    assert not out.exists()


def test_a_whole_model_has_no_adapter_to_export(
    full_run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = refused(capsys, full_run.directory, "--to", "adapter", "-o", tmp_path / "adapter")
    assert status == 1
    assert "holds a whole model, no adapter" in told


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--quantize", "q9"], 2, "no such quantization: q9"),
        (["--llama-cpp", "nowhere"], 2, "holds no convert_hf_to_gguf.py"),
    ],
)
def test_a_wrong_command_is_told_before_anything_loads(
    words: list[str],
    status: int,
    told: str,
    full_run: truetune.Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, error = refused(capsys, full_run.directory, "--to", "gguf", "-o", tmp_path / "x.gguf", *words)
    assert found == status
    assert told in error


def test_what_is_there_already_is_replaced_only_when_asked_and_only_an_export(
    full_run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    words = (full_run.directory, "--to", "ollama", "-o", out)
    assert refused(capsys, *words)[0] == 2
    assert "no such export" in refused(capsys, *words, "--overwrite")[1]
    assert (out / "mine.txt").read_text() == "mine"
    (out / "mine.txt").unlink()
    exported(capsys, *words, "--no-check")
    assert refused(capsys, *words)[0] == 2
    assert exported(capsys, *words, "--no-check", "--overwrite")["check"] is None


def without_llama_cpp(folder: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    """The command where xllamacpp is not installed."""
    block = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'xllamacpp' else find(name, *rest)\n"
        "from truetune.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = warm.python("-c", block, "export", *words, "--json")
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ})


def test_without_llama_cpp_the_export_says_that_it_was_not_checked(full_run: truetune.Run, tmp_path: Path) -> None:
    words = (full_run.directory, "--to", "gguf", "-o", tmp_path / "out.gguf")
    done = without_llama_cpp(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["check"] is None
    assert "is not checked in it" in done.stderr
    assert "pip install 'truetune[llama-cpp]'" in done.stderr
    done = without_llama_cpp(tmp_path, *words, "--require-check", "--overwrite")
    assert done.returncode == 1
    assert "the check needs llama.cpp" in done.stderr
    done = without_llama_cpp(tmp_path, *words, "--overwrite", "--quantize", "q4_k_m")
    assert done.returncode == 1
    assert "is written by llama.cpp" in done.stderr


def test_llama_cpps_converter_writes_the_file_where_it_is_named(
    full_run: truetune.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A converter of our own stands for llama.cpp's, which is not on PyPI: it takes the same arguments."""
    reference = exported(capsys, full_run.directory, "--to", "gguf", "-o", tmp_path / "reference.gguf")
    source = tmp_path / "llama.cpp"
    source.mkdir()
    program = source / "convert_hf_to_gguf.py"
    program.write_text(
        "import shutil, sys\n"
        "_, folder, outfile, out, outtype, kind = sys.argv\n"
        "assert (outfile, outtype, kind) == ('--outfile', '--outtype', 'f32')\n"
        f"shutil.copy({str(tmp_path / 'reference.gguf')!r}, out)\n"
    )
    words = (full_run.directory, "--to", "gguf", "-o", tmp_path / "out.gguf", "--llama-cpp", source)
    assert exported(capsys, *words)["check"] == reference["check"]
    program.write_text("raise SystemExit('I know no such model')")
    status, told = refused(capsys, *words, "--overwrite")
    assert status == 1
    assert "convert_hf_to_gguf.py failed: I know no such model" in told


def test_an_architecture_without_a_gguf_is_refused_before_weights_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    architecture("GPT2").save_pretrained(tmp_path / "model")
    byte_tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    status, told = refused(capsys, tmp_path / "model", "--to", "gguf", "-o", tmp_path / "x.gguf")
    assert status == 1
    assert "writes no GGUF of GPT2LMHeadModel" in told
    assert "--llama-cpp" in told
