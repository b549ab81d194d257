"""Whatever stands in another tool's config or script, it is translated, left with its reason, or refused."""

import ast
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from shapes import TOOLS

from properties import ODD, changed, examples, places
from truetune.config.load import load_config
from truetune.errors import ConfigError
from truetune.migrate.importer import Imported, import_file

CONFIGS = [
    (tool, YAML(typ="safe").load(shape.text))
    for tool, shapes in TOOLS.items()
    if tool != "script"
    for shape in shapes
]
SCRIPTS = [shape.text for shape in TOOLS["script"]]
VALUES = [
    *(value for value in ODD if not isinstance(value, float) or abs(value) < 1e300),
    "auto",
    "2e-4",
    "yes",
    [{"path": "a"}],
]


def imported(text: str, name: str, tool: str | None) -> Imported:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return import_file(path, tool=tool)


def require_loadable(found: Imported) -> None:
    """The run.yaml that is written says the settings that were found."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(found.as_yaml(), encoding="utf-8")
        assert load_config(path).config == load_config(dict(found.translation.settings)).config
    json.dumps(found.as_json(), default=str)
    assert all(found.told())


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[str, Any]:
    """A config of a tool in which one or two values are odd."""
    tool, document = draw(st.sampled_from(CONFIGS))
    for _ in range(draw(st.integers(1, 2))):
        document = changed(
            document, draw(st.sampled_from(places(document)[1:] or [()])), draw(st.sampled_from(VALUES))
        )
    return tool, document


@given(spoilt())
@examples(60)
def test_an_odd_value_in_a_config_is_translated_left_or_refused(config: tuple[str, Any]) -> None:
    tool, document = config
    try:
        found = imported(json.dumps(document), "config.json", tool)
    except ConfigError as error:
        assert error.message
        return
    require_loadable(found)


EXPRESSIONS = [
    "None",
    "[]",
    "{}",
    "-1",
    "'x' * 9",
    "2 ** 999",
    "[*a]",
    "{**b}",
    "lambda x: x",
    "f(*a, **b)",
    "x[y]",
    "f'{x!r:>9}'",
]
EXPRESSIONS += [
    "1 if x else 2",
    "'a' 'b'",
    "b'a'",
    "...",
    "1j",
    "{1: 2}",
    "{'a'}",
    "(yield)",
    "not x",
    "x.y.z",
    "'é\\ud800'",
    "1e999",
]


@st.composite
def scripts(draw: st.DrawFn) -> str:
    """A script in which some expressions are others."""
    tree = ast.parse(draw(st.sampled_from(SCRIPTS)))
    for _ in range(draw(st.integers(1, 3))):
        nodes = [
            node
            for node in ast.walk(tree)
            for name in ("value", "body", "iter", "test", "func")
            if isinstance(getattr(node, name, None), ast.expr)
        ]
        node = draw(st.sampled_from(nodes))
        name = draw(
            st.sampled_from(
                [
                    name
                    for name in ("value", "body", "iter", "test", "func")
                    if isinstance(getattr(node, name, None), ast.expr)
                ]
            )
        )
        setattr(node, name, ast.parse(draw(st.sampled_from(EXPRESSIONS)), mode="eval").body)
    try:
        return ast.unparse(ast.fix_missing_locations(tree))
    except (ValueError, TypeError):
        return "x = 1"


@given(scripts())
@examples(20)
def test_an_odd_expression_in_a_script_is_translated_left_or_refused(text: str) -> None:
    try:
        found = imported(text, "train.py", None)
    except ConfigError as error:
        assert error.message
        return
    require_loadable(found)


@given(
    st.sampled_from(SCRIPTS),
    st.integers(0, 5_000),
    st.integers(0, 60),
    st.sampled_from(["", "(", "'", "\t", "\0", "\\", "é"]),
)
@examples(60)
def test_a_script_that_was_cut_is_read_or_refused(text: str, start: int, length: int, piece: str) -> None:
    start %= len(text) + 1
    try:
        imported(text[:start] + piece + text[start + length :], "train.py", None)
    except ConfigError as error:
        assert "train.py" in error.message or error.hint


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("base_model: m\nsequence_len: 9\nnum_epochs: 2\nevals_per_epoch: .inf\n", "evals_per_epoch"),
        ("base_model: m\nsequence_len: 9\nval_set_size: .nan\n", "val_set_size"),
        ("stage: sft\nfinetuning_type: lora\ndataset: odd\n", "dataset"),
    ],
)
def test_a_value_that_no_rule_foresaw_leaves_its_key(text: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"odd": {"file_name": "a.json", "columns": ["prompt"]}}')
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert key in {each.key for each in import_file(path).translation.untranslated}


def test_a_folder_s_name_that_the_system_does_not_take_is_none(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"stage: sft\nfinetuning_type: lora\ndataset: a\ndataset_dir: {'x' * 300}\n")
    assert "dataset" in {each.key for each in import_file(path).translation.untranslated}


def test_a_notebook_that_is_nested_without_end_is_none(tmp_path: Path) -> None:
    path = tmp_path / "train.ipynb"
    path.write_text("[" * 90_000)
    with pytest.raises(ConfigError, match="this is no notebook"):
        import_file(path)
