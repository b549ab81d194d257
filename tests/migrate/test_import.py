"""Other tools' configs and scripts, imported: what each key became, and that none is lost."""

import ast
import json
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from shapes import GUIDE, TOOLS, Shape

from truetune.cli import main
from truetune.config.load import load_config
from truetune.errors import ConfigError
from truetune.migrate import litgpt, unsloth
from truetune.migrate.axolotl import AXOLOTL
from truetune.migrate.importer import Imported, import_file
from truetune.migrate.litgpt import LITGPT
from truetune.migrate.llamafactory import llamafactory
from truetune.migrate.outcomes import Tool
from truetune.migrate.translation import UNKNOWN, resolved, translate
from truetune.migrate.trl import TRL
from truetune.migrate.unsloth import UNSLOTH

SHAPES = [pytest.param(tool, shape, id=f"{tool}: {shape.name}") for tool, shapes in TOOLS.items() for shape in shapes]
CONFIGS = [case for case in SHAPES if case.values[0] != "script"]


def write(folder: Path, tool: str, text: str) -> Path:
    path = folder / ("train.py" if tool == "script" else "config.yaml")
    path.write_text(text, encoding="utf-8")
    return path


def imported(folder: Path, tool: str, text: str) -> Imported:
    return import_file(write(folder, tool, text))


def keys(found: Imported, *, matters: bool) -> set[str]:
    return {each.key for each in found.translation.untranslated if each.matters is matters}


# --- shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tool", "shape"), SHAPES)
def test_every_setting_is_the_other_tools_and_every_other_key_is_named(
    tool: str, shape: Shape, tmp_path: Path
) -> None:
    found = imported(tmp_path, tool, shape.text)
    assert found.translation.tool == tool
    assert found.translation.settings == shape.settings
    assert keys(found, matters=True) == set(shape.lost)
    assert keys(found, matters=False) == set(shape.idle)


@pytest.mark.parametrize(("tool", "shape"), SHAPES)
def test_the_written_config_loads_to_what_was_translated(tool: str, shape: Shape, tmp_path: Path) -> None:
    found = imported(tmp_path, tool, shape.text)
    written = tmp_path / "run.yaml"
    written.write_text(found.as_yaml(), encoding="utf-8")
    assert load_config(written).config == resolved(found.translation)


