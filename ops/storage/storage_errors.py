"""Errors of files and stores that the user of a command can mend, and the only place they are made.

Each is a `UserError`, so a command reports it in one sentence, and also the `OSError` that Python
raises for the same cause, so `except FileNotFoundError` catches `NotFound`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Collection, Iterator

from ops.errors import UserError

#: What a disk or a file server reports whatever the code does: full, failing, read-only.
DEVICE_ERRORS = frozenset({errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE})


class StorageError(UserError, OSError):
    """A file or a store cannot be used. `location` is empty where the message names the place."""

    def __init__(self, message: str, location: str = "", number: int | None = None) -> None:
        super().__init__(f"{location}: {message}" if location else message)
        self.message = message
        self.location = location
        self.errno = number

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, str, int | None]]:
        return type(self), (self.message, self.location, self.errno)


class NotFound(StorageError, FileNotFoundError):
    """There is no such file, folder, object or bucket."""


class AccessDenied(StorageError, PermissionError):
    """The file system or the store refuses access."""


class Archived(AccessDenied):
    """An object lies in an archive class of storage, and cannot be read until it is restored."""


class AlreadyExists(StorageError, FileExistsError):
    """A file that was to be created exists."""


class IsFolder(StorageError, IsADirectoryError):
    """A folder is where a file is needed."""


class NotFolder(StorageError, NotADirectoryError):
    """A file is where a folder is needed."""


class NotRegular(StorageError):
    """A pipe, a socket or a device is where a file is needed."""


class TooLarge(StorageError):
    """A file has more bytes than may be read."""

    def __init__(self, size: int, limit: int, location: str = "") -> None:
        super().__init__(f"{size} bytes are more than the limit of {limit}", location)
        self.size = size
        self.limit = limit

    def __reduce__(self) -> tuple[type[TooLarge], tuple[int, int, str]]:  # type: ignore[override]
        return type(self), (self.size, self.limit, self.location)


class Changed(StorageError):
    """A file is not the version that was asked for, or changed while it was read."""


class Unavailable(StorageError):
    """A store kept failing after the last retry, or cannot be reached."""


@contextlib.contextmanager
def storage_errors(location: str, errnos: Collection[int] | None = None) -> Iterator[None]:
    """Turn errors of the operating system and of S3 into a `StorageError` that names `location`.

    The original error is the cause. With `errnos`, only errors of the operating system with these
    numbers are converted; others pass as they are.
    """
    try:
        yield
    except StorageError as error:
        if error.location or errnos is not None:
            raise
        if isinstance(error, TooLarge):
            raise TooLarge(error.size, error.limit, location) from error
        raise type(error)(error.message, location, error.errno) from error
    except OSError as error:
        if errnos is not None and error.errno not in errnos:
            raise
        raise _kind(error)(_message(error, location), location, error.errno) from error
    except _errors_of_client() as error:
        if errnos is not None:
            raise
        if type(error).__name__ == "NoCredentialsError":
            raise AccessDenied("no credentials were found", location) from error
        raise StorageError(str(error), location) from error


def _errors_of_client() -> tuple[type[Exception], ...]:
    """The errors that botocore raises itself. None could be raised before it was imported.

    Whoever works on local files alone does without it, and without the second of its import.
    """
    module = sys.modules.get("botocore.exceptions")
    return (module.BotoCoreError,) if module else ()


def _kind(error: OSError) -> type[StorageError]:
    answer = _answer(error)
    if answer.get("Code") == "InvalidObjectState":
        return Archived
    if _is_of_kms(answer) or (_needs_key(answer) and answer["Code"] != "400"):
        return AccessDenied
    for kind in (NotFound, AccessDenied, AlreadyExists, IsFolder, NotFolder):
        if isinstance(error, kind.__bases__[1]):
            return kind
    return StorageError


def _answer(error: OSError) -> dict[str, str]:
    """The error that the store described in its answer; empty if there was none."""
    response = getattr(error.__cause__, "response", None) or {}
    return dict(response.get("Error", {}))


def _is_of_kms(answer: dict[str, str]) -> bool:
    """Whether the store could not use the key of its key service that encrypts an object."""
    code, told = answer.get("Code", ""), answer.get("Message", "")
    return code.startswith("KMS.") or "kms:" in told.lower()


def _needs_key(answer: dict[str, str]) -> bool:
    """Whether an object may be encrypted with a key of the customer's.

    The answer to a request for its head has no message.
    """
    code, told = answer.get("Code"), answer.get("Message", "")
    return code == "400" or (code == "InvalidRequest" and "encrypt" in told.lower())


def _message(error: OSError, location: str) -> str:
    """The store's explanation, such as "The specified bucket does not exist", and a remedy."""
    answer = _answer(error)
    if answer.get("Code") == "InvalidObjectState":
        bucket, _, key = location.removeprefix("s3://").partition("/")
        return (
            f"it is archived (storage class {answer.get('StorageClass') or 'unknown'}); restore "
            f"it: aws s3api restore-object --bucket {bucket} --key {shlex.quote(key)} "
            "--restore-request Days=7"
        )
    told = str(answer.get("Message") or answer.get("Code") or "")
    if _is_of_kms(answer):
        return f"{told}; the keys of this process need kms:Decrypt on the key that encrypts it"
    if _needs_key(answer):
        return (
            f"{told}; an object that is encrypted with a customer's key (SSE-C) cannot be read: "
            "store it under a key of the store's own (SSE-S3 or SSE-KMS)"
        )
    if answer:
        return str(answer.get("Message") or answer.get("Code") or error)  # Ceph gives no message
    if isinstance(error, FileNotFoundError):  # s3fs gives only the path
        return os.strerror(errno.ENOENT)
    return error.strerror or str(error)
