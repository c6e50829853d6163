"""Listing and fetching together: what one lists, the other must be able to read."""

import errno
import os

import pyarrow as pa
import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from ops.archives.entry import Search
from ops.archives.inventory import listed
from ops.archives.layouts import Layout, PathParser
from ops.archives.listing import OWN_OUTPUT, entries, path_below
from ops.archives.system_files import SYSTEM_FILES
from ops.archives.tally import Tally
from ops.failure import Failure
from ops.storage import files, uris
from ops.storage.storage_errors import AccessDenied, NotFound, StorageError
from tests.archives import (
    FILES,
    TARS,
    THREE,
    parquet,
    place,
    read,
    status_of,
    statuses,
    tar,
    zipped,
)


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


def test_the_content_of_a_tar_says_whether_it_is_compressed(tmp_path):
    assert statuses(place(tmp_path, "gzipped.tar", tar(THREE, "w:gz"))) == ["ok"] * 3
    assert statuses(place(tmp_path, "plain.tar.gz", tar(THREE))) == ["ok"] * 3


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
    from ops.storage import retry, s3_file
    from ops.storage import s3 as store

    put(s3, "a.png", b"1")
    put(s3, name, tar(THREE))
    call = retry.RetryingS3.call_s3

    def denied(self, method, *args, **kwargs):
        if method == "get_object" and kwargs.get("Key") == name:
            response = {
                "Error": {"Code": code, "Message": told},
                "ResponseMetadata": {"HTTPStatusCode": 403 if code == "AccessDenied" else 400},
            }
            raise translate_boto_error(ClientError(response, "GetObject"))
        return call(self, method, *args, **kwargs)

    monkeypatch.setattr(retry.RetryingS3, "call_s3", denied)
    monkeypatch.setattr(
        s3_file.ReadFile,
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