def leaf_keys(value: Any, above: str = "") -> Iterator[str]:
    """Every leaf of a document, in the test's own words."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaf_keys(inner, f"{above}.{name}" if above else str(name))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for index, inner in enumerate(value):
            yield from leaf_keys(inner, f"{above}[{index}]")
    else:
        yield above


def told_keys(found: Imported) -> set[str]:
    done = found.translation
    return {each.key for each in done.translated} | {each.key for each in done.untranslated}


@pytest.mark.parametrize(("tool", "shape"), CONFIGS)
def test_no_key_of_a_config_is_lost(tool: str, shape: Shape, tmp_path: Path) -> None:
    leaves = set(leaf_keys(YAML(typ="safe").load(shape.text)))
    told = told_keys(imported(tmp_path, tool, shape.text))
    sections = ("model.", "data.", "training.", "lora.", "logging.")
    if tool == "unsloth":
        leaves = {next((key.removeprefix(each) for each in sections if key.startswith(each)), key) for key in leaves}
    assert told == leaves


READERS: dict[str, tuple[Tool, Callable[[Mapping[str, Any]], Mapping[str, Any]]]] = {
    "axolotl": (AXOLOTL, dict),
    "llamafactory": (llamafactory({"x": {"file_name": "x.json"}}), dict),
    "trl": (TRL, dict),
    "unsloth": (UNSLOTH, unsloth.flat),
    "litgpt": (LITGPT, litgpt.flat),
}
ODD = (None, True, False, 0, 1, -3, 0.5, "x", "", "1", [], ["x"], [1, None], {}, {"x": 1}, [{"x": {"y": 2}}], [{}])


@pytest.mark.parametrize("tool", READERS)
def test_whatever_stands_under_a_known_key_it_is_told_and_the_config_is_valid(tool: str) -> None:
    """Every key that a rule or a shape knows, one after the other, with values that are mostly wrong."""
    reader, flat = READERS[tool]
    known = {*reader.rules, *(key for shape in TOOLS[tool] for key in YAML(typ="safe").load(shape.text))}
    for key in known:
        for value in ODD:
            document = flat({key: value})
            if not any(reader.refusals(document)):
                done = translate(document, reader)
                told = {each.key for each in (*done.translated, *done.untranslated)}
                assert told == set(leaf_keys(document)), (key, value)


# --- which tool -------------------------------------------------------------------------------------------


def test_a_config_whose_tool_cannot_be_told_names_the_candidates(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        imported(tmp_path, "trl", "learning_rate: 1e-4\ndataset_name: a/b\ncutoff_len: 5\n")
    assert "llamafactory by cutoff_len; trl by dataset_name" in raised.value.message
    assert "--from llamafactory or trl" in str(raised.value.hint)
    with pytest.raises(ConfigError, match="no tool has these keys"):
        imported(tmp_path, "trl", "learning_rate: 1e-4\n")


def test_a_config_of_our_own_is_not_imported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="truetune's own"):
        imported(tmp_path, "trl", "model: {name_or_path: demo}\ndata: {path: rows.jsonl}\n")


def test_from_overrides_what_the_keys_say(tmp_path: Path) -> None:
    path = write(tmp_path, "axolotl", "learning_rate: 1e-4\nnum_epochs: 2\n")
    assert import_file(path, tool="axolotl").translation.settings["training.num_train_epochs"] == 2
    with pytest.raises(ConfigError, match="no such tool: torchtune"):
        import_file(path, tool="torchtune")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("base_model: x\nsequence_len: 5\nrl: dpo\n", "config.yaml:3: rl: dpo"),
        ("base_model: x\npretraining_dataset: a/b\n", "config.yaml:2: pretraining_dataset"),
        ("stage: kto\ntemplate: x\n", "config.yaml:1: stage: kto"),
        ("finetuning_type: freeze\ntemplate: x\n", "config.yaml:1: finetuning_type: freeze"),
        ("dataset_name: x\nuse_peft: true\nbeta: 0.1\nnum_generations: 8\n", "config.yaml:3: beta"),
    ],
)
def test_methods_that_truetune_has_not_are_refused_by_name_and_line(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"supported|trained") as raised:
        imported(tmp_path, "trl", text)
    assert reason in raised.value.message


def test_all_refusals_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        imported(tmp_path, "script", "DPOConfig(beta=1)\nAutoModelForVision2Seq.from_pretrained('x')\n")
    assert [line.partition("train.py")[2][:3] for line in raised.value.message.splitlines()] == [":1:", ":2:"]


# --- LLaMA-Factory's data sets by name --------------------------------------------------------------------

INFO = {
    "mine": {"file_name": "mine.json", "columns": {"prompt": "ask", "query": "input", "response": "reply"}},
    "chats": {
        "file_name": "chats.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations"},
        "tags": {"user_tag": "kunde", "assistant_tag": "gpt"},
    },
    "far": {"hf_hub_url": "org/far", "subset": "de"},
    "pairs": {"file_name": "p.json", "ranking": True},
}


def with_info(folder: Path, dataset: str) -> Imported:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "dataset_info.json").write_text(json.dumps(INFO), encoding="utf-8")
    return imported(folder, "llamafactory", f"model_name_or_path: x\nstage: sft\ndataset: {dataset}\n")


def test_dataset_names_become_paths_and_columns_by_dataset_info(tmp_path: Path) -> None:
    found = with_info(tmp_path, "mine, chats, far").translation
    mine, chats = str(tmp_path / "data" / "mine.json"), str(tmp_path / "data" / "chats.jsonl")
    assert found.settings["data.path"] == [mine, chats, {"path": "org/far", "subset": "de"}]
    assert found.settings["data.columns"] == {"ask": "instruction", "reply": "output"}
    assert any("kunde" in note for note in found.notes)


@pytest.mark.parametrize(("dataset", "reason"), [("pairs", "preference"), ("mine,absent", "has no absent")])
def test_data_sets_that_cannot_be_read_are_left_with_the_reason(dataset: str, reason: str, tmp_path: Path) -> None:
    found = with_info(tmp_path, dataset).translation
    assert "data.path" not in found.settings
    assert reason in next(each.reason for each in found.untranslated if each.key == "dataset")


# --- scripts ----------------------------------------------------------------------------------------------


def test_a_script_is_read_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    touch = f"open({str(marker)!r}, 'w').write('ran')"
    hostile = f"""
