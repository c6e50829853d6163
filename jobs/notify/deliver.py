"""Requests to addresses that are secrets: none is ever shown, followed elsewhere, or waited for."""

from __future__ import annotations

import enum
import http.client
import threading
import time
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from ops.errors import SettingError

#: Seconds for each attempt as a whole, and the pauses before the second and the third one.
TIMEOUT = 10.0
PAUSES = (1.0, 4.0)
#: Answers by which a server says that it has not taken a request.
_REFUSED = frozenset({429, 503})


class Repeat(enum.Enum):
    """Whether a request may be sent again."""

    NEVER = enum.auto()
    """The answer is final."""
    SAFELY = enum.auto()
    """The server has surely not taken it."""
    IF_KNOWN_AGAIN = enum.auto()
    """The server may have taken it: only if it knows a repeated request."""


class Outcome(NamedTuple):
    """What became of a request."""

    problem: str
    """A sentence without the address; empty if the request was answered with 2xx."""
    repeat: Repeat


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: the address is for its own server only."""

    def redirect_request(self, *_: Any) -> None:
        return None


def check(setting: str, url: str) -> None:
    """Raise SettingError unless `url` is empty or a complete web address; it shows no address."""
    if not url:
        return
    try:
        parts = urlsplit(url)
        _ = parts.port
        is_plain = url.isascii() and url.isprintable() and " " not in url
        complete = parts.scheme in {"http", "https"} and parts.hostname and not parts.username
    except ValueError:
        complete = is_plain = False
    if not (complete and is_plain):
        raise SettingError(
            f"--{setting} must be an address such as https://HOST/PATH, without user and password "
            "(it is a secret, so it is not shown here)"
        )


def shown(url: str) -> str:
    """An address as logs may show it: its server."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}/***" if url else ""


def send(url: str, body: bytes | None, headers: Mapping[str, str], repeatable: bool) -> Outcome:
    """Send a request, a POST if it has a body; repeat it if that cannot make it arrive twice.

    A request that is `repeatable`, because its receiver knows it again, is repeated after each
    failure but a final answer. Others are repeated only if the server has surely not taken them.
    """
    for pause in PAUSES:
        outcome = _attempt(url, body, headers)
        if outcome.repeat is not Repeat.SAFELY and not (
            repeatable and outcome.repeat is Repeat.IF_KNOWN_AGAIN
        ):
            return outcome
        time.sleep(pause)
    return _attempt(url, body, headers)


def _attempt(url: str, body: bytes | None, headers: Mapping[str, str]) -> Outcome:
    answers: list[Outcome] = []
    # A server may send one byte at a time for hours, and a name server may never answer.
    thread = threading.Thread(
        target=lambda: answers.append(_request(url, body, headers)), daemon=True
    )
    thread.start()
    thread.join(TIMEOUT)
    silence = Outcome(f"no answer within {TIMEOUT:g} s", Repeat.IF_KNOWN_AGAIN)
    return answers[0] if answers else silence


def _request(url: str, body: bytes | None, headers: Mapping[str, str]) -> Outcome:
    opener = urllib.request.build_opener(_NoRedirects)
    request = urllib.request.Request(  # noqa: S310 - `check` admits web addresses only
        url, body, {"User-Agent": "nightloupe", "Content-Type": "application/json", **headers}
    )
    try:
        with opener.open(request, timeout=TIMEOUT):
            return Outcome("", Repeat.NEVER)
    except HTTPError as error:
        error.close()
        return _of_status(error.code)
    except URLError as error:  # while it connected or sent
        return Outcome(f"no connection ({type(error.reason).__name__})", Repeat.SAFELY)
    except (OSError, http.client.HTTPException) as error:
        return Outcome(f"no answer ({type(error).__name__})", Repeat.IF_KNOWN_AGAIN)
    except Exception as error:  # messages of libraries may hold the address
        return Outcome(f"no request ({type(error).__name__})", Repeat.NEVER)


def _of_status(status: int) -> Outcome:
    """The outcome of an answer that is no success."""
    redirected = ", and redirects are not followed" if 300 <= status < 400 else ""
    repeat = Repeat.IF_KNOWN_AGAIN if status >= 500 else Repeat.NEVER
    return Outcome(f"answer {status}{redirected}", Repeat.SAFELY if status in _REFUSED else repeat)
