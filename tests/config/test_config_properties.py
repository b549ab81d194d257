"""Whatever a config file or a command line holds, it is a Config or a list of what is wrong with it."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import ODD, WHOLE_TEXTS, examples
from truetune.config.edit import with_settings
from truetune.config.load import dump_config, dump_given, load_config
from truetune.config.names import ALIASES, REFUSED
from truetune.config.schema import SECTIONS, setting_names
from truetune.config.words import fields
from truetune.errors import ConfigError, TruetuneError

NAMES = [*setting_names(), *(name.rpartition(".")[2] for name in setting_names()), *ALIASES, *REFUSED, *SECTIONS]
WORDS = [
    "auto",
    "true",
    "no",
    "null",
    "1",
    "-1",
    "0",
    "2e-4",
    "0.1",
    ".inf",
    "all",
    "steps",
    "epoch",
    "[a, b]",
    "{a: b}",
]
WORDS += [
    "lora",
    "qlora",
    "model",
    "x.jinja",
    "'{instruction}{output}'",
    "[1, [2]]",
    "[{path: a, weight: 0.5}]",
    "~",
    "'1'",
]


def loaded(text: str | bytes) -> Any:
    """The config in a file with this text. ConfigError, whose lines name the file or nothing."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return load_config(path).config


# --- settings ---------------------------------------------------------------------------------------------

OVERRIDES = st.lists(
    st.builds("{}={}".format, st.sampled_from(NAMES), st.sampled_from(WORDS) | WHOLE_TEXTS), min_size=1, max_size=4
)


@given(OVERRIDES)
@examples(150)
def test_any_settings_make_a_config_that_is_dumped_and_read_back_or_are_told(overrides: list[str]) -> None:
    try:
        config = load_config({"model": "m"}, overrides=overrides).config
    except ConfigError as error:
        assert error.message.strip()
        return
    assert loaded(dump_config(config)) == config
    assert loaded(dump_given(config)) == config


@given(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(ODD) | st.sampled_from(["auto", 2, ["a"]]), max_size=4)
)
@examples(100)
def test_any_python_values_make_a_config_or_are_told(settings: dict[str, Any]) -> None:
    try:
        config = load_config({"model": "m"}, settings=settings).config
    except ConfigError as error:
        assert error.message.strip()
        return
    assert load_config({"model": "m"}, settings=settings).config == config


@given(st.sampled_from([name for name, *_ in fields()]), WHOLE_TEXTS.filter(str.strip))
@examples(60)
def test_a_text_that_is_no_value_names_its_setting(name: str, text: str) -> None:
    try:
        load_config({"model": "m"}, overrides=[f"{name}={text}"])
    except ConfigError as error:
        assert all(
            name in line or f"{name}={text}"[: len(line)] in line or "contradicts" in line
            for line in error.message.splitlines()[:1]
        )


# --- files ------------------------------------------------------------------------------------------------

LINES = [
    "model: m",
    "model:",
    "  name_or_path: m",
    "data: {path: a}",
    "data:",
    "  path: [a, b]",
    "training: &t",
    "  <<: *t",
]
LINES += [
    "  learning_rate: 2e-4",
    "lr: 1",
    "- a",
    "? [a]",
    ": b",
    "...",
    "---",
    "%YAML 1.1",
    "# words",
    "\t",
    "x: !!int y",
    "a: *t",
]
LINES += [
    "training: *t",
    "!!set {a}",
    "x: !!binary aGk=",
    "x: |",
    "   y",
    "'",
    '"\\ud83d"',
    "{",
    "}",
    "deploy: vllm",
    "@",
    "`",
]


@given(st.lists(st.sampled_from(LINES) | st.text(max_size=8), max_size=8).map("\n".join))
@examples(150)
def test_any_file_is_a_config_or_is_refused_by_its_name(text: str) -> None:
    try:
        config = loaded(text)
    except ConfigError as error:
        assert error.message.strip()
        return
    assert loaded(dump_config(config)) == config


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "model: &m {name_or_path: *m}",
        "data: &d\n  path: &p [*p]\n",
        "model: !!float x",
        "model: !!int ''",
        "x: !!int 9" + "9" * 5_000,
        "x: " + "9" * 5_000,
        "x: !!timestamp 2026-99-99",
        "x: !!binary é",
        "x: !!pairs {a: b}",
        "x: !!omap [a]",
        "x: !!python/object:os.system a",
        "<<: 5",
        "<<: [5]",
        "? {a: b}\n: c",
        "? [a, b]\n: c",
        "x: 0b",
        "x: 0o",
        "x: 0x",
        "x: 1_000__",
        "x: +.",
        "x: 1:60:61",
        "%YAML 9.9\n---\nmodel: m",
        "%TAG ! a\n---\nx: !b c",
        "a: b: c",
        "\ufffe",
        "\x00",
        "model: '\\",
        'model: "\\x"',
        'model: "\\U00110000"',
        "[" * 5_000,
        "- " * 5_000,
        "a: b\n" * 3,
        "model: m\n---\nmodel: n",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_a_file_that_yaml_makes_something_odd_of_is_told_with_its_name(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(text)
    assert "run.yaml" in caught.value.message


def test_a_file_that_stands_for_itself_a_billion_times_is_refused_at_once() -> None:
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        loaded("\n".join(lines))


@pytest.mark.parametrize("value", ["&a [*a]", "!!float x", "!!int ''", "9" * 5_000, "? [a]", "[" * 5_000])
def test_an_odd_value_on_the_command_line_is_told_with_its_setting(value: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.path"):
        load_config({"model": "m"}, overrides=[f"data.path={value}"])


@given(st.lists(st.sampled_from(LINES), max_size=6).map("\n".join), st.sampled_from(NAMES[:60]))
@examples(60)
def test_a_setting_is_written_into_any_file_that_is_one_or_it_is_refused(text: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            load_config(path)
            path.write_text(with_settings(path, {"training.seed": 7}), encoding="utf-8")
        except TruetuneError:
            return
        assert load_config(path).config.training.seed == 7
