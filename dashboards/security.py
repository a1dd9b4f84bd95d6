"""Who may ask: the bearer token, the names under which the loopback is asked, and the headers of every answer."""

import hashlib
import hmac
from collections.abc import Collection
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Protocol
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboards.problems import problem

COOKIE = "nantucket"
COOKIE_SECONDS = 90 * 24 * 3600
"""A wall is logged in once a quarter."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN_PATHS = frozenset({"/healthz"})
"""A probe has no token, and learns nothing but that the process lives."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def names_of(host: str) -> frozenset[str]:
    """The names under which a server on the loopback address ``host`` may be asked: its own, and the usual ones."""
    return LOOPBACK_NAMES | {f"[{host}]" if ":" in host else host.lower()}


class Secret(Protocol):
    """A text that masks itself wherever it is printed."""

    def reveal(self) -> str:
        """The text."""
        ...


class Gate:
    """ASGI middleware in front of everything. Without ``token`` there is only the host check.

    ``hosts`` are the names (without port) under which the server may be asked; ``None`` allows any. On loopback this is
    what keeps a web page elsewhere, whose name was made to point at 127.0.0.1, from reading the fleet.
    """

    def __init__(self, app: ASGIApp, *, token: Secret | None, hosts: Collection[str] | None) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._refuse_host(headers) or self._refuse_stranger(scope, headers)
        app = self._app if answer is None else answer
        await app(scope, receive, _secured(scope, send))

    def _refuse_host(self, headers: Headers) -> Response | None:
        asked = headers.get("host", "")
        name = asked.rsplit(":", 1)[0] if not asked.endswith("]") else asked
        if self._hosts is None or name.lower() in self._hosts:
            return None
        detail = (
            f"this server is not asked as {asked!r}: expected {', '.join(sorted(self._hosts))} (a DNS-rebinding guard)"
        )
        return problem(HTTPStatus.MISDIRECTED_REQUEST, detail)

    def _refuse_stranger(self, scope: Scope, headers: Headers) -> Response | None:
        if self._token is None or scope["path"] in OPEN_PATHS:
            return None
        token = self._token.reveal()
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if scope["path"] == "/" and "token" in query:
            return self._log_in(scope, token, query)
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), token):
            return None
        if _same(_cookie(headers), cookie_value(token)):
            return None
        detail = "a token is needed: send `Authorization: Bearer TOKEN`, or open /?token=TOKEN once in a browser"
        return problem(HTTPStatus.UNAUTHORIZED, detail, {"WWW-Authenticate": 'Bearer realm="nantucket"'})

    def _log_in(self, scope: Scope, token: str, query: dict[str, list[str]]) -> Response:
        if not _same(query["token"][0], token):
            return problem(
                HTTPStatus.UNAUTHORIZED, "this is not the token", {"WWW-Authenticate": 'Bearer realm="nantucket"'}
            )
        rest = urlencode([(key, value) for key, values in query.items() if key != "token" for value in values])
        answer = RedirectResponse(f"/?{rest}" if rest else "/", HTTPStatus.SEE_OTHER)
        # Lax, not Strict: the link in a page to an incident comes from another site, and must open.
        answer.set_cookie(
            COOKIE,
            cookie_value(token),
            max_age=COOKIE_SECONDS,
            httponly=True,
            samesite="lax",
            secure=scope["scheme"] == "https",
        )
        return answer


def cookie_value(token: str) -> str:
    """What the cookie holds: proof of having known the token, from which the token cannot be found."""
    return hmac.new(token.encode(), b"nantucket page cookie", hashlib.sha256).hexdigest()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _cookie(headers: Headers) -> str:
    try:
        held = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return held.value if held is not None else ""


def _secured(scope: Scope, send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if not scope["path"].startswith("/assets/"):
                headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return send_with_headers
