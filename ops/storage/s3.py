"""S3 through s3fs: one client for each process, pages of listings, files opened for reading.

Credentials and endpoint come from the usual AWS environment and stay inside s3fs. It is imported by
the first request: who works on local files alone does without it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import IO, Any, cast

from ops.storage import versions
from ops.storage.storage_errors import AccessDenied, Changed, StorageError, storage_errors

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
    from ops.storage.retry import RetryingS3  # noqa: PLC0415 - see the module's docstring

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


def open_read(location: str, version: str | None = None) -> IO[bytes]:
    """Open an object for random access. Raises Changed if it is or becomes another version."""
    from ops.storage.s3_file import ReadFile  # noqa: PLC0415 - see the module's docstring

    with storage_errors(location):
        path = location.removeprefix("s3://")
        file = ReadFile(file_system(), path, block_size=2**20)
    versions.check(location, version, etag(file.details))
    return cast("IO[bytes]", file)


def etag(answer: dict[str, Any]) -> str:
    """The version of an object, from the store's answer about it."""
    return str(answer["ETag"]).strip('"')


def read_bytes(
    location: str, start: int | None, end: int | None, version: str | None, limit: int | None
) -> bytes:
    """Bytes [start, end) of an object, or all of it (see `ops.storage.files.read_bytes`)."""
    bucket, key = bucket_and_key(location)
    more: dict[str, Any] = {} if limit is None else {"limit": limit}
    if start is not None or end is not None:
        if end is not None and end <= (start or 0):
            return b""  # stores answer an empty range with the whole object
        more["Range"] = f"bytes={start or 0}-{'' if end is None else end - 1}"
    if version is not None and versions.is_etag(version):
        more["IfMatch"] = version
    with storage_errors(location):
        try:
            answer = file_system().call_s3("get_object", Bucket=bucket, Key=key, **more)
        except OSError as error:
            if "IfMatch" in more and _is_failed_precondition(error):
                raise Changed(f"version {version} was listed, but it was replaced") from error
            raise
        versions.check(location, version, etag(answer))  # some stores ignore the condition
        return cast("bytes", answer["Body"].data)


def _is_failed_precondition(error: OSError) -> bool:
    response = getattr(error.__cause__, "response", None) or {}
    code = response.get("Error", {}).get("Code")
    return code == "PreconditionFailed" or str(code) == "412"


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
