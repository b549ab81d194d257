"""FSDP2: each process holds a share of every weight, and a layer as a whole only while it computes it.

torch's `fully_shard`, through NCCL on CUDA, through gloo on a CPU. What learns beside a frozen base is small and
stays whole in each process, as in DDP: an adapter's gradients, optimizer and files are those of one process. Full
fine-tuning shares out weights, gradients and the optimizer's state.

Every layer that is computed speaks to all processes. Where one of them has work of its own (answers, saving, what
verifies a save), the others follow it layer by layer: they are told which one, and give it their shares.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from truetune.model.compiled import repeated_layers
from truetune.training.room import is_out_of_memory
from truetune.training.strategies import Root, Weights
from truetune.training.world import World

Result = TypeVar("Result")

_END, _WEIGHTS, _STATES = -1, -2, -3
"""What followers are told beside the number of a unit: there is no more, or all of these are asked for."""

_ROOT = 0
"""The unit that is not a layer: embeddings, output layer, the last norm."""


class FullyShard:
    """This process's part in it. A lone process can do it too, and holds all."""

    is_collective: ClassVar[bool] = True

    def __init__(self, world: World, *, precision: str, offloads: bool) -> None:
        self._world = world
        self._precision = precision
        self._offloads = offloads
        self._device = "cpu"
        self._units: list[Any] = []
        self._outside: list[tuple[nn.Module, str]] = []
        self._optimizer: Any = None
        self._leads = False

    def open(self, device: str) -> None:
        self._device = device
        self._world.connect(device, even_alone=True)

    def close(self) -> None:
        self._units, self._outside, self._optimizer = [], [], None
        if self._world.size == 1 and dist.is_initialized():
            dist.destroy_process_group()

    # --- spread ---------------------------------------------------------------------------------------------

    def take(self, engine: Any, make: Callable[[], Any]) -> Any:
        model = engine.model
        # accelerate would move to the GPU what is to stay on the CPU.
        engine.accelerator.device_placement = False
        self._spread(model)
        _make_whole_once(self._units[_ROOT], self._units[1:])
        self._optimizer = make()
        if any(isinstance(each, DTensor) for each in _parameters(self._optimizer)):
            self._optimizer.register_state_dict_post_hook(self._with_whole_states)
            self._optimizer.register_load_state_dict_pre_hook(_with_own_states)
        return self._optimizer

    def _spread(self, model: Any) -> None:
        kept = {each for each in model.parameters() if each.requires_grad} if _has_frozen(model) else set()
        for each in kept:
            each.data = each.data.to(self._device)
        layers, root = list(repeated_layers(model)), Root(model)
        options = self._options(ignored=kept, trains_all=not kept)
        for unit in (*layers, root):
            fully_shard(unit, **options)
            # Sums, not means: the loss is divided by the tokens of all. gloo knows no other sum than the plain one.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        root.set_reduce_scatter_unused_params(True)  # A mixture's experts may have had no token here.
        self._units = [root, *layers]
        inside = {id(each) for layer in layers for each in layer.modules()}
        self._outside = [(module, name) for module, name in _owners(model) if id(module) not in inside]
        for number, layer in enumerate(layers, start=1):
            layer.register_forward_pre_hook(partial(self._lead, number), prepend=True)
        _body(model).register_forward_pre_hook(self._lead_root, prepend=True)

    def _options(self, *, ignored: set[nn.Parameter], trains_all: bool) -> dict[str, Any]:
        mesh: DeviceMesh = init_device_mesh(self._device, (self._world.size,))
        # Weights that train are fp32: gathered in bf16, as autocast would cast them, and added up in fp32.
        casts = trains_all and self._precision == "bf16"
        policy = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if casts else {}
        offload = CPUOffloadPolicy(pin_memory=self._device == "cuda") if self._offloads else OffloadPolicy()
        return {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(**policy, cast_forward_inputs=False),
            "offload_policy": offload,
            "ignored_params": ignored,
            "reshard_after_forward": True,
        }

    # --- a step ---------------------------------------------------------------------------------------------

    def begin(self, passes: int) -> None:
        """Gradients are added up behind each of them."""

    def forward(self, compute: Callable[[], Result]) -> Result:
        return self._spoken(lambda: self._units[_ROOT](compute))  # type: ignore[no-any-return]

    def backward(self, loss: Any) -> None:
        self._spoken(loss.backward)

    def add_up(self, parameters: Sequence[Any]) -> None:
        """Of what is whole in each process; the rest was added up on the way back."""
        self._world.sum_gradients([each for each in parameters if not isinstance(each, DTensor)])

    def norm(self, clip: Callable[[], Any]) -> Any:
        return self._spoken(lambda: _whole(clip()))

    def _spoken(self, ask: Callable[[], Result]) -> Result:
        """What takes all processes; where one of them is gone, the error says so."""
        try:
            return ask()
        except RuntimeError as error:
            if self._world.size == 1 or is_out_of_memory(error):
                raise
            raise self._world.why(error) or error from error

    # --- one process has work of its own ----------------------------------------------------------------------

    def first_alone(self, work: Callable[[], Result]) -> Result:
        def led() -> Result:
            with self._leading():
                return work()

        if not self._world.is_first:
            self._follow()
        return self._world.told_by_first(led)

    @contextmanager
    def _leading(self) -> Iterator[None]:
        """In here the model can be run and read in this process; the others `_follow`."""
        self._leads = True
        try:
            self._lead_root()
            yield
        finally:
            self._leads = False
            self._forget_forwards()
            self._tell(_END)

    def _follow(self) -> None:
        while (told := self._told()) != _END:
            if told == _WEIGHTS:
                self._gathered_weights(self._units[_ROOT].model, keeps=False)
            elif told == _STATES:
                self._gathered_states(keeps=False)
            else:
                self._spoken(partial(_gather, self._units[told]))
                if told != _ROOT:
                    self._units[told].reshard()
        self._forget_forwards()

    def _lead(self, number: int, *_: Any) -> None:
        if self._leads:
            self._tell(number)

    def _lead_root(self, *_: Any) -> None:
        """Reading weights splits it up again."""
        if self._leads and any(isinstance(getattr(module, name), DTensor) for module, name in self._outside):
            self._tell(_ROOT)
            self._spoken(partial(_gather, self._units[_ROOT]))

    def _forget_forwards(self) -> None:
        """All split up again. FSDP fetches ahead by the order of forward passes, of which the leader has had more."""
        if self._units:
            self._units[_ROOT].reset_iter_state()

    def _reshard(self) -> None:
        if self._units:
            self._units[_ROOT].reshard()

    def _tell(self, number: int) -> None:
        if self._world.size > 1:
            self._spoken(lambda: dist.broadcast(torch.tensor([number]), src=0))

    def _told(self) -> int:
        number = torch.tensor([_END])
        self._spoken(lambda: dist.broadcast(number, src=0))
        return int(number)

    # --- files --------------------------------------------------------------------------------------------------

    def weights(self, model: Any) -> Weights | None:
        if _has_frozen(model):
            return None
        self._tell(_WEIGHTS)
        return self._gathered_weights(model, keeps=True)

    def _gathered_weights(self, model: Any, *, keeps: bool) -> Weights:
        """By their names; weights that share their memory still do."""
        self._reshard()
        whole: dict[int, Tensor] = {}
        named = model.state_dict(keep_vars=True)
        for value in named.values():
            if id(value) not in whole:
                gathered = self._spoken(partial(_whole, value.detach()))
                whole[id(value)] = gathered.cpu() if keeps else gathered[:0]
        return {name: whole[id(value)] for name, value in named.items()}

    def load_weights(self, model: Any, folder: Path) -> bool:
        from safetensors.torch import load_file

        if _has_frozen(model):
            return False
        self._reshard()
        named = model.state_dict(keep_vars=True)
        with torch.no_grad():
            for file in sorted(folder.glob("*.safetensors")):
                for name, value in load_file(file).items():
                    named[name].copy_(_own(value, named[name]))
        return True

    def _with_whole_states(self, _: Any, state: dict[str, Any]) -> dict[str, Any] | None:
        """The optimizer's state as one process would have it."""
        if self._world.size > 1 and not self._leads:
            return None
        self._tell(_STATES)
        whole = self._gathered_states(keeps=True)
        return {**state, "state": {place: {**values, **whole[place]} for place, values in state["state"].items()}}

    def _gathered_states(self, *, keeps: bool) -> list[dict[str, Tensor]]:
        """Of each parameter, by its place among the optimizer's, what was shared out of its state."""
        found: list[dict[str, Tensor]] = []
        for parameter in _parameters(self._optimizer):
            states = self._optimizer.state.get(parameter, {})
            shared = sorted(name for name, value in states.items() if isinstance(value, DTensor))
            gathered = {name: self._spoken(partial(_whole, states[name])) for name in shared}
            found.append({name: value.cpu() for name, value in gathered.items()} if keeps else {})
        return found


