"""Whether a run may go on, and from which checkpoint: only as the run that it was."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from truetune.config.schema import Config
from truetune.environment import usable_threads
from truetune.errors import CheckpointError
from truetune.listener import Listener
from truetune.pipeline.machine import Machine, stored_dtype, versions
from truetune.pipeline.plan import RunPlan
from truetune.pipeline.prepare import PreparedDataset
from truetune.pipeline.prepared_key import POLICIES
from truetune.runs.checkpoints import checkpoints_in, listed, problems, read_manifest
from truetune.runs.directory import RunDirectory, next_directory, numbered_directories

Resume = Literal["never", "auto", "newest"] | Path

_DATA = "data (rows, tokens, masks and split)"
_ROWS_A_STEP = "rows a step (per_device_train_batch_size x gradient_accumulation_steps x processes)"
_FREE = {"backend", "num_train_epochs", "max_steps", "num_processes", "learning_rate", "optim", "precision"}
"""Of `training`: lengths, which may change, and what is resolved elsewhere."""
_ROUNDING = {
    "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps",
    "training.gradient_checkpointing",
    "training.activation_offloading",
    "training.torch_compile",
    "training.strategy",
    "training.fsdp_cpu_offload",
    "training.deepspeed",
    "device",
    "processes",
    "threads",
}
"""What changes the last digits of a run, or its dropout, and nothing else; so do the versions of libraries."""


# --- where to go on from ----------------------------------------------------------------------------------


def own_directory(config: Config, resume: Resume, listener: Listener) -> str:
    """The run's directory where none is named: runs/<data>-<n>, the first n that is free, or that of what goes on.

    CheckpointError if the newest run of this model and data is asked for, and none has a checkpoint.
    """
    if isinstance(resume, Path):
        return str(resume.parent.parent)
    name = _data_name(config)
    begun = [run for run in map(RunDirectory, numbered_directories(name)) if _is_begun(run, config)]
    stopped = [run for run in begun if not run.is_finished() and not run.is_at_work()]
    last = next(iter(begun if resume == "newest" else stopped), None)
    if last is None:
        if resume == "newest":
            raise CheckpointError(
                "no run of this model and data in runs/ has a checkpoint to go on from",
                hint="name the run: --resume RUN, or start without --resume",
            )
        return str(next_directory(name))
    if resume == "never":
        if last is begun[0]:
            listener.warn(f"{last.path} did not come to its end: --resume goes on with it; this is a new run")
        return str(next_directory(name))
    listener.say(f"going on with {last.path}")
    return str(last.path)


def _is_begun(run: RunDirectory, config: Config) -> bool:
    """True of a run of this model and data that has a checkpoint; one that cannot be read is none."""
    try:
        before, now = run.read_record()["config"], config.model_dump(mode="json")
        is_same = (before["model"]["name_or_path"], before["data"]["path"]) == (
            now["model"]["name_or_path"],
            now["data"]["path"],
        )
    except (CheckpointError, KeyError, TypeError):
        return False
    return is_same and config.data.path is not None and bool(checkpoints_in(run.checkpoints))


def _data_name(config: Config) -> str | None:
    """What the run is named after."""
    path = config.data.path
    first = path if path is None or isinstance(path, str) else path[0]
    return first if first is None or isinstance(first, str) else first.path


def where_to_resume(directory: RunDirectory, resume: Resume, *, overwrite: bool, listener: Listener) -> Path | None:
    """The checkpoint to go on from, or None to start. CheckpointError for a folder that must not be touched."""
    if isinstance(resume, Path):
        return _named(directory, resume)
    there = checkpoints_in(directory.checkpoints)
    if resume != "never" and (sound := _newest_sound(there, listener)):
        return sound
    if resume != "never" and there:
        raise CheckpointError(
            f"{directory.path}: none of its {len(there)} checkpoints can be gone on from",
            hint="start again with --overwrite",
        )
    if resume == "newest":
        raise CheckpointError(
            f"{directory.path} holds no complete checkpoint to resume from", hint="start it without --resume"
        )
    if (there or directory.is_finished()) and not overwrite:
        raise CheckpointError(
            f"{directory.path} already holds a run",
            hint="go on with --resume, replace it with --overwrite, or choose another --output-dir",
        )
    return None


def _named(directory: RunDirectory, checkpoint: Path) -> Path:
    if not checkpoint.is_dir():
        raise CheckpointError(f"there is no checkpoint {checkpoint}", hint=_others(directory))
    if found := problems(checkpoint):
        raise CheckpointError(
            f"{checkpoint} is not a complete checkpoint: {'; '.join(found)}", hint=_others(directory)
        )
    if checkpoint.resolve().parent != directory.checkpoints.resolve():
        raise CheckpointError(
            f"{checkpoint} is not one of the checkpoints in {directory.path}",
            hint="leave output_dir to its own run; adapter.init_from starts another one from a run's weights",
        )
    return checkpoint


def _others(directory: RunDirectory) -> str:
    """Which checkpoints there are, for a hint."""
    there = [str(path) for path in listed(directory.checkpoints)]
    return f"there are {', '.join(there)}" if there else f"{directory.path} holds none: start without --resume"


def _newest_sound(checkpoints: list[Path], listener: Listener) -> Path | None:
    for path in checkpoints:
        found = problems(path)
        if not found:
            return path
        listener.warn(f"{path.name} is not complete ({'; '.join(found)}): passed over")
    return None


# --- the same run -----------------------------------------------------------------------------------------


def identity(plan: RunPlan, machine: Machine, prepared: PreparedDataset) -> dict[str, Any]:
    """What a run is, by setting, as its checkpoints say it: what it learns, from what, how, and on which machine."""
    config = plan.config
    return {
        **_base(config, machine),
        **_of("adapter", config.adapter.model_dump(mode="json"), without={"init_from"}),
        **_of("data", config.data.model_dump(mode="json"), without=POLICIES - {"packing"}),
        _DATA: prepared.fingerprint,
        _ROWS_A_STEP: plan.steps.effective_batch_size,
        "training.backend": machine.backend,
        "training.learning_rate": config.training.learning_rate,
        "training.optim": config.training.optim,
        "training.precision": machine.precision,
        **_of("training", config.training.model_dump(mode="json"), without=_FREE),
        "device": machine.device,
        "processes": machine.num_processes,
        "threads": usable_threads(),
        **versions(),
    }


def _base(config: Config, machine: Machine) -> dict[str, Any]:
    # A folder may be moved: its fingerprint is what counts. A hub's commit is known once the model is loaded.
    name = {} if machine.fingerprint else {"model.name_or_path": machine.source.name}
    return {
        **name,
        "model (configuration, tokenizer and weights)": machine.fingerprint,
        "model.dtype": stored_dtype(config, machine.precision),
        "model.quantization": machine.quantization,
    }


def _of(section: str, values: Mapping[str, Any], *, without: set[str]) -> dict[str, Any]:
    return {f"{section}.{name}": value for name, value in values.items() if name not in without}


def require_same_run(checkpoint: Path, now: Mapping[str, Any]) -> None:
    """CheckpointError, naming each difference, if going on from the checkpoint would make another run."""
    if refused := [text for name, text in _changed(checkpoint, now).items() if not _rounds(name)]:
        raise CheckpointError(
            f"{checkpoint} cannot be resumed, it would be another run: {'; '.join(refused)}",
            hint="set them back, or start a new run elsewhere (adapter.init_from goes on from weights)",
        )


def tell_roundings(checkpoint: Path, now: Mapping[str, Any], listener: Listener) -> None:
    """Tells what will change the run's last digits."""
    if changed := [text for name, text in _changed(checkpoint, now).items() if _rounds(name)]:
        listener.warn(f"the same run goes on, but not to the same bits: {'; '.join(changed)}")


def _rounds(name: str) -> bool:
    return name in _ROUNDING or name in versions()


def _changed(checkpoint: Path, now: Mapping[str, Any]) -> dict[str, str]:
    """What is not as it was, by setting; data settings only where they made other tokens."""
    before: dict[str, Any] = read_manifest(checkpoint)["identity"]
    names = [name for name in now if name in before and before[name] != now[name]]
    return {
        name: f"{name} was {before[name]} and is {now[name]}"
        for name in names
        if not name.startswith("data.") or name == "data.packing" or _DATA in names
    }
