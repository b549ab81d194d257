"""What training/trl.py relies on, held against the installed TRL and transformers."""

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from conftest import tiny_model
from tiny_runs import ROWS, TOKENIZER, job
from truetune.listener import LogListener
from truetune.training.arguments import sft_arguments
from truetune.training.computing import Computing
from truetune.training.room import CHECKPOINTING
from truetune.training.trackers.guard import GuardedTracker
from truetune.training.trl import Engine, build_engine

OVERRIDDEN = {
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "evaluation_loop": ["dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
    "create_optimizer": ["model"],
    "log": ["logs", "start_time"],
    "training_step": [],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
    "is_world_process_zero": [],
    "create_model_card": [],
    "_maybe_log_save_evaluate": ["tr_loss", "grad_norm"],
    "_evaluate": ["trial", "ignore_keys_for_eval", "skip_scheduler"],
    "_save_checkpoint": ["model", "trial"],
    "_run_epoch": [],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_move_model_to_device": ["model", "device"],
    "_clip_grad_norm": ["model"],
    "_get_grad_norm": ["model", "grad_norm"],
    "_load_best_model": [],
    "save_model": ["output_dir", "_internal_call"],
}


@pytest.mark.parametrize(("method", "parameters"), OVERRIDDEN.items())
def test_an_overridden_method_exists_with_the_parameters_relied_on(method: str, parameters: list[str]) -> None:
    installed = list(inspect.signature(getattr(SFTTrainer, method)).parameters)[1:]
    assert installed[: len(parameters)] == parameters


def test_an_epoch_is_run_where_a_stop_is_asked_for_behind_it() -> None:
    source = inspect.getsource(Trainer._inner_training_loop)
    assert source.index("self._run_epoch(") < source.index(
        "if self.control.should_training_stop:\n                break"
    )


def test_a_callback_can_ask_for_an_evaluation_before_the_first_step() -> None:
    source = inspect.getsource(Trainer._inner_training_loop)
    assert source.index("self.callback_handler.on_train_begin(args") < source.index("if args.eval_on_start:")


def test_nothing_else_is_overridden() -> None:
    defined = {**vars(Computing), **vars(Engine)}
    ours = {name for name, value in defined.items() if callable(value) and hasattr(SFTTrainer, name)}
    assert ours - {"__init__"} == set(OVERRIDDEN)


def test_the_fused_head_gives_what_the_loss_reads() -> None:
    assert {"log_probs", "is_top1", "label_mask", "aux_loss"} <= {field.name for field in fields(FusedCausalLMOutput)}


def test_the_trainer_still_calls_the_step_hook_after_each_optimizer_step() -> None:
    source = inspect.getsource(Trainer._run_epoch)
    assert "self._maybe_log_save_evaluate(\n" in source
    assert source.index("self.state.global_step += 1") < source.index("self._maybe_log_save_evaluate(")


def test_generation_marks_come_as_character_spans() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = "{% for m in messages %}<{% generation %}{{ m['content'] }}{% endgeneration %}>{% endfor %}"
    messages = [{"role": "assistant", "content": "yo"}]
    texts, spans = render_jinja_template([messages], chat_template=template, return_assistant_tokens_mask=True)
    assert texts == ["<yo>"]
    assert [tuple(span) for span in spans[0]] == [(1, 3)]


def test_sft_config_takes_every_setting_we_send() -> None:
    tree = ast.parse(inspect.getsource(sft_arguments))
    call = next(
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "SFTConfig"
    )
    sent = {keyword.arg for keyword in call.keywords if keyword.arg} | {CHECKPOINTING, f"{CHECKPOINTING}_kwargs"}
    assert len(sent) > 30
    assert sent <= set(inspect.signature(SFTConfig).parameters)


def test_what_decides_over_loss_and_gradients_is_said_and_not_left_to_a_default(tmp_path: Path) -> None:
    """SFTConfig's own defaults differ from TrainingArguments' and from the guide's."""
    settings = sft_arguments(job(tmp_path), has_validation=False)
    assert settings.average_tokens_across_devices
    assert settings.label_smoothing_factor == 0
    assert settings.loss_type == "nll"
    assert settings.neftune_noise_alpha is None
    assert settings.gradient_checkpointing is False
    assert (settings.bf16, settings.fp16) == (False, False)
    assert settings.dataloader_drop_last is False
    assert settings.logging_nan_inf_filter is False
    assert settings.report_to == []


@pytest.mark.parametrize("name", ["_globalstep_last_logged", "model_accepts_loss_kwargs", "control", "state"])
def test_what_the_engine_reads_and_sets_on_the_trainer_is_still_there(name: str, tmp_path: Path) -> None:
    source = inspect.getsource(Trainer)
    assert f"self.{name}" in source


def test_evaluate_still_goes_through_the_loop_that_is_overridden() -> None:
    source = inspect.getsource(Trainer.evaluate)
    assert "self.evaluation_loop" in source
    assert "metric_key_prefix=metric_key_prefix" in source
    assert {"predictions", "label_ids", "metrics", "num_samples"} == set(EvalLoopOutput._fields)


def test_trl_respects_ready_made_rows_and_a_collator_of_ours(tmp_path: Path) -> None:
    engine = build_engine(
        job(tmp_path), model=tiny_model(), tokenizer=TOKENIZER, train=ROWS, validation=(), listener=LogListener()
    )
    assert set(engine.train_dataset[0]) == {"input_ids", "labels", "seq_lengths", "weights"}
    batch = next(iter(engine.get_train_dataloader()))
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert batch["input_ids"].shape[0] == 1
    seen = {tuple(row["input_ids"]) for row in engine.train_dataset}
    assert seen == {tuple(each.input_ids) for each in ROWS}


def test_trainer_writes_of_a_checkpoint_what_the_engine_writes() -> None:
    """Anything new in there would be missing from ours: Engine._save_checkpoint takes its place."""
    source = inspect.getsource(Trainer._save_checkpoint)
    writes = set(re.findall(r"self\.(?:state\.)?\w*(?:save_|store_)\w+\(", source))
    assert writes == {
        "self.store_flos(",
        "self.save_model(",
        "self._save_optimizer_and_scheduler(",
        "self._save_scaler(",
        "self._save_rng_state(",
        "self.state.save_to_json(",
    }
    assert "rotate_checkpoints(" in source
    assert "ExportableState" in source
    for name in ("_save_optimizer_and_scheduler", "_save_scaler", "_save_rng_state"):
        assert list(inspect.signature(getattr(Trainer, name)).parameters) == ["self", "output_dir"]


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
        "HIP out of memory. Tried to allocate 2.00 GiB.",
        "MPS backend out of memory (MPS allocated: 17.00 GB)",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to …",
    ],
)
def test_accelerate_recognises_a_lack_of_memory(message: str) -> None:
    assert should_reduce_batch_size(torch.OutOfMemoryError(message))
    assert should_reduce_batch_size(RuntimeError(message))
    assert not should_reduce_batch_size(RuntimeError("shapes cannot be multiplied"))


