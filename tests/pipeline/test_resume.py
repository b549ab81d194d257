"""Runs that go on: from the newest sound checkpoint, as the run that they were, or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import truetune
from conftest import arithmetic_rows, byte_tokenizer, tiny_model, write_jsonl
from heard import FAST, Heard
from truetune.runs.checkpoints import checkpoints_in, read_manifest, sha256, state_digests, untimed

SETTINGS = {**FAST, "max_steps": 8, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}


@pytest.fixture(scope="module")
def whole(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> truetune.Run:
    """Eight steps with dropout, a checkpoint every two."""
    return truetune.train(
        model=str(tiny_base),
        data=rows,
        output_dir=tmp_path_factory.mktemp("runs") / "whole",
        lora_dropout=0.1,
        gradient_accumulation_steps=2,
        **SETTINGS,
    )


@pytest.fixture
def crashed(whole: truetune.Run, tmp_path: Path) -> Path:
    """The same run as a crash behind its sixth step would have left it."""
    copy = tmp_path / "crashed"
    shutil.copytree(whole.directory, copy)
    shutil.rmtree(copy / "adapter")
    shutil.rmtree(copy / "checkpoints" / "checkpoint-8")
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "status": "running"}))
    return copy


def resumed(run: Path, **changes: Any) -> tuple[truetune.Run, Heard]:
    heard = Heard()
    resume = changes.pop("resume", "newest")
    return truetune.train(run / "config.yaml", output_dir=run, resume=resume, listener=heard, **changes), heard


def state(run: Path) -> dict[str, str]:
    """The digests of the last checkpoint's weights, optimizer, schedule and random numbers."""
    return state_digests(checkpoints_in(run / "checkpoints")[0])


def lines(run: truetune.Run) -> list[dict[str, Any]]:
    return [untimed(line) for line in run.metrics]


def assert_same_end(run: truetune.Run, whole: truetune.Run) -> None:
    assert state(run.directory) == state(whole.directory)
    assert len(state(run.directory)) >= 4
    weights = [sha256(each.directory / "adapter" / "adapter_model.safetensors") for each in (run, whole)]
    assert weights[0] == weights[1]
    assert lines(run) == lines(whole)


# --- where it goes on ---------------------------------------------------------------------------------------


def test_g24_a_resumed_run_ends_to_the_bit_where_an_uninterrupted_one_does(
    whole: truetune.Run, crashed: Path
) -> None:
    run, _ = resumed(crashed)
    assert_same_end(run, whole)
    assert [line["step"] for line in run.metrics if "loss" in line] == list(range(1, 9))


def test_metrics_are_made_whole_again_from_the_checkpoint(whole: truetune.Run, crashed: Path) -> None:
    (crashed / "metrics.jsonl").write_bytes(b"\0" * 500)
    run, _ = resumed(crashed)
    assert lines(run) == lines(whole)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "adapter_model.safetensors", "manifest.json"])
def test_g23_a_damaged_checkpoint_is_passed_over_and_named(whole: truetune.Run, crashed: Path, name: str) -> None:
    (crashed / "checkpoints" / "checkpoint-6" / name).unlink()
    run, heard = resumed(crashed)
    assert f"checkpoint-6 is not complete ({name} is missing): passed over" in heard.text()
    assert_same_end(run, whole)


def test_g23_a_checkpoint_cut_to_half_its_size_is_passed_over_and_refused_by_name(crashed: Path) -> None:
    checkpoint = crashed / "checkpoints" / "checkpoint-6"
    file = checkpoint / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(truetune.CheckpointError, match=r"checkpoint-6 is not complete|not a complete checkpoint"):
        resumed(crashed, resume=checkpoint)


def test_where_every_checkpoint_is_damaged_nothing_starts_over_silently(crashed: Path) -> None:
    for checkpoint in checkpoints_in(crashed / "checkpoints"):
        (checkpoint / "scheduler.pt").unlink()
    for resume in ("newest", "auto"):
        with pytest.raises(truetune.CheckpointError, match="none of its 3 checkpoints"):
            resumed(crashed, resume=resume)


