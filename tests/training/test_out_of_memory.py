"""A step that runs out of memory is computed again, less at a time: the same rows, the same gradient."""

import gc
import os
import subprocess
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from conftest import tiny_model
from tiny_runs import LORA, ROWS, TOKENIZER, Heard, Trained, architecture, columns, job
from truetune.data.collate import collate
from truetune.errors import BackendError
from truetune.model.adapter import add_adapter
from truetune.model.slices import largest
from truetune.runs.checkpoints import problems
from truetune.training.monitor import MetricsCallback
from truetune.training.room import Room, is_out_of_memory, persist
from truetune.training.trl import build_engine, train
from warm import python

SGD: dict[str, Any] = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
TWO_BY_TWO: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **SGD}
"""Three steps of two batches of two rows."""
LONGEST = max(len(each.input_ids) for each in ROWS)

Fails = Callable[[int, int], bool]
"""Whether the call of this number (from 1 on), for so many tokens, is out of memory."""


class Scarcity:
    """Lets a model's last layer run out of memory as it computes, or as its gradient arrives."""

    def __init__(self, model: Any, fails: Fails, *, in_backward: bool = False, learning: bool = True) -> None:
        self.calls = self.failures = 0
        self._fails, self._learning = fails, learning
        layer = layers(model)[-1]
        layer.register_forward_hook(self._arm) if in_backward else layer.register_forward_pre_hook(self._meet)

    def _arm(self, layer: Any, args: Any, made: torch.Tensor) -> None:
        if made.requires_grad:
            made.register_hook(lambda gradient: self._meet(layer, [gradient]))

    def _meet(self, layer: Any, args: Any) -> None:
        # The engine tries the model's head before the first step, without a gradient.
        if layer.training != self._learning or (args[0].numel() // args[0].shape[-1] == 12):
            return
        self.calls += 1
        if self._fails(self.calls, args[0].shape[0] * args[0].shape[1]):
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines follow.")


def layers(model: Any) -> Any:
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model.layers


def adapted(*, dropout: float = 0.0) -> Any:
    return add_adapter(tiny_model(), replace(LORA, lora_dropout=dropout), seed=1)


def is_checkpointing(model: Any) -> bool:
    return any(getattr(each, "gradient_checkpointing", False) for each in model.modules())


def assert_same(found: Trained, expected: Trained) -> None:
    for name in ("loss", "grad_norm", "mean_token_accuracy", "supervised_tokens", "num_tokens", "learning_rate"):
        assert found.logged(name) == pytest.approx(expected.logged(name), rel=1e-5)
    assert found.read() == expected.read()
    assert torch.allclose(found.weights(), expected.weights(), rtol=1e-5, atol=1e-6)


# --- computed again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("call", [1, 2, 3, 6], ids="batch {}".format)
def test_a_step_that_runs_out_of_memory_in_any_batch_gives_the_undisturbed_gradient(
    tmp_path: Path, call: int, in_backward: bool
) -> None:
    undisturbed = Trained(tmp_path / "a", ROWS, model=adapted(), **TWO_BY_TWO)
    model = adapted()
    scarcity = Scarcity(model, lambda number, _: number == call, in_backward=in_backward)
    disturbed = Trained(tmp_path / "b", ROWS, model=model, **TWO_BY_TWO)
    assert scarcity.failures == 1
    assert_same(disturbed, undisturbed)
    (warning,) = disturbed.heard.warnings
    assert warning.startswith(f"out of memory in step {(call + 1) // 2} (CUDA out of memory. Tried to allocate")
    assert "tokens at a time instead of" in warning
    assert "\n" not in warning
    assert not is_checkpointing(model)


@pytest.mark.parametrize("is_padding_free", [True, False])
def test_each_level_is_told_once_and_kept(tmp_path: Path, is_padding_free: bool) -> None:
    """From the batch to single rows, then with activations computed twice; later steps stay there."""
    settings = {**TWO_BY_TWO, "per_device_train_batch_size": 4, "is_padding_free": is_padding_free}
    undisturbed = Trained(tmp_path / "a", ROWS, **settings)
    model = tiny_model()
    scarcity = Scarcity(model, lambda _, tokens: tokens > LONGEST or not is_checkpointing(model))
    disturbed = Trained(tmp_path / "b", ROWS, model=model, **settings)
    assert_same(disturbed, undisturbed)
    *cuts, last = disturbed.heard.warnings
    assert scarcity.failures == len(cuts) + 1
    assert len(cuts) >= 2
    assert all("tokens at a time instead of" in each for each in cuts)
    assert "with gradient checkpointing" in last
    assert all("step 1" in each for each in disturbed.heard.warnings)


def test_random_numbers_are_drawn_again_from_the_beginning_of_the_step(tmp_path: Path) -> None:
    """Rows that cannot be cut, so that dropout meets the same tokens: it must drop the same of them."""
    settings = {**TWO_BY_TWO, "per_device_train_batch_size": 1, "num_train_epochs": 2}
    undisturbed = Trained(tmp_path / "a", ROWS, model=adapted(dropout=0.5), **settings)
    model = adapted(dropout=0.5)
    scarcity = Scarcity(model, lambda call, _: call == 14)  # The second batch of the second epoch.
    disturbed = Trained(tmp_path / "b", ROWS, model=model, **settings)
    assert scarcity.failures == 1
    assert is_checkpointing(model)
    assert_same(disturbed, undisturbed)


def test_a_mixture_with_a_router_loss_computes_its_activations_twice(tmp_path: Path) -> None:
    def mixture() -> Any:
        model = architecture("Mixtral").train()
        model.config.output_router_logits = True
        return model

    undisturbed = Trained(tmp_path / "a", ROWS, model=mixture(), **TWO_BY_TWO)
    model = mixture()
    Scarcity(model, lambda call, _: call == 2)
    disturbed = Trained(tmp_path / "b", ROWS, model=model, **TWO_BY_TWO)
    assert_same(disturbed, undisturbed)
    assert "with gradient checkpointing" in disturbed.heard.warnings[0]


def test_an_evaluation_is_computed_again_without_touching_the_training(tmp_path: Path) -> None:
    settings = {**TWO_BY_TWO, "validation": ROWS, "eval_strategy": "epoch", "per_device_eval_batch_size": 6}
    undisturbed = Trained(tmp_path / "a", ROWS, **settings)
    model = tiny_model()
    scarcity = Scarcity(model, lambda _, tokens: tokens > LONGEST, learning=False)
    disturbed = Trained(tmp_path / "b", ROWS, model=model, **settings)
    assert_same(disturbed, undisturbed)
    for line, other in zip(disturbed.lines, undisturbed.lines, strict=True):
        for name in ("eval_loss", "eval_mean_token_accuracy", "eval_supervised_tokens"):
            assert line.get(name) == (pytest.approx(other[name], rel=1e-5) if name in other else None)
    assert scarcity.failures == len(disturbed.heard.warnings) == 3
    assert all("in the evaluation" in each and "tokens at a time" in each for each in disturbed.heard.warnings)
    assert not is_checkpointing(model)


# --- nothing left to do -----------------------------------------------------------------------------------


def given_up(folder: Path, model: Any, *, callbacks: Any = (), **settings: Any) -> tuple[BackendError, Heard]:
    """The error that ends a training, and what was told before."""
    heard, wanted = Heard(), job(folder, **settings)
    engine = build_engine(
        wanted,
        model=model,
        tokenizer=TOKENIZER,
        train=ROWS,
        validation=ROWS[:4] if "eval_strategy" in settings else (),
        listener=heard,
        callbacks=callbacks,
    )
    with pytest.raises(BackendError) as caught:
        train(engine, wanted, metrics=MetricsCallback(lambda _: None))
    return caught.value, heard


LASTING: dict[str, Any] = {**TWO_BY_TWO, "num_train_epochs": 2, "optim": "adamw_torch"}
"""Six steps, three an epoch."""


@pytest.mark.parametrize("step", [2, 4, 6], ids="step {}".format)
def test_what_nothing_helps_ends_with_remedies_and_the_last_step_saved_to_go_on_from(
    tmp_path: Path, step: int
) -> None:
    """Step 4 begins an epoch, whose loader draws a random number of its own."""
    undisturbed = Trained(tmp_path / "a", ROWS, model=adapted(dropout=0.3), **LASTING)
    model = adapted(dropout=0.3)
    Scarcity(model, lambda call, _: call >= 2 * step)
    error, heard = given_up(tmp_path / "b", model, **LASTING)
    folder = tmp_path / "b" / f"checkpoint-{step - 1}"
    assert f"out of memory in step {step}, at" in str(error)
    assert f"CUDA out of memory. Tried to allocate 2.00 GiB.; step {step - 1} is saved in {folder}\n" in str(error)
    for remedy in ("per_device_train_batch_size", "max_length", "adapter.r", "load_in_4bit"):
        assert remedy in str(error.hint)
    assert "with gradient checkpointing" in heard.warnings[-1]
    assert problems(folder) == []
    resumed = Trained(tmp_path / "b", ROWS, model=adapted(dropout=0.3), resume_from=folder, **LASTING)
    assert torch.equal(resumed.weights(), undisturbed.weights())
    assert resumed.logged("loss") == undisturbed.logged("loss")[step - 1 :]


def test_an_evaluation_that_nothing_helps_saves_its_step_to_go_on_from(tmp_path: Path) -> None:
    settings = {**LASTING, "eval_strategy": "steps", "eval_steps": 2}
    undisturbed = Trained(tmp_path / "a", ROWS, model=adapted(dropout=0.3), validation=ROWS[:4], **settings)
    model = adapted(dropout=0.3)
    scarcity = Scarcity(model, lambda call, _: call > 4, learning=False)  # From the evaluation of step 4 on.
    error, heard = given_up(tmp_path / "b", model, **settings)
    folder = tmp_path / "b" / "checkpoint-4"
    assert scarcity.failures == 2
    assert "out of memory in the evaluation" in str(error)
    assert str(folder) in str(error)
    assert not any("checkpointing" in each for each in heard.warnings)
    settings = {**settings, "validation": ROWS[:4], "resume_from": folder}
    resumed = Trained(tmp_path / "b", ROWS, model=adapted(dropout=0.3), **settings)
    assert torch.equal(resumed.weights(), undisturbed.weights())


def test_a_first_step_that_nothing_helps_has_nothing_to_save(tmp_path: Path) -> None:
    model = adapted()
    Scarcity(model, lambda *_: True)
    error, _ = given_up(tmp_path, model, **LASTING)
    assert "saved" not in str(error)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_checkpoint_that_is_there_is_named_and_left_alone(tmp_path: Path) -> None:
    model = adapted()
    Scarcity(model, lambda call, _: call >= 4)
    written: list[int] = []

    class Seen(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            written.append((tmp_path / "checkpoint-1" / "trainer_state.json").stat().st_mtime_ns)

    settings = {**LASTING, "save_strategy": "steps", "save_steps": 1}
    error, _ = given_up(tmp_path, model, callbacks=[Seen()], **settings)
    assert "step 1 is saved in" in str(error)
    assert written == [(tmp_path / "checkpoint-1" / "trainer_state.json").stat().st_mtime_ns]


def test_weights_that_diverged_are_not_saved(tmp_path: Path) -> None:
    class Poison(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            with torch.no_grad():
                next(value for value in model.parameters() if value.requires_grad).fill_(torch.nan)

    model = adapted()
    Scarcity(model, lambda call, _: call >= 4)
    error, _ = given_up(tmp_path, model, callbacks=[Poison()], **LASTING)
    assert "saved" not in str(error)
    assert not list(tmp_path.glob("checkpoint-*"))


# --- what is no lack of memory, and what is ---------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no"), KeyError("memory")],
    ids=str,
)
def test_any_other_error_passes_through(tmp_path: Path, error: Exception) -> None:
    model = adapted()

    def fail(layer: Any, _: Any) -> None:
        if layer.training:
            raise error

    layers(model)[-1].register_forward_pre_hook(fail)
    heard, wanted = Heard(), job(tmp_path)
    options: dict[str, Any] = {"tokenizer": TOKENIZER, "train": ROWS, "validation": ()}
    engine = build_engine(wanted, model=model, listener=heard, **options)
    with pytest.raises(type(error)) as caught:
        train(engine, wanted, metrics=MetricsCallback(lambda _: None))
    assert caught.value is error
    assert heard.warnings == []


def unavailable() -> Any:
    """What torch's allocator says on this CPU."""
    return torch.empty(1 << 55, dtype=torch.uint8)


def nothing_more() -> Any:
    raise MemoryError


@pytest.mark.parametrize(
    ("compute", "reason"),
    [(unavailable, "can't allocate memory"), (nothing_more, "MemoryError")],
    ids=["torch", "Python"],
)
def test_a_lack_of_memory_is_recognised_and_told_in_a_line(compute: Callable[[], Any], reason: str) -> None:
    reasons: list[str] = []
    results = iter([compute, compute, lambda: "done"])
    assert persist(lambda: next(results)(), reasons.append) == "done"
    assert len(reasons) == 2
    assert all(reason in each and "\n" not in each for each in reasons)


def test_by_the_time_room_is_made_nothing_holds_on_to_what_was_computed() -> None:
    held: list[Any] = []

    def compute() -> bool:
        if held:
            return True
        activations = torch.zeros(8, requires_grad=True).exp()
        held.append(weakref.ref(activations))
        raise MemoryError

    gc.disable()
    try:
        assert persist(compute, lambda _: held.append(held[0]()))
    finally:
        gc.enable()
    assert held[1] is None


def test_uneven_rows_are_parted_before_activations_are_computed_twice() -> None:
    """Cuts lie near even places, so that half as many tokens part the first two rows nowhere; a quarter does."""
    batch = collate(columns([replace(ROWS[0], input_ids=[1] * count, labels=[1] * count) for count in (12, 51, 7)]))
    room = Room(35, can_be_cut=True)
    assert [largest([batch], tokens) for tokens in (35, 29, 14)] == [58, 58, 51]
    assert room.give_way([batch], model=None) == "about 14 tokens at a time instead of 58"
    assert room.give_way([batch], model=None) is None


def test_a_model_that_cannot_compute_activations_twice_is_not_asked_to() -> None:
    model = tiny_model()
    model.supports_gradient_checkpointing = False
    batch = collate(columns(ROWS[:1]))
    assert Room(None, can_be_cut=True).give_way([batch], model=model) is None


CHILD = '''
import ctypes, gc, resource, sys
from pathlib import Path

import torch
from conftest import tiny_model
from tiny_runs import Trained, row

# Each large tensor by itself, and no arena for each thread: what is asked for is what the process grows by.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536) and ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
torch.set_num_threads(1)
ROW = row("q", "a" * 340)

def trained(folder, rows_at_a_time, steps=2, intermediate_size=16384):
    torch.manual_seed(0)
    model = tiny_model(hidden_size=64, intermediate_size=intermediate_size, num_hidden_layers=2)
    settings = {"optim": "sgd", "max_steps": steps, "num_train_epochs": 2}
    settings["per_device_train_batch_size"] = rows_at_a_time
    settings["gradient_accumulation_steps"] = 4 // rows_at_a_time
    return Trained(Path(sys.argv[1]) / folder, [ROW] * 4, model=model, **settings)

def size(name):
    """A size of this process's address space, in bytes."""
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) << 10

def grown(folder, rows_at_a_time, **sizes):
    """What a training adds to the address space at its peak, the highest so far; and the training."""
    gc.collect()
    before = size("VmSize")
    run = trained(folder, rows_at_a_time, **sizes)
    return size("VmPeak") - before, run

trained("warm", 2, intermediate_size=64)
one, _ = grown("one", 1, steps=1)
two, undisturbed = grown("two", 2)
assert two - one > 80 << 20, (one, two)
gc.collect()
# Room halfway between what one row and what two rows at a time take, whatever the libraries take besides.
resource.setrlimit(resource.RLIMIT_AS, (size("VmSize") + (one + two) // 2,) * 2)
disturbed = trained("disturbed", 2)
print(*disturbed.heard.warnings, sep="\\n")
assert torch.allclose(disturbed.weights(), undisturbed.weights(), rtol=1e-5, atol=1e-6)
assert all(abs(a - b) < 1e-5 for a, b in zip(disturbed.logged("loss"), undisturbed.logged("loss")))
'''


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
def test_a_cpu_that_really_runs_out_of_memory_trains_on(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = python("-c", CHILD, tmp_path)
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    first, *others = ran.stdout.splitlines()
    assert "362 tokens at a time instead of 724" in first
    for warning in (first, *others):
        assert "out of memory in step 1" in warning
        assert "DefaultCPUAllocator: can't allocate memory" in warning


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_a_lack_of_memory_is_recognised_however_it_is_said(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
