"""What training/trl.py relies on, held against the installed TRL and transformers."""

import inspect
from dataclasses import fields

import pytest
from transformers import Trainer
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from truetune.training.trl import Engine

OVERRIDDEN = {
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "evaluation_loop": ["dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
    "log": ["logs", "start_time"],
    "training_step": [],
    "create_model_card": [],
    "_maybe_log_save_evaluate": ["tr_loss", "grad_norm"],
}


@pytest.mark.parametrize(("method", "parameters"), OVERRIDDEN.items())
def test_an_overridden_method_exists_with_the_parameters_relied_on(method: str, parameters: list[str]) -> None:
    installed = list(inspect.signature(getattr(SFTTrainer, method)).parameters)[1:]
    assert installed[: len(parameters)] == parameters


def test_nothing_else_is_overridden() -> None:
    ours = {name for name, value in vars(Engine).items() if callable(value) and hasattr(SFTTrainer, name)}
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
