"""Which errors are retried, and how often; without a store."""

import ssl

import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    SSLError,
)
from s3fs.errors import translate_boto_error
from tenacity import Retrying

from ops.storage import s3
from ops.storage.retry import RetryPolicy, Unavailable, is_transient


def answered(code: str, status: int) -> OSError:
    """The exception of s3fs for an error of the store."""
    said = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(said, "GetObject"))


TRANSIENT = {
    "internal": answered("InternalError", 500),
    "gateway": answered("502", 502),
    "slow down": answered("SlowDown", 503),
    "head": answered("503", 503),
    "too many": answered("TooManyRequests", 429),
    "conflict": answered("ConditionalRequestConflict", 409),
    "idle": answered("RequestTimeout", 400),
    "damaged on the way": answered("BadDigest", 400),
    "refused": EndpointConnectionError(endpoint_url="http://store"),
    "cut": HTTPClientError(error="cut"),
    "cut in its body": ClientPayloadError(),
    "disk": OSError(5, "input/output error"),
}
PERMANENT = {
    "missing": answered("NoSuchKey", 404),
    "denied": answered("AccessDenied", 403),
    "there already": answered("PreconditionFailed", 412),
    "beyond the end": answered("InvalidRange", 416),
    "not made": answered("NotImplemented", 501),
    "no credentials": NoCredentialsError(),
    "wrong certificate": SSLError(endpoint_url="https://store", error=ssl.SSLError()),
    "given up": Unavailable("8 times"),
    "a bug": KeyError("a"),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_transient_errors_are_retried(name):
    assert is_transient(TRANSIENT[name])


@pytest.mark.parametrize("name", PERMANENT)
def test_permanent_errors_are_not_retried(name):
    assert not is_transient(PERMANENT[name])


def failing(error: Exception, policy: RetryPolicy) -> list[int]:
    """Retry a call that always fails; one entry per attempt."""
    attempts = []

    def ask():
        attempts.append(1)
        raise error

    with pytest.raises(type(error) if not is_transient(error) else Unavailable):
        Retrying(**policy.tenacity_settings())(ask)
    return attempts


def test_each_retry_calls_on_retry():
    retries = []
    policy = RetryPolicy(attempts=4, backoff=0, on_retry=lambda: retries.append(1))
    assert len(failing(TRANSIENT["internal"], policy)) == 4
    assert len(retries) == 3
    assert len(failing(PERMANENT["denied"], policy)) == 1
    assert len(retries) == 3


def test_one_attempt_is_not_retried():
    assert len(failing(TRANSIENT["cut"], RetryPolicy(attempts=1))) == 1


class _At:
    """The state of attempts, as tenacity passes it."""

    def __init__(self, attempt: int, seconds: float) -> None:
        self.attempt_number, self.seconds_since_start = attempt, seconds


@pytest.mark.parametrize(
    ("attempt", "seconds", "over"),
    [(1, 500, False), (2, 100, False), (3, 90, True), (7, 30, False), (8, 31, True)],
)
def test_a_store_without_answers_gets_fewer_attempts_than_one_with_errors(attempt, seconds, over):
    """One long transfer that is cut at its end leaves attempts."""
    assert bool(RetryPolicy().tenacity_settings()["stop"](_At(attempt, seconds))) == over


@pytest.mark.parametrize("seconds", [0.0, s3.CLIENT["read_timeout"]])
def test_the_default_policy_ends_within_two_minutes(seconds):
    """For a store that answers with errors, and for one that never answers."""
    asked, attempt, elapsed = RetryPolicy().tenacity_settings(), 1, seconds
    while not asked["stop"](_At(attempt, elapsed)):
        elapsed += asked["wait"](_At(attempt, elapsed)) + seconds
        attempt += 1
    assert attempt == (3 if seconds else 8)
    assert 30 < elapsed < 120


def test_a_call_is_repeated_after_transient_errors_alone_and_each_attempt_counts():
    def failing(*errors):
        left = [*errors]

        def call(value):
            if left:
                raise left.pop(0)
            return value

        return call

    again = []
    policy = RetryPolicy(3, 0, lambda: again.append(1))
    cut = HTTPClientError(error="cut")
    assert policy.call(failing(), 7) == 7
    assert again == []
    assert policy.call(failing(cut, cut), 7) == 7
    assert len(again) == 2
    with pytest.raises(Unavailable, match="failed 3 times in a row"):
        policy.call(failing(cut, cut, cut), 7)
    again.clear()
    for permanent in (FileNotFoundError("gone"), ValueError("a bug")):
        with pytest.raises(type(permanent)):
            policy.call(failing(permanent), 7)
    assert again == []