def test_an_older_checkpoint_can_be_named_and_later_ones_are_set_aside(whole: truetune.Run, crashed: Path) -> None:
    run, heard = resumed(crashed, resume=crashed / "checkpoints" / "checkpoint-2")
    assert "is set aside: the run goes on from checkpoint-2" in heard.text()
    assert_same_end(run, whole)
    assert [path.name for path in checkpoints_in(crashed / "checkpoints")] == [
        f"checkpoint-{step}" for step in (8, 6, 4, 2)
    ]


def test_a_checkpoint_of_another_directory_is_refused(whole: truetune.Run, crashed: Path) -> None:
    with pytest.raises(truetune.CheckpointError, match="is not one of the checkpoints in"):
        resumed(crashed, resume=whole.directory / "checkpoints" / "checkpoint-2")


def test_a_run_that_was_moved_goes_on_and_keeps_its_best(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "test_size": 4}
    one = truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path / "one", **settings)
    best = json.loads((one.directory / "checkpoints" / "checkpoint-8" / "trainer_state.json").read_text())
    shutil.move(one.directory, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "checkpoint-8")
    shutil.rmtree(tmp_path / "moved" / "adapter")
    run, _ = resumed(tmp_path / "moved")
    again = json.loads((tmp_path / "moved" / "checkpoints" / "checkpoint-8" / "trainer_state.json").read_text())
    assert again["best_metric"] == best["best_metric"]
    assert Path(again["best_model_checkpoint"]).parent == tmp_path / "moved" / "checkpoints"
    assert run.status == "finished"


def test_a_best_checkpoint_that_is_damaged_is_told_and_forgotten(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "test_size": 4}
    run = truetune.train(
        model=str(tiny_base), data=rows, output_dir=tmp_path / "run", **{**settings, "learning_rate": 1e-12}
    )
    checkpoints = run.directory / "checkpoints"
    best = json.loads((checkpoints / "checkpoint-6" / "trainer_state.json").read_text())["best_global_step"]
    if best == 6:
        pytest.fail("the first evaluation was to be the best")
    (checkpoints / f"checkpoint-{best}" / "adapter_model.safetensors").unlink()
    shutil.rmtree(checkpoints / "checkpoint-8")
    shutil.rmtree(run.directory / "adapter")
    _, heard = resumed(run.directory)
    assert f"checkpoint-{best}, the best so far, cannot be used" in heard.text()


def test_a_run_killed_behind_its_last_step_takes_no_other(whole: truetune.Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole.directory, copy)
    shutil.rmtree(copy / "adapter")
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "status": "running"}))
    run, _ = resumed(copy)
    assert_same_end(run, whole)
    assert run.status == "finished"


def test_a_run_killed_before_its_first_checkpoint_starts_anew(whole: truetune.Run, crashed: Path) -> None:
    shutil.rmtree(crashed / "checkpoints")
    run, _ = resumed(crashed, resume="auto")
    assert_same_end(run, whole)


def test_checkpoints_that_a_kill_left_beyond_the_limit_are_removed(whole: truetune.Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole.directory, copy)
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "status": "running"}))
    resumed(copy, save_total_limit=2)
    assert [path.name for path in checkpoints_in(copy / "checkpoints")] == ["checkpoint-8", "checkpoint-6"]


def test_rows_from_python_outlive_a_start_over(tiny_base: Path, tmp_path: Path) -> None:
    settings = {**FAST, "max_steps": 1, "save_strategy": "no"}
    run = truetune.train(model=str(tiny_base), data=arithmetic_rows(8), output_dir=tmp_path / "run", **settings)
    again = truetune.train(run.directory / "config.yaml", overwrite=True)
    assert again.losses == run.losses
    assert (run.directory / "data.jsonl").exists()


def test_early_stopping_counts_on_where_it_was(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    settings = {
        **SETTINGS,
        "max_steps": 12,
        "learning_rate": 1e-12,
        "test_size": 4,
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "early_stopping_patience": 2,
    }
    run = truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path / "run", **settings)
    assert run.steps < 12
    for step in (run.steps, run.steps - 2):
        copy = tmp_path / f"from-{step}"
        shutil.copytree(run.directory, copy)
        shutil.rmtree(copy / "adapter")
        record = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps({**record, "status": "running"}))
        again, _ = resumed(copy, resume=copy / "checkpoints" / f"checkpoint-{step}")
        assert again.steps == run.steps
        assert_same_end(again, run)


