"""A page in a real Chromium, on the browser's own clock: a script in it measures, and tells what it found."""

import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Queue
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
WINDOW = "1280,900"

# The page's own policy lets no other script run in it, and is left out for the measuring one.
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
SCRIPT = """
<script>
addEventListener("load", async () => {
  const tell = (found) => fetch("/told", { method: "POST", body: JSON.stringify(found) });
  try { tell(await (async () => { %s })()); } catch (error) { tell({ error: String(error) }); }
});
</script>
"""


def chromium() -> str | None:
    """The program, where one is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def measured_in(program: str, page: str, script: str, *, seconds: float = 60.0) -> dict[str, Any]:
    """What the script, an async function's body that runs once the page has loaded, returns.

    RuntimeError where it fails, or tells nothing in time.
    """
    told: Queue[dict[str, Any]] = Queue()
    whole = POLICY.sub("", page).replace("</body>", SCRIPT % script + "</body>")
    with served(whole.encode(), told) as address, opened(program, address):
        try:
            found = told.get(timeout=seconds)
        except Empty:
            raise RuntimeError(f"the page told nothing in {seconds:g} s") from None
    if "error" in found:
        raise RuntimeError(f"the page's script failed: {found['error']}")
    return found


@contextmanager
def opened(program: str, address: str) -> Iterator[None]:
    """The page in a browser that has seen nothing before."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command += ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
        command += [f"--window-size={WINDOW}", f"--user-data-dir={profile}", address]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


@contextmanager
def served(page: bytes, told: "Queue[dict[str, Any]]") -> Iterator[str]:
    """The page's address on this machine; what it sends back goes into `told`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            if self.path == "/":
                self.wfile.write(page)

        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
