"""What a path stands for: which files are taken, which are passed over, and that this is said."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from truetune.data.read import read_records
from truetune.data.sources import Source, SourceFile, find_files, require_source
from truetune.errors import DataError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    """Files that hold their own name as a row."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"text": name})
        Path(name).write_text(f"[{text}]" if name.endswith(".json") else f"{text}\n")


def found(path: str, **settings: Any) -> list[str]:
    return [file.name for file in find_files(Source(path, **settings)).files]


def notices(path: str, **settings: Any) -> tuple[str, ...]:
    return find_files(Source(path, **settings)).notices


def refusal(path: str, **settings: Any) -> DataError:
    """Refused at once, and with what to do about it."""
    source = Source(path, **settings)
    with pytest.raises(DataError) as caught:
        require_source(source)
    assert caught.value.hint
    with pytest.raises(DataError, match=re.escape(caught.value.message)):
        find_files(source)
    return caught.value


def test_a_file_is_itself_and_is_named_as_it_was_written() -> None:
    make("data/a.jsonl")
    (file,) = find_files(Source("./data/a.jsonl", weight=2.0)).files
    assert file == SourceFile(Path("data/a.jsonl"), "./data/a.jsonl", 2.0)
    (record,) = read_records(file)
    assert (record.fields, str(record.where)) == ({"text": "data/a.jsonl"}, "./data/a.jsonl, line 1")
    assert notices("data/a.jsonl") == ()


def test_field_and_split_go_to_a_json_file_and_are_refused_elsewhere() -> None:
    make("a.json", "a.jsonl")
    (file,) = find_files(Source("a.json", field="x.y", split="test")).files
    assert (file.field, file.split) == ("x.y", "test")
    assert "only a .json file has fields" in refusal("a.jsonl", field="x").message
    assert "no split 'test'" in refusal("a.jsonl", split="test").message
    assert found("a.jsonl", split="train") == ["a.jsonl"]


def test_a_folder_gives_its_files_of_rows_in_order_and_names_the_others() -> None:
    make("d/b.jsonl", "d/sub/a.csv", "d/a.parquet", "d/.hidden.jsonl", "d/.git/x.jsonl", "d/README.md", "d/notes.txt")
    make("d/dataset_info.json", "d/__pycache__/x.jsonl", "d/x.xlsx")
    assert found("d") == found("d/") == ["d/a.parquet", "d/b.jsonl", "d/sub/a.csv"]
    assert notices("d") == ("5 files in d passed over: README.md, __pycache__/x.jsonl, dataset_info.json and 2 more",)


def test_text_files_are_rows_where_there_is_nothing_else() -> None:
    make("d/b.txt", "d/a.txt", "d/LICENSE.txt", "d/README.txt")
    assert found("d") == ["d/a.txt", "d/b.txt"]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (None, ["d/1/training_set.csv", "d/my-train.jsonl", "d/train2.jsonl"]),
        ("train", ["d/1/training_set.csv", "d/my-train.jsonl", "d/train2.jsonl"]),
        ("validation", ["d/dev.jsonl", "d/eval/0.jsonl", "d/x_val.jsonl"]),
        ("dev", ["d/dev.jsonl", "d/eval/0.jsonl", "d/x_val.jsonl"]),
        ("test", ["d/a.test.jsonl", "d/test/train_like_not.jsonl"]),
    ],
)
def test_a_folder_s_split_is_what_its_names_say(split: str | None, expected: list[str]) -> None:
    make(
        "d/1/training_set.csv", "d/my-train.jsonl", "d/train2.jsonl", "d/dev.jsonl", "d/eval/0.jsonl", "d/x_val.jsonl"
    )
    make("d/a.test.jsonl", "d/test/trainer.jsonl", "d/latest.jsonl", "d/devil.jsonl")
    expected = [name.replace("train_like_not", "trainer") for name in expected]
    assert found("d", split=split) == sorted(expected)
    wanted = "validation" if split == "dev" else split or "train"
    assert notices("d", split=split)[0] == f"split {wanted}: {len(expected)} of 10 files in d"


def test_the_only_split_of_a_folder_is_taken_and_a_missing_one_is_told() -> None:
    make("d/test.jsonl")
    assert found("d") == ["d/test.jsonl"]
    assert notices("d") == ("split test: 1 of 1 file in d",)
    assert refusal("d", split="train").message == "d: no split 'train'; there is test"
    make("d/dev.jsonl")
    error = refusal("d")
    assert error.message == "d: no split 'train'; there are test, validation"
    assert error.hint == "name one of them: split: test"
    make("e/a.jsonl")
    assert "no file's name carries a split" in refusal("e", split="test").message


def test_data_files_choose_inside_a_folder() -> None:
    make("d/a/1.jsonl", "d/a/2.csv", "d/b/1.jsonl", "d/b/c/1.jsonl")
    assert found("d", data_files="a/1.jsonl") == ["d/a/1.jsonl"]
    assert found("d", data_files="b/*.jsonl") == ["d/b/1.jsonl"]
    assert found("d", data_files="b/**") == ["d/b/1.jsonl", "d/b/c/1.jsonl"]
    assert found("d", data_files="**/1.jsonl") == ["d/a/1.jsonl", "d/b/1.jsonl", "d/b/c/1.jsonl"]
    assert "no file matches data_files 'x*'" in refusal("d", data_files="x*").message
    assert "no folder" in refusal("d/a/1.jsonl", data_files="x").message


