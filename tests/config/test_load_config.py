"""One schema for files, flags and keywords; every mistake told at once, with its line and a suggestion."""

from pathlib import Path
from typing import Any

import pytest

from truetune.config.kinds import OPTIMIZERS, SCHEDULERS
from truetune.config.load import dump_config, fields, load_config
from truetune.config.names import ALIASES
from truetune.config.schema import Config, setting_names
from truetune.errors import ConfigError

BASE = {"model.name_or_path": "m"}


def load(*overrides: str, **settings: Any) -> Any:
    return load_config(settings={**BASE, **settings}, overrides=overrides).config


def problem(*overrides: str, source: Any = None, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, settings={**BASE, **settings}, overrides=overrides)
    return caught.value.message


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_config_file_is_read_section_by_section(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "model: {name_or_path: m}\nadapter:\n  r: 8\ndata:\n  path: a.jsonl\n  columns: {body: text}\n"
        "training:\n  learning_rate: 2e-4\noutput_dir: runs/x\n",
    )
    config = load_config(path).config
    assert (config.adapter.r, config.training.learning_rate, config.output_dir) == (8, 2e-4, "runs/x")
    assert config.data.columns == {"body": "text"}
    assert config.training.gradient_accumulation_steps == "auto"


def test_values_are_yaml_1_2() -> None:
    config = load("learning_rate=2e-4", "eval_strategy=no", "target_modules=[q_proj, v_proj]", "save_strategy=no")
    assert config.training.learning_rate == 2e-4
    assert config.evaluation.eval_strategy == "no"
    assert config.adapter.target_modules == ("q_proj", "v_proj")


def test_a_setting_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    path = written(tmp_path, "model: {name_or_path: m}\nadapter: {r: 1, lora_alpha: 1}\n")
    loaded = load_config(path, settings={"r": 2, "lora_alpha": 2.0}, overrides=["adapter.r=3"])
    assert (loaded.config.adapter.r, loaded.config.adapter.lora_alpha) == (3, 2.0)


def test_g22_the_guides_names_are_translated_and_told_once(tmp_path: Path) -> None:
    text = "model: {name_or_path: m}\nevaluation_strategy: steps\neval_steps: 100\nwarmup_ratio: 0.03\n"
    loaded = load_config(written(tmp_path, text + "max_seq_length: 1024\nlogging_dir: ./logs\nnum_gpus: 1\n"))
    config = loaded.config
    assert (config.evaluation.eval_strategy, config.evaluation.eval_steps) == ("steps", 100)
    assert (config.data.max_length, config.training.warmup_ratio) == (1024, 0.03)
    assert (config.logging.logging_dir, config.training.num_processes) == ("./logs", 1)
    assert loaded.notices == (
        "evaluation_strategy is now evaluation.eval_strategy: steps",
        "max_seq_length is now data.max_length: 1024",
        "num_gpus is now training.num_processes: 1",
    )


