"""The calls of a training script that load its rows or change them."""

from collections.abc import Iterator, Mapping
from typing import Any

from truetune.migrate.call_kinds import LOG_IN, ONE_SEED, ROW_WORK, TRAINERS, Kind, formatted_by
from truetune.migrate.datasets import SLICED, is_sliced
from truetune.migrate.outcomes import Leave, Outcome, Rule, Set, each, harmless, left, rules, to
from truetune.migrate.walk import Call, Walk

_FILES = ("json", "csv", "parquet", "text", "arrow")
_KEPT = left("rows are chosen in the script: write those that are kept to a file")
_MAP_REST = (
    "batched",
    "batch_size",
    "num_proc",
    "remove_columns",
    "desc",
    "load_from_cache_file",
    "with_indices",
    "writer_batch_size",
)
_ANY_ROWS = dict.fromkeys(
    ("mapping", "data", "df", "generator"),
    left("rows are made in the script: write them to a file, or give them to truetune.train"),
)
_DATASET_REST: dict[str, Rule] = {
    **each(LOG_IN, "token", "use_auth_token"),
    **each(
        harmless("rows are kept in truetune's own cache"),
        "cache_dir",
        "num_proc",
        "keep_in_memory",
        "download_mode",
        "verification_mode",
    ),
    "streaming": left("rows are prepared once and memory-mapped; data.streaming is for more than a disk holds"),
    "trust_remote_code": left("loading scripts are not run"),
    "field": to("data.field"),
    "data_dir": left("name the files in data.data_files"),
    "delimiter": left("the kind of a file is told by its name: .csv or .tsv"),
    "features": left("values stay as the file spells them"),
}
_KINDS: Mapping[str, Kind] = {
    "train_test_split": Kind(
        "train_test_split",
        {
            "test_size": to("data.test_size"),
            "seed": ONE_SEED,
            "shuffle": harmless("rows are held out by their text, which is stable"),
            "train_size": left("set data.test_size"),
        },
        ("test_size",),
    ),
    "rename_columns": Kind("rename_columns", {"column_mapping": to("data.columns")}, ("column_mapping",)),
    "remove_columns": Kind(
        "remove_columns", {"column_names": ROW_WORK}, ("column_names",), frozenset({"column_names"})
    ),
}


def row_call(call: Call, walk: Walk) -> Kind | None:
    """How a call is read, if it loads rows or changes them."""
    match call.name:
        case "load_dataset":
            return _load_dataset(call, walk)
        case "map":
            return _mapping(call, walk)
        case "from_list" | "from_dict" | "from_pandas" | "from_generator" if call.receiver.endswith("Dataset"):
            return Kind(
                f"Dataset.{call.name}", _ANY_ROWS, ("mapping",), frozenset({"mapping", "data", "df", "generator"})
            )
        case "filter" | "select" | "take" if _is_rows(call):
            return Kind(call.name, {call.name: _KEPT}, (call.name,), frozenset({call.name, *call.keywords}))
        case "shuffle" if _is_rows(call):
            return Kind("shuffle", {"seed": ONE_SEED, "buffer_size": ONE_SEED}, ("seed",))
        case "rename_column":
            return Kind("rename_column", _renamed(call), ("original_column_name", "new_column_name"))
        case _:
            return _KINDS.get(call.name)


def _is_rows(call: Call) -> bool:
    return any(word in call.receiver.lower() for word in ("data", "ds", "train", "eval", "rows"))


def _load_dataset(call: Call, walk: Walk) -> Kind:
    """load_dataset: training rows, or validation rows where the trainer is given them as such."""
    given = {**dict(zip(("path", "name"), call.positional, strict=False)), **call.keywords}
    validates = any(
        other.name in TRAINERS and str(other.keywords.get("eval_dataset")) == call.result and call.result
        for other in walk.calls
    )
    files = given.get("data_files")
    if validates:
        rule = (
            to("data.validation_path")
            if isinstance(files, str)
            else left("name the file of validation rows in data.validation_path")
        )
        own = {
            **dict.fromkeys(given, harmless("validation rows are read as the training rows are")),
            "data_files": rule,
        }
        if not isinstance(files, str):
            own["path"] = rule
        return Kind("load_dataset", own, ("path", "name"))
    return Kind("load_dataset", {**_DATASET_REST, **_training_rows(given)}, ("path", "name"))


def _training_rows(given: Mapping[str, Any]) -> dict[str, Rule]:
    files, split = given.get("data_files"), given.get("split")
    named_files = files if isinstance(files, dict) else {"train": files}
    files, others = named_files.get("train"), {name: path for name, path in named_files.items() if name != "train"}
    if given.get("path") in _FILES:
        place: Any = files
    else:
        words = {"path": given.get("path"), "subset": given.get("name"), "revision": given.get("revision")}
        words |= {"split": None if is_sliced(split) else split, "data_files": files}
        entry = {name: value for name, value in words.items() if isinstance(value, str)}
        place = (
            entry["path"]
            if list(entry) == ["path"] or (entry.keys() == {"path", "split"} and split == "train")
            else [entry]
        )
    rule = to("data.path", convert=lambda _: place)
    own: dict[str, Rule] = dict.fromkeys(("path", "name", "revision"), rule)
    own["split"] = left(SLICED) if is_sliced(split) else rule
    own["data_files"] = _files_rule(place, others)
    return own


def _files_rule(place: Any, others: Mapping[str, Any]) -> Rule:
    """The files: those of training are data.path; one of validation is data.validation_path."""

    def rule(*_: Any) -> Iterator[Outcome]:
        if place is not None:
            yield Set("data.path", place)
        held_out = [path for name, path in others.items() if name in ("validation", "test", "eval", "valid")]
        if held_out and isinstance(held_out[0], str):
            yield Set("data.validation_path", held_out[0])
        if place is None and not held_out:
            yield Leave("name the files in data.path")

    return rule


def _mapping(call: Call, walk: Walk) -> Kind | None:
    given = str(call.positional[0] if call.positional else call.keywords.get("function"))
    if not (given in walk.functions or given in walk.lambdas or _is_rows(call)):
        return None
    own = rules({"function": formatted_by(given, call, walk)}, each(ROW_WORK, *_MAP_REST))
    return Kind("map", own, ("function",), frozenset({"function", "fn_kwargs", *_MAP_REST}))


def _renamed(call: Call) -> dict[str, Rule]:
    given = [*call.positional, *call.keywords.values()]
    if len(given) == 2 and all(isinstance(name, str) for name in given):
        rule = to("data.columns", convert=lambda _: {given[0]: given[1]})
    else:
        rule = left("name the fields in data.columns")
    return dict.fromkeys(("original_column_name", "new_column_name"), rule)