# --- what another run would be ------------------------------------------------------------------------------


def changed_base(tiny_base: Path, tmp_path: Path) -> str:
    folder = tmp_path / "other-base"
    tiny_model(seed=1).save_pretrained(folder)
    byte_tokenizer(chat_template=(tiny_base / "chat_template.jinja").read_text()).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"r": 2}, ["adapter.r was 4 and is 2"]),
        ({"lora_dropout": 0.2}, ["adapter.lora_dropout was 0.1 and is 0.2"]),
        ({"target_modules": ["q_proj"]}, ["adapter.target_modules"]),
        ({"seed": 7}, ["training.seed was 42 and is 7"]),
        ({"max_length": 34}, ["data (rows, tokens, masks and split)", "data.max_length"]),
        ({"template": "alpaca"}, ["data.template was auto and is alpaca"]),
        ({"learning_rate": 1e-4}, ["training.learning_rate"]),
        ({"weight_decay": 0.5}, ["training.weight_decay"]),
        ({"optim": "sgd"}, ["training.optim"]),
        ({"lr_scheduler_type": "cosine"}, ["training.lr_scheduler_type"]),
        ({"precision": "bf16"}, ["training.precision was fp32 and is bf16"]),
        ({"gradient_accumulation_steps": 4}, ["rows a step", "was 4 and is 8"]),
    ],
    ids=str,
)
def test_g24_what_would_be_another_run_is_refused_by_name(
    crashed: Path, changes: dict[str, Any], named: list[str]
) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in crashed.rglob("[!.]*") if path.is_file()}

    before = times()
    with pytest.raises(truetune.CheckpointError, match="it would be another run") as caught:
        resumed(crashed, **changes)
    assert all(name in str(caught.value) for name in named), str(caught.value)
    assert times() == before


def test_g24_other_base_weights_are_refused_and_a_moved_base_is_not(
    tiny_base: Path, whole: truetune.Run, crashed: Path, tmp_path: Path
) -> None:
    with pytest.raises(truetune.CheckpointError, match=r"model \(configuration, tokenizer and weights\) was"):
        resumed(crashed, model=changed_base(tiny_base, tmp_path))
    shutil.copytree(tiny_base, tmp_path / "moved-base")
    run, _ = resumed(crashed, model=str(tmp_path / "moved-base"))
    assert_same_end(run, whole)