@pytest.mark.parametrize(
    ("given", "section", "name", "value"),
    [
        ("lora_r=4", "adapter", "r", 4),
        ("lora_target=all", "adapter", "target_modules", "all-linear"),
        ("lora_target='q_proj,v_proj'", "adapter", "target_modules", ("q_proj", "v_proj")),
        ("finetuning_type=full", "adapter", "method", "full"),
        ("cutoff_len=512", "data", "max_length", 512),
        ("sample_packing=true", "data", "packing", True),
        ("datasets=[{path: a.jsonl}]", "data", "path", "a.jsonl"),
        ("dataset_text_field=body", "data", "columns", {"body": "text"}),
        ("dataset_text_field=text", "data", "columns", {}),
        ("train_on_inputs=true", "data", "train_on", "all"),
        ("train_on_inputs=false", "data", "train_on", "assistant"),
        ("use_gradient_checkpointing=unsloth", "training", "gradient_checkpointing", True),
        ("activation_offloading=true", "training", "activation_offloading", True),
        ("bf16=true", "training", "precision", "bf16"),
        ("bf16=false", "training", "precision", "auto"),
        ("bf16=auto", "training", "precision", "auto"),
        ("random_state=3407", "training", "seed", 3407),
        ("n_epochs=2", "training", "num_train_epochs", 2.0),
        ("no_cuda=true", "model", "device", "cpu"),
        ("dtype=null", "model", "dtype", "auto"),
        ("model.dtype=bf16", "model", "dtype", "bfloat16"),
        ("report_to=none", "logging", "report_to", ()),
        ("peft_use_rslora=true", "adapter", "use_rslora", True),
        ("peft_use_dora=true", "adapter", "use_dora", True),
        ("loraplus_lr_ratio=16", "adapter", "loraplus_lr_ratio", 16.0),
        ("loraplus_lr_ratio=null", "adapter", "loraplus_lr_ratio", None),
        ("lora_modules_to_save=[embed_tokens, lm_head]", "adapter", "modules_to_save", ("embed_tokens", "lm_head")),
        ("additional_target='embed_tokens, lm_head'", "adapter", "modules_to_save", ("embed_tokens", "lm_head")),
        ("modules_to_save=null", "adapter", "modules_to_save", ()),
        ("lora_target_parameters=[experts.up]", "adapter", "target_parameters", ("experts.up",)),
        ("init_lora_weights=true", "adapter", "init_lora_weights", "default"),
        ("init_lora_weights=null", "adapter", "init_lora_weights", "default"),
        ("peft_init_lora_weights=olora", "adapter", "init_lora_weights", "olora"),
        ("init_lora_weights=pissa_niter_16", "adapter", "init_lora_weights", "pissa_niter_16"),
        ("pissa_init=true", "adapter", "init_lora_weights", "pissa"),
        ("pissa_init=false", "adapter", "init_lora_weights", "default"),
        ("pissa_iter=8", "adapter", "init_lora_weights", "pissa_niter_8"),
        ("pissa_iter=-1", "adapter", "init_lora_weights", "default"),
        ("report_to=wandb", "logging", "report_to", ("wandb",)),
    ],
)
def test_names_of_other_tools_mean_ours(given: str, section: str, name: str, value: Any) -> None:
    assert getattr(getattr(load(given), section), name) == value


def sizes(config: Config) -> tuple[Any, ...]:
    return config.adapter.r, config.training.num_train_epochs, config.training.per_device_train_batch_size


def test_rank_epochs_and_batch_may_be_left_to_truetune_and_are_ours_where_nothing_is_said() -> None:
    assert sizes(load("lora_r=auto", "epochs=auto", "micro_batch_size=auto")) == ("auto", "auto", "auto")
    assert sizes(load()) == (16, 3.0, 2)


def test_where_an_adapter_will_be_served_is_a_setting_of_no_section(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "model: {name_or_path: m}\ndeploy: vllm\n")).config
    assert config.deploy == "vllm"
    assert load_config(written(tmp_path, dump_config(config))).config == config
    assert load().deploy is None


def test_every_alias_points_to_a_setting_that_exists() -> None:
    assert {alias.target for alias in ALIASES.values()} <= set(setting_names())
    assert not {name.rpartition(".")[2] for name in setting_names()} & (set(ALIASES) - {"model", "dtype", "revision"})


def test_g22_two_names_of_one_setting_that_disagree_are_refused_naming_both() -> None:
    words = problem("eval_strategy=steps", "evaluation_strategy=epoch")
    assert "eval_strategy" in words
    assert "evaluation_strategy" in words
    assert load("eval_strategy=steps", "evaluation_strategy=steps").evaluation.eval_strategy == "steps"


def test_g20_fp16_and_bf16_together_are_refused_naming_both() -> None:
    words = problem("fp16=true", "bf16=true")
    assert "fp16" in words
    assert "bf16" in words


def test_g22_a_misspelt_name_is_refused_with_its_line_and_a_suggestion(tmp_path: Path) -> None:
    path = written(tmp_path, "model:\n  name_or_path: m\ntraining:\n  seed: 1\n  learnig_rate: 1e-4\n")
    assert problem(source=path) == (
        f"{path}:5: training.learnig_rate: unknown setting (did you mean training.learning_rate?)"
    )


