"""Who may ask the live page for something, and what a browser may do with the answers."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode

from truetune.inference.servers import is_loopback

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"
_NO_FRAME = "; frame-ancestors 'none'"
_EVERYWHERE: Mapping[str, str] = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_OWN_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Access:
    """Where the page is served, and the key that it asks for; None: it asks for none."""

    host: str
    port: int
    key: str | None

    @property
    def is_open(self) -> bool:
        """True where it listens at all of this machine's addresses."""
        return self.host in _EVERYWHERE

    @property
    def shown_host(self) -> str:
        """The host in the address that a browser on this machine is given."""
        host = _EVERYWHERE.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host

    @property
    def url(self) -> str:
        """What a browser on this machine is given, with the key."""
        return f"http://{self.shown_host}:{self.port}/" + (f"?{urlencode({'key': self.key})}" if self.key else "")

    @property
    def cookie(self) -> str:
        """Cookies are a host's, whatever its port: another page's must not take the place of this one's."""
        return f"truetune_{self.port}"


def access_to(host: str, port: int, *, is_keyed: bool = False) -> Access:
    """A new key wherever others than this machine's users can reach the page, or where one is asked for."""
    return Access(host, port, secrets.token_urlsafe(32) if is_keyed or not is_loopback(host) else None)


class Gate:
    """Lets only those requests through that may come: GET, by this machine's own names, with the key.

    Behind a name that somebody else made to point here (DNS rebinding) the request has another host; where there
    is a key, that host's pages do not have it.
    """

    def __init__(self, app: "ASGIApp", access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        from starlette.datastructures import Headers

        if scope["type"] != "http":
            return
        refusal = self._refusal(scope, Headers(scope=scope))
        app = self._app if refusal is None else refusal
        await app(scope, receive, _guarded(send))

    def _refusal(self, scope: "Scope", headers: "Headers") -> "Response | None":
        from starlette.responses import PlainTextResponse

        if scope["method"] != "GET":
            return PlainTextResponse("only GET", 405, headers={"Allow": "GET"})
        if self._access.key is None:
            is_ours = _host(headers.get("host", "")) in {*_OWN_NAMES, self._access.host}
            return None if is_ours else PlainTextResponse("this page answers to this machine's own names only", 403)
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(asked).get("key")
        if given is not None and self._is_key(given):
            return self._admission(scope["path"], [(name, value) for name, value in asked if name != "key"])
        if self._is_key(_cookie(headers.get("cookie", ""), self._access.cookie)):
            return None
        return PlainTextResponse("open the address that truetune printed: the key in it is missing here", 401)

    def _is_key(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), (self._access.key or "").encode())

    def _admission(self, path: str, asked: list[tuple[str, str]]) -> "Response":
        """Takes the key out of the address, and gives it as a cookie that no script and no other site can use.

        A redirection would not bring the cookie back where a link on another site led here; a page that goes on does.
        """
        from starlette.responses import HTMLResponse

        there = quote("/" + path.lstrip("/")) + (f"?{urlencode(asked)}" if asked else "")
        onward = f'<meta http-equiv="refresh" content="0; url={escape(there)}">'
        response = HTMLResponse(f"<!DOCTYPE html>{onward}<title>truetune</title>")
        key = self._access.key or ""
        response.set_cookie(self._access.cookie, key, httponly=True, samesite="strict", path="/")
        return response


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    return name.strip("[]").lower()


def _cookie(header: str, name: str) -> str:
    cookies = SimpleCookie()
    try:
        cookies.load(header)
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


def _guarded(send: "Send") -> "Send":
    """Each answer with the headers that keep it from being framed, sniffed, kept, or read by another site."""
    from starlette.datastructures import MutableHeaders

    async def guarded(message: "Message") -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers["Content-Security-Policy"] = headers.get("Content-Security-Policy", _POLICY) + _NO_FRAME
        await send(message)

    return guarded
