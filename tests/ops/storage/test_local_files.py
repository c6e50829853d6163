"""Reads of local files: regular ones alone, and never more than the limit plus one byte."""

from __future__ import annotations

import errno
import io
import os
import socket
import tracemalloc
from collections import Counter

import pytest

from ops.storage import files, local_files
from ops.storage.storage_errors import (
    AccessDenied,
    Changed,
    IsFolder,
    NotRegular,
    StorageError,
    TooLarge,
)

GIB = 2**30


class Counting(io.FileIO):
    """A file that counts the bytes that are read from it."""

    read_bytes = 0

    def readinto(self, buffer):
        count = super().readinto(buffer)
        Counting.read_bytes += count or 0
        return count


@pytest.fixture
def counting(monkeypatch):
    """Every file that is opened counts its bytes, in `Counting.read_bytes`."""
    Counting.read_bytes = 0
    monkeypatch.setattr(
        local_files,
        "open",
        lambda path, _, opener: io.BufferedReader(Counting(path, opener=opener)),
        raising=False,
    )


def special(folder, kind):
    place = folder / kind
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(place))  # paths of sockets are short
    else:
        place.symlink_to("/dev/zero")
    return str(place)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_special_files_are_not_opened(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    place = special(tmp_path, kind)
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *more: opened.append(path) or real(path, *more))
    for read in (files.read_bytes, files.open_read, files.read_json):
        with pytest.raises(NotRegular, match=f"{place}: it is a {kind}, not a file"):
            read(place)
    assert opened == []


@pytest.mark.timeout(10)
def test_a_pipe_that_takes_the_place_of_a_file_is_closed_again(tmp_path, monkeypatch):
    place = special(tmp_path, "pipe")
    (tmp_path / "file").write_bytes(b"1")
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path: real(tmp_path / "file"))
    with pytest.raises(NotRegular, match="it is a pipe"):
        files.open_read(place)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsFolder, match="Is a directory"):
        files.read_bytes(str(tmp_path))


def test_a_file_beyond_the_limit_is_not_read(tmp_path, counting):
    place = tmp_path / "a"
    place.write_bytes(b"12345")
    assert files.read_bytes(str(place), limit=5) == b"12345"
    assert Counting.read_bytes == 5
    os.truncate(place, 3 * GIB)
    with pytest.raises(TooLarge, match=f"{3 * GIB} bytes are more than the limit of 5") as error:
        files.read_bytes(str(place), limit=5)
    assert (error.value.size, error.value.location) == (3 * GIB, str(place))
    assert Counting.read_bytes == 5


def test_a_file_that_grew_since_it_was_listed_is_not_read(tmp_path, counting):
    place = tmp_path / "a"
    place.write_bytes(b"x" * 1000)
    version = files.describe(str(place)).version
    os.truncate(place, 3 * GIB)
    with pytest.raises(Changed):
        files.read_bytes(str(place), version=version, limit=2**29)
    assert Counting.read_bytes == 0


@pytest.mark.parametrize(("size", "reads"), [(9, 9), (10, 10), (11, 11), (5000, 11)])
def test_a_file_of_unknown_size_is_read_to_one_byte_beyond_the_limit(tmp_path, size, reads):
    place = tmp_path / "a"
    place.write_bytes(b"x" * size)
    with open(place, "rb", buffering=0) as file:
        data = local_files._read_at_most(file, 11, expected=0)
        assert len(data) == reads
        assert file.tell() == reads


def test_a_file_whose_size_the_kernel_does_not_tell_is_read():
    assert os.stat("/proc/self/limits").st_size == 0
    assert b"Max open files" in files.read_bytes("/proc/self/limits", limit=10_000)
    with pytest.raises(TooLarge, match="101 bytes are more than the limit of 100"):
        files.read_bytes("/proc/self/limits", limit=100)


def listed(place):
    """Names, counts of what was left out, and errors of folders, of a listing."""
    left_out, closed = Counter(), []
    found = files.listing(str(place), left_out, closed)
    return sorted(item.name for item in found), dict(left_out), closed


@pytest.fixture
def parts(tmp_path):
    """A folder of two pictures beside the folder `sub`, which holds another."""
    place = tmp_path / "parts"
    for name in ("a.png", "z/b.png", "sub/c.png"):
        files.write_bytes(str(place / name), b"1")
    return place


def failing(monkeypatch, number, match, root_fails=False):
    """Make `scandir` of one folder fail, and `stat` of the root if asked to."""
    scan, status = os.scandir, os.stat

    def scandir(path):
        if str(path).rstrip("/").endswith(match):
            raise OSError(number, os.strerror(number), path)
        return scan(path)

    def stat(path, *more, **options):
        if root_fails:
            raise OSError(number, os.strerror(number), path)
        return status(path, *more, **options)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "stat", stat)


@pytest.mark.parametrize(
    "number",
    [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ELOOP, errno.ENAMETOOLONG],
)
def test_a_folder_that_cannot_be_listed_is_told_and_the_listing_goes_on(parts, monkeypatch, number):
    failing(monkeypatch, number, "/sub")
    names, left_out, (error,) = listed(parts)
    assert (names, left_out) == (["a.png", "z/b.png"], {})
    assert (error.location, error.message) == (f"{parts}/sub/", os.strerror(number))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR])
def test_a_folder_that_vanishes_is_counted(parts, monkeypatch, number):
    failing(monkeypatch, number, "/sub")
    assert listed(parts) == (["a.png", "z/b.png"], {local_files.VANISHED: 1}, [])


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.EIO])
def test_a_mount_that_goes_away_ends_the_listing(parts, monkeypatch, number):
    failing(monkeypatch, number, "/sub", root_fails=True)
    with pytest.raises(StorageError, match=f"^{parts}: {os.strerror(number)}"):
        listed(parts)


def test_folders_deeper_than_a_path_can_be_are_told(tmp_path, monkeypatch):
    (tmp_path / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
        open("x.png", "w").close()
    names, _, (error,) = listed(tmp_path)
    assert "a.png" in names
    assert 14 <= len(names) <= 17
    assert error.message == "File name too long"
    monkeypatch.chdir(tmp_path)


def test_files_whose_state_cannot_be_read_are_counted_and_their_folder_is_told(parts, monkeypatch):
    class Entry:
        def __init__(self, entry):
            self._entry = entry

        def __getattr__(self, name):
            return getattr(self._entry, name)

        def stat(self):
            number = {"a.png": errno.EACCES, "c.png": errno.ENOENT}.get(self.name)
            if number:
                raise OSError(number, os.strerror(number), self.path)
            return self._entry.stat()

    class Scan(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: Scan(map(Entry, scan(path))))
    with pytest.raises(AccessDenied):
        listed(parts)  # of the root itself
    (parts / "z" / "a.png").touch()
    (parts / "a.png").rename(parts / "d.png")
    names, left_out, (error,) = listed(parts)
    assert names == ["d.png", "z/b.png"]
    assert left_out == {local_files.UNKNOWN: 1, local_files.VANISHED: 1}
    assert error.location == f"{parts}/z/"


@pytest.mark.slow
def test_a_folder_of_many_files_is_listed_as_a_stream(tmp_path):
    for number in range(200_000):
        os.close(os.open(tmp_path / f"{number}.png", os.O_CREAT))
    tracemalloc.start()
    assert sum(1 for _ in files.listing(str(tmp_path))) == 200_000
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