def test_g24_other_rows_are_refused(rows: Path, crashed: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", arithmetic_rows(23))
    with pytest.raises(truetune.CheckpointError, match=r"data \(rows, tokens, masks and split\) was"):
        resumed(crashed, data=str(other))
    shutil.copy(rows, tmp_path / "same.jsonl")
    run, heard = resumed(crashed, data=str(tmp_path / "same.jsonl"))
    assert run.status == "finished"
    assert "not to the same bits" not in heard.text()


def test_the_same_batch_in_other_parts_is_the_same_run_but_for_rounding(whole: truetune.Run, crashed: Path) -> None:
    run, heard = resumed(crashed, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    assert "the same run goes on, but not to the same bits" in heard.text()
    assert "per_device_train_batch_size was 2 and is 4" in heard.text()
    assert run.steps == 8
    assert run.losses[:6] == whole.losses[:6]
    ours, theirs = ([line["num_tokens"] for line in each.metrics if "loss" in line] for each in (run, whole))
    assert ours == theirs


@pytest.mark.parametrize("library", ["torch", "datasets", "truetune"])
def test_another_version_of_a_library_is_told_and_no_other_run(crashed: Path, library: str) -> None:
    checkpoint = crashed / "checkpoints" / "checkpoint-6"
    manifest = read_manifest(checkpoint)
    assert manifest["identity"][library]
    manifest["identity"][library] = "0.0"
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    run, heard = resumed(crashed)
    assert f"not to the same bits: {library} was 0.0 and is " in heard.text()
    assert run.status == "finished"


def test_saving_and_logging_may_change(whole: truetune.Run, crashed: Path) -> None:
    run, heard = resumed(crashed, save_steps=3, save_total_limit=1, logging_steps=5)
    assert "not to the same bits" not in heard.text()
    assert state(run.directory) == state(whole.directory)
    assert [path.name for path in checkpoints_in(crashed / "checkpoints")] == ["checkpoint-8"]


def test_g24_a_finished_run_says_it_is_complete_and_more_epochs_lengthen_it(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    settings = {**FAST, "num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    run = truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path / "run", seed=7, **settings)
    assert run.steps == 12
    again, heard = resumed(run.directory)
    assert "the run is complete: 12 of 12 steps are done" in heard.text()
    assert again.losses == run.losses
    longer, heard = resumed(run.directory, num_train_epochs=3)
    assert longer.steps == 18
    assert "the schedule changed: 12 steps before, 18 now" in heard.text()
    rates = [line["learning_rate"] for line in longer.metrics if "loss" in line]
    assert len(rates) == 18
    assert all(rate > 0 for rate in rates[12:]), rates


# --- evaluated once an epoch, saved by steps -----------------------------------------------------------------

BY_EPOCH = {
    **FAST,
    "test_size": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "lora_dropout": 0.1,
    "lr_scheduler_type": "constant",
    "eval_strategy": "epoch",
    "save_strategy": "steps",
    "save_steps": 5,
    "save_total_limit": None,
}
"""Twenty rows to train on: five steps an epoch, a checkpoint at its end, and the evaluation behind that."""


@pytest.fixture(scope="module")
def by_epoch(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> truetune.Run:
    """Three epochs without an interruption."""
    folder = tmp_path_factory.mktemp("runs") / "by-epoch"
    return truetune.train(model=str(tiny_base), data=rows, output_dir=folder, num_train_epochs=3, **BY_EPOCH)


def evaluated(run: truetune.Run) -> list[int]:
    return [line["step"] for line in run.metrics if "eval_loss" in line]


def best_of(run: truetune.Run) -> tuple[float, int]:
    trained = json.loads((run.directory / "run.json").read_text())
    return trained["best_eval_loss"], trained["best_step"]


def test_a_finished_run_that_is_extended_has_the_evaluations_of_an_uninterrupted_one(
    tiny_base: Path, rows: Path, by_epoch: truetune.Run, tmp_path: Path
) -> None:
    run = truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path, num_train_epochs=2, **BY_EPOCH)
    assert evaluated(run) == [0, 5, 10]
    longer, _ = resumed(run.directory, num_train_epochs=3)
    assert evaluated(longer) == [0, 5, 10, 15]
    assert_same_end(longer, by_epoch)


@pytest.mark.parametrize("step", [10, 15], ids=["an-epoch", "the-run"])
def test_a_run_killed_between_an_epochs_checkpoint_and_its_evaluation_makes_up_for_it(
    by_epoch: truetune.Run, tmp_path: Path, step: int
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(by_epoch.directory, copy)
    shutil.rmtree(copy / "adapter")
    for checkpoint in checkpoints_in(copy / "checkpoints"):
        if int(checkpoint.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(checkpoint)
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "status": "running"}))
    run, _ = resumed(copy)
    assert_same_end(run, by_epoch)
    assert best_of(run) == best_of(by_epoch)


def test_a_run_extended_from_within_an_epoch_has_no_evaluation_there(
    tiny_base: Path, rows: Path, by_epoch: truetune.Run, tmp_path: Path
) -> None:
    settings = {**BY_EPOCH, "save_steps": 7}
    run = truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path, max_steps=7, **settings)
    assert evaluated(run) == [0, 5, 7]
    longer, _ = resumed(run.directory, max_steps=15)
    assert evaluated(longer) == evaluated(by_epoch)


# --- words for it -------------------------------------------------------------------------------------------


def test_hugging_faces_name_for_it_means_the_same(whole: truetune.Run, crashed: Path) -> None:
    copy = crashed.with_name("copy")
    shutil.copytree(crashed, copy)
    run = truetune.train(crashed / "config.yaml", output_dir=crashed, resume_from_checkpoint=True)
    assert_same_end(run, whole)
    named = truetune.train(
        copy / "config.yaml", output_dir=copy, resume_from_checkpoint=str(copy / "checkpoints" / "checkpoint-4")
    )
    assert_same_end(named, whole)


def test_a_config_cannot_say_that_it_is_resumed(crashed: Path) -> None:
    with pytest.raises(truetune.ConfigError, match="--resume"):
        truetune.train({"resume_from_checkpoint": True, "model": "demo", "data": {"path": "x"}})


# --- what the disk does -------------------------------------------------------------------------------------


def test_a_directory_that_is_in_use_is_refused(crashed: Path) -> None:
    from truetune.runs.directory import RunDirectory

    with RunDirectory(crashed).locked(), pytest.raises(truetune.CheckpointError, match="another training is running"):
        resumed(crashed)


@pytest.mark.parametrize("place", ["file", "file/deeper"])
def test_a_directory_that_cannot_be_made_is_told(tiny_base: Path, rows: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(truetune.CheckpointError, match="cannot be written"):
        truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path / place, max_steps=1, **FAST)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_that_vanishes_ends_the_run_with_its_name(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Remover(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                shutil.rmtree(tmp_path / "run")

    with pytest.raises(truetune.CheckpointError, match=r"metrics\.jsonl cannot be written") as caught:
        truetune.train(
            model=str(tiny_base), data=rows, output_dir=tmp_path / "run", callbacks=[Remover()], max_steps=4, **FAST
        )
    assert "moved or deleted" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", [lambda text: text[:40], lambda _: ""])
def test_a_damaged_record_is_told_by_name(crashed: Path, damage: Callable[[str], str]) -> None:
    record = crashed / "run.json"
    record.write_text(damage(record.read_text()))
    with pytest.raises(truetune.CheckpointError, match=r"run\.json is damaged"):
        resumed(crashed)


def test_the_disk_a_run_will_take_is_told_where_it_is_not_there(
    tiny_base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, usage = Heard(), shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path / "run", max_steps=1, listener=heard, **FAST)
    assert "checkpoints and weights will take about" in heard.text()
    assert "checkpoints.save_total_limit" in heard.text()


def test_the_manifest_of_a_checkpoint_says_whose_it_is(whole: truetune.Run) -> None:
    manifest = read_manifest(whole.directory / "checkpoints" / "checkpoint-8")
    assert manifest["identity"]["adapter.r"] == 4
    assert manifest["identity"]["training.seed"] == 42
    assert manifest["unlogged"] == {"supervised": 0, "tokens": 0, "correct": None}
    names = set(manifest["files"])
    assert {"tokenizer.json", "chat_template.jinja", "adapter_model.safetensors", "optimizer.pt"} <= names
    assert not {"training_args.bin", "README.md"} & names


def test_a_checkpoint_that_others_wrote_is_passed_over_and_left_alone(crashed: Path) -> None:
    foreign = crashed / "checkpoints" / "checkpoint-7"
    shutil.copytree(crashed / "checkpoints" / "checkpoint-6", foreign)
    (foreign / "manifest.json").unlink()
    _, heard = resumed(crashed)
    assert "checkpoint-7 is not complete (manifest.json is missing): passed over" in heard.text()
    assert foreign.is_dir()


class Code:
    """A pickle that would make a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._folder),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_is_not_run_even_with_a_manifest_for_it(
    crashed: Path, tmp_path: Path, name: str
) -> None:
    checkpoint = crashed / "checkpoints" / "checkpoint-6"
    torch.save(Code(tmp_path / "made"), checkpoint / name)
    manifest = read_manifest(checkpoint)
    size, digest = (checkpoint / name).stat().st_size, sha256(checkpoint / name)
    manifest["files"][name] = {"bytes": size, "sha256": digest}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(truetune.CheckpointError, match="none of it was run"):
        resumed(crashed)
    assert not (tmp_path / "made").exists()


def test_no_file_of_a_run_holds_a_secret_of_the_environment(
    tiny_base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"HF_TOKEN": "hf_" + "q" * 34, "WANDB_API_KEY": "7" * 40}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["truetune", "train", f"hf_token={secrets['HF_TOKEN']}"])
    run = truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path / "run", **{**SETTINGS, "max_steps": 2})
    content = b"".join(path.read_bytes() for path in run.directory.rglob("*") if path.is_file())
    assert b"hf_token=***" in content
    assert not [name for name, value in secrets.items() if value.encode() in content]
