"""What is prepared once is found again, by any process, and never half made."""

import multiprocessing
import time
from pathlib import Path

import pytest

from conftest import byte_tokenizer
from truetune.data.cache import cached, code_digest, digest, file_digest, tokenizer_digest


def nothing() -> None:
    return None


def build_slowly(root: Path, log: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "a").write_text("half")
        time.sleep(0.5)
        (folder / "b").write_text("whole")
        with log.open("a") as file:
            file.write("built\n")

    folder = cached(
        root, "key", build, is_whole=Path.is_dir, on_wait=lambda: log.open("a").write("waited\n") and None
    )
    assert (folder / "b").read_text() == "whole"


def test_one_of_several_processes_builds_and_the_others_wait_for_the_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    workers = [
        multiprocessing.get_context("fork").Process(target=build_slowly, args=(tmp_path / "cache", log))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted(log.read_text().split()) == ["built", "waited", "waited"]


def test_a_build_that_fails_leaves_nothing_and_the_next_one_builds(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise ValueError("no space")

    with pytest.raises(ValueError, match="no space"):
        cached(tmp_path, "key", fail, is_whole=Path.is_dir, on_wait=nothing)
    assert not (tmp_path / "key").exists()
    folder = cached(
        tmp_path,
        "key",
        lambda staged: (staged / "a").write_text("whole") and None,
        is_whole=Path.is_dir,
        on_wait=nothing,
    )
    assert (folder / "a").read_text() == "whole"
    again = cached(tmp_path, "key", fail, is_whole=Path.is_dir, on_wait=nothing)
    assert (again / "a").read_text() == "whole"


def test_a_digest_hangs_on_every_part(tmp_path: Path) -> None:
    parts = {"a": 1, "b": [1, 2], "c": "é"}
    assert digest(parts) == digest(dict(reversed(parts.items())))
    assert len({digest(parts), digest({**parts, "a": "1"}), digest({**parts, "b": [2, 1]}), digest({})}) == 4
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("b")
    assert file_digest(one) != file_digest(two)


def test_note_token_cache_other_code_has_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_package").mkdir()
    module = tmp_path / "some_package" / "module.py"
    module.write_text("x = 1")
    monkeypatch.syspath_prepend(tmp_path)
    before = code_digest("some_package")
    assert code_digest("some_package") == before
    module.write_text("x = 2")
    assert code_digest("some_package") != before


def test_note_token_cache_another_tokenizer_has_another_digest() -> None:
    same, again = byte_tokenizer(), byte_tokenizer()
    assert tokenizer_digest(same) == tokenizer_digest(again)
    others = [byte_tokenizer(adds_bos=True), byte_tokenizer(merges=((":", " "),)), byte_tokenizer(eos_token="<pad>")]
    assert len({tokenizer_digest(same), *map(tokenizer_digest, others)}) == 4