def test_a_setting_in_the_wrong_section_is_pointed_to_its_own() -> None:
    assert "did you mean adapter.r?" in problem("training.r=4")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "adapter: {r: abc}\ntraining:\n  optim: adamv_torch\n  sed: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=["num_epochz=3", "nonsense"])
    lines = caught.value.message.splitlines()
    assert len(lines) == 6
    for words in ("run.yaml:1: adapter.r", "run.yaml:3: training.optim", "run.yaml:4: training.sed", "num_epochz"):
        assert any(words in line for line in lines), words
    assert any("nonsense: expected key=value" in line for line in lines)
    assert any("model.name_or_path is missing" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.device=gpu", "one of auto, cpu, cuda, mps (got 'gpu')"),
        ("adapter.r=0", "adapter.r must be auto or a whole number of at least 1 (got 0)"),
        ("adapter.lora_dropout=1.5", "adapter.lora_dropout must be a number of at least 0 and below 1"),
        ("data.max_length=many", "data.max_length must be a whole number of at least 8 (got 'many')"),
        ("data.packing=sometimes", "data.packing must be auto or true or false"),
        ("data.test_size=-1", "data.test_size"),
        ("training.learning_rate='1e-4'", "auto or a number above 0 (got '1e-4')"),
        ("training.num_train_epochs=0", "training.num_train_epochs must be auto or a number above 0 (got 0)"),
        ("training.per_device_train_batch_size=2.5", "must be auto or a whole number of at least 1 (got 2.5)"),
        ("adapter.r=atuo", "did you mean auto?"),
        ("deploy=vlm", "deploy must be one of vllm, gguf, ollama or null (got 'vlm'); did you mean vllm?"),
        ("training.lr_scheduler_type=cosin", "did you mean cosine?"),
        ("adapter.loraplus_lr_ratio=0.5", "adapter.loraplus_lr_ratio must be a number of at least 1 or null"),
        ("adapter.modules_to_save=['']", "adapter.modules_to_save[0] must be text (got '')"),
        ("adapter.init_lora_weights=pisa", "did you mean pissa?"),
        ("adapter.init_lora_weights=pisa", "orthogonal, olora, pissa or pissa_niter_N"),
        ("adapter.init_lora_weights=eva", "eva starts from the model's activations on data"),
        ("adapter.init_lora_weights=corda", "corda starts from the model's activations on data"),
        ("adapter.init_lora_weights=lora_ga", "lora_ga starts from gradients on data"),
        ("adapter.init_lora_weights=loftq", "use model.load_in_4bit"),
        ("adapter.init_lora_weights=mica", "mica trains one of the two factors only"),
        ("adapter.init_lora_weights=false", "false starts from noise"),
        ("loftq_config={loftq_bits: 4}", "LoftQ is not supported"),
        ("pissa_convert=true", "always saved as plain LoRA"),
        ("loraplus_lr_embedding=1e-6", "embeddings learn at learning_rate"),
        ("add_tokens=['<a>']", "adapter.modules_to_save: [embed_tokens, lm_head]"),
        ("new_special_tokens=['<a>']", "adapter.modules_to_save: [embed_tokens, lm_head]"),
        ("training.backend=unsloht", "did you mean unsloth?"),
        ("evaluation.eval_strategy=daily", "one of no, steps, epoch"),
        ("checkpoints.save_steps=0", "checkpoints.save_steps"),
        ("logging.report_to=aim", "tensorboard, wandb, trackio"),
        ("logging.report_to=all", "name them"),
        ("report_to=[all]", "one of tensorboard"),
        ("output_dir=3", "output_dir must be text"),
        ("training=3", "a section, which holds settings"),
        ("learning_rate_multiplier=2", "set learning_rate"),
        ("resume_from_checkpoint=x", "--resume"),
        ("tokenizer=x", "comes with the model"),
        ("warmup_ratio=", "expected key=value"),
        ("warmup_ratio=[", "not valid YAML"),
    ],
)
def test_a_wrong_value_in_any_section_says_what_it_takes(override: str, words: str) -> None:
    assert words in problem(override)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["load_best_model_at_end=true", "eval_strategy=steps", "save_strategy=steps", "eval_steps=50",
          "save_steps=75"], ["75", "50"]),
        (["load_best_model_at_end=true", "eval_strategy=no"], ["eval_strategy is no"]),
        (["load_best_model_at_end=true", "save_strategy=no"], ["save_strategy is no"]),
        (["load_best_model_at_end=true", "eval_strategy=steps"], ["steps", "epoch"]),
        (["early_stopping_patience=2"], ["load_best_model_at_end"]),
        (["warmup_ratio=0.1", "warmup_steps=10"], ["warmup_ratio", "warmup_steps"]),
        (["load_in_4bit=true", "load_in_8bit=true"], ["load_in_4bit", "load_in_8bit"]),
        (["init_from=x", "method=full"], ["init_from", "full"]),
        (["init_from=x", "init_lora_weights=pissa"], ["init_from", "init_lora_weights", "pissa"]),
        (["use_dora=true", "method=full"], ["adapter.use_dora", "full"]),
        (["loraplus_lr_ratio=2", "method=full"], ["adapter.loraplus_lr_ratio", "full"]),
        (["modules_to_save=[lm_head]", "method=full"], ["adapter.modules_to_save", "full"]),
        (["init_lora_weights=pissa", "load_in_4bit=true"], ["init_lora_weights", "load_in_4bit", "gaussian"]),
        (["init_lora_weights=olora", "load_in_8bit=true"], ["init_lora_weights", "load_in_8bit"]),
        (["init_lora_weights=orthogonal", "load_in_8bit=true"], ["init_lora_weights", "load_in_8bit"]),
        (["init_lora_weights=orthogonal", "r=3"], ["orthogonal", "adapter.r", "3"]),
        (["use_dora=true", "load_in_8bit=true"], ["use_dora", "load_in_8bit", "load_in_4bit"]),
        (["target_parameters=[experts.up]", "lora_dropout=0.1"], ["target_parameters", "lora_dropout"]),
        (["target_parameters=[experts.up]", "use_dora=true"], ["target_parameters", "use_dora"]),
        (["validation_path=x", "test_size=0.1"], ["validation_path", "test_size"]),
    ],
)  # fmt: skip
def test_g22_settings_that_cannot_hold_together_are_refused(overrides: list[str], words: list[str]) -> None:
    found = problem(*overrides)
    assert all(word in found for word in words), found