import os, subprocess
{touch}
__import__("os").system("touch {marker}")
class Base:
    rank = eval("{touch}") or 8
    deep = 9 ** 9 ** 9 ** 9
    wide = "x" * 10 ** 12
@lambda f: {touch}
def formatting(example=exec("{touch}")):
    {touch}
    return {{"text": f"{{example['instruction']}}{{{touch}}}"}}
rows = load_dataset("json", data_files="a.json").map(formatting)
args = SFTConfig(learning_rate=(lambda: {touch})(), seed=Base.deep)
SFTTrainer(model=exec("{touch}"), train_dataset=rows, args=args)
"""
    found = imported(tmp_path, "script", hostile)
    assert not marker.exists()
    assert {"SFTConfig.learning_rate", "SFTConfig.seed", "map.function"} <= keys(found, matters=True)


def test_a_password_in_a_script_is_not_repeated(tmp_path: Path) -> None:
    text = GUIDE.replace("dtype=None", 'token="hf_verysecret"')
    text = text.replace("    learning_rate", '    hub_token="hf_verysecret", learning_rate')
    found = imported(tmp_path, "script", text)
    assert "hf_verysecret" not in found.as_yaml() + json.dumps(found.as_json(), default=str) + "".join(found.told())
    assert {"FastLanguageModel.from_pretrained.token", "TrainingArguments.hub_token"} <= keys(found, matters=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(:\n", "train.py:1: not valid Python"),
        ("x = 1\n", "no call that trains a model"),
        ("x = '\0'\n", "cannot be read as Python|not valid Python"),
        ("x = " + "(" * 5000, "cannot be read as Python|not valid Python"),
    ],
)
def test_a_script_that_cannot_be_read_is_an_error_with_its_place(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        imported(tmp_path, "script", text)


@pytest.mark.parametrize(
    ("function", "template"),
    [
        ("lambda row: {'text': row['question'] + ' = ' + row['answer']}", "{instruction} = {output}"),
        (
            "lambda row: 'Q {q} A {a}'.format(q=row['instruction'], a=row.get('output', ''))",
            "Q {instruction} A {output}",
        ),
        ("lambda rows: [f'{a}|{b}' for a, b in zip(rows['instruction'], rows['output'])]", "{instruction}|{output}"),
        ("lambda row: {'prompt': row['a'], 'completion': row['b']}", None),
        ("lambda row: str(len(row['a']))", None),
        ("lambda row: row['a'] + row['b'] + row['c'] + row['d']", None),
        ("unheard_of", None),
    ],
)
def test_a_formatting_function_that_is_one_text_becomes_a_template(
    function: str, template: str | None, tmp_path: Path
) -> None:
    trainer = "SFTTrainer(model='m', train_dataset=rows, formatting_func=fn)"
    found = imported(tmp_path, "script", f"fn = {function}\n{trainer}\n")
    assert found.translation.settings.get("data.template") == template
    assert ("SFTTrainer.formatting_func" in keys(found, matters=True)) is (template is None)


# --- the command ------------------------------------------------------------------------------------------

SMALL = "base_model: demo\nadapter: lora\nlora_r: 8\nlora_alpha: 8\nlora_target_linear: true\nwhat: 1\n"


def test_the_command_writes_a_config_and_tells_what_is_missing_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = write(tmp_path, "axolotl", SMALL), tmp_path / "run.yaml"
    assert main(["import", str(source), "-o", str(target)]) == 0
    assert f"{source}:6: what is not translated: unknown key" in capsys.readouterr().err
    assert load_config(target).config.adapter.r == 8
    assert main(["import", str(source), "-o", str(target)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["import", str(source), "-o", str(target), "--overwrite"]) == 0


def test_as_json_the_command_prints_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(write(tmp_path, "axolotl", SMALL)), "--json"]) == 0
    out = capsys.readouterr()
    document = json.loads(out.out)
    assert out.err == ""
    assert document["tool"] == "axolotl"
    assert {"key": "lora_r", "line": 3, "name": "adapter.r", "value": 8} in document["translated"]
    assert {each["key"]: each["line"] for each in document["untranslated"]} == {"what": 6}


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "file not found"), ("a: [1\n", "config.yaml:2: not valid YAML"), ("- 1\n", "expected a tool's settings")],
)
def test_a_file_that_cannot_be_read_ends_with_status_2(
    text: str | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml" if text is None else write(tmp_path, "trl", text)
    assert main(["import", str(path)]) == 2
    assert reason in capsys.readouterr().err.replace("\n", " ")


# --- the tools' own keys ----------------------------------------------------------------------------------


def fields_of(package: str, module: str, *classes: str) -> set[str]:
    """The fields of an installed library's dataclasses, without importing it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / module).read_text(encoding="utf-8"))
    return {
        inner.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in classes
        for inner in node.body
        if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name)
    } - {"_VALID_DICT_FIELDS"}


