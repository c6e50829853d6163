"""Listing and fetching together: what one lists, the other must be able to read."""

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import struct
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from s3fs.errors import translate_boto_error

from ops.archives import damage
from ops.archives.entry import Entry, Search
from ops.archives.fetch import FetchSettings, fetch
from ops.archives.inventory import listed
from ops.archives.layouts import Layout, PathParser
from ops.archives.listing import OWN_OUTPUT, entries, path_below
from ops.archives.system_files import SYSTEM_FILES
from ops.archives.tally import Tally
from ops.failure import Failure
from ops.storage import files, uris
from ops.storage.storage_errors import AccessDenied, NotFound, StorageError

HASTY = FetchSettings(attempts=2, backoff=0)
FILES = {
    "a.png": b"first" * 300,
    "dir/b #1?.png": b"second" * 500,
    "dir/ü%.png": b"third" * 10,
    "empty.png": b"",
}
TARS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def tar(files: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(files: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.mkdir("dir")
        for name, content in files:
            archive.writestr(name, content)
    return out.getvalue()


def parquet(table: pa.Table, rows: int = 2) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=rows)
    return out.getvalue()


def place(folder: Path, name: str, data: bytes) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return str(file)


def read(entry: Entry, by_member: bool = True) -> bytes:
    return fetch(entry.uri, entry.member if by_member else None, entry.bytes, HASTY)


def status_of(entry: Entry) -> str:
    if entry.problem:
        return "problem"
    try:
        read(entry)
    except Failure as failure:
        return failure.status
    return "ok"


def statuses(location: str) -> list[str]:
    return [status_of(entry) for entry in entries(location)]


@pytest.mark.parametrize("suffix", [*TARS, ".zip", ".ZIP"])
@pytest.mark.parametrize("by_member", [True, False])
def test_members_are_listed_and_read(tmp_path, suffix, by_member):
    files = list(FILES.items())
    data = tar(files, TARS[suffix]) if suffix in TARS else zipped(files)
    archive = place(tmp_path, f"a#1{suffix}", data)
    found = list(entries(archive))
    assert [entry.bytes for entry in found] == [len(content) for content in FILES.values()]
    assert {entry.name: read(entry, by_member) for entry in found} == FILES
    assert {uris.parse(entry.uri) for entry in found} == {(archive, name) for name in FILES}


def test_a_folder_lists_its_files_and_what_lies_in_its_archives(tmp_path):
    place(tmp_path, "x.png", b"1")
    place(tmp_path, "deep/y.txt", b"2")
    place(tmp_path, "deep/t.tar", tar([("in.png", b"3")]))
    place(tmp_path, "z.zip", zipped([("in.png", b"4")]))
    place(tmp_path, "p.parquet", parquet(pa.table({"path": ["in.png"], "image": [b"5"]})))
    found = {entry.name: read(entry) for entry in entries(str(tmp_path))}
    assert found == {
        "x.png": b"1",
        "deep/y.txt": b"2",
        "deep/t.tar/in.png": b"3",
        "z.zip/in.png": b"4",
        "p.parquet/in.png": b"5",
    }


def test_one_file_is_an_archive_of_one(tmp_path):
    (entry,) = entries(place(tmp_path, "x.png", b"12"))
    assert (entry.name, entry.bytes, entry.member) == ("x.png", 2, None)
    assert read(entry) == b"12"


def test_an_absent_location_is_named_by_the_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(entries(str(tmp_path / "nowhere")))


@pytest.mark.parametrize("by_member", [True, False])
def test_parquet_with_a_column_of_bytes_and_one_of_names(tmp_path, by_member):
    table = pa.table({"n": [1, 2, 3], "name": ["a", None, "a"], "data": [b"x", b"yy", b"zzz"]})
    found = list(entries(place(tmp_path, "t.parquet", parquet(table))))
    assert [entry.name for entry in found] == ["a", "000000001", "a"]
    assert [read(entry, by_member) for entry in found] == [b"x", b"yy", b"zzz"]


def test_parquet_with_structs_of_bytes_and_path(tmp_path):
    images = [{"bytes": b"x", "path": "q/1.png"}, {"bytes": b"y", "path": "q/2.png"}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    archive = place(tmp_path, "t.pq", parquet(pa.table({"image": pa.array(images, kind)})))
    first, second, missing = entries(archive)
    assert [first.name, second.name] == ["q/1.png", "q/2.png"]
    assert [read(first), read(second)] == [b"x", b"y"]
    assert status_of(missing) == "unreadable"


def test_parquet_without_bytes_is_a_problem_that_names_its_columns(tmp_path):
    (entry,) = entries(place(tmp_path, "t.parquet", parquet(pa.table({"a": [1], "b": [2]}))))
    assert "['a', 'b']" in entry.problem


def test_rows_have_different_uris_even_with_equal_names(tmp_path):
    table = pa.table({"name": ["a", "a"], "data": [b"x", b"y"]})
    found = list(entries(place(tmp_path, "t.parquet", parquet(table))))
    assert len({entry.uri for entry in found}) == 2


@pytest.mark.parametrize("make", [tar, zipped])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name_are_both_read_by_member(tmp_path, make):
    suffix = "tar" if make is tar else "zip"
    archive = place(tmp_path, f"a.{suffix}", make([("a.png", b"old"), ("a.png", b"newer")]))
    found = list(entries(archive))
    assert [read(entry) for entry in found] == [b"old", b"newer"]
    assert len({(entry.uri, entry.version) for entry in found}) == 2


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz"])
def test_members_of_one_name_in_a_compressed_tar(tmp_path, suffix):
    data = tar([("a.png", b"old"), ("a.png", b"newer")], TARS[suffix])
    assert [read(e) for e in entries(place(tmp_path, f"a{suffix}", data))] == [b"old", b"newer"]


THREE = [(f"{n}.png", random.Random(n).randbytes(20_000)) for n in range(3)]


def test_a_tar_cut_within_its_last_member(tmp_path):
    archive = place(tmp_path, "a.tar", tar(THREE)[:50_000])
    assert statuses(archive) == ["ok", "ok", "unreadable", "problem"]


def test_a_tar_cut_within_a_header(tmp_path):
    whole = tar(THREE)
    start = whole.index(b"2.png")
    assert statuses(place(tmp_path, "a.tar", whole[: start + 100])) == ["ok", "ok", "problem"]


def test_a_tar_cut_between_members_lacks_its_end_mark(tmp_path):
    whole = tar(THREE)
    archive = place(tmp_path, "a.tar", whole[: whole.index(b"2.png")])
    *good, last = entries(archive)
    assert [read(entry) for entry in good] == [content for _, content in THREE[:2]]
    assert "end mark" in last.problem


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz"])
def test_a_compressed_tar_that_was_cut_keeps_its_good_members(tmp_path, suffix):
    archive = place(tmp_path, f"a{suffix}", tar(THREE, TARS[suffix])[:50_000])
    found = list(entries(archive))
    assert [status_of(entry) for entry in found[:2]] == ["ok", "ok"]
    assert found[-1].problem
    assert all(status_of(entry) == "unreadable" for entry in found[2:-1])


def test_a_compressed_tar_damaged_at_its_end_keeps_its_good_members(tmp_path):
    data = bytearray(tar(THREE, "w:gz"))
    data[-6] ^= 1  # in the checksum of the whole
    found = list(entries(place(tmp_path, "a.tgz", bytes(data))))
    assert [read(entry) for entry in found[:3]] == [content for _, content in THREE]


def test_the_content_of_a_tar_says_whether_it_is_compressed(tmp_path):
    assert statuses(place(tmp_path, "gzipped.tar", tar(THREE, "w:gz"))) == ["ok"] * 3
    assert statuses(place(tmp_path, "plain.tar.gz", tar(THREE))) == ["ok"] * 3


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "a.parquet"])
@pytest.mark.parametrize("data", [b"", b"this is no archive" * 100], ids=["empty", "text"])
def test_a_file_that_is_no_archive_is_a_problem(tmp_path, name, data):
    place(tmp_path, "good.png", b"1")
    place(tmp_path, name, data)
    found = {entry.name: status_of(entry) for entry in entries(str(tmp_path))}
    assert found == {"good.png": "ok", name: "problem"}


