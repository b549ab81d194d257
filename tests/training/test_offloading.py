"""Activation offloading: what TRL does with it around our steps, and where it is refused."""

import inspect
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from trl import SFTConfig, SFTTrainer
from trl.models.activation_offloading import OffloadActivations

import truetune
from conftest import tiny_model
from heard import FAST
from tiny_runs import LORA, ROWS, TOKENIZER, job, trained_weights
from truetune.listener import LogListener
from truetune.model.adapter import add_adapter
from truetune.model.attention import fit_attention
from truetune.model.fused_blocks import fuse_blocks
from truetune.training.arguments import sft_arguments
from truetune.training.computing import Computing
from truetune.training.trl import Engine, build_engine


def test_trl_offloads_around_each_training_step_which_is_where_our_slices_are_computed() -> None:
    assert "activation_offloading" in SFTConfig.__dataclass_fields__
    assert "with self.maybe_activation_offload_context:" in inspect.getsource(SFTTrainer.training_step)
    assert "super(Computing, self).training_step" in inspect.getsource(Computing)
    assert "compute_loss" not in inspect.getsource(OffloadActivations)


@pytest.mark.parametrize("is_on", [True, False])
def test_the_setting_reaches_trl(tmp_path: Path, is_on: bool) -> None:
    assert (
        sft_arguments(job(tmp_path, activation_offloading=is_on), has_validation=False).activation_offloading is is_on
    )


@pytest.mark.parametrize("use_streams", [True, False])
def test_what_is_offloaded_comes_back_the_same_through_our_steps_of_autograd(
    use_streams: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's bookkeeping on a CPU that stands for a GPU: each kept tensor is taken away and brought back."""
    plain = _weights(_engine(tmp_path / "plain"))
    engine = _engine(tmp_path / "offloading")
    with monkeypatch.context() as patch:
        patch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
        offloading = OffloadActivations(use_pin_memory=False, use_streams=use_streams, min_offload_size=1)
    offloading.device_module, offloading.s1 = MagicMock(), MagicMock()  # Streams and events, of which a CPU has none.
    offloading.update_model_params(engine.model)
    taken: list[bool] = []
    unpack = offloading.unpack_hook
    offloading.unpack_hook = lambda place: (taken.append(offloading.tracker[place][1]), unpack(place))[1]
    engine.maybe_activation_offload_context = offloading
    assert torch.equal(_weights(engine), plain)
    assert taken.count(True) > 20


def _engine(folder: Path) -> Engine:
    """An engine over fused blocks, packed attention and a fused adapter, as a session readies them."""
    model = tiny_model()
    fuse_blocks(model)
    assert fit_attention(model)
    return build_engine(
        job(folder, max_steps=3),
        model=add_adapter(model, LORA, seed=0),
        tokenizer=TOKENIZER,
        train=ROWS,
        validation=[],
        listener=LogListener(),
    )


def _weights(engine: Engine) -> torch.Tensor:
    """The adapter after training."""
    engine.train()
    return trained_weights(engine.model)


def test_it_is_refused_without_a_cuda_gpu_before_anything_loads(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"activation_offloading": True, "device": "cpu", **FAST}
    with pytest.raises(truetune.BackendError, match="activation_offloading needs a CUDA GPU") as caught:
        truetune.train(model=str(tmp_path / "nowhere"), data=[{"text": "x"}], **settings)
    assert "gradient_checkpointing" in str(caught.value.hint)
