"""A file on S3, opened for reading."""

from __future__ import annotations

from typing import cast

from s3fs.core import S3File
from s3fs.utils import FileExpired

from ops.storage.storage_errors import Changed, storage_errors


class ReadFile(S3File):  # type: ignore[misc]  # untyped
    """A file opened for reading, whose errors name its location."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        location = f"s3://{self.path}"
        with storage_errors(location):
            try:  # every request demands the etag that the object had when it was opened
                return cast("bytes", super()._fetch_range(start, end))
            except FileExpired:
                raise Changed("it was replaced while it was read", location) from None
