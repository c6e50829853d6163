"""Every operation on a store that fails: each kind of fault is survived, or told."""

from __future__ import annotations

import errno
import io
import random
import socket
import tarfile
import time
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.archives import fetch as fetching
from ops.archives.fetch import FetchSettings, fetch
from ops.archives.listing import entries
from ops.archives.tar_members import TarReader
from ops.failure import Failure
from ops.storage import files, parquet, retry, s3, uris
from ops.storage.paths import Out
from ops.storage.retry import RetryPolicy
from ops.storage.s3 import file_system
from ops.storage.storage_errors import Unavailable
from pipelines.tables import lock
from tests.conftest import forget_s3, new_bucket
from tests.faults.proxy import HARMLESS, KINDS, ONE_IN_TEN, UNHEARD

pytestmark = pytest.mark.slow

DATA = random.Random(0).randbytes(10_000)
TABLE = pa.table({"number": list(range(5000))})
HASTY = FetchSettings(attempts=4, backoff=0.01)
#: One that is refused, one that is carried out without an answer, one whose answer is cut.
SOME_KINDS = ("slow_down", "lost_answer", "cut_answer")


def case(*values: str, often: bool) -> object:
    """Parameters of a test that runs in CI if it is to run often, and else by `make test-all`."""
    return pytest.param(*values, marks=() if often else pytest.mark.campaign)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Attempts follow each other at once; archives are opened anew."""
    monkeypatch.setattr(retry, "_DEFAULT", RetryPolicy(attempts=4, backoff=0.01))
    fetching._container.cache_clear()


def filled(bucket: str) -> str:
    """A prefix with three files, one of them a table."""
    files.write_bytes(f"{bucket}/a/1.bin", DATA)
    files.write_bytes(f"{bucket}/a/b/2.bin", b"two")
    with files.staged(f"{bucket}/a/3.parquet") as path:
        pq.write_table(TABLE, path, row_group_size=1000)
    return f"{bucket}/a"


@pytest.fixture
def place(bucket):
    """A prefix with files, to change."""
    return filled(bucket)


@pytest.fixture(scope="module")
def standing(faulty_server):
    """A prefix with files, to read."""
    return filled(new_bucket())


def names(place: str) -> list[str]:
    return [item.name for item in files.listing(place)]


def _from_open_file(place):
    with files.open_read(f"{place}/1.bin") as file:
        file.seek(9000)
        return file.read(500)


#: What is asked, and what must be the answer.
READS = {
    "read": (lambda place, _: files.read_bytes(f"{place}/1.bin"), DATA),
    "slice": (lambda place, _: files.read_bytes(f"{place}/1.bin", 10, 20), DATA[10:20]),
    "open": (lambda place, _: _from_open_file(place), DATA[9000:9500]),
    "table": (lambda place, _: parquet.read(f"{place}/3.parquet"), TABLE),
    "exists": (lambda place, _: files.exists(f"{place}/1.bin"), True),
    "absent": (lambda place, _: files.exists(f"{place}/2.bin"), False),
    "describe": (lambda place, _: files.describe(f"{place}/1.bin").bytes, len(DATA)),
    "listing": (lambda place, _: names(place), ["1.bin", "3.parquet", "b/2.bin"]),
    "folder": (lambda place, _: files.is_folder(f"{place}/b"), True),
    "access": (lambda place, _: s3.check_access(place), None),
    "fetch": (
        lambda place, _: fetch(uris.make(f"{place}/1.bin"), None, len(DATA), HASTY),
        DATA,
    ),
}

#: Every kind of fault for a whole file and for a fetch; some kinds for the rest.
READS_AND_KINDS = [
    case(operation, kind, often=operation in {"read", "fetch"} or kind in SOME_KINDS)
    for operation in READS
    for kind in KINDS
]


@pytest.mark.parametrize(("operation", "kind"), READS_AND_KINDS)
def test_what_is_read_is_what_is_there(proxy, standing, tmp_path, operation, kind):
    ask, expected = READS[operation]
    proxy.plan(kind, times=2)
    found = ask(standing, tmp_path)
    assert found.equals(expected) if isinstance(expected, pa.Table) else found == expected
    assert proxy.counts.total() == 2 - len(proxy.planned) >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_lies_there_once_and_whole(proxy, place, kind):
    proxy.plan(kind, "PUT", times=2)
    files.write_bytes(f"{place}/new.bin", DATA)
    files.write_json(f"{place}/new.json", {"a": 1})
    assert proxy.counts == {kind: 2}
    assert files.read_bytes(f"{place}/new.bin") == DATA
    assert files.read_json(f"{place}/new.json") == {"a": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_removed_is_gone_and_nothing_else(proxy, place, kind):
    proxy.plan(kind, "DELETE|POST", times=3)
    files.remove_file(f"{place}/1.bin")
    assert names(place) == ["3.parquet", "b/2.bin"]
    files.remove_folder(f"{place}/b")
    assert names(place) == ["3.parquet"]
    assert proxy.counts[kind] == 3 - len(proxy.planned) >= 2 - (kind in HARMLESS)


def test_what_the_store_keeps_of_a_folder_is_told(place, monkeypatch):
    call = file_system().call_s3
    kept = [{"Key": "a/1.bin", "Code": "InternalError", "Message": "try again"}]

    def and_keep_one(method, **request):
        answer = call(method, **request)
        return answer | {"Errors": kept} if method == "delete_objects" else answer

    monkeypatch.setattr(file_system(), "call_s3", and_keep_one)
    with pytest.raises(OSError, match=r"/a/1.bin: cannot be removed: InternalError, try again"):
        files.remove_folder(place)


@pytest.mark.parametrize("kind", ["internal_error", "lost_answer", "cut_answer"])
@pytest.mark.parametrize("step", ["POST .*uploads", "PUT .*partNumber=2", "POST .*uploadId"])
def test_an_upload_in_parts_arrives_whole(proxy, bucket, monkeypatch, step, kind):
    small_parts(monkeypatch)
    data = random.Random(1).randbytes(11 * 2**20 + 5)
    proxy.plan(kind, step)
    with files.staged(f"{bucket}/large.bin") as path, open(path, "wb") as file:
        file.write(data)
    assert proxy.counts == {kind: 1}
    assert files.read_bytes(f"{bucket}/large.bin") == data
    assert names(bucket) == ["large.bin"]


def small_parts(monkeypatch):
    """Uploads in parts begin at ten MiB instead of a hundred."""
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: 5 * 2**20)


@pytest.mark.parametrize("kind", [case(kind, often=kind in SOME_KINDS) for kind in KINDS])
def test_listings_of_many_pages_are_whole(proxy, bucket, monkeypatch, kind):
    expected = [f"{number:02d}" for number in range(12)]
    for name in expected:
        files.write_bytes(f"{bucket}/{name}", b"x")
    call = file_system().call_s3
    pages = lambda method, **request: call(method, **request, MaxKeys=5)  # noqa: E731
    monkeypatch.setattr(file_system(), "call_s3", pages)
    proxy.plan(kind, "continuation-token", times=3)
    assert names(bucket) == expected
    assert proxy.counts == {kind: 3 if kind not in HARMLESS else 2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_created_once_and_a_lost_answer_hides_nothing(proxy, bucket, kind):
    """A repeated request finds the key of its own first attempt: its content says whose it is."""
    proxy.plan(kind, "PUT")
    created = files.create(f"{bucket}/key", b"mine")
    carried_out = kind in {"lost_answer", "cut_answer", "wrong_length"}
    assert created or carried_out
    assert files.read_bytes(f"{bucket}/key") == b"mine"
    proxy.plan(kind, "PUT")
    assert not files.create(f"{bucket}/key", b"theirs")
    assert files.read_bytes(f"{bucket}/key") == b"mine"


@pytest.mark.parametrize("kind", [case(kind, often=kind == "lost_answer") for kind in KINDS])
def test_one_of_two_gets_the_lock_whatever_fails(proxy, bucket, kind):
    proxy.shares = {kind: 0.3}
    out = Out(f"{bucket}/out")
    for _ in range(2):
        with lock.locked(out, lease=1.5) as check:
            check()
            with pytest.raises(lock.Locked), lock.locked(out, lease=1.5):
                pass
            check()
    proxy.shares = {}
    assert len(names(out.lock())) == 1


def packed(kind: str) -> bytes:
    """An archive of three members in which a few kilobytes lie between what is read."""
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            for number in range(3):
                archive.writestr(f"{number}.png", DATA)
    elif kind == "parquet":
        rows = {"path": [f"{n}.png" for n in range(3)], "image": [DATA] * 3}
        pq.write_table(pa.table(rows), out, row_group_size=1)
    else:
        mode = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2"}[kind]
        with tarfile.open(fileobj=out, mode=mode) as archive:
            for number in range(3):
                member = tarfile.TarInfo(f"{number}.png")
                member.size = len(DATA)
                archive.addfile(member, io.BytesIO(DATA))
    return out.getvalue()


ARCHIVES_AND_KINDS = [
    case(archive, kind, often=archive == "tar" or kind in SOME_KINDS)
    for archive in ("tar", "tar.gz", "tar.bz2", "zip", "parquet")
    for kind in KINDS
]


@pytest.mark.parametrize(("archive", "kind"), ARCHIVES_AND_KINDS)
def test_an_archive_whose_store_fails_is_not_taken_for_damaged(proxy, bucket, archive, kind):
    files.write_bytes(f"{bucket}/parts.{archive}", packed(archive))
    proxy.plan(kind, "GET", times=2)
    found = list(entries(f"{bucket}/parts.{archive}"))
    assert [entry.problem for entry in found] == [None] * 3
    proxy.plan(kind, "GET", times=2)
    assert {fetch(e.uri, e.member, e.bytes, HASTY) for e in found} == {DATA}
    fetching._container.cache_clear()
    assert {fetch(e.uri, None, e.bytes, HASTY) for e in found} == {DATA}


@pytest.mark.parametrize("archive", ["tar.gz", "tar.bz2", "zip", "parquet"])
def test_an_archive_whose_store_stays_down_is_unavailable(proxy, bucket, archive):
    files.write_bytes(f"{bucket}/parts.{archive}", packed(archive))
    found = list(entries(f"{bucket}/parts.{archive}"))
    proxy.shares = {"slow_down": 1.0}
    with pytest.raises(OSError, match="the store failed 4 times in a row"):
        list(entries(f"{bucket}/parts.{archive}"))
    proxy.shares = {}
    proxy.plan("slow_down", "GET", times=99)
    with pytest.raises(Failure) as failure:
        fetch(found[0].uri, found[0].member, found[0].bytes, HASTY)
    assert failure.value.status == "unavailable"
    proxy.planned.clear()
    assert fetch(found[0].uri, found[0].member, found[0].bytes, HASTY) == DATA


def test_a_tar_whose_directory_could_not_be_read_is_read_again(bucket, monkeypatch):
    """Half a directory must not make the members behind it missing."""
    files.write_bytes(f"{bucket}/parts.tar", packed("tar"))
    tar = TarReader(files.open_read(f"{bucket}/parts.tar"))
    following = tarfile.TarInfo.fromtarfile

    def fail_at_the_second(opened):
        if opened.offset > 0:
            raise OSError(errno.EIO, "gone for a while")
        return following(opened)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarInfo, "fromtarfile", fail_at_the_second)
        with pytest.raises(OSError, match="gone for a while"):
            tar.read("2.png", None, 2**20)
    assert tar.read("2.png", None, 2**20) == DATA


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_tells_how_often_it_was_repeated(proxy, standing, kind):
    proxy.plan(kind, times=3)
    retries = []
    uri = uris.make(f"{standing}/1.bin")
    assert fetch(uri, None, len(DATA), HASTY, lambda: retries.append(1)) == DATA
    assert len(retries) == (0 if kind in HARMLESS else 1 if kind in UNHEARD else 3)
    assert proxy.counts[kind] == 3 - len(proxy.planned) == (1 if kind in HARMLESS else 3)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {*HARMLESS, *UNHEARD}))
def test_attempts_do_not_multiply(proxy, standing, kind):
    """Neither s3fs nor botocore repeats anything, and `fetch` nothing that was repeated."""
    proxy.shares = {kind: 1.0}
    with pytest.raises(Unavailable, match=r"1\.bin: the store failed 4 times in a row"):
        files.read_bytes(f"{standing}/1.bin")
    assert proxy.counts == {kind: 4}
    with pytest.raises(Failure, match="unavailable"):
        fetch(uris.make(f"{standing}/1.bin"), None, len(DATA), HASTY)
    assert proxy.counts == {kind: 8}


def test_a_key_that_is_gone_since_it_was_listed_is_missing_at_once(proxy, standing):
    proxy.gone = r"1\.bin"
    assert "1.bin" in names(standing)
    retries = []
    with pytest.raises(Failure, match="missing"):
        fetch(uris.make(f"{standing}/1.bin"), None, None, HASTY, lambda: retries.append(1))
    assert not retries


def test_one_failure_in_ten_changes_nothing(proxy, bucket):
    proxy.shares, proxy.seed = ONE_IN_TEN, 1
    written = {f"{number:03d}": random.Random(number).randbytes(500) for number in range(100)}
    for name, data in written.items():
        files.write_bytes(f"{bucket}/{name}", data)
    assert {name: files.read_bytes(f"{bucket}/{name}") for name in names(bucket)} == written
    files.remove_folder(bucket)
    assert names(bucket) == []
    assert 10 <= proxy.counts.total() <= 40
    assert len(proxy.counts) >= 5


def test_a_store_that_never_answers_is_given_up(monkeypatch):
    """Three times the read timeout, not as often as a store that refuses at once."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(20)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(s3, "CLIENT", s3.CLIENT | {"read_timeout": 0.5})
        monkeypatch.setattr(retry, "_DEFAULT", RetryPolicy(attempts=3, backoff=0.01))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "any")
        forget_s3()
        start = time.monotonic()
        with pytest.raises(Unavailable, match=r"s3://bucket/a: .* 3 times .*ReadTimeout"):
            files.read_bytes("s3://bucket/a")
        assert time.monotonic() - start < 10
    forget_s3()
