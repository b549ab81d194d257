"""Which engine trains: as asked, or chosen with a reason. What Unsloth cannot do is refused, or told and replaced."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from truetune.config.schema import Config, lora_kinds, value_of, with_values
from truetune.errors import BackendError
from truetune.listener import Listener
from truetune.model.hardware import Device
from truetune.model.source import metadata_has
from truetune.training.session import Session, TrlSession
from truetune.training.world import World

Backend = Literal["trl", "unsloth"]
_PROGRAM = "from truetune.training.unsloth import serve; serve()"
_CAPABILITY = (7, 0)
"""Of the oldest GPUs that Unsloth supports (V100, T4)."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What the choice hangs on beside the config. `has_callbacks`: Python objects of the caller's watch the run."""

    device: Device
    model_type: str
    num_processes: int = 1
    has_callbacks: bool = False


def choose_backend(config: Config, situation: Situation) -> tuple[Backend, str]:
    """The engine and the reason. BackendError if Unsloth is asked for and cannot do this run."""
    wanted = config.training.backend
    if wanted == "trl":
        return "trl", "asked for"
    if wanted == "unsloth":
        if against := list(_against(config, situation)):
            raise BackendError(
                f"training.backend: unsloth cannot train this run: {'; '.join(against)}",
                hint="set training.backend to trl or auto"
                + ("" if metadata_has("unsloth") else ", or run: pip install 'truetune[unsloth]'"),
            )
        return "unsloth", "asked for"
    doubt = next(chain(_against(config, situation), _doubts(config, situation)), None)
    return ("trl", doubt) if doubt else ("unsloth", "it is installed, and supports this GPU and this model")


def _against(config: Config, situation: Situation) -> Iterator[str]:
    """What Unsloth cannot do at all."""
    if not metadata_has("unsloth"):
        yield "Unsloth is not installed"
    if situation.device == "mps":
        yield "Unsloth does not train on mps"
    if situation.num_processes > 1:
        yield "several processes train with TRL only"
    if situation.has_callbacks:
        yield "callbacks cannot reach it, it trains in a process of its own"
    targets = config.adapter.target_modules
    if config.adapter.method == "lora" and isinstance(targets, str) and targets != "all-linear":
        yield "adapter.target_modules must be all-linear or a list for it, not a regular expression"
    if config.training.activation_offloading:
        yield "training.activation_offloading is TRL's"
    if config.data.streaming:
        yield "data.streaming is TRL's"
    if config.evaluation.generate:
        yield "evaluation.generate is TRL's: a model of Unsloth's that generates is another one afterwards"
    if config.training.torch_compile is True:
        yield "training.torch_compile is TRL's: Unsloth compiles by itself"
    if kinds := lora_kinds(config.adapter):
        yield f"adapter.{kinds[0]} trains with TRL only"


def _doubts(config: Config, situation: Situation) -> Iterator[str]:
    """Where Unsloth would run, but TRL is the better choice."""
    if situation.device != "cuda":
        yield f"on {situation.device} Unsloth is no faster"
        return
    if _capability() < _CAPABILITY:
        yield "this GPU is older than those that Unsloth supports"
    if config.training.precision == "fp32":
        yield "in fp32 Unsloth is no faster"
    if config.adapter.method == "full":
        yield "Unsloth's gains are LoRA's"
    if not _has_own_model(situation.model_type):
        yield f"Unsloth has no model of its own for {situation.model_type}"


def _capability() -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability()  # type: ignore[no-any-return]


def _has_own_model(model_type: str) -> bool:
    """True if the installed Unsloth has a module for this architecture; found without importing it."""
    spec = find_spec("unsloth")
    folders = (spec and spec.submodule_search_locations) or []
    return any((Path(folder) / "models" / f"{model_type}.py").is_file() for folder in folders)


def settle(config: Config, *, backend: Backend, device: Device, listener: Listener) -> Config:
    """The config without what Unsloth replaces on a CPU, or a stream cannot have; each replacement told."""
    config = _streamed(config, listener)
    if backend != "unsloth" or device != "cpu":
        return config
    training, data = config.training, config.data
    if data.packing is True:
        listener.warn("data.packing: Unsloth does not pack on a CPU; rows are not packed")
    if data.packing is not False:
        data = data.model_copy(update={"packing": False})
    if "8bit" in training.optim or "paged" in training.optim:
        listener.warn(f"training.optim: Unsloth has no {training.optim} on a CPU; adamw_torch_fused takes its place")
        training = training.model_copy(update={"optim": "adamw_torch_fused"})
    return config.model_copy(update={"training": training, "data": data})


def _streamed(config: Config, listener: Listener) -> Config:
    """The config of a stream that tells no epochs: what would come at their ends comes every so many steps."""
    if not config.data.streaming:
        return config
    names = ("evaluation.eval_strategy", "checkpoints.save_strategy")
    late = [name for name in names if value_of(config, name) == "epoch"]
    for name in late:
        listener.say(f"{name}: steps (a stream does not tell where an epoch ends)")
    return with_values(config, dict.fromkeys(late, "steps"))


def open_session(
    backend: Backend,
    *,
    device: Device,
    directory: Path,
    listener: Listener,
    write_metrics: Callable[[dict[str, Any]], None],
    log: Path | None = None,
    world: World | None = None,
) -> Session:
    """The engine's session: TRL's in this process, Unsloth's in one of its own, whose output goes to the log.

    Without one it goes to unsloth.log, which begins anew each time.
    """
    if backend == "trl":
        return TrlSession(listener, write_metrics, world=world or World())
    from truetune.training.remote import RemoteSession

    environment = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    if log is None:
        log = directory / "unsloth.log"
        log.unlink(missing_ok=True)
    return RemoteSession(_PROGRAM, log=log, listener=listener, write_metrics=write_metrics, **environment)
