"""The one way to bytes: what is no file, and what is larger than the limit, is not read."""

from __future__ import annotations

import errno
import os
import struct
import time

import pytest
from botocore.exceptions import ReadTimeoutError

from ops.archives.fetch import FetchSettings, fetch
from ops.archives.listing import entries
from ops.failure import Failure
from ops.storage import files, uris
from ops.storage.storage_errors import AccessDenied
from tests.archives import HASTY, TARS, THREE, place, read, statuses, tar, zipped

SETTINGS = FetchSettings(max_bytes=1000)


def failure_of(place, **more) -> Failure:
    started = time.monotonic()
    with pytest.raises(Failure) as error:
        fetch(uris.make(str(place)), None, more.pop("size", None), SETTINGS, **more)
    assert time.monotonic() - started < 0.4  # no attempt is repeated
    return error.value


@pytest.mark.parametrize("name", ["a\0.png", "a\0.tar#b.png", "a\0.zip#b.png"])
def test_an_address_that_no_file_can_have_is_missing(tmp_path, name):
    failure = failure_of(tmp_path / name)
    assert (failure.status, "holds a NUL character" in failure.reason) == ("missing", True)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["a.png", "a.png#b.png"])
@pytest.mark.parametrize("container", ["", ".tar", ".tar.gz", ".zip", ".parquet"])
def test_a_pipe_in_the_place_of_a_file_or_an_archive_is_not_opened(tmp_path, name, container):
    place = tmp_path / f"a{container}"
    os.mkfifo(place)
    uri = uris.make(str(place), "b.png" if container else None)
    with pytest.raises(Failure) as error:
        fetch(uri, None, None, SETTINGS, version="1:2:3")
    assert (error.value.status, error.value.reason) == (
        "changed",
        "it is a pipe, not a file, so it was not opened",
    )


def test_a_link_to_an_endless_device_is_not_read(tmp_path):
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    failure = failure_of(tmp_path / "zero.png")
    assert (failure.status, failure.reason) == (
        "changed",
        "it is a device, not a file, so it was not opened",
    )


def test_a_file_that_grew_is_changed_or_too_large(tmp_path):
    place = tmp_path / "a.png"
    place.write_bytes(b"x" * 100)
    version = files.describe(str(place)).version
    os.truncate(place, 3 * 2**30)
    assert failure_of(place, size=100, version=version).status == "changed"
    failure = failure_of(place, size=100)
    assert (failure.status, failure.reason) == (
        "too_large",
        "3221225472 bytes are more than the limit of 1000; --fetch.max_bytes raises it",
    )


@pytest.mark.slow
def test_an_object_that_grew_is_not_read(s3):
    place = f"{s3}/a.png"
    files.write_bytes(place, b"x" * 1000)
    assert fetch(place, None, 100, SETTINGS) == b"x" * 1000
    files.write_bytes(place, b"x" * 1001)
    failure = failure_of(place, size=100)
    assert failure.status == "too_large"
    assert failure.reason.startswith("1001 bytes are more than the limit of 1000")


def test_a_member_removed_from_its_archive_is_missing(tmp_path):
    for name, data in {"a.zip": zipped(THREE), "a.tgz": tar(THREE, "w:gz")}.items():
        uri = uris.make(place(tmp_path, name, data), "9.png")
        with pytest.raises(Failure, match="missing"):
            fetch(uri, None, None, HASTY)


def test_no_member_of_a_replaced_zip_is_taken_for_another(tmp_path):
    archive = place(tmp_path, "a.zip", zipped([("x.png", b"1"), ("b.png", b"2")]))
    uri = uris.make(archive, "a.png")
    with pytest.raises(Failure, match="missing"):
        fetch(uri, 1, 1, HASTY)
    with pytest.raises(Failure, match="missing"):
        fetch(uri, 99, 1, HASTY)


@pytest.mark.parametrize("name", ["a.png", "a.tar", "a.zip", "a.parquet"])
def test_a_file_removed_after_the_listing_is_missing(tmp_path, name):
    uri = uris.make(str(tmp_path / name), None if name == "a.png" else "x.png")
    with pytest.raises(Failure, match="missing"):
        fetch(uri, 0, 1, HASTY)


