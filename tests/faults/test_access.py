"""A store that is not there, or denies access, ends every job at its start, in one sentence."""

from __future__ import annotations

import pytest

from ops.storage import files, retry, s3
from ops.storage.retry import RetryPolicy
from ops.storage.s3 import file_system
from tests.faults.conftest import JOBS, REMEDY
from tests.faults.proxy import DENIALS

pytestmark = [pytest.mark.slow]


@pytest.mark.parametrize(
    ("job", "denial"),
    [(job, "SignatureDoesNotMatch") for job in JOBS]
    + [("nightly", "InvalidAccessKeyId"), ("score", "AccessDenied")],
)
def test_a_denial_is_told_in_the_words_of_the_store(proxy, told, job, denial):
    proxy.denial = denial
    said = told(job, "s3://bucket")
    assert said.startswith("error: s3://bucket/")
    assert DENIALS[denial].rstrip(".") in said
    assert REMEDY in said


@pytest.mark.parametrize("job", JOBS)
def test_a_bucket_that_is_not_there_is_named(proxy, told, job):
    said = told(job, "s3://no-such-bucket")
    assert said.startswith("error: s3://no-such-bucket/")
    assert "The specified bucket does not exist" in said


def test_an_output_folder_is_tried_before_the_archive_is_listed(proxy, bucket, leave, monkeypatch):
    files.write_bytes(f"{bucket}/parts/a.png", b"an image")
    monkeypatch.setattr("pipelines.tables.take_inventory.take", None)
    words = ["--archive", f"{bucket}/parts", "--output", "s3://no-such-bucket/parts.parquet"]
    code, _, err = leave("inventory", *words)
    assert code == 1
    assert err.startswith("error: s3://no-such-bucket/parts.parquet: The specified bucket")


@pytest.mark.parametrize("job", ["inventory", "score", "nightly", "query"])
@pytest.mark.parametrize("address", ["http://no-such-host.invalid", "http://127.0.0.1:9"])
def test_a_store_that_is_not_there_is_named(s3_server, told, monkeypatch, job, address):
    monkeypatch.setattr(retry, "_DEFAULT", RetryPolicy(attempts=3, backoff=0.01))
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    said = told(job, "s3://bucket")
    assert "the store failed 3 times in a row" in said
    assert f'Could not connect to the endpoint URL: "{address}' in said


def test_who_may_read_a_file_but_not_list_may_name_it(proxy, bucket):
    files.write_bytes(f"{bucket}/parts.tar", b"an archive")
    call = file_system().call_s3

    def no_listing(method, **request):
        if method == "list_objects_v2":
            raise PermissionError("Access Denied")
        return call(method, **request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_system(), "call_s3", no_listing)
        s3.check_access(f"{bucket}/parts.tar")
        with pytest.raises(PermissionError, match=f"{bucket}/none.tar: Access Denied"):
            s3.check_access(f"{bucket}/none.tar")
        with pytest.raises(PermissionError, match=f"{bucket}: Access Denied"):
            s3.check_access(bucket)
