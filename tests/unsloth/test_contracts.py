"""What we send to Unsloth, against the signatures in the installed files: nothing of it is imported here."""

import ast
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tiny_runs import LORA
from truetune.model.load import ModelOptions
from truetune.model.source import ModelSource
from truetune.training.session import ModelRequest
from truetune.training.unsloth import adapter_arguments, base_arguments


def source(module: str) -> Path:
    """The file of one of Unsloth's modules, which may lie in a folder that only an import could name."""
    package, _, rest = module.partition(".")
    spec = find_spec(package)
    assert spec
    assert spec.origin
    return (Path(spec.origin).parent / rest.replace(".", "/")).with_suffix(".py")


GPU = ("unsloth.models.loader", "FastLanguageModel", "cuda")
CPU = ("unsloth_zoo.cpu.loader", "FastCPUModel", "cpu")


def keywords(module: str, kind: str, function: str) -> set[str]:
    """The names that a class's function takes in one of Unsloth's files."""
    tree = ast.parse(source(module).read_text(encoding="utf-8"))
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == kind]
    found = [each for node in classes for each in node.body if isinstance(each, ast.FunctionDef)]
    arguments = next(each.args for each in found if each.name == function)
    return {each.arg for each in (*arguments.args, *arguments.kwonlyargs)}


def request(device: Any, **changes: Any) -> ModelRequest:
    options = ModelOptions("bfloat16", device, **changes)
    return ModelRequest(ModelSource("m", "m"), options, LORA, 1, 256, True)


@pytest.mark.parametrize(("module", "kind", "device"), [GPU, CPU], ids=["gpu", "cpu"])
def test_every_keyword_for_a_base_is_in_the_signature(module: str, kind: str, device: str) -> None:
    assert base_arguments(request(device)).keys() <= keywords(module, kind, "from_pretrained")


@pytest.mark.parametrize(
    ("module", "kind"), [("unsloth.models.llama", "FastLlamaModel"), CPU[:2]], ids=["gpu", "cpu"]
)
def test_every_keyword_for_an_adapter_is_in_the_signature(module: str, kind: str) -> None:
    model = SimpleNamespace(get_output_embeddings=lambda: None, named_modules=list)
    assert adapter_arguments(model, LORA, request("cpu")).keys() <= keywords(module, kind, "get_peft_model")


def test_the_settings_of_the_environment_are_read_by_the_installed_files() -> None:
    assert "UNSLOTH_DISABLE_STATISTICS" in source("unsloth.models._utils").read_text()
    assert "UNSLOTH_COMPILE_LOCATION" in source("unsloth_zoo.compiler").read_text()


def test_the_fused_loss_on_a_gpu_takes_the_number_of_tokens_of_the_whole_step() -> None:
    """Without it each micro-batch would be averaged by itself."""
    assert "num_items_in_batch" in source("unsloth.models.llama").read_text()
