"""A Hugging Face hub on loopback: enough of its protocol for the real client to list and fetch repositories."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"
_API = re.compile(r"/api/(?P<kind>datasets|models)/(?P<name>[^/]+/[^/]+)(/revision/(?P<revision>.+))?")
_TREE = re.compile(r"/api/(?P<kind>datasets|models)/(?P<name>[^/]+/[^/]+)/(tree|paths-info)/(?P<revision>[^/]+)/?.*")
_FILE = re.compile(r"(/(?P<kind>datasets))?/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass(frozen=True)
class Repository:
    """`revisions` gives the files of each branch or tag; a gated or private one needs TOKEN."""

    revisions: Mapping[str, Mapping[str, bytes]]
    gated: bool = False
    private: bool = False

    def commit(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit stands for."""
        commits = {
            name: _digest(repr((name, sorted((path, _digest(data)) for path, data in files.items()))).encode())
            for name, files in self.revisions.items()
        }
        return commits.get(revision) or (revision if revision in commits.values() else None)

    def files(self, revision: str) -> Mapping[str, bytes]:
        commit = self.commit(revision)
        return next(files for name, files in self.revisions.items() if self.commit(name) == commit)


@dataclass
class Hub:
    """What it serves, by kind and name, what it was asked for, and how many bytes of each file it has sent."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    endpoint: str = ""

    def add(self, name: str, files: Mapping[str, str | bytes], *, kind: str = "datasets", **settings: Any) -> None:
        self.add_revisions(name, {"main": files}, kind=kind, **settings)

    def add_revisions(
        self,
        name: str,
        revisions: Mapping[str, Mapping[str, str | bytes]],
        *,
        kind: str = "datasets",
        **settings: Any,
    ) -> None:
        encoded = {
            revision: {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
            for revision, files in revisions.items()
        }
        self.repositories[kind, name] = Repository(encoded, **settings)

    def environment(self) -> dict[str, str]:
        """What a process must be started with to use this hub."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


@contextmanager
def running_hub(hub: Hub | None = None, handler: "type[Handler] | None" = None) -> Iterator[Hub]:
    """A hub on a free port, for as long as the block runs."""
    hub = Hub() if hub is None else hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler or Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        asked = _FILE.fullmatch(path) or _TREE.fullmatch(path) or _API.fullmatch(path)
        if asked is None:
            self._refuse(404, "EntryNotFound")
            return
        repository = self.hub.repositories.get((asked["kind"] or "models", asked["name"]))
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        revision = asked["revision"] or "main"
        if repository is None or (repository.private and not is_known):
            self._refuse(401, "RepoNotFound")
        elif repository.commit(revision) is None:
            self._refuse(404, "RevisionNotFound")
        elif asked.re is _FILE and repository.gated and not is_known:
            self._refuse(403, "GatedRepo")
        elif asked.re is _FILE:
            self._send_file(repository, revision, asked["file"])
        elif asked.re is _TREE:
            self._send_json([_entry(name, data) for name, data in repository.files(revision).items()])
        else:
            self._send_json(_info(asked["name"], repository, revision))

    def _send_file(self, repository: Repository, revision: str, name: str) -> None:
        data = repository.files(revision).get(name)
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": str(repository.commit(revision))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))) if asked else (0, len(data))
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self.hub.sent[name] += end - start if self.command == "GET" else 0
        self._send(206 if asked else 200, data[start:end], headers)

    def _send_json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _info(name: str, repository: Repository, revision: str) -> dict[str, Any]:
    return {
        "id": name,
        "sha": repository.commit(revision),
        "private": repository.private,
        "gated": "auto" if repository.gated else False,
        "tags": [],
        "siblings": [{"rfilename": file} for file in repository.files(revision)],
    }


def _entry(name: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(data), "oid": _digest(f"blob {len(data)}\0".encode() + data)}
    if name.endswith((".safetensors", ".gguf")):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