def test_a_glob_gives_its_files_in_order() -> None:
    make("d/b.jsonl", "d/a.jsonl", "d/c.md", "d/e/f.jsonl", "d/train.csv", "d/test.csv")
    assert found("d/*.jsonl") == ["d/a.jsonl", "d/b.jsonl"]
    assert found("d/?.jsonl") == ["d/a.jsonl", "d/b.jsonl"]
    assert found("d/**/*.jsonl") == ["d/a.jsonl", "d/b.jsonl", "d/e/f.jsonl"]
    assert found("d/*.csv") == ["d/test.csv", "d/train.csv"]
    assert found("d/*.csv", split="test") == ["d/test.csv"]
    assert notices("d/*.*")[-1] == "1 file in d/*.* passed over: d/c.md"
    assert "no file matches x/*.csv" in refusal("x/*.csv").message
    assert "it holds d/c.md" in refusal("d/*.md").message


def test_a_name_with_brackets_is_a_name() -> None:
    make("d/a[1]?.jsonl")
    assert found("d/a[1]?.jsonl") == ["d/a[1]?.jsonl"]


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("d/trian.jsonl", "data file not found: d/trian.jsonl", "did you mean d/train.jsonl?"),
        ("trian.jsonl", "data file not found: trian.jsonl", "did you mean train.jsonl?"),
        ("d/zzz.jsonl", "data file not found: d/zzz.jsonl", "a hub id"),
        ("none/train.jsonl", "data file not found", "there is no folder none"),
        ("squad", "data file not found: squad", "org/name"),
        ("", "data file not found: ", "org/name"),
        ("empty", "empty: no file of rows in it: it is empty", "give files ending in .json"),
        ("pictures", "pictures: no file of rows in it: it holds x.png", "give files ending in .json"),
        ("x.xlsx", "files ending in .xlsx are not read", "save the sheet as CSV UTF-8"),
        ("https://huggingface.co/datasets/org/name/tree/main", "is an address", "write the hub id: org/name"),
        ("hf://datasets/org/name/a.jsonl", "is an address", "write the hub id: org/name"),
    ],
)
def test_what_is_no_source_says_what_to_give(path: str, message: str, hint: str) -> None:
    make("d/train.jsonl", "train.jsonl", "pictures/x.png", "x.xlsx")
    Path("empty").mkdir()
    error = refusal(path)
    assert message in error.message
    assert hint in str(error.hint)
    if path:
        with pytest.raises(DataError):
            require_source(Source(path))


def test_a_hub_id_passes_without_a_network_and_an_existing_path_goes_before_it() -> None:
    require_source(Source("org/name", revision="v1", subset="s", split="test", data_files="*.csv"))
    make("org/name/a.jsonl")
    assert found("org/name") == ["org/name/a.jsonl"]
    assert "revision 'v1' says nothing about org/name" in refusal("org/name", revision="v1").message
    assert "subset 's' says nothing" in refusal("org/name", subset="s").message


@pytest.mark.parametrize("path", ["org/name", "d", "d/a.jsonl"])
def test_a_part_of_a_split_or_several_are_refused_with_a_remedy(path: str) -> None:
    make("d/a.jsonl")
    assert "slices of a split" in refusal(path, split="train[:10%]").message
    error = refusal(path, split="train+test")
    assert "one split at a time" in error.message
    assert "{path: …, split: train}, {path: …, split: test}" in str(error.hint)


def test_what_save_to_disk_wrote_is_read_with_its_split() -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"text": str(n), "more": [{"a": 1, "b": None}]} for n in range(5)]
    data = Dataset.from_list(rows)
    data.select([3, 1]).save_to_disk("one", num_shards=2)
    assert found("one") == ["one/data-00000-of-00002.arrow", "one/data-00001-of-00002.arrow"]
    assert [record.fields["text"] for record in read_records("one")] == ["3", "1"]
    DatasetDict({"train": data, "test": data.select([0])}).save_to_disk("both")
    assert [dict(r.fields) for r in read_records("both")] == [{"text": str(n), "more": [{"a": 1}]} for n in range(5)]
    assert found("both", split="test") == ["both/test/data-00000-of-00001.arrow"]
    assert notices("both", split="test") == ("both: split test of train, test",)
    assert "no split 'dev'; there are train, test" in refusal("both", split="dev").message
    assert "it is one data set" in refusal("one", split="test").message
    os.remove("one/data-00001-of-00002.arrow")
    assert "data-00001-of-00002.arrow is missing" in refusal("one").message
    state = json.loads(Path("both/test/state.json").read_text())
    Path("both/test/state.json").write_text(json.dumps({**state, "_indices_files": [{"filename": "i.arrow"}]}))
    assert "flatten_indices" in str(refusal("both", split="test").hint)
    Path("both/dataset_dict.json").write_text("{")
    assert "cannot be read" in refusal("both").message


def test_a_folder_and_a_glob_may_be_read_directly() -> None:
    make("d/a.jsonl", "d/b.jsonl")
    for path in ("d", "d/*.jsonl", Path("d")):
        assert [record.fields["text"] for record in read_records(path)] == ["d/a.jsonl", "d/b.jsonl"]


def test_what_check_keeps_beside_a_data_file_is_no_data_and_not_told_of() -> None:
    make("data/a.jsonl", "data/a.jsonl.changes.jsonl", "data/a.jsonl.ttignore")
    for path in ("data", "data/*"):
        found = find_files(Source(path))
        assert [file.path.name for file in found.files] == ["a.jsonl"]
        assert not found.notices


@pytest.mark.parametrize(
    "path",
    ["x" * 300 + ".jsonl", "~nobody-of-this-name/a.jsonl", "a\0b.jsonl", '{"instruction": "a", "output": "b"}' * 20],
)
def test_a_name_that_the_system_does_not_look_up_is_refused(path: str) -> None:
    assert "cannot be looked up" in refusal(path).message
    assert len(refusal(path).message) < 200
