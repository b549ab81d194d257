"""`truetune schema` serves editors: it takes what truetune takes under its own names, and explains each setting."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from truetune.config.json_schema import json_schema
from truetune.config.load import dump_config, load_config
from truetune.config.schema import Config, setting_names
from truetune.errors import ConfigError

ROOT = Path(__file__).parents[2]
SCHEMA = json_schema()


# --- a reader of JSON Schema, for the words that truetune's schema uses and no others -----------------------

TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, Mapping),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: TYPES["number"](value) and value == int(value),
}


def same(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """The type comes first: lengths and bounds are asked of a value that has them."""
    if "type" in schema and not TYPES[schema["type"]](value):
        return False
    return all(holds(value, schema, word, wanted) for word, wanted in schema.items())


def holds(value: Any, schema: Mapping[str, Any], word: str, wanted: Any) -> bool:
    match word:
        case "title" | "description" | "default" | "$defs" | "$schema" | "type":
            return True
        case "$ref":
            return fits(value, SCHEMA["$defs"][wanted.removeprefix("#/$defs/")])
        case "anyOf":
            return any(fits(value, each) for each in wanted)
        case "enum":
            return any(same(value, each) for each in wanted)
        case "const":
            return same(value, wanted)
        case "properties":
            return all(fits(value[name], each) for name, each in wanted.items() if name in value)
        case "additionalProperties":
            others = [inner for name, inner in value.items() if name not in schema.get("properties", {})]
            return not others if wanted is False else wanted is True or all(fits(inner, wanted) for inner in others)
        case "required":
            return all(name in value for name in wanted)
        case "items":
            return all(fits(inner, wanted) for inner in value)
        case "minItems" | "minLength":
            return len(value) >= wanted
        case "maxItems":
            return len(value) <= wanted
        case "pattern":
            return re.search(wanted, value) is not None
        case "minimum":
            return bool(value >= wanted)
        case "exclusiveMinimum":
            return bool(value > wanted)
        case "exclusiveMaximum":
            return bool(value < wanted)
    raise AssertionError(f"{word} is new in truetune's schema: teach it to this reader")


def accepts(document: Any) -> bool:
    return fits(document, SCHEMA)


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path)


# --- what it takes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_config_fits_the_schema(path: Path) -> None:
    assert accepts(read(path))


def test_a_config_that_truetune_wrote_fits_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(load_config({"model": "demo"}).config))
    assert accepts(read(path))


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 8, 25, 2048, 0.0, 0.02, 0.5, 0.999, 1.0, 1.5, 2e-4, -0.5,
    "", "auto", "no", "none", "null", "steps", "epoch", "true", "16", "1e-4", "text", "a.jinja", "{output}", "demo",
    "bf16", "bfloat16", "torch.bfloat16", "torch.float32", "float32", "fp16", "fp64", "vllm", "gguf", "cuda", "full",
    "wandb", "wandb,trackio", "a, b", "a,,b", ",", "pissa", "pissa_niter_4", "pissa_niter_x", "all-linear", "cosine",
    "adamw_8bit", "unsloth", "alpaca", "near", "drop", "warning", "error", "keep", "last_turn", "chat", "lora_only",
    [], [""], ["a"], ["a", "b"], ["none"], ["none", "none"], ["wandb"], ["wandb", "mlflow"], [1], [None], [[]],
    {}, {"a": "b"}, {"a": 1}, {"TT210": "error"}, {"TT210": "eror"}, {"path": "a.jsonl"},
    [{"path": "a.jsonl", "weight": 2}], [{"path": "a.jsonl", "wieght": 2}], [{"path": "a.jsonl", "weight": 0}],
    [{"weight": 2}], ["a.jsonl", {"path": "b", "split": None}],
]  # fmt: skip


def is_taken(name: str, value: Any) -> bool:
    section, _, leaf = name.rpartition(".")
    document = {section: {leaf: value}} if section else {leaf: value}
    try:
        Config.model_validate({**document, "model": {"name_or_path": "m", **document.get("model", {})}})
    except ValidationError:
        return False
    return True


def fits_the_schema(name: str, value: Any) -> bool:
    section, _, leaf = name.rpartition(".")
    document = {section: {leaf: value}} if section else {leaf: value}
    return accepts({**document, "model": {"name_or_path": "m", **document.get("model", {})}})


def disagreements() -> Iterator[tuple[str, Any]]:
    for name in setting_names():
        for value in VALUES:
            if is_taken(name, value) != fits_the_schema(name, value):
                yield name, value


def test_the_schema_takes_what_truetune_takes_and_refuses_what_it_refuses_setting_by_setting() -> None:
    """But 1.0, which is a whole number to JSON Schema and none to truetune."""
    assert [found for found in disagreements() if not is_whole_float(found[1])] == []


def is_whole_float(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.dtype", "torch.bfloat16"), ("model.dtype", "bf16"), ("model.dtype", None),
        ("training.precision", "bfloat16"), ("training.precision", None), ("logging.report_to", "none"),
        ("logging.report_to", None), ("logging.report_to", "wandb"), ("logging.report_to", ["none"]),
        ("evaluation.eval_strategy", False), ("checkpoints.save_strategy", False),
        ("adapter.modules_to_save", "embed_tokens, lm_head"), ("check.ignore", "TT205,TT3"),
        ("adapter.init_lora_weights", True), ("adapter.r", "auto"), ("training.num_train_epochs", "auto"),
        ("training.per_device_train_batch_size", "auto"), ("deploy", "ollama"), ("deploy", None),
    ],
)  # fmt: skip
def test_spellings_that_truetune_takes_fit_the_schema(name: str, value: Any) -> None:
    assert fits_the_schema(name, value)
    assert is_taken(name, value)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"model": {}},
        {"model": "demo"},
        {"model": {"name_or_path": "m"}, "evaluation_strategy": "steps"},
        {"model": {"name_or_path": "m"}, "learning_rate": 2e-4},
        {"model": {"name_or_path": "m"}, "training": {"learnig_rate": 2e-4}},
        {"model": {"name_or_path": "m"}, "training": {"optim": {"name": "sgd"}}},
        {"model": {"name_or_path": "m"}, "training": []},
    ],
)
def test_only_our_names_in_their_sections_fit(document: dict[str, Any]) -> None:
    assert not accepts(document)


def test_an_empty_section_fits_and_means_its_defaults() -> None:
    assert accepts({"model": {"name_or_path": "m"}, "training": None, "check": None})
    assert load_config({"model": {"name_or_path": "m"}, "training": None}).config.training.seed == 42


def test_a_json_config_may_name_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"$schema": "./truetune.schema.json", "model": {"name_or_path": "m"}}')
    assert accepts(read(path))
    assert load_config(path).config.model.name_or_path == "m"
    with pytest.raises(ConfigError, match=r"\$schema: unknown setting"):
        load_config({"model": "m"}, overrides=["$schema=x"])


# --- what it explains -------------------------------------------------------------------------------------


def properties() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, definition in SCHEMA["$defs"].items():
        yield from ((f"{name}.{leaf}", each) for leaf, each in definition["properties"].items())
    yield from ((name, SCHEMA["properties"][name]) for name in ("deploy", "output_dir"))


def is_closed(schema: Mapping[str, Any]) -> bool:
    """True if an editor can tell values apart: by type, by name or by bound."""
    return any(word in schema for word in ("type", "enum", "const", "$ref")) or all(map(is_closed, schema["anyOf"]))


def test_every_setting_has_its_name_a_description_a_default_and_a_type_that_an_editor_can_use() -> None:
    needed = {"ModelConfig.name_or_path", "SourceConfig.path"}
    for name, schema in properties():
        assert schema["title"] == name.rpartition(".")[2], name
        assert schema["description"], name
        assert ("default" in schema) != (name in needed), name
        assert is_closed(schema), name


def test_the_schema_says_which_names_it_leaves_out_and_every_section_what_it_holds() -> None:
    assert "names that other tools use" in SCHEMA["description"]
    assert all(definition["description"] for definition in SCHEMA["$defs"].values())
