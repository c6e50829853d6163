"""On a real S3 server, which checks signatures: storage, the lock, and wrong keys."""

from __future__ import annotations

import pytest

from ops.storage import files
from ops.storage.paths import Out
from pipelines.tables import lock
from tests.conftest import forget_s3, new_bucket
from tests.faults import radosgw
from tests.faults.conftest import REMEDY
from tests.faults.proxy import ONE_IN_TEN, Proxy, running

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def gateway(free_port):
    """A real server, with the usual AWS environment for it."""
    with radosgw.running(free_port) as address, pytest.MonkeyPatch.context() as patch:
        for name, value in radosgw.KEYS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        forget_s3()
        yield address
    forget_s3()


@pytest.fixture
def bucket(gateway):
    """The URI of an empty bucket."""
    return new_bucket()


def names(place):
    return [item.name for item in files.listing(place)]


def test_files_come_and_go(bucket, monkeypatch):
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: 5 * 2**20)
    files.write_bytes(f"{bucket}/a #1?%ü.bin", bytes(range(100)))
    with files.staged(f"{bucket}/b/large.bin") as path, open(path, "wb") as file:
        file.write(bytes(11 * 2**20))
    assert names(bucket) == ["a #1?%ü.bin", "b/large.bin"]
    assert files.read_bytes(f"{bucket}/a #1?%ü.bin", 97) == bytes([97, 98, 99])
    assert files.read_bytes(f"{bucket}/b/large.bin") == bytes(11 * 2**20)
    assert files.exists(f"{bucket}/b/large.bin")
    assert not files.exists(f"{bucket}/b")
    files.remove_folder(f"{bucket}/b")
    files.remove_file(f"{bucket}/gone")
    assert names(bucket) == ["a #1?%ü.bin"]


def test_a_key_is_created_once(bucket):
    assert files.create(f"{bucket}/key", b"mine")
    assert not files.create(f"{bucket}/key", b"theirs")
    assert files.read_bytes(f"{bucket}/key") == b"mine"


def test_one_of_two_gets_the_lock(bucket):
    out = Out(f"{bucket}/out")
    with lock.locked(out, lease=3) as held:
        with pytest.raises(lock.Locked), lock.locked(out, lease=3):
            pass
        held()
    with lock.locked(out, lease=3) as held:
        held()


def test_it_takes_a_proxy_before_it_for_itself(gateway, bucket, monkeypatch):
    """Signatures cover the Host header, which the proxy leaves as it came."""
    with running(Proxy(gateway, seed=3, shares=ONE_IN_TEN)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        forget_s3()
        for number in range(30):
            files.write_bytes(f"{bucket}/{number:02d}", bytes([number]))
        assert [files.read_bytes(f"{bucket}/{name}") for name in names(bucket)] == [
            bytes([number]) for number in range(30)
        ]
        assert proxy.failures() >= 3
    monkeypatch.undo()
    forget_s3()


WRONG = {
    "secret": {"AWS_SECRET_ACCESS_KEY": "another-secret"},
    "key": {"AWS_ACCESS_KEY_ID": "AKIDOFNOBODY"},
    "stranger": {"AWS_ACCESS_KEY_ID": "AKIDSTRANGER", "AWS_SECRET_ACCESS_KEY": "of-a-stranger"},
}
REASONS = {
    "secret": "SignatureDoesNotMatch",
    "key": "InvalidAccessKeyId",
    "stranger": "AccessDenied",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_keys_are_told(bucket, told, monkeypatch, wrong):
    for name, value in WRONG[wrong].items():
        monkeypatch.setenv(name, value)
    for job in ("inventory", "score", "nightly", "query"):
        said = told(job, bucket)
        assert said.startswith(f"error: {bucket}/")
        assert REASONS[wrong] in said
        assert REMEDY in said
        assert not [value for value in WRONG[wrong].values() if value in said]