DETECTORS = {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}


@pytest.mark.parametrize("method", DETECTORS.values(), ids=DETECTORS)
def test_other_members_of_a_zip_with_a_damaged_member_are_read(tmp_path, method):
    files = [("a.png", b"ab" * 999), ("b.png", random.Random(0).randbytes(999)), ("c.png", b"c")]
    data = bytearray(zipped(files, method))
    start = data.index(b"b.png")
    for at in range(start + 300, start + 330):
        data[at] ^= 0x55
    assert statuses(place(tmp_path, "a.zip", bytes(data))) == ["ok", "unreadable", "ok"]


def test_an_encrypted_member_is_unsupported(tmp_path):
    data = bytearray(zipped([("a.png", b"1"), ("b.png", b"2")]))
    local, central = data.index(b"b.png") - 30, data.rindex(b"b.png") - 46
    data[local + 6] |= 1
    data[central + 8] |= 1
    assert statuses(place(tmp_path, "a.zip", bytes(data))) == ["ok", "unsupported"]


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


def test_a_transient_error_of_the_store_is_not_a_damaged_archive(tmp_path, monkeypatch):
    archive = place(tmp_path, "a.zip", zipped(THREE))
    first = next(iter(entries(archive)))
    real, raised = files.open_read, []

    def open_read(location, version=None):
        if not raised:
            raised.append(location)
            raise OSError(errno.EIO, "500")
        return real(location, version)

    monkeypatch.setattr(files, "open_read", open_read)
    assert read(first) == THREE[0][1]
    raised.clear()
    with pytest.raises(OSError, match="500"):
        list(entries(archive))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2"])
