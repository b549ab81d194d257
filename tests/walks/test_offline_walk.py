"""Somebody on a machine without a network: each command answers soon, names what it would fetch, and says the way."""

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typed import Terminal

from conftest import arithmetic_rows, write_jsonl
from truetune.model import reach
from truetune.model.reach import why_away

SOON = 20.0
"""Seconds. The hub's client alone waits 23 for one file where it is refused, and minutes where nothing comes back."""

Asking = Callable[[str], None]


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A shell in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Terminal(capsys)


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asking:
    """From `asking(endpoint)` on that hub is asked, and an empty cache."""

    def ask(endpoint: str) -> None:
        monkeypatch.setattr(reach, "_PATIENCE", 2.0)
        for name, value in {"HF_HUB_OFFLINE": False, "ENDPOINT": endpoint}.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    return ask


@pytest.fixture(scope="module")
def silent() -> Iterator[str]:
    """A hub that takes a connection and says nothing, as one behind a wall does."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that answers everything with that status."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--model", "org/model", "--data", "rows.jsonl"),
        ("plan", "--model", "org/model", "--data", "rows.jsonl"),
        ("init", "rows.jsonl", "--model", "org/model"),
        ("check", "rows.jsonl", "--model", "org/model"),
        ("inspect", "rows.jsonl", "--model", "org/model"),
        ("models", "org/model"),
        ("generate", "org/model", "--prompt", "Hi"),
    ],
    ids=lambda words: words[0],
)
def test_a_model_that_is_not_in_the_cache_is_told_of_soon_with_the_way_to_bring_it(
    words: tuple[str, ...], silent: str, terminal: Terminal, asking: Asking
) -> None:
    write_jsonl(Path("rows.jsonl"), arithmetic_rows(12))
    asking(silent)
    started = time.monotonic()
    said = " ".join(terminal.refused(*words, status=1).split())
    assert time.monotonic() - started < SOON
    assert "org/model" in said
    assert f"the hub at {silent} has not answered for 2 seconds" in said
    assert "hf download org/model --local-dir model" in said


def test_rows_that_are_not_in_the_cache_are_told_of_with_the_way_to_bring_them(
    terminal: Terminal, asking: Asking
) -> None:
    asking("http://127.0.0.1:9")
    started = time.monotonic()
    said = " ".join(terminal.refused("check", "org/rows", status=1).split())
    assert time.monotonic() - started < SOON
    assert "cannot be reached" in said
    assert "hf download org/rows --repo-type dataset --local-dir rows" in said


def test_a_model_in_the_cache_trains_without_the_hub_and_that_is_said(
    tiny_base: Path, terminal: Terminal, asking: Asking, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_jsonl(Path("rows.jsonl"), arithmetic_rows(12))
    stored, commit = tmp_path / "hub" / "models--org--model", "0123456789" * 4
    shutil.copytree(tiny_base, stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    asking("http://127.0.0.1:9")
    words = ("train", "--model", "org/model", "--data", "rows.jsonl", "max_steps=1", "--output-dir", "run")
    told = terminal.done(*words)
    said = " ".join(told.err.split())
    assert "org/model is taken from the cache: the hub at http://127.0.0.1:9 cannot be reached" in said
    assert json.loads(Path("run/run.json").read_text())["status"] == "finished"
    terminal.done("generate", "run", "--prompt", "Add 1 and 2", "--max-new-tokens", "2")
    assert "Retrying" not in caplog.text


@pytest.mark.parametrize(("status", "is_there"), [(200, True), (404, True), (407, False), (503, False)])
def test_any_answer_but_a_proxys_or_a_dead_servers_is_one(status: int, is_there: bool, asking: Asking) -> None:
    with answering(status) as endpoint:
        asking(endpoint)
        assert (why_away() is None) is is_there


def test_who_forbids_to_ask_the_hub_is_told_that_it_was_they(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_jsonl(Path("rows.jsonl"), arithmetic_rows(12))
    said = " ".join(terminal.refused("train", "--model", "org/model", "--data", "rows.jsonl", status=1).split())
    assert "HF_HUB_OFFLINE forbids to ask the hub" in said
    assert "unset it; or" in said
