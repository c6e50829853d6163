"""Retries of requests to S3. Every request is repeated here, and in no layer below, while it fails
for a transient reason.

At this level a retry is safe and cheap: archive readers take a file that fails for a damaged one,
and an upload or a listing need not start over. The retries of s3fs and botocore are turned off, so
that attempts neither multiply nor go uncounted. One retry remains that cannot be counted: aiohttp
repeats a request whose connection is closed before any answer, usually an idle one.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import tenacity
from aiohttp import ClientError
from botocore.exceptions import (  # type: ignore[import-untyped]
    ConnectionError as BotoConnectionError,
)
from botocore.exceptions import (
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from ops.storage.storage_errors import (
    Changed,
    NotRegular,
    StorageError,
    TooLarge,
    Unavailable,
)

T = TypeVar("T")
#: Errors of connections and of answers that s3fs does not translate into an OSError.
_CONNECTION_ERRORS = (
    BotoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ResponseParserError,
    ClientError,
)
#: Errors that the next attempt would meet again.
_PERMANENT = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    SSLError,
)
_TRANSIENT_CODES = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "SlowDown"})


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request that fails for a transient reason is repeated, and how fast.

    A store that does not answer is tried three times, each for the read timeout. A store that
    answers with an error is tried `attempts` times: by default for half a minute, the time in
    which a gateway restarts.
    """

    attempts: int = 8
    backoff: float = 0.25
    """Seconds before the second attempt; doubles with each, with jitter, up to 20."""
    on_retry: Callable[[], None] = lambda: None
    """Called before each retry."""

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function, which is repeated while it fails for a transient reason."""
        try:
            return function(*arguments)
        except Exception as error:
            if not is_transient(error):
                raise
            failed = [error]

        def attempt() -> T:
            if failed:
                raise failed.pop()
            return function(*arguments)

        return tenacity.Retrying(**self.tenacity_settings())(attempt)

    def tenacity_settings(self) -> dict[str, Any]:
        """The keyword arguments of `tenacity.Retrying`."""
        no_answer = tenacity.stop_after_delay(60) & tenacity.stop_after_attempt(3)
        return {
            "retry": tenacity.retry_if_exception(is_transient),
            "stop": tenacity.stop_after_attempt(self.attempts) | no_answer,
            "wait": tenacity.wait_exponential_jitter(self.backoff, 20, jitter=self.backoff),
            "before_sleep": lambda _: self.on_retry(),
            "retry_error_callback": _give_up,
        }


_policy: contextvars.ContextVar[RetryPolicy] = contextvars.ContextVar("_policy")
_DEFAULT = RetryPolicy()


@contextlib.contextmanager
def retry_policy(policy: RetryPolicy) -> Iterator[None]:
    """Use another policy for the requests that this thread makes in the context."""
    token = _policy.set(policy)
    try:
        yield
    finally:
        _policy.reset(token)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment."""
    if isinstance(error, (Changed, NotRegular, TooLarge, Unavailable)):
        return False
    if isinstance(error, StorageError) and error.__cause__ is not None:
        return is_transient(error.__cause__)
    response = getattr(error.__cause__, "response", None)
    if response is not None:
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = response.get("Error", {}).get("Code")
        # 409: another conditional request for the same key is under way.
        return code in _TRANSIENT_CODES or status in {409, 429} or (status >= 500 and status != 501)
    return isinstance(error, (OSError, *_CONNECTION_ERRORS)) and not isinstance(error, _PERMANENT)


def _give_up(state: tenacity.RetryCallState) -> None:
    assert state.outcome is not None
    error = state.outcome.exception()
    last = f"{type(error).__name__}: {str(error)[:200]}"
    message = f"the store failed {state.attempt_number} times in a row ({last})"
    raise Unavailable(message) from error


class RetryingS3(S3FileSystem):  # type: ignore[misc]  # untyped
    """s3fs in which one attempt of `RetryPolicy` covers a request and the body of its answer."""

    retries = 1

    async def _call_s3(
        self, method: str, *args: Any, limit: int | None = None, **kwargs: Any
    ) -> Any:
        """Call a method of the client. Raises TooLarge if its body exceeds `limit` bytes."""

        async def attempt() -> Any:
            answer = await super(RetryingS3, self)._call_s3(method, *args, **kwargs)
            if (body := answer.get("Body")) is not None:
                try:
                    answer["Body"] = _Body(await _read(body, answer["ContentLength"], limit))
                finally:
                    body.close()
            return answer

        settings = _policy.get(_DEFAULT).tenacity_settings()
        return await tenacity.AsyncRetrying(**settings)(attempt)

    call_s3 = sync_wrapper(_call_s3)


async def _read(body: Any, size: int, limit: int | None) -> bytes:
    if limit is not None and size > limit:
        raise TooLarge(size, limit)
    return bytes(await body.read())


class _Body:
    """The body of an answer, already read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._file = io.BytesIO(data)

    async def read(self, amount: int = -1) -> bytes:
        return self._file.read(amount)

    def close(self) -> None:
        """Does nothing: the connection is already released."""
