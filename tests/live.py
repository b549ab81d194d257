"""Runs to look at, a live page that serves them, and somebody who listens."""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from truetune.inference.server_process import choose_port
from truetune.pipeline.review.live.app import build_app
from truetune.pipeline.review.live.security import Access
from truetune.pipeline.review.live.shelf import Shelf
from truetune.runs.directory import RunDirectory

HARMFUL = "</script><script>alert('1')</script><img src=x onerror=alert(1)> {{ 7 * 7 }} \" onload=x"


def step_line(step: int, *, of: int = 100, **values: Any) -> dict[str, Any]:
    """A line of metrics as a training logs it."""
    tokens = {"num_tokens": 64 * step, "tokens_per_second": 640.0, "epoch": step / of}
    return {
        "step": step,
        "loss": 1 + 2 * (of - step) / of,
        "learning_rate": 1e-4,
        "grad_norm": 0.5,
        **tokens,
        **values,
    }


def write_run(
    folder: Path, *, steps: int = 0, total: int = 100, status: str = "finished", **facts: Any
) -> RunDirectory:
    """A run's directory as a training leaves it behind so many steps, of which every tenth was evaluated."""
    run = RunDirectory(folder)
    rate = facts.pop("rate", 2e-4)
    run.begin_record(
        started="2026-11-29T06:01:11Z",
        model=facts.pop("model", {"name_or_path": "org/model", "revision": "main"}),
        data={"path": "data/sums.jsonl", "fingerprint": "f"},
        total_steps=total,
        config={"training": {"learning_rate": rate, "seed": 42}, "adapter": {"method": "lora", "r": 8}},
        **facts,
    )
    (folder / ".lock").touch()
    log_steps(run, range(1, steps + 1), of=total)
    if status != "running":
        run.update_record(status=status, steps=steps, final_loss=1.0, tokens_per_second=640.0, seconds=12.5)
    return run


def log_steps(run: RunDirectory, steps: range, *, of: int = 100) -> None:
    with run.metrics.open("a", encoding="utf-8") as file:
        for step in steps:
            file.write(json.dumps(step_line(step, of=of)) + "\n")
            if step % 10 == 0:
                file.write(json.dumps({"step": step, "eval_loss": 1.2 + 2 * (of - step) / of}) + "\n")


# --- a server ---------------------------------------------------------------------------------------------


@contextmanager
def served(*folders: Path, key: str | None = None, port: int = 0) -> Iterator[Access]:
    """The live page of these folders, in a thread of this process."""
    access = Access("127.0.0.1", choose_port("127.0.0.1", port), key)
    app = build_app(Shelf(folders), access, is_ending=lambda: server.should_exit)
    config = uvicorn.Config(app, host=access.host, port=access.port, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < until
            time.sleep(0.02)
        yield access
    finally:
        server.should_exit = True
        thread.join()


def asked(
    access: Access, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[http.client.HTTPResponse, str]:
    """The answer to one request, sent as it is: no client mends its path or its host."""
    connection = http.client.HTTPConnection(access.host, access.port, timeout=20)
    connection.putrequest(method, path, skip_host="host" in {name.lower() for name in headers or {}})
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read().decode("utf-8")
    connection.close()
    return response, body


def listed_ids(access: Access) -> dict[str, str]:
    """The ids of the runs, by their names."""
    with listening(access, "/runs") as events:
        name, data, _ = next(events)
        assert name == "runs"
        return {run["name"]: run["id"] for run in data["runs"]}


Event = tuple[str, dict[str, Any], str]


@contextmanager
def listening(access: Access, path: str, *, headers: Mapping[str, str] | None = None) -> Iterator[Iterator[Event]]:
    """The events of a stream: name, data and id of each. Twenty seconds without one are an error."""
    connection = http.client.HTTPConnection(access.host, access.port, timeout=20)
    connection.request("GET", path, headers=dict(headers or {}))
    response = connection.getresponse()
    assert response.status == 200, response.read()
    assert response.headers["content-type"].startswith("text/event-stream")
    try:
        yield _events(response)
    finally:
        if connection.sock:
            connection.sock.close()
        response.close()
        connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[Event]:
    fields: dict[str, str] = {}
    while True:
        line = response.readline().decode("utf-8").rstrip("\n")
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
        elif not line:
            if "event" in fields:
                yield fields["event"], json.loads(fields["data"]), fields.get("id", "")
            fields = {}


def until_event(events: Iterator[Event], name: str) -> Event:
    """The next event of this name."""
    return next(each for each in events if each[0] == name)
