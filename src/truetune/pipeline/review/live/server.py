"""The web server of the live page: where it listens, and until when."""

import importlib.util
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from truetune.errors import BackendError
from truetune.inference.server_process import choose_port
from truetune.pipeline.review.live.app import build_app
from truetune.pipeline.review.live.security import Access, access_to
from truetune.pipeline.review.live.shelf import Shelf

USUAL_PORT = 8770
_CONNECTIONS = 200
"""Open at once: each page that is looked at has one."""
_GRACE = 2
"""Seconds that answers which are on their way have when the server ends."""


def serve_live(
    folders: Sequence[Path],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    is_keyed: bool = False,
    ready: Callable[[Access], None],
) -> None:
    """Serves the runs of these folders until a signal ends it; `ready` is called once the address answers.

    `port` None is 8770, or a free one; `is_keyed` asks for a key on this machine, too. ConfigError for a port that is
    taken or a host that is none, CheckpointError for a folder that is none, BackendError without the extra `live`.
    """
    _require_extra()
    import uvicorn

    shelf = Shelf(folders)
    access = access_to(host, choose_port(host, port, usual=USUAL_PORT), is_keyed=is_keyed)
    listening = _listening(access)
    server: uvicorn.Server
    app = build_app(shelf, access, is_ending=lambda: server.should_exit)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE,
    )
    server = uvicorn.Server(config)
    with listening:
        ready(access)
        server.run(sockets=[listening])


def _listening(access: Access) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(access.host, access.port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=128)


def _require_extra() -> None:
    lacking = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if lacking:
        raise BackendError(f"the live page needs {' and '.join(lacking)}", hint="run: pip install 'truetune[live]'")
