"""Runs from end to end on a tiny model: what is written, what is refused, what can be gone on from."""

import json
from pathlib import Path
from typing import Any

import pytest

import truetune
from conftest import CHATML, arithmetic_rows, tiny_model, write_jsonl
from heard import FAST, Heard
from truetune.data.examples import IGNORED


@pytest.fixture(scope="module")
def run(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> truetune.Run:
    """Two epochs of LoRA with a validation split."""
    return truetune.train(
        model=str(tiny_base),
        data=rows,
        output_dir=tmp_path_factory.mktemp("runs") / "first",
        num_train_epochs=2,
        test_size=0.2,
        gradient_accumulation_steps=2,
        **FAST,
    )


def test_a_run_leaves_config_record_report_metrics_checkpoints_and_adapter(run: truetune.Run) -> None:
    names = {path.name for path in run.directory.iterdir() if path.name != ".lock"}
    files = {"config.yaml", "run.json", "data-report.json", "metrics.jsonl", "parity.json"}
    assert names == {*files, "checkpoints", "adapter"}
    record = json.loads((run.directory / "run.json").read_text())
    assert record["status"] == run.status == "finished"
    assert record["steps"] == run.steps == record["total_steps"]
    assert record["adapter"] == "adapter"
    assert run.adapter == run.directory / "adapter"
    assert record["peak_memory_bytes"] > 10_000_000
    assert record["tokens_per_second"] > 0
    assert record["versions"]["trl"]
    assert record["model"]["fingerprint"]


def test_a_runs_config_says_why_each_default_is_what_it_is_and_reads_back(run: truetune.Run) -> None:
    text = " ".join((run.directory / "config.yaml").read_text(encoding="utf-8").replace("#", "").split())
    settings = json.loads((run.directory / "run.json").read_text())["settings"]
    assert {"training.optim", "adapter.lora_alpha", "training.warmup_ratio"} <= {each["name"] for each in settings}
    assert all(each["reason"] in text for each in settings)
    assert truetune.open_run(run.directory).config == run.config


def test_the_first_and_the_last_step_are_in_the_metrics_and_the_loss_falls(run: truetune.Run) -> None:
    steps = [line["step"] for line in run.metrics if "loss" in line]
    assert steps[0] == 1
    assert steps[-1] == run.steps
    assert run.losses[-1] < run.losses[0]
    assert all(0 <= line["mean_token_accuracy"] <= 1 for line in run.metrics if "loss" in line)


def test_evaluation_runs_before_the_first_step_and_after_every_epoch(run: truetune.Run) -> None:
    evaluated = [line["step"] for line in run.metrics if "eval_loss" in line]
    assert evaluated == [0, run.steps // 2, run.steps]


def test_the_config_of_a_run_trains_the_same_run_again(run: truetune.Run, tmp_path: Path) -> None:
    again = truetune.train(run.directory / "config.yaml", output_dir=tmp_path / "again")
    assert again.losses == run.losses
    assert weights(again) == weights(run)
    assert "auto" not in str(again.config.training.model_dump())


def test_a_directory_that_holds_a_run_is_refused_and_left_alone(run: truetune.Run) -> None:
    before = (run.directory / "run.json").read_bytes()
    with pytest.raises(truetune.CheckpointError, match="already holds a run") as caught:
        truetune.train(run.directory / "config.yaml")
    assert "--resume" in str(caught.value)
    assert (run.directory / "run.json").read_bytes() == before


def test_a_finished_run_resumed_says_so_and_trains_nothing(run: truetune.Run) -> None:
    heard = Heard()
    before = (run.directory / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    again = truetune.train(run.directory / "config.yaml", resume="newest", listener=heard)
    assert "complete" in heard.text()
    assert again.status == "finished"
    assert (run.directory / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_resuming_where_there_is_no_checkpoint_is_refused(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(truetune.CheckpointError, match="no complete checkpoint"):
        truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path / "none", resume="newest")
    assert not (tmp_path / "none").exists()


def test_resume_auto_starts_where_there_is_nothing_to_go_on_from(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    started = truetune.train(
        model=str(tiny_base), data=rows, output_dir=tmp_path / "new", resume="auto", max_steps=1, **FAST
    )
    assert started.steps == 1


def test_more_epochs_on_resume_lengthen_the_run(run: truetune.Run, tmp_path: Path) -> None:
    heard = Heard()
    import shutil

    shutil.copytree(run.directory, tmp_path / "copy")
    longer = truetune.train(
        tmp_path / "copy" / "config.yaml",
        output_dir=tmp_path / "copy",
        resume="newest",
        num_train_epochs=3,
        listener=heard,
    )
    assert longer.steps == run.steps // 2 * 3
    assert "schedule changed" in heard.text()


def test_full_fine_tuning_saves_a_model_that_plain_transformers_loads(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    run = truetune.train(
        model=str(tiny_base), data=rows, output_dir=tmp_path / "full", method="full", max_steps=3, precision="fp32"
    )
    assert run.adapter == run.directory / "model"
    loaded = AutoModelForCausalLM.from_pretrained(run.adapter)
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    changed = [name for name, value in loaded.state_dict().items() if not torch.equal(value, base.state_dict()[name])]
    assert any("mlp" in name for name in changed)
    assert truetune.load(run).generate("Add 1 and 2").prompt_ids


def test_an_adapter_can_be_gone_on_from_on_new_data(run: truetune.Run, tiny_base: Path, tmp_path: Path) -> None:
    new = write_jsonl(tmp_path / "new.jsonl", [{"instruction": f"Name {n}", "output": f"n{n}"} for n in range(8)])
    further = truetune.train(
        model=str(tiny_base),
        data=new,
        output_dir=tmp_path / "further",
        init_from=str(run.directory),
        max_steps=1,
        **FAST,
    )
    fresh = truetune.train(model=str(tiny_base), data=new, output_dir=tmp_path / "fresh", max_steps=1, **FAST)
    assert further.losses[0] != fresh.losses[0]


def test_packing_trains_every_row_once_an_epoch_in_fewer_steps(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    packed = truetune.train(
        model=str(tiny_base),
        data=rows,
        output_dir=tmp_path / "packed",
        packing=True,
        max_length=256,
        num_train_epochs=1,
        gradient_accumulation_steps=1,
        **FAST,
    )
    report = json.loads((packed.directory / "data-report.json").read_text())
    assert packed.steps < 24 / 2
    assert packed.metrics[-1]["num_tokens"] == report["stats"]["tokens"]


def test_rows_from_python_are_kept_so_that_the_config_runs_again(tiny_base: Path, tmp_path: Path) -> None:
    made = truetune.train(
        model=str(tiny_base), data=arithmetic_rows(6), output_dir=tmp_path / "python", max_steps=2, **FAST
    )
    again = truetune.train(made.directory / "config.yaml", output_dir=tmp_path / "again")
    assert again.losses == made.losses


def test_a_formatting_function_turns_any_row_into_text_pairs_or_messages(tiny_base: Path) -> None:
    rows = [{"q": "hi", "a": "yo"}]

    def learned(formatting: Any) -> str:
        found = truetune.inspect(model=str(tiny_base), data=rows, formatting=formatting, max_length=64)
        (row,) = found.rows
        return "".join(piece for piece, is_learned in row.pieces if is_learned)

    assert learned(lambda row: {"prompt": row["q"], "completion": row["a"]}) == "yo</s>"
    assert learned(lambda row: f"{row['q']}{row['a']}") == "iyo</s>"  # nothing stands before the first token
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    assert learned(lambda _: messages) == "yo<|im_end|>"
    with pytest.raises(truetune.DataError, match="formatting function returned int"):
        learned(lambda _: 3)


def test_inspect_gives_tokens_labels_and_the_learned_text_of_each_row(tiny_base: Path, rows: Path) -> None:
    found = truetune.inspect(model=str(tiny_base), data=rows, rows=2).as_json()
    assert [row["where"]["line"] for row in found["rows"]] == [1, 2]
    first = found["rows"][0]
    assert first["spans"] == ["1<|im_end|>"]
    assert [label for label in first["labels"] if label != IGNORED] == [ord("1"), 260]
    assert found["supervised_tokens"] == 2 + 2
    assert len(first["input_ids"]) == len(first["labels"])


def test_unusable_rows_are_left_out_counted_and_named(tiny_base: Path, tmp_path: Path) -> None:
    bad = [{"instruction": "Add", "output": None}, {"instruction": "Add", "output": "   "}, {"foo": 1}]
    data = write_jsonl(tmp_path / "mixed.jsonl", [*arithmetic_rows(3), *bad])
    heard = Heard()
    run = truetune.train(
        model=str(tiny_base), data=data, output_dir=tmp_path / "run", max_steps=1, listener=heard, **FAST
    )
    report = json.loads((run.directory / "data-report.json").read_text())
    assert (report["rows_read"], report["rows_kept"], report["rows_rejected"]) == (6, 3, 3)
    assert [(problem["name"], problem["where"]["line"]) for problem in report["problems"]] == [
        ("empty-answer", 4),
        ("empty-answer", 5),
        ("unknown-format", 6),
    ]
    assert "2 of 6 rows left out: empty-answer" in heard.text()


def test_strict_data_refuses_what_is_left_out_of_rows_or_of_the_prompt(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "Add", "input": "1 2", "output": "3"}]
    settings = {"model": str(tiny_base), "output_dir": tmp_path / "run", "strict": True}
    with pytest.raises(truetune.DataError, match="1 rows cannot be used"):
        truetune.train(data=[*rows, {"foo": 1}], **settings)
    with pytest.raises(truetune.DataError, match=r'"input" is filled and not used by the prompt: in 1 row'):
        truetune.train(data=rows, template="Q: {instruction}\nA: {output}", **settings)
    assert not (tmp_path / "run").exists()


def test_no_usable_row_is_refused_before_anything_is_written(tiny_base: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "long.jsonl", [{"instruction": "x" * 100, "output": "yo"}])
    with pytest.raises(truetune.DataError, match=r"0 usable rows.*supervised.*1 of 1.*32") as caught:
        truetune.train(model=str(tiny_base), data=data, output_dir=tmp_path / "run", max_length=32)
    assert "long.jsonl, line 1" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_length_limit_is_never_beyond_the_models_context(rows: Path, tmp_path: Path, tk: Any) -> None:
    from conftest import CHATML

    tiny_model(max_position_embeddings=128).save_pretrained(tmp_path / "short")
    tk(chat_template=CHATML, model_max_length=int(1e30)).save_pretrained(tmp_path / "short")
    heard = Heard()
    truetune.train(
        model=str(tmp_path / "short"), data=rows, output_dir=tmp_path / "run", max_steps=1, listener=heard, **FAST
    )
    assert "limit 128" in heard.text()


def test_a_model_that_cannot_keep_rows_apart_is_padded_and_packing_it_is_refused(
    rows: Path, tmp_path: Path, tk: Any
) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    from conftest import CHATML

    config = BloomConfig(vocab_size=261, hidden_size=32, n_layer=2, n_head=4, eos_token_id=257, pad_token_id=258)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    tk(chat_template=CHATML).save_pretrained(tmp_path / "bloom")
    settings = {
        "model": str(tmp_path / "bloom"),
        "data": rows,
        "output_dir": tmp_path / "run",
        "max_steps": 2,
        **FAST,
    }
    with pytest.raises(truetune.BackendError, match=r"packing.*attention"):
        truetune.train(packing=True, **settings)
    heard = Heard()
    run = truetune.train(listener=heard, **settings)
    assert "rows are padded instead" in heard.text()
    assert run.status == "finished"


def test_early_stopping_ends_a_run_that_no_longer_improves(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    run = truetune.train(
        model=str(tiny_base),
        data=rows,
        output_dir=tmp_path / "run",
        test_size=0.3,
        num_train_epochs=50,
        learning_rate=0.5,
        precision="fp32",
        early_stopping_patience=1,
        load_best_model_at_end=True,
        gradient_accumulation_steps=1,
        max_grad_norm=100.0,
    )
    record = json.loads((run.directory / "run.json").read_text())
    assert run.steps < record["total_steps"]
    assert record["best_eval_loss"] <= run.eval_loss


def test_a_dry_run_decides_everything_and_writes_nothing(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    from truetune.config.load import load_config
    from truetune.pipeline.train import train_run

    settings = {"model.name_or_path": str(tiny_base), "data.path": str(rows), "output_dir": str(tmp_path / "dry")}
    run = train_run(load_config(settings=settings).config, dry_run=True)
    assert run.config.training.learning_rate == 5e-4
    assert not (tmp_path / "dry").exists()


def test_g28_processes_that_the_config_asks_for_and_nobody_started_are_planned_and_not_trained(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    from truetune.config.load import load_config
    from truetune.pipeline.train import train_run

    heard = Heard()
    settings = {**FAST, "gradient_accumulation_steps": 1, "num_train_epochs": 1, "num_processes": 4}
    settings |= {"model.name_or_path": str(tiny_base), "data.path": str(rows), "output_dir": str(tmp_path / "run")}
    config = load_config(settings=settings).config
    train_run(config, dry_run=True, listener=heard)
    assert "8 sequences a step = 2 per device x 1 accumulated x 4 processes" in heard.text()
    with pytest.raises(truetune.ConfigError, match="num_processes is 4, and 1 is running"):
        train_run(config, listener=heard)
    assert not (tmp_path / "run").exists()


def test_settings_a_machine_cannot_honour_are_refused_before_the_data_is_read(
    tiny_base: Path, tmp_path: Path
) -> None:
    for settings, words in [
        ({"precision": "fp16"}, ("fp16", "GPU")),
        ({"device": "mps"}, ("mps", "cpu")),
        ({"num_processes": 4}, ("num_processes", "4", "1")),
    ]:
        (tmp_path / "broken.jsonl").write_text("{")
        with pytest.raises(truetune.TruetuneError) as caught:
            truetune.train(model=str(tiny_base), data=tmp_path / "broken.jsonl", **settings)
        assert all(word in str(caught.value) for word in words)


def weights(run: truetune.Run) -> bytes:
    assert run.adapter
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def test_a_validation_file_is_used_as_it_is(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    held = write_jsonl(tmp_path / "held.jsonl", [{"instruction": f"Name {n}", "output": "x"} for n in range(5)])
    run = truetune.train(
        model=str(tiny_base), data=rows, validation_path=str(held), output_dir=tmp_path / "run", max_steps=2, **FAST
    )
    report = json.loads((run.directory / "data-report.json").read_text())
    assert (report["stats"]["train_rows"], report["stats"]["validation_rows"]) == (24, 5)
    evaluated = [line for line in run.metrics if "eval_loss" in line]
    assert evaluated[0]["eval_supervised_tokens"] == 5 * 2
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(truetune.DataError, match="0 usable validation rows"):
        truetune.train(model=str(tiny_base), data=rows, validation_path=str(empty), output_dir=tmp_path / "other")


def test_qlora_from_the_guide_trains_saves_and_answers(tmp_path: Path, rows: Path, tk: Any) -> None:
    from conftest import CHATML

    tiny_model(hidden_size=128, intermediate_size=256).save_pretrained(tmp_path / "base")
    tk(chat_template=CHATML).save_pretrained(tmp_path / "base")
    run = truetune.train(
        model=str(tmp_path / "base"),
        data=rows,
        output_dir=tmp_path / "run",
        load_in_4bit=True,
        optim="adamw_8bit",
        use_gradient_checkpointing="unsloth",
        num_train_epochs=2,
        **{**FAST, "learning_rate": 1e-2},
    )
    assert run.losses[-1] < run.losses[0]
    assert truetune.load(run).generate("Add 1 and 2").prompt_ids


def test_wandb_offline_gets_a_run_of_its_own(
    tiny_base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    run = truetune.train(
        model=str(tiny_base),
        data=rows,
        output_dir=tmp_path / "run",
        max_steps=2,
        report_to="wandb",
        run_name="mine",
        project="tests",
        **FAST,
    )
    assert list((run.directory / "wandb").rglob("*.wandb"))


def test_a_base_whose_weights_are_no_numbers_is_named(tmp_path: Path, rows: Path, tk: Any) -> None:
    import torch

    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "base")
    tk(chat_template=CHATML).save_pretrained(tmp_path / "base")
    with pytest.raises(truetune.BackendError, match=r"layers\.1\.mlp\.up_proj\S* holds values that are not finite"):
        truetune.train(model=str(tmp_path / "base"), data=rows, output_dir=tmp_path / "run", **FAST)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
