"""Damaged archives: rows and problem rows, never another error."""

import bz2
import errno
import gzip
import io
import lzma
import random

import pyarrow as pa
import pytest

from ops.archives import damage
from ops.archives.fetch import fetch
from ops.archives.listing import entries
from ops.failure import Failure
from ops.storage import files
from tests.archives import (
    HASTY,
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