def test_every_key_of_the_installed_trl_has_an_answer() -> None:
    names = {
        *fields_of("trl", "trainer/sft_config.py", "SFTConfig"),
        *fields_of("trl", "trainer/model_config.py", "ModelConfig"),
        *fields_of("trl", "scripts/utils.py", "ScriptArguments", "DatasetMixtureConfig"),
        *fields_of("transformers", "training_args.py", "TrainingArguments"),
    }
    assert len(names) > 130
    done = translate({"use_peft": True, **dict.fromkeys(names - {"use_peft"}, "x")}, TRL)
    assert {each.key for each in done.untranslated if each.reason == UNKNOWN} == set()


# --- notebooks --------------------------------------------------------------------------------------------

CELLS = [
    {"cell_type": "markdown", "source": ["# Fine-tuning\n"]},
    {
        "cell_type": "code",
        "source": "%%capture\nimport os\nif 'COLAB_' in os.environ:\n    !pip install \\\n  unsloth\n",
    },
    {"cell_type": "code", "source": ["%%bash\n", "nvidia-smi && echo $(date)\n"]},
    {"cell_type": "code", "source": ["rate = 2e-4\n", "%env X=1\n", "args = SFTConfig(learning_rate=rate)"]},
    {"cell_type": "code", "source": ["SFTTrainer(model='m', args=args).train()\n"]},
]


def test_a_notebook_is_read_as_the_script_that_its_cells_are(tmp_path: Path) -> None:
    notebook = tmp_path / "train.ipynb"
    notebook.write_text(json.dumps({"cells": CELLS, "nbformat": 4}), encoding="utf-8")
    found = import_file(notebook).translation
    assert found.settings["training.learning_rate"] == 2e-4
    assert found.settings["model.name_or_path"] == "m"


@pytest.mark.parametrize("text", ["{}", "no JSON", '{"cells": [{"cell_type": "code"}]}', "[1]"])
def test_what_is_no_notebook_is_refused(text: str, tmp_path: Path) -> None:
    notebook = tmp_path / "train.ipynb"
    notebook.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="this is no notebook"):
        import_file(notebook)