def test_a_failing_disk_is_not_a_damaged_archive(tmp_path, monkeypatch, name):
    """zipfile and tarfile report a file that cannot be read as one that is not an archive."""

    class Failing(io.FileIO):
        def read(self, *_):
            raise OSError(errno.EIO, "input/output error")

    place(tmp_path, name, zipped(THREE) if name == "a.zip" else tar(THREE, TARS[name[1:]]))
    (first, *_) = entries(str(tmp_path))
    monkeypatch.setattr(files, "open_read", lambda location, *_: Failing(location))
    with pytest.raises(OSError, match="input/output error"):
        list(entries(str(tmp_path)))
    with pytest.raises(Failure, match=r"unavailable: .*input/output error"):
        fetch(first.uri, None, None, HASTY)


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


CONTAINERS = {
    ".tar": lambda: tar(THREE),
    ".tar.gz": lambda: tar(THREE, "w:gz"),
    ".tar.xz": lambda: tar(THREE, "w:xz"),
    ".zip": lambda: zipped(THREE),
    ".parquet": lambda: parquet(
        pa.table({"name": [name for name, _ in THREE], "data": [data for _, data in THREE]})
    ),
}


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_damage_anywhere_in_an_archive_is_a_row_and_never_another_error(tmp_path, suffix):
    whole, rng = CONTAINERS[suffix](), random.Random(1)
    met = set()
    for number in range(30):
        data = bytearray(whole)
        at = rng.randrange(len(data)) if number % 2 else len(data) - 1 - rng.randrange(400)
        data[at] ^= 1 << rng.randrange(8)
        cut = rng.randrange(len(data)) if number % 3 == 0 else len(data)
        met |= set(statuses(place(tmp_path, f"{number}{suffix}", bytes(data[:cut]))))
    assert "problem" in met
    assert met <= {"ok", "problem", "unreadable", "unsupported", "missing", "unavailable"}


@pytest.mark.parametrize(
    "unpack", [gzip.decompress, bz2.decompress, lzma.decompress], ids=["gz", "bz2", "xz"]
)
def test_damage_is_distinguished_from_errors_of_the_store(unpack):
    pack = {gzip.decompress: gzip, bz2.decompress: bz2, lzma.decompress: lzma}[unpack].compress
    data = bytearray(pack(random.Random(0).randbytes(5000)))
    data[2500] ^= 0xFF
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has its own
        unpack(bytes(data))
    assert damage.is_damage(caught.value)
    for error in (OSError(errno.EIO, "500"), PermissionError(), ConnectionResetError()):
        assert not damage.is_damage(error)


SYSTEM = ("._a.png", "__MACOSX/._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir/a.png")


@pytest.mark.parametrize("suffix", ["folder", ".tar", ".tar.gz", ".zip", ".parquet"])
def test_files_of_operating_systems_are_left_out_and_counted(tmp_path, suffix):
    given = [(f"washer/{name}", b"1") for name in ("a.png", *SYSTEM)]
    if suffix == "folder":
        for name, data in given:
            place(tmp_path, name, data)
    elif suffix == ".parquet":
        names, data = zip(*given, strict=True)
        place(tmp_path, "a.parquet", parquet(pa.table({"path": names, "image": data})))
    else:
        data = zipped(given) if suffix == ".zip" else tar(given, TARS[suffix])
        place(tmp_path, f"a{suffix}", data)
    place(tmp_path, "._a.zip", b"\0\5\x16\7")
    tally = Tally()
    batches = listed([str(tmp_path)], PathParser(Layout("**/{name}"), "p"), [".png"], tally)
    assert [row["uri"][-5:] for batch in batches for row in batch.to_pylist()] == ["a.png"]
    assert (tally.images, tally.left_out) == (1, {SYSTEM_FILES: len(SYSTEM) + 1})


