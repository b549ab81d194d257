"""Every mistake of a config is told at once, each where it was made, also inside lists and mappings."""

from pathlib import Path

import pytest

from truetune.config.load import load_config
from truetune.errors import ConfigError

TEN = """\
adapter:
  r: abc
  lora_dropout: 1.5
training:
  learnig_rate: 1e-4
  optim: adamv_torch
  save_steps: 5
evaluation:
  load_best_model_at_end: false
  early_stopping_patience: 2
batch_size: 8
cutoff_len: 512
data:
  max_length: 1024
  path:
    - a.jsonl
    - path: b.jsonl
      wieght: 2
seeds: [1, 2]
"""
"""A type, a range, a typo, a choice, a section, a contradiction, a refused name, two names, an inner typo."""


def lines(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=overrides, required=["data.path"])
    return [line.replace(f"{path.parent}/", "") for line in caught.value.message.splitlines()]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_ten_mistakes_and_more_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert lines(written(tmp_path, TEN), "warmup_ratio", "trian.seed=1", "logging.report_to=[wandb, mlfow]") == [
        "run.yaml:2: adapter.r must be auto or a whole number of at least 1 (got 'abc')",
        "run.yaml:3: adapter.lora_dropout must be a number of at least 0 and below 1 (got 1.5)",
        "run.yaml:5: training.learnig_rate: unknown setting (did you mean training.learning_rate?)",
        "run.yaml:6: training.optim must be one of auto, adamw_torch, adamw_torch_fused, adamw_8bit, adamw_bnb_8bit, "
        "paged_adamw_8bit, paged_adamw_32bit, lion_8bit, lion_32bit, paged_lion_8bit, paged_lion_32bit, adafactor, "
        "sgd, adagrad, rmsprop (got 'adamv_torch'); did you mean adamw_torch?",
        "run.yaml:7: training.save_steps: unknown setting (did you mean checkpoints.save_steps?)",
        "run.yaml:10: evaluation.early_stopping_patience needs evaluation.load_best_model_at_end: true",
        "run.yaml:11: batch_size: it counts rows a device, or rows a step, by tool: set per_device_train_batch_size "
        "and gradient_accumulation_steps",
        "run.yaml:14: data.max_length = 1024 contradicts cutoff_len = 512 (both set data.max_length)",
        "run.yaml:18: data.path[1].wieght: unknown setting (did you mean weight?)",
        "run.yaml:19: seeds: unknown setting (did you mean training.seed?)",
        "run.yaml: model.name_or_path is missing: hub id, folder, .gguf file, or demo",
        "command line: warmup_ratio: expected key=value",
        "command line: trian.seed: unknown setting (did you mean training.seed?)",
        "command line: logging.report_to[1] must be one of tensorboard, wandb, trackio, azure_ml, clearml, "
        "codecarbon, comet_ml, dagshub, dvclive, flyte, kubeflow, mlflow, neptune, swanlab "
        "(got 'mlfow'); did you mean mlflow?",
    ]


def test_a_contradiction_is_told_where_the_last_of_its_settings_stands(tmp_path: Path) -> None:
    text = "model:\n  name_or_path: m\n  load_in_4bit: true\n  load_in_8bit: true\n"
    best = "evaluation: {load_best_model_at_end: true,\n  eval_strategy: 'no'}\n"
    assert lines(written(tmp_path, text + best + "data: {path: x}\n")) == [
        "run.yaml:4: model.load_in_4bit and model.load_in_8bit are both true: choose one",
        "run.yaml:6: evaluation.load_best_model_at_end needs evaluations, and evaluation.eval_strategy is no",
    ]
    eight = written(tmp_path, "model: {name_or_path: m, load_in_4bit: true}\ndata: {path: x}\n")
    assert lines(eight, "load_in_8bit=true") == [
        "command line: model.load_in_4bit and model.load_in_8bit are both true: choose one"
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.path=[a, {path: b, wieght: 2}]", "data.path[1].wieght: unknown setting (did you mean weight?)"),
        ("data.path=[{path: a, shard: 2}]", "data.path[0].shard: unknown setting (path, weight, split, "),
        ("data.path=[{weight: 2}]", "data.path[0].path is missing"),
        ("data.path=[{path: a, weight: x}]", "data.path[0].weight must be a number above 0 (got 'x')"),
        ("data.path=[{path: a, weight: '2'}]", "(got '2'); write it without quotes"),
        ("data.path=[3]", "data.path[0] must be text or a mapping of path, weight, split, "),
        (
            "check.severity={TT210: eror}",
            "check.severity.TT210 must be one of error, warning, note (got 'eror')",
        ),
        ("data.columns={body: 3}", "data.columns.body must be text (got 3)"),
        ("data.columns.body=text", "data.columns is a mapping of names; write data.columns='{body: …}'"),
        ("training.optim.name=sgd", "training.optim.name: unknown setting (training.optim is one of auto, "),
        ("deploy.target=vllm", "deploy.target: unknown setting (deploy is one of vllm, gguf, ollama or null)"),
        ("target_modules=[q_proj, 3]", "adapter.target_modules[1] must be text (got 3)"),
        ("train_file=[{path: a, wieght: 2}]", "wieght is not read here; of a data set, path, weight, "),
        ("foo.bar.learning_rate=1", "foo.bar.learning_rate: unknown setting (did you mean training.learning_rate?)"),
    ],
)
def test_g22_no_unknown_or_wrong_part_is_ignored_at_any_depth(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"model": "m"}, overrides=[override])
    assert len(caught.value.message.splitlines()) == 1
    assert words in caught.value.message


def test_every_wrong_entry_of_a_list_is_told_on_its_own_line(tmp_path: Path) -> None:
    text = "model: m\ndata:\n  path:\n  - {path: a, wieght: 2}\n  - 3\n  - path: b\n    weight: 0\n  - c\n"
    assert [line.partition(" must")[0] for line in lines(written(tmp_path, text))] == [
        "run.yaml:4: data.path[0].wieght: unknown setting (did you mean weight?)",
        "run.yaml:5: data.path[1]",
        "run.yaml:7: data.path[2].weight",
    ]


def test_python_values_have_parts_too() -> None:
    with pytest.raises(ConfigError, match=r"setting adapter\.target_modules\[1\] must be text"):
        load_config({"model": "m"}, settings={"target_modules": ("q_proj", 3)})


def test_a_notice_tells_the_value_in_force_and_none_tells_what_a_later_word_undid(tmp_path: Path) -> None:
    path = written(tmp_path, "model: m\nmax_seq_length: 512\neval_steps: 5\nbf16: false\ntrain_file: [a, b]\n")
    loaded = load_config(path, overrides=["data.max_length=1024", "eval_strategy=no"])
    assert loaded.notices == (
        "model is now model.name_or_path: m",
        "max_seq_length is now data.max_length: 1024",
        "bf16 is now training.precision: auto",
        "train_file is now data.path",
    )
