"""Data sets of a hub, fetched by the real client from one on loopback, each time in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hub import TOKEN, Hub, running_hub

_PROGRAM = """
import json, sys
from truetune.data.read import read_records
from truetune.data.sources import Source, find_files
from truetune.errors import DataError
try:
    found = find_files(Source(**json.loads(sys.argv[1])))
    records = [record for file in found.files for record in read_records(file)]
    rows = [dict(record.fields) for record in records]
    print(json.dumps({"rows": rows, "where": [str(r.where) for r in records], "notices": found.notices,
                      "heavy": [name for name in ("torch", "transformers", "datasets") if name in sys.modules]}))
except DataError as error:
    print(json.dumps({"error": error.message, "hint": error.hint}))
"""


@dataclass
class Client:
    """Reads data sets from the hub, in its own cache."""

    hub: Hub
    cache: Path

    def read(self, path: str, *, env: dict[str, str] | None = None, **source: Any) -> dict[str, Any]:
        environment = {**os.environ, **self.hub.environment(), "HF_HOME": str(self.cache), **(env or {})}
        command = [sys.executable, "-c", _PROGRAM, json.dumps({"path": path, **source})]
        done = subprocess.run(command, env=environment, cwd=self.cache, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "Fetching" not in done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def texts(self, path: str, **source: Any) -> list[str]:
        read = self.read(path, **source)
        assert "rows" in read, read
        return [row["text"] for row in read["rows"]]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with running_hub() as hub:
        yield Client(hub, tmp_path)


def line(text: str) -> str:
    return json.dumps({"text": text}) + "\n"


def card(*configs: dict[str, Any]) -> str:
    return f"---\nconfigs: {json.dumps(configs)}\n---\n# A card\n"


def test_rows_come_as_they_are_in_the_repository_s_files(client: Client) -> None:
    rows = '{"text": "007", "n": 12345678901234567890123}\n{"text": "2024-01-01", "n": null}\n'
    client.hub.add(
        "org/name", {"data/train.jsonl": rows, "data/test.jsonl": line("no"), "README.md": "# no front matter"}
    )
    read = client.read("org/name")
    assert read["rows"] == [{"text": "007", "n": 12345678901234567890123}, {"text": "2024-01-01", "n": None}]
    assert read["where"] == ["org/name/data/train.jsonl, line 1", "org/name/data/train.jsonl, line 2"]
    (notice,) = read["notices"]
    assert notice.startswith("org/name: split train, 1 of 3 files, at ")
    assert read["heavy"] == []


def test_only_the_files_of_the_split_are_fetched(client: Client) -> None:
    client.hub.add("org/name", {"train.jsonl": line("a"), "test.jsonl": line("b"), "valid.jsonl": line("c")})
    assert client.texts("org/name", split="test") == ["b"]
    assert client.texts("org/name", split="validation") == ["c"]
    assert not any("train.jsonl" in request for request in client.hub.requests)
    read = client.read("org/name", split="other")
    assert read["error"] == "org/name: no split 'other'; there are test, train, validation"


def test_shards_are_read_in_order_and_their_split_is_all_before_the_number(client: Client) -> None:
    files = {f"data/train_sft-0000{n}-of-00002.jsonl": line(f"s{n}") for n in (1, 0)}
    client.hub.add("org/name", {**files, "data/train_gen-00000-of-00001.jsonl": line("g")})
    assert client.texts("org/name", split="train_sft") == ["s0", "s1"]
    assert client.read("org/name")["error"] == "org/name: no split 'train'; there are train_gen, train_sft"


def test_the_card_says_which_files_belong_to_a_subset_and_a_split(client: Client) -> None:
    configs = (
        {
            "config_name": "main",
            "data_files": [{"split": "train", "path": "m/*.jsonl"}, {"split": "test", "path": ["x.jsonl"]}],
        },
        {"config_name": "other", "data_files": "o/**"},
        {"config_name": "third", "data_dir": "m"},
    )
    files = {
        "README.md": card(*configs),
        "m/b.jsonl": line("b"),
        "m/a.jsonl": line("a"),
        "m/deep/no.jsonl": line("no"),
    }
    client.hub.add("org/name", {**files, "x.jsonl": line("x"), "o/1/y.jsonl": line("y")})
    assert client.texts("org/name", subset="main") == ["a", "b"]
    assert client.texts("org/name", subset="main", split="test") == ["x"]
    assert client.texts("org/name", subset="other") == ["y"]
    assert client.texts("org/name", subset="third") == ["a", "b", "no"]
    assert client.read("org/name")["error"] == "org/name: a subset must be named; there are main, other, third"
    assert "no subset 'none'" in client.read("org/name", subset="none")["error"]
    assert "no split 'dev'; there are train, test" in client.read("org/name", subset="main", split="dev")["error"]
    client.hub.add("org/name", {**files, "README.md": card(configs[0], {**configs[2], "default": True})})
    assert client.texts("org/name") == ["a", "b", "no"]


def test_a_revision_and_data_files_are_heeded(client: Client) -> None:
    old, new = {"a.jsonl": line("old"), "b/c.jsonl": line("c")}, {"a.jsonl": line("new")}
    client.hub.add_revisions("org/name", {"main": new, "v1": old})
    assert client.texts("org/name") == ["new"]
    assert client.texts("org/name", revision="v1") == ["old", "c"]
    assert client.texts("org/name", revision="v1", data_files="b/*.jsonl") == ["c"]
    commit = client.hub.repositories["datasets", "org/name"].commit("v1")
    assert client.texts("org/name", revision=commit, data_files="a.jsonl") == ["old"]
    assert client.read("org/name", revision="v9")["error"] == "org/name has no revision 'v9'"
    assert client.read("org/name", data_files="*.csv") == {
        "error": "org/name: no file matches data_files '*.csv'",
        "hint": "there are a.jsonl",
    }


def test_what_was_fetched_once_is_read_offline(client: Client) -> None:
    client.hub.add("org/name", {"train.jsonl": line("a"), "test.jsonl": line("b"), "README.md": card()})
    assert client.texts("org/name") == ["a"]
    asked = len(client.hub.requests)
    assert client.texts("org/name", env={"HF_HUB_OFFLINE": "1"}) == ["a"]
    assert client.texts("org/name", env={"HF_HUB_OFFLINE": "1"}, revision="main") == ["a"]
    assert len(client.hub.requests) == asked
    assert "not in the cache" in client.read("org/name", env={"HF_HUB_OFFLINE": "1"}, split="test")["error"]


@pytest.mark.parametrize(("offline", "words"), [("1", "HF_HUB_OFFLINE forbids"), ("0", "cannot be reached")])
def test_without_a_network_that_is_said_within_seconds(client: Client, offline: str, words: str) -> None:
    start = time.monotonic()
    read = client.read("org/name", env={"HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert words in read["error"]
    assert "local path" in read["hint"]
    assert time.monotonic() - start < 10


def test_what_is_not_there_or_not_open_says_what_to_do(client: Client) -> None:
    client.hub.add("org/gated", {"train.jsonl": line("a")}, gated=True)
    client.hub.add("org/private", {"train.jsonl": line("a")}, private=True)
    client.hub.add("org/script", {"script.py": "pass"})
    client.hub.add("org/pictures", {"a.png": b"x"})
    for name, words, hint in (
        ("org/none", "no data set org/none", "HF_TOKEN"),
        ("org/private", "no data set org/private on the hub, or a private one", "HF_TOKEN"),
        ("org/gated", "org/gated is gated", "HF_TOKEN"),
        ("org/script", "made by a script", "refs/convert/parquet"),
        ("org/pictures", "no file of rows in it", "a.png"),
        ("databricks/dolly-15k", "no data set", "databricks/databricks-dolly-15k"),
    ):
        read = client.read(name)
        assert words in read["error"]
        assert hint in read["hint"]
    for name in ("org/gated", "org/private"):
        assert client.texts(name, env={"HF_TOKEN": TOKEN}) == ["a"]
