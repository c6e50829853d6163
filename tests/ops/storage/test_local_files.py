"""Reads of local files: regular ones alone, and never more than the limit plus one byte."""

from __future__ import annotations

import io
import os
import socket

import pytest

from ops.storage import files, local_files
from ops.storage.storage_errors import Changed, IsFolder, NotRegular, TooLarge

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
