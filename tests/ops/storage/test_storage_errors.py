"""Errors of the file system and of S3 name the location and keep their Python types."""

import errno
import os
import pickle

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ParamValidationError
from s3fs.errors import translate_boto_error

from ops.archives import damage
from ops.errors import UserError
from ops.storage import files, parquet
from ops.storage.retry import is_transient
from ops.storage.storage_errors import (
    AccessDenied,
    AlreadyExists,
    Archived,
    IsFolder,
    NotFolder,
    NotFound,
    StorageError,
    Unavailable,
    storage_errors,
)


def converted(error: BaseException, **kwargs) -> BaseException:
    kind = type(error) if kwargs else StorageError
    with pytest.raises(kind) as caught, storage_errors("s3://bucket/a", **kwargs):
        raise error
    return caught.value


def answer(code: str, status: int, message: str = "") -> OSError:
    response = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return translate_boto_error(ClientError(response, "GetObject"))


CASES = {
    "missing": (FileNotFoundError(errno.ENOENT, "gone"), NotFound, FileNotFoundError),
    "denied": (PermissionError(errno.EACCES, "denied"), AccessDenied, PermissionError),
    "exists": (FileExistsError(errno.EEXIST, "exists"), AlreadyExists, FileExistsError),
    "folder": (IsADirectoryError(errno.EISDIR, "folder"), IsFolder, IsADirectoryError),
    "file": (NotADirectoryError(errno.ENOTDIR, "file"), NotFolder, NotADirectoryError),
    "disk": (OSError(errno.EIO, "input/output error"), StorageError, OSError),
    "no bucket": (answer("NoSuchBucket", 404, "no such bucket"), NotFound, FileNotFoundError),
    "wrong keys": (answer("SignatureDoesNotMatch", 403), AccessDenied, PermissionError),
    "range": (answer("InvalidRange", 416), StorageError, OSError),
    "no credentials": (NoCredentialsError(), AccessDenied, PermissionError),
    "bucket name": (ParamValidationError(report="Invalid bucket name"), StorageError, OSError),
}


@pytest.mark.parametrize("case", CASES)
def test_an_error_keeps_its_type_its_number_and_whether_a_retry_may_help(case):
    error, kind, builtin = CASES[case]
    new = converted(error)
    assert type(new) is kind
    assert isinstance(new, UserError)
    assert isinstance(new, builtin)
    assert new.errno == getattr(error, "errno", None)
    assert str(new).startswith("s3://bucket/a: ")
    assert is_transient(new) == is_transient(error)


def test_the_message_is_that_of_the_store():
    error = answer("NoSuchBucket", 404, "The specified bucket does not exist")
    assert str(converted(error)) == "s3://bucket/a: The specified bucket does not exist"
    assert str(converted(answer("AccessDenied", 403))) == "s3://bucket/a: AccessDenied"


def test_a_location_is_named_once():
    named = converted(Unavailable("the store failed 3 times"))
    assert str(named) == "s3://bucket/a: the store failed 3 times"
    assert converted(named) is named


def test_errors_with_other_numbers_and_bugs_pass_as_they_are():
    other = OSError(errno.ENOENT, "a bug")
    assert converted(other, errnos={errno.ENOSPC}) is other
    with pytest.raises(ValueError, match="a bug"), storage_errors("a"):
        raise ValueError("a bug")


def test_an_error_crosses_processes():
    error = converted(FileNotFoundError(errno.ENOENT, "gone"))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.errno) == (NotFound, str(error), errno.ENOENT)


def test_a_full_disk_of_a_writer_is_named_and_its_bug_is_not(tmp_path):
    file = str(tmp_path / "a.bin")

    def write(error):
        with files.staged(file):
            raise error

    with pytest.raises(StorageError, match=r"a\.bin: full"):
        write(OSError(errno.ENOSPC, "full"))
    bug = FileNotFoundError(errno.ENOENT, "a bug")
    with pytest.raises(FileNotFoundError) as caught:
        write(bug)
    assert caught.value is bug
    assert os.listdir(tmp_path) == []


def test_a_storage_error_is_not_a_damaged_archive():
    error = converted(PermissionError(errno.EACCES, "denied"))
    assert not damage.is_damage(error)
    with pytest.raises(AccessDenied):
        damage.raise_unless_damage(error)


def test_a_file_of_another_format_is_named(tmp_path):
    file = str(tmp_path / "a")
    files.write_bytes(file, b"neither")
    with pytest.raises(UserError, match=r"/a is not valid JSON"):
        files.read_json(file)
    with pytest.raises(UserError, match=r"/a is not a readable Parquet file"):
        parquet.read(file)


DENIED = "User: arn:aws:iam::1:user/n is not authorized to perform: kms:Decrypt on resource: k"
SSE_C = "The object was stored using a form of Server Side Encryption."


@pytest.mark.parametrize(
    ("error", "kind", "remedy"),
    [
        (answer("AccessDenied", 403, DENIED), AccessDenied, "need kms:Decrypt on the key"),
        (answer("KMS.DisabledException", 400, "k is disabled"), AccessDenied, "need kms:Decrypt"),
        (answer("InvalidRequest", 400, f"{SSE_C} Encrypted"), AccessDenied, "SSE-S3 or SSE-KMS"),
        (answer("400", 400, "Bad Request"), StorageError, "SSE-S3 or SSE-KMS"),
        (answer("InvalidObjectState", 403), Archived, "aws s3api restore-object --bucket bucket"),
    ],
)
def test_an_object_that_cannot_be_read_is_named_with_a_remedy(error, kind, remedy):
    new = converted(error)
    assert type(new) is kind
    assert str(new).startswith("s3://bucket/a: ")
    assert remedy in str(new)
    assert not is_transient(new)


def test_a_bad_request_for_another_reason_names_no_key():
    error = converted(answer("InvalidRequest", 400, "Missing header"))
    assert str(error) == "s3://bucket/a: Missing header"
    assert type(error) is StorageError