def failing(monkeypatch, error: Exception, times: int) -> list[Exception]:
    """Make the first reads fail; returns the list of failures so far."""
    real, raised = files.read_bytes, []

    def read_bytes(location, *span, **version):
        if len(raised) < times:
            raised.append(error)
            raise error
        return real(location, *span, **version)

    monkeypatch.setattr(files, "read_bytes", read_bytes)
    return raised


TRANSIENT = {
    "503": OSError(errno.EBUSY, "503 Slow Down"),
    "500": OSError("We encountered an internal error. Please try again."),
    "reset": ConnectionResetError(errno.ECONNRESET, "reset by peer"),
    "timeout": TimeoutError("read timed out"),
    "botocore": ReadTimeoutError(endpoint_url="http://store"),
}


@pytest.mark.parametrize("error", TRANSIENT.values(), ids=TRANSIENT)
def test_a_read_that_fails_for_a_transient_reason_is_retried(tmp_path, monkeypatch, error):
    (entry,) = entries(place(tmp_path, "a.png", b"12"))
    raised = failing(monkeypatch, error, times=2)
    assert fetch(entry.uri, None, 2, FetchSettings(attempts=3, backoff=0)) == b"12"
    assert len(raised) == 2


@pytest.mark.parametrize("error", TRANSIENT.values(), ids=TRANSIENT)
def test_a_store_that_keeps_failing_is_unavailable_after_the_last_attempt(
    tmp_path, monkeypatch, error
):
    (entry,) = entries(place(tmp_path, "a.png", b"12"))
    raised = failing(monkeypatch, error, times=99)
    with pytest.raises(Failure, match="unavailable: the store failed 3 times") as failure:
        fetch(entry.uri, None, 2, FetchSettings(attempts=3, backoff=0))
    assert failure.value.status == "unavailable"
    assert len(raised) == 3


@pytest.mark.parametrize(
    ("error", "status"), [(AccessDenied("no"), "forbidden"), (FileNotFoundError(), "missing")]
)
def test_a_permanent_error_is_not_retried(tmp_path, monkeypatch, error, status):
    (entry,) = entries(place(tmp_path, "a.png", b"12"))
    raised = failing(monkeypatch, error, times=99)
    with pytest.raises(Failure, match=status):
        fetch(entry.uri, None, 2, FetchSettings(attempts=3, backoff=0))
    assert len(raised) == 1


def test_a_short_read_is_retried(tmp_path, monkeypatch):
    (entry,) = entries(place(tmp_path, "a.png", b"1234"))
    answers = [b"12", b"1234"]
    monkeypatch.setattr(files, "read_bytes", lambda location, **_: answers.pop(0))
    assert read(entry) == b"1234"


def test_a_file_that_became_shorter_is_read(tmp_path):
    uri = uris.make(place(tmp_path, "a.png", b"12"))
    assert fetch(uri, None, 4, HASTY) == b"12"


def test_a_file_that_is_listed_as_too_large_is_not_read(tmp_path, monkeypatch):
    failing(monkeypatch, AssertionError("it was read"), times=1)
    with pytest.raises(Failure, match="too_large") as failure:
        fetch("file:///a.png", None, 11, FetchSettings(max_bytes=10))
    assert "11 bytes" in failure.value.reason


def test_a_file_of_unknown_size_that_is_too_large_fails(tmp_path):
    uri = uris.make(place(tmp_path, "a.png", bytes(11)))
    with pytest.raises(Failure, match="too_large"):
        fetch(uri, None, None, FetchSettings(max_bytes=10))


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar"])
def test_a_bomb_is_unpacked_no_further_than_the_limit(tmp_path, suffix):
    bomb = [("a.png", bytes(3_000_000))]
    data = zipped(bomb) if suffix == ".zip" else tar(bomb, TARS[suffix])
    (entry,) = entries(place(tmp_path, f"a{suffix}", data))
    with pytest.raises(Failure, match="too_large"):
        fetch(entry.uri, entry.member, None, FetchSettings(max_bytes=1000))


def test_a_zip_with_a_wrong_size_is_unreadable(tmp_path):
    data = bytearray(zipped([("a.png", bytes(100_000))]))
    for at in (data.index(b"a.png") - 30 + 22, data.rindex(b"a.png") - 46 + 24):
        data[at : at + 4] = struct.pack("<I", 10)
    assert statuses(place(tmp_path, "a.zip", bytes(data))) == ["unreadable"]
