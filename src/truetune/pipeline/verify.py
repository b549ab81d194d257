"""`truetune verify`: is a run's directory what was written, can it go on, and would it go on as the same run?"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from truetune.config.load import load_config
from truetune.config.schema import Config
from truetune.errors import CheckpointError, TruetuneError
from truetune.inference.generate import load_trained
from truetune.inference.parity import as_json, read_fixtures, replay
from truetune.listener import Listener, LogListener
from truetune.model.probe import farthest
from truetune.pipeline.train import train_run
from truetune.runs.checkpoints import (
    checkpoint_folder,
    checkpoint_step,
    checkpoints_in,
    logged_lines,
    problems,
    read_manifest,
    state_digests,
    untimed,
)
from truetune.runs.directory import RunDirectory


@dataclass(frozen=True, slots=True)
class Checked:
    """A part of a run's directory; `complete` if it is as it was written, with what was found out in `facts`."""

    name: str
    problems: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify_run` found: a run is sound if no part of it has a problem."""

    path: Path
    checkpoints: tuple[Checked, ...]
    weights: Checked | None
    answers: Checked | None
    config: Checked
    resume_proof: Checked | None

    @property
    def parts(self) -> list[Checked]:
        others = (self.weights, self.answers, self.config, self.resume_proof)
        return [*self.checkpoints, *(part for part in others if part is not None)]

    @property
    def is_sound(self) -> bool:
        return all(part.complete for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        """As `truetune verify --json` prints it."""
        return {
            "path": str(self.path),
            "sound": self.is_sound,
            "checkpoints": [
                {"step": checkpoint_step(Path(each.name)), **_as_json(each)} for each in self.checkpoints
            ],
            "weights": self.weights and _as_json(self.weights),
            "answers": self.answers and _as_json(self.answers),
            "config": _as_json(self.config),
            "resume_proof": self.resume_proof and _as_json(self.resume_proof),
        }


def verify_run(
    path: str | Path,
    *,
    base_model: str | None = None,
    proof_steps: int | None = None,
    listener: Listener | None = None,
) -> Verification:
    """Reads a run's directory over: checkpoints' files, the weights' tensors, logits and answers, the config's rows.

    With `proof_steps` it also trains so many steps on the run's own rows, in a temporary folder, then half of them
    again from the checkpoint between, and compares the two to the bit. CheckpointError if there is no run.
    """
    listener, directory = listener or LogListener(), RunDirectory(Path(path))
    directory.read_record()
    checkpoints = [Checked(each.name, tuple(problems(each))) for each in checkpoints_in(directory.checkpoints)]
    weights, answers = _weights(directory, base_model)
    return Verification(
        path=directory.path,
        checkpoints=tuple(checkpoints),
        weights=weights,
        answers=answers,
        config=_config(directory, listener),
        resume_proof=(proof_steps and _resume_proof(directory, proof_steps, listener)) or None,
    )


def _as_json(part: Checked) -> dict[str, Any]:
    return {**asdict(part), "complete": part.complete}


# --- weights and config -----------------------------------------------------------------------------------


def _weights(directory: RunDirectory, base_model: str | None) -> tuple[Checked | None, Checked | None]:
    """The trained weights: their files and the logits that they give on their base; and their answers."""
    folder = next((each for each in (directory.adapter, directory.model) if each.is_dir()), None)
    if folder is None:
        finished = directory.is_finished()
        missing = Checked("weights", ("the run has finished, and its weights are missing",))
        return (missing if finished else None), None
    if found := problems(folder):
        return Checked(folder.name, tuple(found)), None
    try:
        recorded = read_manifest(folder)["logits"]
        model = load_trained(folder, base_model=base_model, dtype=recorded["dtype"]).model
    except TruetuneError as error:
        return Checked(folder.name, (error.message,)), None
    return _logits(folder, model, recorded), _answers(directory, model)


def _logits(folder: Path, model: Any, recorded: dict[str, Any]) -> Checked:
    try:
        off, rounding = farthest(model, recorded)
    except TruetuneError as error:
        return Checked(folder.name, (error.message,))
    facts = {"max_abs_logit_difference": off}
    if off <= rounding:
        return Checked(folder.name, (), facts)
    reason = (
        f"on its base it gives logits {off:.2g} off those it was saved with; rounding makes {rounding:.2g} at most"
    )
    return Checked(folder.name, (reason,), facts)


def _answers(directory: RunDirectory, model: Any) -> Checked | None:
    """What the model answers to the prompts that were recorded with it; None where none were."""
    try:
        fixtures = read_fixtures(directory.path)
    except TruetuneError as error:
        return Checked("answers", (error.message,))
    if fixtures is None:
        return None
    found = replay(model, fixtures)
    facts = {name: value for name, value in as_json(found).items() if value is not None}
    if found.is_same:
        return Checked("answers", (), facts)
    other = f"{found.prompts - found.equal - found.ties} of {found.prompts} prompts have other ones"
    return Checked("answers", (f"{other}: {found.first_difference}",), facts)


def _config(directory: RunDirectory, listener: Listener) -> Checked:
    """Whether config.yaml makes the same rows again."""
    from truetune.pipeline.check import prepare

    before = directory.read_record()["data"]["fingerprint"]
    try:
        found = prepare(load_config(directory.config).config, listener=listener).fingerprint
    except (TruetuneError, OSError) as error:
        return Checked(directory.config.name, (str(error),))
    facts = {"fingerprint": found}
    if found == before:
        return Checked(directory.config.name, (), facts)
    return Checked(directory.config.name, ("makes other rows now than the run trained on",), facts)


# --- the resume proof -------------------------------------------------------------------------------------


def _resume_proof(directory: RunDirectory, steps: int, listener: Listener) -> Checked:
    """Trains straight, and again from half way; what differs between the two ends is a problem."""
    half = max(1, steps // 2)
    with TemporaryDirectory(prefix="truetune-proof-") as temporary:
        straight, resumed = Path(temporary) / "straight", Path(temporary) / "resumed"
        listener.say(f"resume proof: {steps} steps, and again from step {half}")
        train_run(_shortened(directory, straight, steps=steps, half=half), listener=listener)
        _copy_until(straight, resumed, half)
        train_run(_shortened(directory, resumed, steps=steps, half=half), resume="newest", listener=listener)
        found = tuple(_differences(straight, resumed, steps))
    return Checked("resume proof", found, {"steps": steps, "resumed_from": half})


def _shortened(directory: RunDirectory, output: Path, *, steps: int, half: int) -> Config:
    config = load_config(directory.config).config
    return config.model_copy(
        update={
            "output_dir": str(output),
            "training": config.training.model_copy(update={"max_steps": steps, "num_processes": None}),
            "evaluation": config.evaluation.model_copy(
                update={
                    "eval_strategy": "no",
                    "generate": None,
                    "metric_for_best_model": "eval_loss",
                    "load_best_model_at_end": False,
                    "early_stopping_patience": None,
                }
            ),
            "checkpoints": config.checkpoints.model_copy(
                update={"save_strategy": "steps", "save_steps": half, "save_total_limit": None}
            ),
            "logging": config.logging.model_copy(update={"report_to": (), "logging_steps": 1}),
        }
    )


def _copy_until(straight: Path, resumed: Path, step: int) -> None:
    """The run as a crash behind that step would have left it."""
    source, target = RunDirectory(straight), RunDirectory(resumed)
    shutil.copytree(
        checkpoint_folder(source.checkpoints, step), checkpoint_folder(target.checkpoints, step), dirs_exist_ok=True
    )
    for file in (source.config, source.metrics):
        shutil.copy(file, resumed / file.name)
    target.update_record(**{**source.read_record(), "status": "running"})


def _differences(straight: Path, resumed: Path, steps: int) -> Iterator[str]:
    one, other = (checkpoint_folder(RunDirectory(each).checkpoints, steps) for each in (straight, resumed))
    yield from (f"{name} differs at step {steps}" for name in _other_files(one, other))
    first, second = ([untimed(line) for line in logged_lines(each)] for each in (one, other))
    if json.dumps(first) != json.dumps(second):  # In text, values that are no numbers are equal too.
        yield "the logged metrics differ"


def _other_files(one: Path, other: Path) -> Sequence[str]:
    """The files of weights, optimizer, schedule and random numbers that are not the same bytes."""
    first, second = state_digests(one), state_digests(other)
    if not first:
        raise CheckpointError(f"{one} holds no state to compare")
    return [name for name in first if first[name] != second.get(name)]
