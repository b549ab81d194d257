"""How the processes of a run hold its model together: whole in each of them, or a share of it in each."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from truetune.training.job import TrainJob
from truetune.training.world import World

Result = TypeVar("Result")
Weights = dict[str, torch.Tensor]


class Strategy(Protocol):
    """What Engine leaves to whoever spreads the model. Every method is called alike in all processes."""

    is_collective: ClassVar[bool]
    """True if no process computes alone: all must make as many forward and backward passes, in one order.

    Batches are then not cut, nothing is computed side by side, and nothing again where memory runs out.
    """

    def open(self, device: str) -> None:
        """Opens what the processes send each other tensors through. Before anything else is called."""

    def take(self, engine: Any, make: Callable[[], Any]) -> Any:
        """Spreads the engine's model, and returns the optimizer that `make` makes for what is left here.

        Once, when the weights are those to begin with: a checkpoint's, or the first process's.
        """

    def begin(self, passes: int) -> None:
        """A step begins, in which so many forward and backward passes come. Told where it `is_collective`."""

    def forward(self, compute: Callable[[], Result]) -> Result:
        """What `compute` makes of the model, whose weights are at hand in it; gradients can flow back."""

    def backward(self, loss: Any) -> None:
        """The loss's gradients. Asked for where it `is_collective`; Trainer's own does elsewhere."""

    def add_up(self, parameters: Sequence[Any]) -> None:
        """Once a step, behind its last batch: each gradient is the sum of all processes', and not their mean."""

    def norm(self, clip: Callable[[], Any]) -> Any:
        """The gradients' norm, a plain tensor; `clip` is Trainer's way to clip them and get it."""

    def first_alone(self, work: Callable[[], Result]) -> Result:
        """What the first process's `work` returns, in all of them: JSON carries it. It may run and read the model."""

    def weights(self, model: Any) -> Weights | None:
        """All weights, whole and on the CPU, by their names in files; inside `first_alone`. None: they are there."""

    def load_weights(self, model: Any, folder: Path) -> bool:
        """Takes the weights saved in a folder; False where they can be loaded as on one device."""

    def close(self) -> None:
        """Lets go of the model."""


class Root(torch.nn.Module):
    """Whatever is computed with the model, as one forward pass, around which who spreads it puts weights together."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Result]) -> Result:
        return compute()


class Replicated:
    """Each process holds all, as in DDP; how gradients become one is world.py's."""

    is_collective: ClassVar[bool] = False

    def __init__(self, world: World) -> None:
        self._world = world

    def open(self, device: str) -> None:
        self._world.connect(device)

    def take(self, engine: Any, make: Callable[[], Any]) -> Any:
        return make()

    def begin(self, passes: int) -> None:
        pass

    def forward(self, compute: Callable[[], Result]) -> Result:
        return compute()

    def backward(self, loss: Any) -> None:
        loss.backward()

    def add_up(self, parameters: Sequence[Any]) -> None:
        self._world.sum_gradients(parameters)

    def norm(self, clip: Callable[[], Any]) -> Any:
        return clip()

    def first_alone(self, work: Callable[[], Result]) -> Result:
        return self._world.told_by_first(work)

    def weights(self, model: Any) -> Weights | None:
        return None

    def load_weights(self, model: Any, folder: Path) -> bool:
        return False

    def close(self) -> None:
        pass


def strategy_of(job: TrainJob, world: World) -> Strategy:
    """The job's strategy, for this process of the world."""
    match job.strategy:
        case "ddp":
            return Replicated(world)
        case "fsdp":
            from truetune.training.sharded import FullyShard

            return FullyShard(world, precision=job.precision, offloads=job.fsdp_cpu_offload)
        case "deepspeed":
            from truetune.training.deepspeed import ZeroRedundancy

            return ZeroRedundancy(world, job.deepspeed)
