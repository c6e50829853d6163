"""Archives that unpack to far more than their size: a problem row, and bounded disk and memory."""

from __future__ import annotations

import bz2
import gc
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import time
import tracemalloc
import weakref
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.archives import expansion
from ops.archives.entry import Search
from ops.archives.fetch import FetchSettings, fetch
from ops.archives.listing import entries
from ops.archives.parquet_rows import ParquetReader
from ops.archives.tar_members import TarReader
from ops.archives.zip_members import ZipReader
from ops.failure import Failure

MIB = 2**20
PICTURE = bytes(range(256)) * 4
LETTERS = b"bomb" * 2**18  # 1 MiB that is not zeros


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Limits of small archives, so that bombs can be small too."""
    monkeypatch.setattr(expansion, "_FREE", MIB)


def bomb(pack, content: bytes, times: int) -> bytes:
    """A compressed tar of a picture, a member of `times` MiB, and another picture."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in (("a.png", PICTURE), ("zeros", content * times), ("z.png", PICTURE)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return pack(stream.getvalue())


PACKS = {
    ".tar.gz": lambda data: gzip.compress(data, 6),
    ".tar.bz2": lambda data: bz2.compress(data, 1),
    ".tar.xz": lambda data: lzma.compress(data, preset=0),
}


@pytest.mark.parametrize("suffix", PACKS)
def test_a_bomb_is_a_problem_row_behind_the_members_before_it(tmp_path, suffix):
    place = tmp_path / f"a{suffix}"
    place.write_bytes(bomb(PACKS[suffix], LETTERS, 3))
    first, *others, last = entries(str(place))
    assert (first.name, [entry.name for entry in others]) == ("a.png", ["zeros"])
    limit = max(MIB, place.stat().st_size * 200)
    assert last.problem.startswith(f"it unpacks to over {limit} bytes from {place.stat().st_size},")
    assert "raise --max-unpack-ratio" in last.problem
    assert fetch(first.uri, first.member, first.bytes) == PICTURE
    whole = [entry.name for entry in entries(str(place), Search(unpack_ratio=1e6))]
    assert whole == ["a.png", "zeros", "z.png"]


def test_a_member_behind_the_limit_of_a_reader_is_too_large(tmp_path):
    place = tmp_path / "a.tar.gz"
    place.write_bytes(bomb(PACKS[".tar.gz"], LETTERS, 3))
    *_, last = entries(str(place), Search(unpack_ratio=1e6))
    assert fetch(last.uri, last.member, last.bytes, FetchSettings(max_unpack_ratio=1e6)) == PICTURE
    for member in (last.member, None):
        with pytest.raises(Failure, match="too_large: its archive was not unpacked: it unpacks to"):
            fetch(last.uri, member, last.bytes)


def test_a_reader_takes_no_more_disk_than_its_limit_and_none_for_zeros(tmp_path, monkeypatch):
    made = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: made.append(real()) or made[-1])
    for content in (LETTERS, bytes(MIB)):
        data = bomb(PACKS[".tar.gz"], content, 3)
        TarReader(io.BytesIO(data))
    letters, zeros = (os.fstat(file.fileno()) for file in made)
    assert letters.st_size <= MIB
    assert letters.st_blocks * 512 <= MIB + 2**14
    assert zeros.st_blocks * 512 <= 2**14


def test_a_reader_that_is_dropped_closes_its_files_at_once(tmp_path):
    reader = TarReader(io.BytesIO(bomb(PACKS[".tar.gz"], LETTERS, 3)), 1)
    dropped = weakref.ref(reader)
    gc.disable()
    try:
        del reader
        assert dropped() is None
    finally:
        gc.enable()


def test_zeros_at_the_end_and_between_are_read_back(tmp_path):
    place = tmp_path / "a.tar.gz"
    content = b"1" + bytes(10_000) + b"2" + bytes(50_000)
    place.write_bytes(bomb(PACKS[".tar.gz"], content, 1))
    found = {entry.name: entry for entry in entries(str(place))}
    entry = found["zeros"]
    assert fetch(entry.uri, entry.member, entry.bytes) == content


def test_empty_streams_in_a_row_are_read_in_linear_time(tmp_path):
    place = tmp_path / "a.tar.gz"
    place.write_bytes(gzip.compress(b"") * 20_000 + bomb(PACKS[".tar.gz"], b"x", 1))
    started = time.process_time()
    assert [entry.name for entry in entries(str(place))] == ["a.png", "zeros", "z.png"]
    assert time.process_time() - started < 5


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_bomb_takes_memory_for_its_limit_alone(kind):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive, archive.open("a.png", "w") as member:
        for _ in range(100):
            member.write(bytes(MIB))
    data = out.getvalue()
    reader = ZipReader(io.BytesIO(data))
    with pytest.raises(Failure, match=f"too_large: its {100 * MIB} bytes are more than"):
        reader.read("a.png", 0, 1000)
    reader._archive.infolist()[0].file_size = 900  # as a bomb declares it
    tracemalloc.start()
    with pytest.raises(zipfile.BadZipFile):
        reader.read("a.png", 0, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * MIB  # LZMA has no bound: 4 kB become 28 MiB, which are copied


def parquet_file(values, **options) -> bytes:
    out = io.BytesIO()
    table = pa.table({"image": pa.array(values, pa.binary())})
    pq.write_table(table, out, **options)
    return out.getvalue()


def test_a_parquet_file_whose_pages_are_bombs_is_a_problem_row(tmp_path):
    place = tmp_path / "a.parquet"
    values = [b"\x89PNG" + bytes(2 * MIB)] * 8
    place.write_bytes(parquet_file(values, compression="gzip", use_dictionary=False))
    (row,) = entries(str(place))
    assert row.problem.startswith(f"it unpacks to over {place.stat().st_size * 200} bytes")
    assert len(list(entries(str(place), Search(unpack_ratio=1e6)))) == 8
    with pytest.raises(Failure, match="too_large: its archive was not unpacked"):
        fetch(f"{row.uri}#0/000000000", 0, None)


def test_a_dictionary_value_that_many_rows_share_is_held_a_few_times_only():
    value = b"\x89PNG" + os.urandom(4 * MIB)
    data = parquet_file([value] * 64, use_dictionary=True, dictionary_pagesize_limit=2**30)
    before = pa.total_allocated_bytes()
    reader = ParquetReader(io.BytesIO(data), None)
    assert reader.read("0", 0, 2**29) == value
    assert pa.total_allocated_bytes() - before < 40 * MIB
