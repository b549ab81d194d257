"""Where the trained weights lie that a command names: a run, a folder in it, or RUN@STEP."""

import difflib
from pathlib import Path

from truetune.errors import CheckpointError
from truetune.runs.checkpoints import MANIFEST, checkpoint_folder, checkpoint_step, listed
from truetune.runs.directory import RunDirectory


def weights_folder(name: str | Path) -> Path:
    """The folder of weights that `name` stands for: a run's adapter or model, such a folder itself, or RUN@STEP's.

    CheckpointError, with what there is, for a name that stands for none.
    """
    path = Path(name)
    run, at, step = str(name).rpartition("@")
    if at and step.isascii() and step.isdigit() and not path.exists():
        return _checkpoint(RunDirectory(Path(run)), int(step))
    for folder in (path, path / "adapter", path / "model"):
        if holds_weights(folder):
            return folder
    if not path.is_dir():
        raise CheckpointError(f"run not found: {path}", hint=_beside(path))
    raise CheckpointError(f"{path} holds no trained model", hint=_remedy(RunDirectory(path)))


def _beside(path: Path) -> str:
    """The runs that lie where the name looks for one."""
    there = [str(record.parent) for record in sorted(path.parent.glob("*/run.json"))]
    close = difflib.get_close_matches(str(path), there, n=1, cutoff=0.8)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(there[:5])}" if there else "give the directory of a finished run"


def holds_weights(folder: Path) -> bool:
    """True for a folder with an adapter or a model."""
    return (folder / "adapter_config.json").is_file() or (folder / "config.json").is_file()


def run_of(folder: Path) -> RunDirectory | None:
    """The run that a folder of weights was written in; None where it lies alone."""
    parent = folder.absolute().parent
    found = RunDirectory(parent.parent if checkpoint_step(folder) >= 0 else parent)
    return found if found.record.is_file() else None


def _checkpoint(run: RunDirectory, step: int) -> Path:
    folder = checkpoint_folder(run.checkpoints, step)
    if (folder / MANIFEST).is_file() and holds_weights(folder):
        return folder
    if not run.path.is_dir():
        raise CheckpointError(f"run not found: {run.path}", hint="write RUN@STEP, with the directory of a run")
    raise CheckpointError(f"{run.path} has no complete checkpoint of step {step}", hint=_steps(run))


def _remedy(run: RunDirectory) -> str:
    if listed(run.checkpoints):
        return f"the run has not finished; of its checkpoints, {_steps(run)}"
    return "the run may not have finished: see its run.json"


def _steps(run: RunDirectory) -> str:
    steps = [str(checkpoint_step(each)) for each in reversed(listed(run.checkpoints))]
    return f"there are {', '.join(steps)}: write {run.path}@{steps[-1]}" if steps else "it has kept no checkpoint"