def _gather(unit: Any) -> None:
    """From whatever state: as the leader does at the same time."""
    unit.reshard()
    unit.unshard()


def _make_whole_once(root: Any, layers: Sequence[Any]) -> None:
    """Has the whole tensors made now: made first in an inference mode, they could not train."""
    root(lambda: None)
    for layer in layers:
        _gather(layer)
        layer.reshard()


def _has_frozen(model: Any) -> bool:
    return hasattr(model, "peft_config")


def _body(model: Any) -> Any:
    """What every forward pass goes through, however the model is called."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal.base_model


def _owners(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        for name, _ in module.named_parameters(recurse=False):
            yield module, name


def _parameters(optimizer: Any) -> Iterator[Any]:
    """In the order in which a state dict numbers them."""
    return (each for group in optimizer.param_groups for each in group["params"])


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _own(value: Tensor, target: Any) -> Any:
    """This process's share of a whole tensor, as the target has it: even parts of its first dimension."""
    if not isinstance(target, DTensor):
        return value
    mesh, here = target.device_mesh, target.to_local()
    parts = value.chunk(mesh.size())
    rank = mesh.get_local_rank()
    part = parts[rank] if rank < len(parts) else value[:0]
    own = part.to(here.device, target.dtype, copy=True)
    return DTensor.from_local(
        own, mesh, target.placements, run_check=False, shape=target.shape, stride=target.stride()
    )


def _with_own_states(optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of whole tensors, as one process wrote it, in this process's shares."""
    targets = list(_parameters(optimizer))

    def shared(place: int, values: Mapping[str, Any]) -> dict[str, Any]:
        target = targets[place]
        return {
            name: _own(value, target) if isinstance(value, Tensor) and value.shape == target.shape else value
            for name, value in values.items()
        }

    return {**state, "state": {place: shared(place, values) for place, values in state["state"].items()}}
