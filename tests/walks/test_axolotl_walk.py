"""Somebody with a config of another tool: what they type, and that they get from there to a training."""

import json
from pathlib import Path

import pytest
from typed import Terminal

from conftest import arithmetic_rows, write_jsonl
from truetune.config.load import load_config

LORA = """\
base_model: NousResearch/Llama-3.2-1B
datasets:
  - path: data/sums.jsonl
    type: alpaca
val_set_size: 0.1
output_dir: ./outputs/lora-out

adapter: lora
lora_model_dir:
lora_r: 4
lora_alpha: 8
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]

sequence_len: 256
sample_packing: true
eval_sample_packing: true
deepspeed:

wandb_project:
wandb_entity:
wandb_watch:

gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_torch
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
resume_from_checkpoint:
logging_steps: 1
flash_attention: true
warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
"""
CHATS = """\
base_model: Qwen/Qwen2.5-0.5B-Instruct
chat_template: qwen_25
datasets:
  - path: chats.jsonl
    ds_type: json
    type: chat_template
    field_messages: dialog
    message_property_mappings: {role: from, content: value}
    roles: {user: [human], assistant: [gpt]}
    roles_to_train: [assistant]
    train_on_eos: turn
sequence_len: 256
micro_batch_size: 1
num_epochs: 1
"""
FACTORY = """\
### model
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
### dataset
dataset: sums
template: qwen
cutoff_len: 256
overwrite_cache: true
preprocessing_num_workers: 16
### output
output_dir: saves/qwen/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
ddp_timeout: 180000000
resume_from_checkpoint: null
"""
SCRIPT = """\
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

dataset = load_dataset("json", data_files="sums.jsonl", split="train")
lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
args = SFTConfig(output_dir="out", max_length=256, learning_rate=2e-4, num_train_epochs=2, bf16=False)
trainer = SFTTrainer("Qwen/Qwen2.5-0.5B-Instruct", train_dataset=dataset, args=args, peft_config=lora)
trainer.train()
"""


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A shell in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Terminal(capsys)


def test_an_axolotl_config_is_imported_planned_and_trained(terminal: Terminal, tiny_base: Path) -> None:
    Path("lora.yml").write_text(LORA)
    Path("data").mkdir()
    write_jsonl(Path("data/sums.jsonl"), arithmetic_rows(120))
    habit = terminal.refused("train", "lora.yml", status=2)
    assert "Axolotl" in habit
    assert "truetune import lora.yml -o run.yaml" in habit

    made = terminal.done("import", "lora.yml", "-o", "run.yaml")
    assert "next: truetune plan run.yaml" in made.out
    assert "lora.yml:41: special_tokens.pad_token is not translated: the stop token" in made.err

    here = ("run.yaml", f"model={tiny_base}")
    assert "total_steps" in json.loads(terminal.done("plan", *here, "--json").out)
    terminal.done("train", *here, "max_steps=1")
    assert json.loads(Path("outputs/lora-out/run.json").read_text())["status"] == "finished"


def test_turns_under_axolotls_own_names_are_learned_as_it_says(terminal: Terminal, tiny_base: Path) -> None:
    Path("chats.yaml").write_text(CHATS)
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    write_jsonl(Path("chats.jsonl"), [{"dialog": turns}] * 2)
    terminal.done("import", "chats.yaml", "-o", "run.yaml")
    shown = json.loads(terminal.done("inspect", "run.yaml", f"model={tiny_base}", "--json").out)
    assert [row["spans"] for row in shown["rows"]] == [["Hello<|im_end|>"]] * 2


def test_a_key_with_a_letter_missing_is_not_lost_in_silence(terminal: Terminal) -> None:
    Path("lora.yml").write_text(LORA.replace("learning_rate", "learing_rate"))
    made = terminal.done("import", "lora.yml", "-o", "run.yaml")
    assert "lora.yml:29: learing_rate is not translated: unknown key (did you mean learning_rate?)" in made.err


@pytest.mark.parametrize("typed_in", ["LLaMA-Factory", "elsewhere"])
def test_a_llamafactory_config_finds_its_rows_from_its_own_folder_and_from_another(
    terminal: Terminal, tiny_base: Path, typed_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "LLaMA-Factory" / "examples" / "train_lora" / "qwen_lora_sft.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(FACTORY)
    data = tmp_path / "LLaMA-Factory" / "data"
    data.mkdir()
    (data / "dataset_info.json").write_text(json.dumps({"sums": {"file_name": "sums.json"}}))
    (data / "sums.json").write_text(json.dumps(arithmetic_rows(12)))
    (tmp_path / typed_in).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / typed_in)
    terminal.done("import", config, "-o", "run.yaml")
    assert load_config(Path("run.yaml")).config.data.path
    assert json.loads(terminal.done("plan", "run.yaml", f"model={tiny_base}", "--json").out)["sequences"] == 12


def test_a_training_script_is_read_and_trains_the_same_rows(terminal: Terminal, tiny_base: Path) -> None:
    Path("sft.py").write_text(SCRIPT)
    write_jsonl(Path("sums.jsonl"), arithmetic_rows(12))
    assert "truetune import sft.py -o run.yaml" in terminal.refused("train", "sft.py", status=2)
    terminal.done("import", "sft.py", "-o", "run.yaml")
    terminal.done("train", "run.yaml", f"model={tiny_base}", "--dry-run")


@pytest.mark.parametrize(
    ("name", "text", "remedy"),
    [
        ("train.jsonl", '{"instruction": "a", "output": "b"}\n' * 2, "truetune check train.jsonl"),
        ("job.json", '{"training_file": "file-1", "model": "gpt-4o-mini"}', "truetune train --model M --data FILE"),
        ("notes.yaml", "colour: blue\n", "--from"),
        ("notes.py", "print(1)\n", "SFTTrainer"),
    ],
)
def test_what_is_no_config_of_a_tool_says_what_to_do_with_it(
    terminal: Terminal, name: str, text: str, remedy: str
) -> None:
    Path(name).write_text(text)
    assert remedy in terminal.refused("import", name, status=2)


@pytest.mark.parametrize("model", ["model: {name_or_path: demo}\n", ""])
def test_a_config_of_our_own_with_a_mistake_is_not_taken_for_another_tools(model: str, terminal: Terminal) -> None:
    Path("run.yaml").write_text(f"{model}data: {{path: x.jsonl, max_length: 8}}\ntraining: {{learnig_rate: 1}}\n")
    assert "import" not in terminal.refused("train", "run.yaml", "--model", "demo", status=2)