def test_g22_ratios_are_compared_exactly() -> None:
    together = ("load_best_model_at_end=true", "eval_strategy=steps", "save_strategy=steps")
    assert load(*together, "eval_steps=0.02", "save_steps=0.1").checkpoints.save_steps == 0.1
    assert "multiple" in problem(*together, "eval_steps=0.03", "save_steps=0.1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found nothing"),
        ("- a\n- b\n", "expected settings"),
        ("model: {name_or_path: m}\n\ttraining: x\n", "run.yaml:2: not valid YAML"),
        ("model:\n  name_or_path: m\n  name_or_path: n\n", "run.yaml:3: not valid YAML"),
        ("model: [", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in problem(source=written(tmp_path, text))


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    assert "not found" in problem(source=tmp_path / "none.yaml")
    assert "cannot be read" in problem(source=tmp_path)
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in problem(source=tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["learning_rate=3e-5", "warmup_steps=7", "report_to=[wandb, trackio]", "target_modules=[q_proj]"],
        ["columns={a: text}", "packing=false", "test_size=25", "eval_steps=0.25", "save_total_limit=null"],
        ["template='Q: {instruction}\\nA: {output}'", "eval_strategy=no", "run_name='no'"],
    ],
)
def test_a_dumped_config_reads_back_to_an_equal_one(tmp_path: Path, overrides: list[str]) -> None:
    config = load(*overrides)
    assert load_config(written(tmp_path, dump_config(config))).config == config


def test_every_setting_explains_itself() -> None:
    described = {name: (description, words) for name, _, description, words in fields()}
    assert set(described) == set(setting_names())
    assert all(description and words for description, words in described.values())


def test_every_optimizer_and_scheduler_exists_in_transformers() -> None:
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert set(OPTIMIZERS) <= {name.value for name in OptimizerNames}
    assert set(SCHEDULERS) <= {name.value for name in SchedulerType}


@pytest.mark.parametrize(
    ("file", "override", "expected"),
    [("warmup_steps: 100", "warmup_ratio=0.2", (0.2, None)), ("warmup_ratio: 0.2", "warmup_steps=5", (0.03, 5))],
)
def test_one_form_of_the_warm_up_on_the_command_line_replaces_the_files_other_form(
    tmp_path: Path, file: str, override: str, expected: tuple[float, int | None]
) -> None:
    training = load_config(written(tmp_path, f"model: m\n{file}\n"), overrides=[override]).config.training
    assert (training.warmup_ratio, training.warmup_steps) == expected


def test_steps_without_a_strategy_mean_steps_and_it_is_told() -> None:
    loaded = load_config(settings=BASE, overrides=["eval_steps=50"])
    assert loaded.config.evaluation.eval_strategy == "steps"
    assert loaded.notices == ("evaluation.eval_strategy is steps, since evaluation.eval_steps is set",)
    assert load("eval_steps=50", "eval_strategy=no").evaluation.eval_strategy == "no"


def test_steps_on_the_command_line_change_a_dumped_config(tmp_path: Path) -> None:
    path = written(tmp_path, dump_config(load()))
    assert load_config(path).config.checkpoints.save_strategy == "epoch"
    assert load_config(path, overrides=["save_steps=5"]).config.checkpoints.save_strategy == "steps"