@pytest.mark.parametrize("link", ["", "to archive", "to output"])
def test_the_output_within_an_archive_is_left_out_and_counted(tmp_path, link):
    parts = tmp_path / "parts"
    for name in ("a.png", "outer/b.png", "out/maps/c.png", "out/t.parquet", "out.parquet"):
        place(parts, name, b"1")
    given, out = str(parts), str(parts / "out")
    if link == "to archive":
        given = str(tmp_path / "link")
        (tmp_path / "link").symlink_to(parts)
    elif link:
        out = str(tmp_path / "link")
        (tmp_path / "link").symlink_to(parts / "out")
    tally = Tally()
    found = entries(given, Search(own=(out, str(parts / "out.parquet"))), tally)
    assert sorted(entry.name for entry in found) == ["a.png", "outer/b.png"]
    assert tally.left_out == {OWN_OUTPUT: 3}


@pytest.mark.parametrize(
    ("archive", "own", "path"),
    [
        ("s3://b/in", "s3://b/in/out", "out"),
        ("s3://b/in/", "s3://b/in/out/", "out"),
        ("s3://b", "s3://b/out", "out"),
        ("s3://b/in", "s3://b/inner", None),
        ("s3://b/in", "s3://b/in", "."),
        ("/a/b", "/a/b/c/d", "c/d"),
        ("/a/b", "/a/bc", None),
        ("/a/b", "/a", None),
        ("/a/b", "s3://a/b", None),
    ],
)
def test_a_path_below_another_is_found(archive, own, path):
    assert path_below(archive, own) == path


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz", "b.zip", "b.parquet"])
@pytest.mark.parametrize("error", [AccessDenied, NotFound])
def test_a_container_that_cannot_be_opened_does_not_end_the_listing(
    tmp_path, monkeypatch, name, error
):
    for each in ("a.png", name, "c.png"):
        place(tmp_path, each, b"1")

    def open_read(location):
        raise error("it is closed", location)

    monkeypatch.setattr(files, "open_read", open_read)
    found = {entry.name: entry.problem for entry in entries(str(tmp_path))}
    closed = f"{tmp_path}/{name} cannot be opened: it is closed"
    assert found == {"a.png": None, name: closed, "c.png": None}


def test_a_folder_that_cannot_be_listed_is_a_problem(tmp_path, monkeypatch):
    place(tmp_path, "a.png", b"1")
    place(tmp_path, "closed/b.png", b"1")
    real = os.scandir

    def scandir(path):
        if str(path).rstrip("/").endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    first, second = entries(str(tmp_path))
    assert (first.name, first.problem) == ("a.png", None)
    assert second.problem == f"the folder {tmp_path}/closed/ cannot be listed (Permission denied)"


def test_what_is_no_file_in_a_folder_is_counted(tmp_path):
    place(tmp_path, "a.png", b"1")
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "d")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.png")
    tally = Tally()
    assert [entry.name for entry in entries(str(tmp_path), tally=tally)] == ["a.png"]
    assert tally.left_out == {
        "links to folders": 1,
        "links to nothing": 1,
        "devices, pipes and sockets": 1,
    }


def put(s3: str, key: str, data: bytes, **more: str) -> None:
    from ops.storage.s3 import file_system

    bucket = s3.removeprefix("s3://")
    file_system().call_s3("put_object", Bucket=bucket, Key=key, Body=data, **more)


def test_an_archived_object_is_a_row_that_says_how_to_restore_it(s3):
    put(s3, "a.png", b"1")
    put(s3, "old one.tar", tar(THREE), StorageClass="GLACIER")
    put(s3, "deep.png", b"2", StorageClass="DEEP_ARCHIVE")
    put(s3, "._x.png", b"3")
    put(s3, "marker/", b"")
    put(s3, "odd/", b"4")
    tally = Tally()
    found = {entry.name: entry for entry in entries(s3, tally=tally)}
    assert set(found) == {"a.png", "old one.tar", "deep.png", "._x.png"}
    bucket = s3.removeprefix("s3://")
    restore = f"aws s3api restore-object --bucket {bucket} --key"
    assert found["old one.tar"].problem == (
        f"{s3}/old one.tar cannot be opened: it is archived (storage class GLACIER); restore it: "
        f"{restore} 'old one.tar' --restore-request Days=7"
    )
    with pytest.raises(Failure) as failure:
        read(found["deep.png"])
    assert failure.value.status == "forbidden"
    assert f"{restore} deep.png" in failure.value.reason
    assert read(found["a.png"]) == b"1"
    assert tally.left_out == {"objects whose keys end in /": 1}
    (alone,) = entries(f"{s3}/old one.tar")
    assert alone.problem == found["old one.tar"].problem


