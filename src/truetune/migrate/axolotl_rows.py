"""Axolotl's `datasets`: where rows are, which fields they have, and the prompts around them."""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from truetune.migrate.datasets import CHATS, ROLE_SPELLINGS, SLICED, Places, is_sliced, template_of
from truetune.migrate.outcomes import Leave, Outcome, Set

_INNER: dict[str, str] = {
    "ds_type": "the kind of a file is told by its name",
    "trust_remote_code": "loading scripts are not run",
    "input_format": "rows are read by their fields",
    "field_thinking": "thoughts are read as reasoning_content, thinking and their like",
    "field_tools": "tools are read as tools or functions",
    "field_system": "the system text is read as system",
    "template_thinking_key": "the template sees reasoning_content",
    "conversation": "the template is chosen by data.template",
}


def datasets(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        yield Leave("a list of {path: …, type: …} is expected")
        return
    places = Places([_place(entry) for entry in value])
    for index, entry in enumerate(value):
        for key, inner in entry.items():
            if inner not in (None, "", [], {}):
                yield from _at(f"datasets[{index}].{key}", _dataset_key(key, inner, entry, places, document))


def _place(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry in the words of data.path."""
    files = entry.get("data_files")
    split = None if is_sliced(entry.get("split")) else entry.get("split")
    taken = {"path": entry.get("path"), "split": split, "revision": entry.get("revision")}
    if entry.get("name"):
        taken["subset"] = entry["name"]
    match files:
        case [only_file]:
            taken["data_files"] = only_file
        case str():
            taken["data_files"] = files
    if taken.get("data_files") == taken["path"] or taken["path"] in ("json", "csv", "parquet"):
        # datasets' own loaders: the files are the place.
        taken["path"] = taken.pop("data_files", taken["path"])
    return {name: value for name, value in taken.items() if value}


def _at(key: str, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """The outcomes under the key of the entry they come from, or below it."""
    for outcome in outcomes:
        match outcome:
            case Set(name, value, below):
                yield Set(name, value, f"{key}.{below}" if below else key)
            case Leave(reason, matters, below):
                yield Leave(reason, matters, f"{key}.{below}" if below else key)
            case _:
                yield outcome


def _dataset_key(
    key: str, value: Any, entry: Mapping[str, Any], places: Places, document: Mapping[str, Any]
) -> Iterator[Outcome]:
    match key:
        case "split" if is_sliced(value):
            yield Leave(SLICED)
        case "path" | "split" | "revision" | "name":
            yield Set("data.path", places.value)
        case "data_files":
            yield (
                Set("data.path", places.value)
                if isinstance(value, str) or len(value) == 1
                else Leave("name each file as a place of its own in data.path")
            )
        case "type":
            yield from _type(value, entry, document)
        case "field" | "field_messages":
            name = "text" if key == "field" else "messages"
            known = ("text",) if key == "field" else CHATS
            yield (
                Leave("rows are found by that name", matters=False)
                if value in known
                else Set("data.columns", {value: name})
            )
        case "chat_template":
            yield from chat_template(value, entry)
        case "chat_template_jinja":
            yield from jinja(value, document)
        case "roles_to_train":
            yield from _roles_to_train(value)
        case "train_on_eos":
            yield Leave("an answer is learned with its stop token", matters=value != "turn")
        case "message_property_mappings" | "message_field_role" | "message_field_content":
            yield from _message_names(value)
        case "roles":
            yield from _roles(value)
        case _ if key in _INNER:
            yield Leave(_INNER[key], matters=False)
        case _:
            yield Leave("it is no part of data.path here")


def _type(value: Any, entry: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[Outcome]:
    match value:
        case "alpaca":
            yield Set("data.template", "alpaca")
        case "chat_template":
            named = entry.get("chat_template") or document.get("chat_template")
            if named or entry.get("chat_template_jinja") or document.get("chat_template_jinja"):
                yield Leave("chat_template says which; the rows' form is found row by row", matters=False)
            else:
                yield Set("data.template", "model")
        case "completion":
            yield Set("data.format", "completion")
        case str() if value.startswith("sharegpt"):
            yield Set("data.format", "chat")
        case Mapping():
            yield from _own_type(value)
        case _:
            yield Leave(
                f"the prompt strategy {value} is not known here: rows are read by their fields, see data.template"
            )


_SLOTS = {
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_system": "system",
}


def _own_type(value: Mapping[str, Any]) -> Iterator[Outcome]:
    """A prompt of one's own: which fields, and the text around them; the answer follows the text."""
    for name, inner in value.items():
        if inner in (None, ""):
            continue
        match name:
            case _ if name in _SLOTS:
                known = inner == _SLOTS[name]
                yield (
                    Leave("it is read by that name", matters=False, key=name)
                    if known
                    else Set("data.columns", {inner: _SLOTS[name]}, name)
                )
            case "format":
                yield from _own_format(inner)
            case "no_input_format" if inner == value.get("format"):
                yield Leave("it is the same text", matters=False, key=name)
            case "no_input_format":
                yield Leave("data.template is one text: rows without an input are written with format too", key=name)
            case "system_format" if inner == "{system}":
                yield Leave("it adds nothing", matters=False, key=name)
            case _:
                yield Leave("put it into data.template", key=name)


def _own_format(text: Any) -> Iterator[Outcome]:
    if "{instruction}" in str(text):
        yield Set("data.template", f"{text}{{output}}", "format")
    else:
        yield Leave("a template needs {instruction}", key="format")


def _roles_to_train(value: Any) -> Iterator[Outcome]:
    match value:
        case ["assistant"] | ["gpt"] | ["gpt", "assistant"] | ["assistant", "gpt"]:
            yield Set("data.train_on", "assistant")
        case _:
            yield Leave("answers are learned: data.train_on takes assistant, last_turn or all")


def _message_names(value: Any) -> Iterator[Outcome]:
    names = value.values() if isinstance(value, Mapping) else [value]
    if all(name in ("role", "content", "from", "value", "text", "speaker") for name in names):
        yield Leave("roles and contents are found by these names", matters=False)
    else:
        yield Leave("a turn is read as role and content, or from and value: rename the keys in the file")


def _roles(value: Any) -> Iterator[Outcome]:
    spelled = value if isinstance(value, Mapping) else {}
    unknown = [name for names in spelled.values() for name in names if str(name).lower() not in ROLE_SPELLINGS]
    if unknown:
        yield Leave(
            f"{', '.join(map(str, unknown))}: roles are user, assistant, system and tool, or their usual spellings"
        )
    else:
        yield Leave("these spellings of roles are known", matters=False)


def validation_rows(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    match value:
        case [{"path": str(path), **others}] if "data_files" not in others:
            yield Set("data.validation_path", path, "test_datasets[0].path")
            for key, inner in others.items():
                if inner not in (None, ""):
                    yield Leave("validation rows are read as the training rows are", key=f"test_datasets[0].{key}")
        case _:
            yield Leave("validation rows are read from one file: name it in data.validation_path")


def chat_template(value: Any, document: Mapping[str, Any]) -> Iterator[Outcome]:
    if value == "jinja" or document.get("chat_template_jinja"):
        yield Leave("chat_template_jinja says which", matters=False)
    else:
        yield from template_of("Axolotl", value)


def jinja(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
    if PurePath(str(value)).suffix == ".jinja":
        yield Set("data.template", value)
    else:
        yield Leave("write the template to a file that ends in .jinja, and name it in data.template")