def test_g22_a_best_model_with_steps_that_do_not_meet_is_refused_without_strategies_too() -> None:
    words = problem("load_best_model_at_end=true", "eval_steps=50", "save_steps=75")
    assert "75" in words
    assert "50" in words


@pytest.mark.parametrize("flag", ["fp16", "bf16", "use_cpu", "no_cuda", "train_on_inputs", "completion_only_loss"])
def test_a_flag_that_is_neither_true_nor_false_is_refused_naming_it(flag: str) -> None:
    assert f"{flag}: must be true" in problem(f"{flag}=yes")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("datasets=[{path: a.jsonl, type: alpaca}]", "type is not read here"),
        ("data.path=[{path: a.jsonl, weight: 0}]", "data.path[0].weight must be a number above 0 (got 0)"),
        ("finetuning_type=qlora", "model.load_in_4bit: true"),
        ("batch_size=8", "per_device_train_batch_size"),
        ("elsewhere.evaluation_strategy=steps", "did you mean evaluation.eval_strategy?"),
        ("trainig={seed: 1}", "did you mean training?"),
        ("run_name=#1", "comment"),
        ("max_steps=0", "-1 or a whole number of at least 1 (got 0)"),
        ("seed=-1", "of at least 0 (got -1)"),
        ("learning_rate=.inf", "above 0 (got inf)"),
        ("name_or_path=''", "must be text (got '')"),
        ("target_modules=[]", "adapter.target_modules"),
        ("template=alpacca", "did you mean alpaca?"),
        ("adapter.r='16'", "write it without quotes"),
    ],
)
def test_nothing_that_was_asked_is_ignored(override: str, words: str) -> None:
    assert words in problem(override)


def test_a_false_flag_gives_way_to_one_that_says_what_is_wanted() -> None:
    assert load("completion_only_loss=true", "assistant_only_loss=false").data.train_on == "assistant"
    assert load("train_on_inputs=false", "train_on=last_turn").data.train_on == "last_turn"
    assert load("completion_only_loss=false").data.train_on == "all"


def test_a_refused_name_that_asks_for_nothing_is_no_problem() -> None:
    assert load("resume_from_checkpoint=null", "overwrite_output_dir=false") == load()


def test_python_values_are_read_as_what_they_mean() -> None:
    import torch

    config = load(dtype=torch.bfloat16, output_dir=Path("runs") / "x", target_modules=("q_proj",))
    assert (config.model.dtype, config.output_dir) == ("bfloat16", "runs/x")
    assert config.adapter.target_modules == ("q_proj",)
    assert load("val_set_size=0.0").data.test_size == 0


def test_a_date_is_text_and_an_empty_section_is_a_default(tmp_path: Path) -> None:
    path = written(tmp_path, "model: m\ntraining:\nlogging:\n  run_name: 2024-01-01\n")
    assert load_config(path).config == load("run_name='2024-01-01'", name_or_path="m")


def test_a_json_file_keeps_characters_that_json_writes_as_two_escapes(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{\n\t"model": {"name_or_path": "m"},\n\t"run_name": "\\ud83d\\ude00"\n}')
    assert load_config(path).config.logging.run_name == "😀"


def test_a_merged_key_and_a_deep_nest_are_problems_not_crashes(tmp_path: Path) -> None:
    assert "adapter.r must be" in problem(source=written(tmp_path, "adapter: {<<: {r: abc}}\n"))
    assert "nested too deeply" in problem(source=written(tmp_path, "model: " + "[" * 1000))


def test_a_broken_file_hides_no_problem_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, "model: [\n"), overrides=["learnig_rate=1"], required=["data.path"])
    lines = caught.value.message.splitlines()
    assert len(lines) == 2
    assert "not valid YAML" in lines[0]
    assert "learnig_rate" in lines[1]


def test_a_wrong_value_hides_no_contradiction_of_right_ones_and_invents_none() -> None:
    words = problem("r=abc", "load_in_4bit=true", "load_in_8bit=true")
    assert "adapter.r" in words
    assert "load_in_8bit" in words
    alone = problem("load_best_model_at_end=true", "save_strategy=steps", "eval_strategy=stepz")
    assert len(alone.splitlines()) == 1


def test_a_wrong_config_is_told_without_the_libraries_that_train(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = written(tmp_path, "training: {learnig_rate: 1}\n")
    heavy = ["torch", "transformers", "trl", "peft", "datasets", "numpy", "huggingface_hub", "truetune.pipeline"]
    code = f"import sys; from truetune.cli import main; main(['train', {str(path)!r}]); "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
    assert "learnig_rate" in shown.stderr
