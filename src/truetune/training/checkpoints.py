"""A trainer's checkpoints: Trainer's own files, written out of sight, and what of a run is theirs alone to say."""

import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from truetune.errors import CheckpointError, first_line
from truetune.figures import byte_size
from truetune.files import remedy
from truetune.listener import Listener
from truetune.runs.checkpoints import (
    checkpoint_folder,
    checkpoint_step,
    manifested,
    newest_listed,
    problems,
    read_manifest,
    rotate,
)
from truetune.training.step import Counts
from truetune.training.world import World

# A pickle, and a model card with this machine's paths: neither belongs to a model that is passed on.
_UNWANTED = ("training_args.bin", "README.md")

_FAILURES = (OSError, RuntimeError, SafetensorError)
"""What a full disk is called, by Python, torch and safetensors."""


def write_checkpoint(trainer: Any, *, identity: Mapping[str, Any], unlogged: Counts) -> None:
    """The state after a trainer's last step, there as a whole or not at all.

    Raises CheckpointError, with what was there before untouched.
    """
    folder = checkpoint_folder(Path(trainer.args.output_dir), trainer.state.global_step)
    trainer.store_flos()
    facts = {"identity": identity, "unlogged": asdict(unlogged)}
    with saving(folder, trainer.model), manifested(folder, facts) as staged:
        _write_state(trainer, staged, folder)


def make_room(trainer: Any, *, limit: int | None) -> None:
    """Removes checkpoints beyond the limit: never the newest one, or the best."""
    folder = Path(trainer.args.output_dir)
    rotate(folder, limit=limit, best=_best(trainer.state, folder))


@contextmanager
def saving(folder: Path, model: Any) -> Iterator[None]:
    """Whatever keeps a folder from being saved becomes a CheckpointError that says why, and what is safe."""
    try:
        yield
    except _FAILURES as error:
        raise _not_saved(error, folder, _bytes_of_state(model)) from error


@contextmanager
def only_tensors(checkpoint: Path | None) -> Iterator[None]:
    """A checkpoint that holds code, which torch does not run, is a CheckpointError."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{checkpoint} holds more than numbers, and none of it was run: {first_line(error)}",
            hint="it was not written by a training; go on from another one, or start again",
        ) from error


def read_unlogged(checkpoint: Path) -> Counts:
    """The tokens of a checkpoint's last steps that no logged line has counted yet."""
    return Counts(**read_manifest(checkpoint)["unlogged"])


def rate_by_schedule(scheduler: Any) -> None:
    """Sets the optimizer's rates to what a schedule says of the step it is at; the same where it has not changed."""
    scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate's wrapper
    if isinstance(scheduler, LambdaLR):
        schedules = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        rates = [base * share(scheduler.last_epoch) for base, share in schedules]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates


def drop_unwanted(folder: Path) -> None:
    """Removes what Trainer saves beside a model and nobody should pass on."""
    for name in _UNWANTED:
        (folder / name).unlink(missing_ok=True)


def _write_state(trainer: Any, staged: Path, folder: Path) -> None:
    """What Trainer._save_checkpoint of transformers 5.24 writes; test_contracts.py holds it to the installed one."""
    trainer.save_model(str(staged), _internal_call=True)
    drop_unwanted(staged)
    trainer._save_optimizer_and_scheduler(str(staged))
    trainer._save_scaler(str(staged))
    trainer._save_rng_state(str(staged))
    best = _best(trainer.state, folder.parent)
    if best is not None and (best == folder or best.is_dir()):
        trainer.state.best_model_checkpoint = str(best)
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if isinstance(callback, ExportableState):
            trainer.state.stateful_callbacks[type(callback).__name__] = callback.state()
    trainer.state.save_to_json(str(staged / "trainer_state.json"))


def _best(state: TrainerState, folder: Path) -> Path | None:
    return checkpoint_folder(folder, state.best_global_step) if state.best_global_step else None


def _bytes_of_state(model: Any) -> int:
    """About what a checkpoint takes: trained weights, and two numbers of the optimizer for each."""
    return sum(3 * each.numel() * each.element_size() for each in model.parameters() if each.requires_grad)


def _not_saved(error: Exception, folder: Path, needed: int) -> CheckpointError:
    if not folder.parent.is_dir():
        return CheckpointError(
            f"{folder} could not be saved: {folder.parent} is gone", hint="somebody moved or deleted it"
        )
    last = newest_listed(folder.parent if checkpoint_step(folder) >= 0 else folder.parent / "checkpoints")
    safe = f"{last.name} is the last good checkpoint" if last else "there is no checkpoint"
    free = shutil.disk_usage(folder.parent).free
    # torch says of a full disk only that it is at an unexpected position.
    if "No space left" in str(error) or free < needed:
        return CheckpointError(
            f"{folder} could not be saved: no space left on its disk, which has {byte_size(free)} free where this "
            f"takes about {byte_size(needed)}; {safe}",
            hint="make space there and go on with --resume; a lower checkpoints.save_total_limit takes less",
        )
    hint = remedy(error) if isinstance(error, OSError) else None
    return CheckpointError(f"{folder} could not be saved: {first_line(error)}; {safe}", hint=hint)


class BestCheckpoint(TrainerCallback):
    """On resuming, finds the best checkpoint where the run is now; one that is gone, or damaged, is forgotten.

    Whether it is, the first process tells: the others may not see its disk.
    """

    def __init__(self, listener: Listener, world: World | None = None) -> None:
        self._listener = listener
        self._world = world or World()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        best = _best(state, Path(args.output_dir or ""))
        if best is None:
            return
        if not _was_best_by(args.metric_for_best_model, state):
            self._forget(state, f"{best.name}, the best so far, was not the best by {args.metric_for_best_model}")
        elif found := self._world.told_by_first(lambda: problems(best)):
            self._forget(state, f"{best.name}, the best so far, cannot be used ({found[0]})")
        else:
            state.best_model_checkpoint = str(best)

    def _forget(self, state: TrainerState, why: str) -> None:
        self._listener.warn(f"{why}: the best is looked for from here on")
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None


def _was_best_by(metric: str | None, state: TrainerState) -> bool:
    """True if the best so far has its value by that metric, which a run that goes on may have changed."""
    at_best = [line for line in state.log_history if line["step"] == state.best_global_step]
    return metric is None or any(line.get(metric) == state.best_metric for line in at_best)
