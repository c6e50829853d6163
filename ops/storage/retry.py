"""Patience with a store: every request to S3 is repeated here, and nowhere below, while it fails
for a passing reason.

Only at this depth is a repetition safe and small: archive readers take a failing file for a
damaged one, and an upload or a listing need not begin anew. s3fs and botocore could repeat too,
each on its own and without a word; both are told not to, so that attempts neither multiply nor go
uncounted. (aiohttp alone asks once more, unheard, where a connection is cut before any answer: as
a rule it had idled for too long.)
"""

from __future__ import annotations

import contextlib
import contextvars
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tenacity
from aiohttp import ClientError
from botocore.exceptions import (  # type: ignore[import-untyped]
    ConnectionError as NoConnection,
)
from botocore.exceptions import (
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

#: Broken connections and answers that s3fs passes on as they are; they are no OSErrors.
BELOW_S3FS = (NoConnection, HTTPClientError, IncompleteReadError, ResponseParserError, ClientError)
#: What the next attempt finds as it is.
_LASTING = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    SSLError,
)
_PASSING_CODES = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "SlowDown"})


class Unavailable(OSError):
    """A store that failed as often as patience lasted."""


@dataclass(frozen=True)
class RetryPolicy:
    """How a request that fails for a passing reason is repeated.

    A silent store is asked three times, each for the read timeout; one that refuses at once
    `attempts` times: by default for half a minute, in which a gateway starts anew.
    """

    attempts: int = 8
    first: float = 0.25
    """Seconds before the second attempt; doubles with each, with jitter, up to 20."""
    again: Callable[[], None] = lambda: None
    """Called before each repetition."""

    def asked(self) -> dict[str, Any]:
        """Itself as settings of tenacity."""
        silent = tenacity.stop_after_delay(60) & tenacity.stop_after_attempt(3)
        return {
            "retry": tenacity.retry_if_exception(is_passing),
            "stop": tenacity.stop_after_attempt(self.attempts) | silent,
            "wait": tenacity.wait_exponential_jitter(self.first, 20, jitter=self.first),
            "before_sleep": lambda _: self.again(),
            "retry_error_callback": _give_up,
        }


_patience: contextvars.ContextVar[RetryPolicy] = contextvars.ContextVar("_patience")
_DEFAULT = RetryPolicy()


@contextlib.contextmanager
def patient(patience: RetryPolicy) -> Iterator[None]:
    """Another patience for what this thread does meanwhile."""
    token = _patience.set(patience)
    try:
        yield
    finally:
        _patience.reset(token)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment."""
    if isinstance(error, Unavailable):
        return False
    answer = getattr(error.__cause__, "response", None)
    if answer is not None:
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = answer.get("Error", {}).get("Code")
        # 409: another conditional request for the same key is under way.
        return code in _PASSING_CODES or status in {409, 429} or (status >= 500 and status != 501)
    return isinstance(error, (OSError, *BELOW_S3FS)) and not isinstance(error, _LASTING)


def _give_up(state: tenacity.RetryCallState) -> None:
    assert state.outcome is not None
    error = state.outcome.exception()
    what = f"{type(error).__name__}: {str(error)[:200]}"
    message = f"the store failed {state.attempt_number} times in a row ({what})"
    raise Unavailable(message) from error


class PatientS3(S3FileSystem):  # type: ignore[misc]  # untyped
    """s3fs whose every request, with the body of its answer, is one attempt of `RetryPolicy`."""

    retries = 1

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        async def ask() -> Any:
            answer = await super(PatientS3, self)._call_s3(method, *args, **kwargs)
            if (body := answer.get("Body")) is not None:
                try:
                    answer["Body"] = _Body(await body.read())
                finally:
                    body.close()
            return answer

        return await tenacity.AsyncRetrying(**_patience.get(_DEFAULT).asked())(ask)

    call_s3 = sync_wrapper(_call_s3)


class _Body:
    """A body that has come whole."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    async def read(self, amount: int = -1) -> bytes:
        return self._file.read(amount)

    def close(self) -> None:
        """Nothing is open."""
