"""The one way to bytes: what is no file, and what is larger than the limit, is not read."""

from __future__ import annotations

import os
import time

import pytest

from ops.archives.fetch import FetchSettings, fetch
from ops.failure import Failure
from ops.storage import files, uris

SETTINGS = FetchSettings(max_bytes=1000)


def failure_of(place, **more) -> Failure:
    started = time.monotonic()
    with pytest.raises(Failure) as error:
        fetch(uris.make(str(place)), None, more.pop("size", None), SETTINGS, **more)
    assert time.monotonic() - started < 0.4  # no attempt is repeated
    return error.value


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
