"""Dealt out to processes, rows come back as one makes them: in order, with every finding, or with its error."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import CHATML, arithmetic_rows, byte_tokenizer, write_jsonl
from truetune.config.load import load_config
from truetune.errors import BackendError, DataError
from truetune.pipeline.prepare import PreparedDataset, prepare_rows
from truetune.pipeline.workers import dealt

CHAT = byte_tokenizer(chat_template=CHATML)


def every(number: int, count: int) -> Iterator[tuple[int, int]]:
    """Twenty numbers, each with the process that made it."""
    return ((each, os.getpid()) for each in range(number, 20, count))


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 25])
def test_items_come_in_order_from_processes_of_their_own(processes: int) -> None:
    found = list(dealt(every, processes=processes))
    assert [each for each, _ in found] == list(range(20))
    assert len({process for _, process in found}) == min(processes, 20)
    assert os.getpid() not in {process for _, process in found}


def test_an_error_is_raised_in_its_item_s_place_with_its_hint() -> None:
    def fails(number: int, count: int) -> Iterator[int]:
        yield number
        raise DataError(f"broken in {number}", hint="mend it")

    seen = []
    with pytest.raises(DataError, match="broken in 0") as caught:
        seen += dealt(fails, processes=2)
    assert caught.value.hint == "mend it"
    items = dealt(fails, processes=2)
    assert [next(items), next(items)] == [0, 1]


def test_an_error_of_ours_comes_with_the_place_in_the_code() -> None:
    def fails(number: int, count: int) -> Iterator[int]:
        yield from (1 // 0 for _ in range(1))

    with pytest.raises(RuntimeError, match=r"(?s)test_workers\.py.*ZeroDivisionError") as caught:
        list(dealt(fails, processes=2))
    assert "1 // 0" in str(caught.value)


def test_a_process_that_is_killed_is_an_error_and_no_wait_for_ever() -> None:
    def dies(number: int, count: int) -> Iterator[int]:
        os._exit(9)
        yield 0

    with pytest.raises(BackendError, match="died") as caught:
        list(dealt(dies, processes=2))
    assert "num_proc" in str(caught.value.hint)


def prepared(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, num_proc: int) -> PreparedDataset:
    monkeypatch.setenv("TRUETUNE_CACHE", str(cache / str(num_proc)))
    settings = {"model.name_or_path": "none", "data.path": str(path), "num_proc": num_proc, "group_by": "user"}
    return prepare_rows(load_config(None, settings=settings).config, tokenizer=CHAT)


def test_the_number_of_processes_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**row, "user": number % 7} for number, row in enumerate(arithmetic_rows(2_000))]
    rows[300:300] = [{"foo": number} for number in range(150)]
    rows[1_500] = {"instruction": "x", "output": 5}
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    one, three = (prepared(data, tmp_path, monkeypatch, number) for number in (1, 3))
    assert one.fingerprint == three.fingerprint
    assert one.report == three.report
    assert one.report.rejected == {"unknown-format": 150}
    assert one.report.first("unknown-format").where.line == 301
    assert list(one.train) == list(three.train)
    assert one.first_learned == three.first_learned == ("1<|im_end|>",)


def test_what_a_caller_has_frozen_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.freeze()
    prepared(write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(20)), tmp_path, monkeypatch, 1)
    assert gc.get_freeze_count() > 0


def test_a_broken_line_stops_all_of_them_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(1_200))
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:1_000], "{", *lines[1_000:]]))
    with pytest.raises(DataError, match="line 1001"):
        prepared(data, tmp_path, monkeypatch, 2)
    assert not list((tmp_path / "2" / "prepared").glob("*/tokens.arrow"))


def test_note_fork_warnings_tokenizers_say_nothing_when_rows_are_dealt_out(tmp_path: Path, tiny_base: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(1_200))
    program = (
        "import truetune\n"
        "from transformers import AutoTokenizer\n"
        f"AutoTokenizer.from_pretrained({str(tiny_base)!r})(['a b', 'c d'] * 100)\n"
        f"print(len(truetune.prepare(model={str(tiny_base)!r}, data={str(data)!r}, num_proc=2, test_size=0).train))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    environment["TRUETUNE_CACHE"] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout == "1200\n"
    assert "fork" not in done.stderr
