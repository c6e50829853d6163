"""Who may use the page: those who have its token, in a browser that asks for it by its name."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Access:
    """Answers only requests that carry the token, and adds headers that bind the browser.

    The address that the command prints has the token as `?token=`; the answer sets it as a cookie.
    A request must name one of `hosts` (`name` or `name:port`), so that a page of another site whose
    name was pointed at this machine gets no answer. A POST must come from the page itself.
    """

    def __init__(self, app: ASGIApp, token: str, cookie: str, hosts: Sequence[str]) -> None:
        self._app, self._token, self._cookie = app, token, cookie
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        with_token = scope["path"] == "/" and self._is_token(asked)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                if with_token:
                    settings = "HttpOnly; SameSite=Strict; Path=/"
                    headers.append("Set-Cookie", f"{self._cookie}={self._token}; {settings}")
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["method"], with_token)
        app = PlainTextResponse(refusal, 403) if refusal else self._app
        await app(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers, method: str, with_token: bool) -> str:
        """Why a request is not answered; empty if it is."""
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return "This name is not one of the server's; --address adds one.\n"
        if not (with_token or self._is_token(_cookies(headers).get(self._cookie, ""))):
            return "Open the address that python -m jobs.review printed: it holds the token.\n"
        origin = headers.get("origin", "").lower()
        # With https behind a proxy that encrypts.
        if method not in {"GET", "HEAD"} and origin not in {f"http://{host}", f"https://{host}"}:
            return "A decision must come from the page itself.\n"
        return ""

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())


def _cookies(headers: Headers) -> dict[str, str]:
    """Cookies by name. Those of other servers on this host come along, in whatever form."""
    return cookie_parser(headers.get("cookie", ""))
