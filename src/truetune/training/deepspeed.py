"""DeepSpeed's ZeRO: its engine holds gradients and the optimizer's state in shares, with ZeRO 3 the weights too.

The batches and what they are weighed by are those of every other strategy; DeepSpeed takes the mean of the processes'
gradients, and each loss is multiplied by their number before, so that sums come out. Files are those of one process:
whole weights, and an optimizer's state that goes on in any number of processes, with DeepSpeed or without.

With ZeRO 3 a module's weights are whole while it computes. Where the first process has work of its own (answers,
saving, what verifies a save), all weights are whole in every process until it is done.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from truetune.training.room import is_out_of_memory
from truetune.training.strategies import Root, Weights
from truetune.training.world import World

Result = TypeVar("Result")


class ZeroRedundancy:
    """This process's part in it. A lone process can do it too, and holds all."""

    is_collective: ClassVar[bool] = True

    def __init__(self, world: World, document: Mapping[str, Any]) -> None:
        self._world = world
        self._document = document
        self._is_stage_3 = document["zero_optimization"]["stage"] == 3
        self._surroundings = ExitStack()
        self._trainer: Any = None
        self._zero: Any = None
        self._optimizer: ZeroOptimizer | None = None
        self._passes = 0

    def open(self, device: str) -> None:
        self._surroundings.enter_context(_one_device(device))
        self._surroundings.enter_context(warnings.catch_warnings())
        # Torch 2.13 says so of every sum that DeepSpeed 0.19 makes.
        warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
        self._world.connect(device, even_alone=True)

    def take(self, engine: Any, make: Callable[[], Any]) -> Any:
        optimizer = make()
        parameters = [list(group["params"]) for group in optimizer.param_groups]
        groups = list(optimizer.param_groups)  # DeepSpeed leaves empty ones out.
        self._zero = self._initialized(engine.model, optimizer)
        self._trainer = engine
        self._optimizer = ZeroOptimizer(self._zero, groups, parameters)
        return self._optimizer

    def _initialized(self, model: Any, optimizer: Any) -> Any:
        """DeepSpeed's engine."""
        import deepspeed

        # ZeRO 3 puts a function of its own there, in all that this program computes.
        self._surroundings.callback(setattr, nn.functional, "linear", nn.functional.linear)
        # On a CPU it would compile for minutes what no training uses (0.19).
        deepspeed.ops.__compatible_ops__.pop("deepspeed_shm_comm", None)
        zero, *_ = deepspeed.initialize(
            model=Root(model), optimizer=optimizer, config=dict(self._document), dist_init_required=False
        )
        return zero

    def begin(self, passes: int) -> None:
        self._passes = passes

    def forward(self, compute: Callable[[], Result]) -> Result:
        return self._spoken(lambda: self._zero(compute))  # type: ignore[no-any-return]

    def backward(self, loss: Any) -> None:
        self._passes -= 1
        self._zero.set_gradient_accumulation_boundary(self._passes == 0)
        self._spoken(lambda: self._zero.backward(loss * self._world.size, scale_wrt_gas=False))

    def add_up(self, parameters: Sequence[Any]) -> None:
        """Nothing: it was done on the way back."""

    def norm(self, clip: Callable[[], Any]) -> Any:
        """Of the gradients before they are clipped: known once DeepSpeed has clipped them and taken its step."""
        assert self._optimizer is not None
        return self._spoken(self._optimizer.step_once)

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
        with self._whole():
            if (optimizer := self._optimizer) is not None and self._trainer.control.should_save:
                self._spoken(lambda: optimizer.gather(keeps=self._world.is_first))
            return self._world.told_by_first(work)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """In here every process has all weights, and none of them is let go behind a layer."""
        if not self._is_stage_3 or self._zero is None:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters

        self._zero.empty_partition_cache()  # What is fetched ahead is neither there nor away.
        held = self._zero.optimizer.parameter_offload
        with GatheredParameters(list(self._zero.parameters())):
            for hook in (*held.forward_hooks, *held.backward_hooks):
                hook.remove()
            held.forward_hooks, held.backward_hooks = [], []
            yield
            held._register_deepspeed_module(held.module)

    # --- files ------------------------------------------------------------------------------------------------

    def weights(self, model: Any) -> Weights | None:
        """All of them, each in memory of its own: ZeRO 2 keeps what learns end to end."""
        if _has_frozen(model):
            return None
        whole: dict[int, Tensor] = {}
        named = model.state_dict(keep_vars=True)
        for value in named.values():
            if id(value) not in whole:
                whole[id(value)] = value.detach().to("cpu", copy=True)
        return {name: whole[id(value)] for name, value in named.items()}

    def load_weights(self, model: Any, folder: Path) -> bool:
        if not self._is_stage_3:
            return False
        from deepspeed.runtime.zero import GatheredParameters

        learned = [each for each in model.parameters() if each.requires_grad]
        with GatheredParameters(learned, modifier_rank=0):
            if self._world.is_first:
                _load(model, folder)
        return True

    def close(self) -> None:
        import torch.distributed as dist

        if self._zero is not None:
            self._zero.destroy()
        self._zero = self._optimizer = self._trainer = None
        _forget_groups()
        self._surroundings.close()
        if self._world.size == 1 and dist.is_initialized():
            dist.destroy_process_group()


