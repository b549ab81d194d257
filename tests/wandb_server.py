"""As much of a W&B server, on loopback, as its client needs for a run: it takes all, and remembers who asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """`runs` are the ids that were begun or gone on with, `lines` the rows of history, as they came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: list[str] = []
        self.lines: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, variables: dict[str, Any]) -> dict[str, Any]:
        """What any question of the client's may look for."""
        entity = {"id": "1", "name": "me", "entity": "me", "username": "me"}
        project = {"id": "1", "internalId": "1", "name": variables.get("project") or "p", "entity": entity}
        name = variables.get("name") or variables.get("run") or "1"
        bucket = {
            "id": "1",
            "name": name,
            "displayName": variables.get("displayName") or name,
            "config": "{}",
            "project": project,
            "historyLineCount": 0,
        }
        return {
            "viewer": {**entity, "flags": "{}", "teams": {"edges": []}},
            "serverInfo": {"features": [], "latestLocalVersionInfo": None, "cliVersionInfo": {}},
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []},
            "model": {**project, "bucket": None},
        }


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        if self.path.endswith("/graphql"):
            variables = request.get("variables") or {}
            if "upsertBucket" in request.get("query", ""):
                self.server.runs.append(variables.get("name") or "")
            self._send({"data": self.server.answer(variables)})
        else:
            history = (request.get("files") or {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.lines += [json.loads(line) for line in history]
            self._send({"exitcode": None, "limits": {}})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send({})

    def do_GET(self) -> None:
        self._send({})

    def _send(self, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def running_wandb_server() -> Iterator[WandbServer]:
    """A server that takes runs until the block ends, or `shutdown` and `server_close` are called."""
    server = WandbServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