def test_accelerate_collects_garbage_before_it_empties_the_cache() -> None:
    source = inspect.getsource(clear_device_cache)
    assert source.index("gc.collect()") < source.index("empty_cache()", source.index("gc.collect()"))
    assert "garbage_collection" in inspect.signature(clear_device_cache).parameters


def test_gradient_checkpointing_can_be_switched_on_by_the_name_in_use() -> None:
    model = tiny_model()
    assert not getattr(model, f"is_{CHECKPOINTING}")
    getattr(model, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}})
    assert getattr(model, f"is_{CHECKPOINTING}")


def test_the_trainer_still_counts_the_tokens_of_a_whole_step(tmp_path: Path) -> None:
    """Slices could not be added up if each were a mean of its own."""
    options = {"model": tiny_model(), "tokenizer": TOKENIZER, "train": ROWS, "validation": ()}
    engine = build_engine(job(tmp_path), listener=LogListener(), **options)
    batches, count = engine.get_batch_samples(iter(engine.get_train_dataloader()), 2, torch.device("cpu"))
    assert int(count) == sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)


def test_accelerate_says_when_loss_scaling_left_a_step_out() -> None:
    from accelerate import Accelerator

    assert isinstance(Accelerator.optimizer_step_was_skipped, property)
    assert "self.scaler" in inspect.getsource(Accelerator.__init__)


def test_reporting_callbacks_have_no_events_that_the_guard_drops() -> None:
    """The guard forwards the events of training; the others belong to prediction and to pushing."""
    from transformers.integrations import get_reporting_integration_callbacks

    forwarded = {name for name in vars(GuardedTracker) if name.startswith("on_")}
    for tracker in get_reporting_integration_callbacks(["tensorboard", "wandb", "trackio"]):
        events = {name for name in vars(tracker) if name.startswith("on_")}
        assert events - forwarded <= {"on_predict", "on_push_begin"}


def test_bitsandbytes_still_packs_weights_by_the_flag_that_is_switched_off() -> None:
    from bitsandbytes.nn import Linear4bit

    assert "self.support_avx512bf16_for_cpu" in inspect.getsource(Linear4bit.forward)