def test_the_output_below_a_prefix_is_left_out_and_counted(s3):
    for key in ("in/a.png", "in/out/maps/b.png", "in/outer/c.png"):
        put(s3, key, b"1")
    tally = Tally()
    found = entries(f"{s3}/in", Search(own=(f"{s3}/in/out/",)), tally)
    assert [entry.name for entry in found] == ["a.png", "outer/c.png"]
    assert tally.left_out == {OWN_OUTPUT: 1}


def test_a_closed_folder_whose_name_is_not_utf8_is_a_problem_row(tmp_path, monkeypatch):
    place(tmp_path, "a.png", b"1")
    os.mkdir(os.fsencode(tmp_path) + b"/shut\xff\x1b")
    scan = os.scandir

    def scandir(path):
        if "shut" in path:
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (batch,) = listed([str(tmp_path)], PathParser(Layout("{name}"), "p"), [".png"], Tally())
    _, closed = batch.to_pylist()
    assert closed["problem"] == (
        f"the folder {tmp_path}/shut\\udcff\\x1b/ cannot be listed (Permission denied)"
    )
    assert closed["uri"] == f"file://{tmp_path}/shut%FF%1B"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENAMETOOLONG, errno.ESTALE, errno.ELOOP])
def test_an_archive_that_cannot_be_opened_is_a_problem_row(tmp_path, monkeypatch, number):
    for name in ("a.tar", "b.tar"):
        place(tmp_path, name, tar(THREE))
    real = files.open_read

    def open_read(location, *more):
        if location.endswith("a.tar"):
            raise StorageError(os.strerror(number), location, number)
        return real(location, *more)

    monkeypatch.setattr(files, "open_read", open_read)
    found = list(entries(str(tmp_path)))
    assert len(found) == 1 + len(THREE)
    (problem,) = [entry.problem for entry in found if entry.problem]
    assert problem == f"{tmp_path}/a.tar cannot be opened: {os.strerror(number)}"


def test_odd_keys_are_read_as_they_are(s3):
    keys = (
        "a//b.png",
        "/lead.png",
        "a/../up.png",
        "sp .png",
        " t/x.png",
        "h#a?b%41+c.png",
        "ü.png",
    )
    for number, key in enumerate(keys):
        put(s3, key, b"%d" % number)
    put(s3, "a//t.tar", tar(THREE))
    put(s3, "../t #?.zip", zipped(THREE))
    found = {entry.name: entry for entry in entries(s3)}
    assert {name: read(entry) for name, entry in found.items() if name in keys} == {
        key: b"%d" % number for number, key in enumerate(keys)
    }
    for archive in ("a//t.tar", "../t #?.zip"):
        assert [read(found[f"{archive}/{name}"]) for name, _ in THREE] == [
            data for _, data in THREE
        ]


@pytest.mark.parametrize(
    ("code", "told", "sentence"),
    [
        ("AccessDenied", "Access Denied", "Access Denied; the user of this process needs s3:Get"),
        ("AccessDenied", "not authorized to perform: kms:Decrypt", "need kms:Decrypt on the key"),
        ("InvalidRequest", "stored using Server Side Encryption", "under a key of the store's own"),
    ],
)
@pytest.mark.parametrize("name", ["b.png", "b.tar"])
def test_an_object_that_is_denied_is_a_row_with_address_and_remedy(
    s3, monkeypatch, name, code, told, sentence
):
    from ops.storage import s3 as store

    put(s3, "a.png", b"1")
    put(s3, name, tar(THREE))
    call = store.RetryingS3.call_s3

    def denied(self, method, *args, **kwargs):
        if method == "get_object" and kwargs.get("Key") == name:
            response = {
                "Error": {"Code": code, "Message": told},
                "ResponseMetadata": {"HTTPStatusCode": 403 if code == "AccessDenied" else 400},
            }
            raise translate_boto_error(ClientError(response, "GetObject"))
        return call(self, method, *args, **kwargs)

    monkeypatch.setattr(store.RetryingS3, "call_s3", denied)
    monkeypatch.setattr(
        store._ReadFile,
        "_fetch_range",
        lambda self, *_: store.read_bytes(f"s3://{self.path}", None, None, None, None),
    )
    good, bad = entries(s3)
    assert read(good) == b"1"
    if bad.problem:
        reason = bad.problem
    else:
        with pytest.raises(Failure) as failure:
            read(bad)
        assert failure.value.status == "forbidden"
        reason = failure.value.reason
    assert f"{s3}/{name}" in reason
    assert told in reason
    assert name == "b.tar" or sentence in reason
