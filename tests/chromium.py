"""A real Chromium without a window, told by its DevTools protocol over a pipe what to open, and asked what it found.

No library is needed for that, and no port is opened: https://chromedevtools.github.io/devtools-protocol/.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)"
)

_PATIENCE = 30.0
_STARTED = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
_OPTIONS = (*_STARTED, "--disable-component-update", "--disable-extensions", "--hide-scrollbars", "--mute-audio")


class Browser:
    """A Chromium, and the pipe to it. Its pages hear each other's events only in `tell` and `wait`."""

    def __init__(self, profile: Path) -> None:
        reads, self._writes = os.pipe()
        self._reads, writes = os.pipe()
        # Chromium reads from descriptor 3, and writes to 4.
        words = [str(CHROMIUM), *_OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "bash", *words],
            pass_fds=(reads, writes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        self._pending, self._last = b"", 0
        self._pages: dict[str, Tab] = {}

    def open(self, address: str, *, width: int = 1280, height: int = 900, is_dark: bool = False) -> "Tab":
        """A page in a tab of its own, once it has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._pages[session] = Tab(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.look(width=width, height=height, is_dark=is_dark)
        tab.go(address)
        return tab

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """What the browser answers. Events that come first are told to their pages."""
        self._last += 1
        number, asked = self._last, {"id": self._last, "method": method, "params": parameters}
        message = {**asked, "sessionId": session} if session else asked
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            answer = self._next(until - time.monotonic())
            if answer is not None and answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
        raise TimeoutError(f"Chromium did not answer {method}")

    def rest(self, seconds: float) -> None:
        """Lets time pass, and hears what happens."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._next(left)

    def _next(self, seconds: float) -> dict[str, Any] | None:
        """The next answer; None for an event, which is told, or where nothing came in that time."""
        while b"\0" not in self._pending:
            if not select([self._reads], [], [], max(seconds, 0))[0]:
                return None
            piece = os.read(self._reads, 1 << 20)
            assert piece, "Chromium has ended"
            self._pending += piece
        told, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(told)
        if "id" in message:
            return message
        if page := self._pages.get(message.get("sessionId", "")):
            page.hear(message["method"], message["params"])
        return None

    def close(self) -> None:
        """Ends it, and waits for it."""
        os.close(self._writes)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._reads)


class Tab:
    """A page: `said` are lines of its console and errors in it, `asked` the addresses that it fetched."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session
        self.said: list[str] = []
        self.asked: list[str] = []
        self._is_loaded = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, session=self._session, **parameters)

    def hear(self, event: str, given: dict[str, Any]) -> None:
        match event:
            case "Page.loadEventFired":
                self._is_loaded = True
            case "Runtime.consoleAPICalled":
                self.said.append(json.dumps(given["args"]))
            case "Runtime.exceptionThrown":
                self.said.append(json.dumps(given["exceptionDetails"]))
            case "Log.entryAdded":
                self.said.append(given["entry"]["text"])
            case "Network.requestWillBeSent":
                self.asked.append(given["request"]["url"])

    def go(self, address: str) -> None:
        """Opens an address, and returns once it has loaded."""
        self._is_loaded = False
        self.call("Page.navigate", url=address)
        until = time.monotonic() + _PATIENCE
        while not self._is_loaded:
            assert time.monotonic() < until, f"{address} did not load: {self.said}"
            self._browser.rest(0.05)

    def look(self, *, width: int, height: int, is_dark: bool = False) -> None:
        """Another size, in light or in dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def tell(self, script: str) -> Any:
        """What an expression comes to in the page, whatever its policy; a promise is waited for."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def do(self, *steps: str) -> dict[str, Any]:
        """What a few steps put into `seen`."""
        body = "\n".join(steps)
        found = self.tell(f"(async () => {{ const seen = {{}};\n{body}\nreturn seen; }})()")
        assert isinstance(found, dict)
        return found

    def wait(self, script: str, *, seconds: float = 15.0) -> Any:
        """Waits until an expression is true, and returns it."""
        until = time.monotonic() + seconds
        while not (found := self.tell(script)):
            assert time.monotonic() < until, f"not within {seconds} s: {script}; the page said {self.said}"
            self._browser.rest(0.1)
        return found

    def rest(self, seconds: float) -> None:
        self._browser.rest(seconds)

    def picture(self, file: Path, *, is_whole: bool = False) -> None:
        """The page as a PNG; `is_whole`: all of it, not only what is in sight."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=is_whole)
        file.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)


@contextmanager
def running_chromium(profile: Path) -> Iterator[Browser]:
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()