class ZeroOptimizer(torch.optim.Optimizer):
    """What Trainer takes for its optimizer: DeepSpeed's, with the groups, rates and file of the one it was made of.

    `parameters` are the model's, group by group.
    """

    def __init__(self, zero: Any, groups: list[dict[str, Any]], parameters: Sequence[Sequence[nn.Parameter]]) -> None:
        # Nothing of torch's: the groups are those of which DeepSpeed reads the rates, around its own flat parameters.
        self.param_groups = groups
        self.defaults = dict(zero.basic_optimizer.defaults)
        self._zero = zero
        self._parameters = parameters
        self._norm: Tensor | None = None
        self._gathered: dict[int, dict[str, Tensor]] = {}

    @property
    def state(self) -> Mapping[Any, Any]:
        """DeepSpeed's, of its flat parameters."""
        return self._zero.basic_optimizer.state  # type: ignore[no-any-return]

    def step_once(self) -> Tensor:
        """Takes the step, unless it was taken since the last `step`, and returns its gradients' norm."""
        if self._norm is None:
            self._zero.step()
            self._norm = torch.as_tensor(self._zero.get_global_grad_norm())
        return self._norm

    def step(self, closure: Any = None) -> None:
        self.step_once()
        self._norm = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: DeepSpeed does, with its step."""

    # --- its file -----------------------------------------------------------------------------------------------

    def gather(self, *, keeps: bool) -> None:
        """Puts the state together, in all processes at once; those that keep it have it for `state_dict`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._gathered = {}
        self._link()
        for place, parameter in enumerate(self._all()):
            found = dict(self._plain())
            for name in self._names():
                value = safe_get_full_optimizer_state(parameter, name)
                found[name] = value.reshape(_shape(parameter)).cpu() if keeps else value[:0]
            if keeps and found:
                self._gathered[place] = found

    def state_dict(self) -> dict[str, Any]:
        """As torch's optimizer would have it in one process: by the last `gather`."""
        groups, first = [], 0
        for group, own in zip(self.param_groups, self._parameters, strict=True):
            places = list(range(first, first := first + len(own)))
            groups.append({**group, "params": places})
        return {"state": dict(self._gathered), "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes a state of whole tensors, whoever wrote it. In all processes at once."""
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        states: Mapping[int, Mapping[str, Any]] = state_dict["state"]
        if not states:
            return
        self._make_room(states[min(states)], self._all()[min(states)])
        for place, parameter in enumerate(self._all()):
            for name in self._names():
                _set_state(parameter, states[place][name].to(parameter.device), name)

    def _make_room(self, example: Mapping[str, Any], parameter: nn.Parameter) -> None:
        """A state of zeros for each of DeepSpeed's flat parameters, as its first step would make it."""
        for flat in _flat_parameters(self._zero.optimizer):
            self._zero.basic_optimizer.state[flat] = {
                name: torch.zeros_like(flat) if _is_of(value, parameter) else _copied(value)
                for name, value in example.items()
            }
        self._link()

    def _link(self) -> None:
        """ZeRO 1 and 2 (0.19) link the states of all groups once the first of them has taken its step: too early."""
        zero = self._zero.optimizer
        if hasattr(zero, "_hp_optimizer_states_linked"):
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def _all(self) -> list[nn.Parameter]:
        return [each for group in self._parameters for each in group]

    def _example(self) -> tuple[Any, Mapping[str, Any]]:
        return next(iter(self.state.items()), (None, {}))

    def _names(self) -> list[str]:
        """Of what the state holds for each number; the same in all processes."""
        flat, values = self._example()
        return sorted(name for name, value in values.items() if torch.is_tensor(value) and value.shape == flat.shape)

    def _plain(self) -> Mapping[str, Any]:
        """What the state holds but once."""
        names = self._names()
        return {name: _copied(value) for name, value in self._example()[1].items() if name not in names}


def _set_state(parameter: nn.Parameter, value: Tensor, name: str) -> None:
    """Gives this process its part of a whole state: of ZeRO 3 by hand, since 0.19 takes none that does not divide."""
    from deepspeed import comm
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not hasattr(parameter, "ds_tensor"):
        safe_set_full_optimizer_state(parameter, value, name)
        return
    size: int = parameter.ds_tensor.ds_numel
    whole = nn.functional.pad(value.flatten(), (0, size * comm.get_world_size() - value.numel()))
    safe_set_local_optimizer_state(parameter, whole.narrow(0, size * comm.get_rank(), size), name)


def _flat_parameters(optimizer: Any) -> Sequence[Tensor]:
    """What the inner optimizer is given by ZeRO 3, or by ZeRO 1 and 2."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return optimizer.fp32_partitioned_groups_flat  # type: ignore[no-any-return]
    return optimizer.single_partition_of_fp32_groups  # type: ignore[no-any-return]


def _copied(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) else value


def _is_of(value: Any, parameter: nn.Parameter) -> bool:
    """True of a state that has a number for each of the parameter's."""
    return bool(torch.is_tensor(value) and value.shape == _shape(parameter) and value.ndim > 0)


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Also of a parameter that ZeRO 3 has taken apart."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _has_frozen(model: Any) -> bool:
    return hasattr(model, "peft_config")


def _load(model: Any, folder: Path) -> None:
    """The weights of a folder, or the adapter's, into those that the model has."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    found = {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    if _has_frozen(model):
        set_peft_model_state_dict(model, found)
        return
    named = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in found.items():
            named[name].copy_(value)


@contextmanager
def _one_device(device: str) -> Iterator[None]:
    """DeepSpeed computes on the device of LOCAL_RANK, and of its own liking; each process sees one GPU here."""
    said = {"LOCAL_RANK": "0", **({"DS_ACCELERATOR": "cpu"} if device == "cpu" else {})}
    before = {name: os.environ.get(name) for name in said}
    os.environ.update(said)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _forget_groups() -> None:
    """Takes from DeepSpeed what it remembers of processes that go apart: a program's next run has others."""
    if (comm := sys.modules.get("deepspeed.comm.comm")) is not None:
        comm.cdb = None  # type: ignore[attr-defined]
    if (groups := sys.modules.get("deepspeed.utils.groups")) is not None:
        groups._WORLD_GROUP = None  # type: ignore[attr-defined]
