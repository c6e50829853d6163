"""S3 through s3fs: one client for each process, pages of listings, files opened for reading.

Credentials and endpoint come from the usual AWS environment and stay inside s3fs.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import IO, Any, cast

from s3fs.core import S3File

from ops.storage.retry import RetryingS3
from ops.storage.storage_errors import AccessDenied, StorageError, storage_errors

#: Stores other than Amazon's reject newer checksum headers, so they are sent only where required.
CLIENT = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "retries": {"total_max_attempts": 1},  # `ops.storage.retry` repeats requests
    "connect_timeout": 10,
    "read_timeout": 30,
}


def is_s3(location: str) -> bool:
    """Whether a location lies on S3."""
    return location.startswith("s3://")


@functools.cache
def _file_system(_process: int) -> Any:  # by process: its event loop does not survive a fork
    return RetryingS3(
        use_listings_cache=False,
        default_fill_cache=False,
        skip_instance_cache=True,
        max_concurrency=1,  # otherwise every read of a whole file asks for its size first
        config_kwargs=CLIENT,
    )


def file_system() -> Any:
    """The S3 file system of this process."""
    return _file_system(os.getpid())


class _ReadFile(S3File):  # type: ignore[misc]  # untyped
    """A file opened for reading, whose errors name its location."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        with storage_errors(f"s3://{self.path}"):
            return cast("bytes", super()._fetch_range(start, end))


def open_read(location: str) -> IO[bytes]:
    """Open an object for random access."""
    with storage_errors(location):
        path = location.removeprefix("s3://")
        return cast("IO[bytes]", _ReadFile(file_system(), path, block_size=2**20))


def bucket_and_key(location: str) -> tuple[str, str]:
    """The bucket and the key, which is empty for a bucket itself."""
    bucket, _, key = location.removeprefix("s3://").partition("/")
    return bucket, key


def prefix(location: str) -> str:
    """The key as a prefix of the keys below it: with a slash at its end, or empty."""
    _, key = bucket_and_key(location)
    return key.rstrip("/") + "/" if key else ""


def pages(location: str) -> Iterator[list[dict[str, Any]]]:
    """Objects below a prefix as the store describes them, up to 1000 at a time."""
    bucket, _ = bucket_and_key(location)
    page: dict[str, Any] = {"NextContinuationToken": None, "IsTruncated": True}
    while page["IsTruncated"]:
        token = page["NextContinuationToken"]
        more = {"ContinuationToken": token} if token else {}
        with storage_errors(location):
            page = file_system().call_s3(
                "list_objects_v2", Bucket=bucket, Prefix=prefix(location), **more
            )
        yield page.get("Contents", [])


def check_access(location: str) -> None:
    """Ask the store whether the bucket exists and whether this process may list the location.

    Raises NotFound (no such bucket), AccessDenied (wrong or no credentials), or Unavailable.
    """
    bucket, key = bucket_and_key(location)
    try:
        with storage_errors(location):
            file_system().call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
    except AccessDenied:
        if key:  # some may read a file, but not list
            with contextlib.suppress(StorageError), storage_errors(location):
                file_system().call_s3("head_object", Bucket=bucket, Key=key)
                return
        raise


def remove_prefix(location: str) -> None:
    """Remove every object below a prefix."""
    bucket, _ = bucket_and_key(location)
    for page in pages(location):
        if page:
            objects = {"Objects": [{"Key": item["Key"]} for item in page], "Quiet": True}
            with storage_errors(location):
                answer = file_system().call_s3("delete_objects", Bucket=bucket, Delete=objects)
            for error in answer.get("Errors", ()):  # s3fs ignores them here
                reason = f"cannot be removed: {error['Code']}, {error.get('Message')}"
                raise StorageError(reason, f"s3://{bucket}/{error['Key']}")
