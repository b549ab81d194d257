"""The hub of hub.py, which takes uploads too: repositories, branches, files by LFS and in commits."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import unquote, urlsplit

from hub import TOKEN, Handler, Hub, Repository, running_hub


@dataclass
class WritableHub(Hub):
    """`stored` are files of LFS by their SHA-256, `received` all bytes that came in, `puts` their names' count.

    `breaks_at_commit` closes the connection where a commit is to be made, `breaks_at_upload` refuses weights;
    `damages` is the file that is kept with another content than was sent; `makes_public` has it ignore that a
    repository is to be private.
    """

    stored: dict[str, bytes] = field(default_factory=dict)
    received: list[bytes] = field(default_factory=list)
    puts: int = 0
    commits: int = 0
    breaks_at_commit: bool = False
    breaks_at_upload: bool = False
    damages: str | None = None
    makes_public: bool = False
    role: str = "write"
    forbidden: bool = False

    def reset(self) -> None:
        """Back to a hub that nothing was sent to, at the same address."""
        fresh = WritableHub(endpoint=self.endpoint)
        for each in fields(fresh):
            setattr(self, each.name, getattr(fresh, each.name))

    def files(self, name: str, revision: str = "main") -> Mapping[str, bytes]:
        return self.repositories["models", name].revisions[revision]

    def put_files(self, name: str, revision: str, files: Mapping[str, bytes]) -> None:
        there = self.repositories["models", name]
        changed = {**there.revisions, revision: {**there.revisions[revision], **files}}
        self.repositories["models", name] = Repository(changed, there.gated, there.private)


@contextmanager
def running_writable_hub() -> Iterator[WritableHub]:
    with running_hub(WritableHub(), _Handler) as hub:
        assert isinstance(hub, WritableHub)
        yield hub


class _Handler(Handler):
    hub: WritableHub

    def do_GET(self) -> None:  # noqa: N802 - BaseHTTPRequestHandler's name
        if urlsplit(self.path).path != "/api/whoami-v2":
            super().do_GET()
        elif self._is_known():
            self._send_json({"name": "user", "auth": {"accessToken": {"role": self.hub.role}}})
        else:
            self._refuse(401, "Unauthorized")

    def do_PUT(self) -> None:  # noqa: N802 - BaseHTTPRequestHandler's name
        data = self._body()
        if self.hub.breaks_at_upload:
            self._refuse(400, "BadRequest")
            return
        self.hub.puts += 1
        self.hub.stored[hashlib.sha256(data).hexdigest()] = data
        self._send(200, b"", {})

    def do_DELETE(self) -> None:  # noqa: N802 - BaseHTTPRequestHandler's name
        asked = json.loads(self._body())
        self.hub.requests.append(f"DELETE {asked['organization']}/{asked['name']}")
        del self.hub.repositories["models", f"{asked['organization']}/{asked['name']}"]
        self._send(200, b"", {})

    def do_POST(self) -> None:  # noqa: N802 - BaseHTTPRequestHandler's name
        body, path = self._body(), unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {path}")
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        match path.split("/")[1:]:
            case _ if not self._is_known():
                self._refuse(401, "Unauthorized")
            case ["api", "validate-yaml"]:
                self._send_json({"errors": [], "warnings": []})
            case _ if self.hub.forbidden:
                self._refuse(403, "Forbidden")
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", "models", _, _, "preupload", *_]:
                self._send_json({"files": [_mode(file) for file in json.loads(body)["files"]]})
            case ["api", "models", _, _, "branch", *branch]:
                self._branch(name, "/".join(branch))
            case ["api", "models", _, _, "commit", *branch] if not self.hub.breaks_at_commit:
                self._commit(name, "/".join(branch), [json.loads(line) for line in body.splitlines()])
            case ["api", "models", _, _, "commit", *_]:
                self.close_connection = True
            case [*_, "objects", "batch"]:
                self._send_json({"objects": [self._action(each) for each in json.loads(body)["objects"]]})
            case _:
                self._refuse(404, "EntryNotFound")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self._chunks()
        self.hub.received.append(body)
        return body

    def _chunks(self) -> bytes:
        read = b""
        while size := int(self.rfile.readline() or b"0", 16):
            read += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return read

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _create(self, asked: Mapping[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if ("models", name) in self.hub.repositories:
            self._send(409, json.dumps({"url": f"{self.hub.endpoint}/{name}"}).encode(), {})
            return
        is_private = asked.get("private", asked.get("visibility") == "private") and not self.hub.makes_public
        self.hub.add(name, {".gitattributes": "* -text"}, kind="models", private=bool(is_private))
        self._send_json({"url": f"{self.hub.endpoint}/{name}"})

    def _branch(self, name: str, branch: str) -> None:
        there = self.hub.repositories["models", name]
        if branch in there.revisions:
            self._send(409, b"{}", {})
            return
        revisions = {**there.revisions, branch: there.revisions["main"]}
        self.hub.repositories["models", name] = Repository(revisions, there.gated, there.private)
        self._send(200, b"{}", {})

    def _commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
        files = {each["value"]["path"]: self._content(each) for each in lines if each["key"] != "header"}
        if self.hub.damages in files:
            files[self.hub.damages] += b" "
        self.hub.put_files(name, branch, files)
        self.hub.commits += 1
        oid = self.hub.repositories["models", name].commit(branch)
        self._send_json({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}", "commitOid": oid})

    def _content(self, line: Mapping[str, Any]) -> bytes:
        value = line["value"]
        if line["key"] == "lfsFile":
            return self.hub.stored[value["oid"]]
        content = base64.b64decode(value["content"])
        self.hub.received.append(content)
        return content

    def _action(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Where to put a file; nowhere, where it is there already."""
        found = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] in self.hub.stored:
            return found
        return {**found, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}"}}}


def _mode(file: Mapping[str, Any]) -> dict[str, Any]:
    is_large = file["path"].endswith((".safetensors", ".gguf"))
    return {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
