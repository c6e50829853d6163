"""Files and archives that are rewritten: no bytes are taken for those of another version."""

from __future__ import annotations

import os
import random
import zlib

import pyarrow as pa
import pytest

from ops.archives.fetch import FetchSettings, change_time_note, fetch
from ops.archives.inventory import image_id
from ops.archives.listing import entries
from ops.failure import TRANSIENT, Failure
from ops.storage import files, local_files, uris
from tests.archives import TARS, parquet, tar, zipped

HASTY = FetchSettings(attempts=2, backoff=0)
#: Three images of one size, before and after the archive is rewritten; the second one changes.
BEFORE = [(f"cam{i}.bmp", random.Random(i).randbytes(3000)) for i in range(3)]
AFTER = [(name, random.Random(9).randbytes(3000) if i == 1 else data)
         for i, (name, data) in enumerate(BEFORE)]  # fmt: skip


def rows(images, group=1):
    names, data = zip(*images, strict=True)
    return parquet(pa.table({"name": names, "data": data}), group)


KINDS = {
    "a.bmp": lambda images: images[1][1],
    "a.tar": tar,
    "a.tar.gz": lambda images: tar(images, TARS[".tar.gz"]),
    "a.tar.xz": lambda images: tar(images, TARS[".tar.xz"]),
    "a.zip": lambda images: zipped(images, 0),
    "a.parquet": rows,
}
ARCHIVES = [kind for kind in KINDS if kind != "a.bmp"]


def listed(location):
    return list(entries(str(location)))


def ids(location):
    found = listed(location)
    assert all(entry.problem is None for entry in found)
    return {image_id(entry.uri, entry.version) for entry in found}


def read(entry):
    return fetch(entry.uri, entry.member, entry.bytes, HASTY, version=entry.version)


def status(entry):
    with pytest.raises(Failure) as failure:
        read(entry)
    return failure.value.status


def keep_times(file, times):
    """Set the old times, as cp -p and rsync -t do; the clock of the kernel has gone on."""
    before = os.stat(file).st_ctime_ns
    while os.stat(file).st_ctime_ns in {before, times.st_ctime_ns}:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def in_place(file, data, times):
    with open(file, "r+b") as out:
        out.write(data)
        out.truncate()
    keep_times(file, times)


def by_rename(file, data, times):
    new = file.with_name("new")
    new.write_bytes(data)
    keep_times(new, times)
    new.rename(file)


@pytest.mark.parametrize("rewrite", [in_place, by_rename])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_rewritten_has_other_ids_though_size_and_time_are_kept(tmp_path, kind, rewrite):
    file = tmp_path / kind
    file.write_bytes(KINDS[kind](BEFORE))
    size, times, old = file.stat().st_size, file.stat(), ids(file)
    assert ids(file) == old
    rewrite(file, KINDS[kind](AFTER), times)
    assert file.stat().st_mtime_ns == times.st_mtime_ns
    assert file.stat().st_size == size or kind in {"a.tar.gz", "a.tar.xz"}
    new = ids(file)
    assert len(new) == len(old)
    assert not new & old


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_with_one_member_more_makes_all_due(tmp_path, kind):
    file = tmp_path / kind
    file.write_bytes(KINDS[kind](BEFORE))
    old = ids(file)
    file.write_bytes(KINDS[kind]([*BEFORE, ("cam3.bmp", b"new")]))
    assert len(ids(file) - old) == 4


def test_only_the_rewritten_archive_of_a_folder_is_due(tmp_path):
    for kind, make in KINDS.items():
        (tmp_path / kind).write_bytes(make(BEFORE))
    old = ids(tmp_path)
    assert len(old) == 1 + 3 * len(ARCHIVES)
    file = tmp_path / "a.tar"
    in_place(file, tar(AFTER), file.stat())
    assert len(ids(tmp_path) & old) == len(old) - 3


def test_files_that_swap_names_are_due(tmp_path):
    one, two = tmp_path / "1.bmp", tmp_path / "2.bmp"
    for file, data in ((one, b"good"), (two, b"flaw")):
        file.write_bytes(data)
        os.utime(file, ns=(0, 0))
    old = ids(tmp_path)
    keep_times(one, one.stat())
    one.rename(tmp_path / "3")
    two.rename(one)
    (tmp_path / "3").rename(two)
    keep_times(one, one.stat())
    assert not ids(tmp_path) & old


def test_a_link_that_is_turned_to_another_file_is_due(tmp_path):
    for name in ("good", "flaw"):
        (tmp_path / name).write_bytes(name.encode())
        keep_times(tmp_path / name, (tmp_path / "good").stat())
    place = tmp_path / "parts"
    place.mkdir()
    (place / "1.bmp").symlink_to(tmp_path / "good")
    old = ids(place)
    (place / "1.bmp").unlink()
    (place / "1.bmp").symlink_to(tmp_path / "flaw")
    assert not ids(place) & old


def test_a_member_has_the_checksum_that_its_format_has(tmp_path):
    for kind in ("a.zip", "a.tar.gz"):
        (tmp_path / kind).write_bytes(KINDS[kind](BEFORE))
    of_zip, of_gzip = (listed(tmp_path / kind)[1].version for kind in ("a.zip", "a.tar.gz"))
    container = files.describe(str(tmp_path / "a.zip")).version
    assert of_zip == f"{container}@2-3000-{zlib.crc32(BEFORE[1][1]):08x}"
    whole = tar(BEFORE)
    assert of_gzip.endswith(f"-3000-{zlib.crc32(whole):08x}")


@pytest.mark.parametrize("rewrite", [in_place, by_rename])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_replaced_between_listing_and_reading_is_not_read(tmp_path, kind, rewrite):
    file = tmp_path / kind
    file.write_bytes(KINDS[kind](BEFORE))
    os.utime(file, ns=(0, 0))
    found = listed(file)
    assert [status(e) for e in found[3:]] == []
    rewrite(file, KINDS[kind](AFTER), tmp_path.stat())
    assert {status(entry) for entry in found} == {"changed"}
    assert "changed" in TRANSIENT
    expected = [AFTER[1][1]] if kind == "a.bmp" else [data for _, data in AFTER]
    assert [read(entry) for entry in listed(file)] == expected


def test_a_file_that_grew_or_shrank_after_the_listing_is_not_read(tmp_path):
    file = tmp_path / "a.bmp"
    for data in (b"123", b"12345"):
        file.write_bytes(b"1234")
        (entry,) = listed(file)
        in_place(file, data, file.stat())
        assert status(entry) == "changed"


def test_other_permissions_or_another_link_make_a_file_due_but_readable(tmp_path):
    file = tmp_path / "a.bmp"
    file.write_bytes(b"1234")
    (entry,) = listed(file)
    keep_times(file, file.stat())
    file.chmod(0o600)
    os.link(file, tmp_path / "b")
    assert read(entry) == b"1234"
    assert not ids(file) & {image_id(entry.uri, entry.version)}


def test_bytes_of_another_file_of_the_same_size_and_time_are_due_the_next_night(tmp_path):
    """The read doubts that they are the listed ones; the next listing knows."""
    file = tmp_path / "a.bmp"
    file.write_bytes(b"1234")
    (entry,) = listed(file)
    assert change_time_note(entry.uri, entry.version) == ""
    in_place(file, b"4321", file.stat())
    assert read(entry) == b"4321"
    assert "another change time" in change_time_note(entry.uri, entry.version)
    assert not ids(file) & {image_id(entry.uri, entry.version)}


def test_a_file_that_is_written_to_while_it_is_read_is_not_read(tmp_path, monkeypatch):
    file = tmp_path / "a.bmp"
    file.write_bytes(bytes(100))
    (entry,) = listed(file)
    times = file.stat()

    class Slow:
        def __init__(self, *arguments, **more):
            self._file = open(*arguments, **more)  # noqa: SIM115 - closed on exit

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

        def read(self, _size):
            head = self._file.read(50)
            in_place(file, b"1" * 100, times)
            return head + self._file.read()

    monkeypatch.setattr(local_files, "open", Slow, raising=False)
    assert status(entry) == "changed"


@pytest.mark.parametrize("kind", ["a.tar.gz", "a.zip", "a.parquet"])
def test_an_archive_that_is_overwritten_while_it_is_open_is_not_read_on(tmp_path, kind):
    file = tmp_path / kind
    file.write_bytes(KINDS[kind](BEFORE))
    os.utime(file, ns=(0, 0))
    found = listed(file)
    assert read(found[0]) == BEFORE[0][1]
    in_place(file, KINDS[kind](AFTER), tmp_path.stat())
    assert [status(entry) for entry in found] == ["changed"] * 3
    assert [read(entry) for entry in listed(file)] == [data for _, data in AFTER]


@pytest.mark.parametrize("kind", ["a.tar.gz", "a.zip", "a.parquet"])
def test_an_archive_that_is_replaced_while_it_is_open_keeps_its_listed_bytes(tmp_path, kind):
    file = tmp_path / kind
    file.write_bytes(KINDS[kind](BEFORE))
    os.utime(file, ns=(0, 0))
    found = listed(file)
    assert read(found[0]) == BEFORE[0][1]
    by_rename(file, KINDS[kind](AFTER), tmp_path.stat())
    assert [read(entry) for entry in found] == [data for _, data in BEFORE]
    assert [read(entry) for entry in listed(file)] == [data for _, data in AFTER]


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_member_that_is_looked_up_by_name_comes_from_the_archive_of_today(tmp_path, kind):
    file = tmp_path / kind
    for images in (BEFORE, AFTER):
        in_place(file, b"", tmp_path.stat()) if file.exists() else None
        file.write_bytes(KINDS[kind](images))
        name = "1/cam1.bmp" if kind == "a.parquet" else "cam1.bmp"
        assert fetch(uris.make(str(file), name), None, None, HASTY) == images[1][1]


def test_an_inventory_of_another_tool_is_read_as_it_is(tmp_path):
    file = tmp_path / "a.zip"
    file.write_bytes(zipped(BEFORE))
    for entry in listed(file):
        number = (entry.member or 0) - 1
        data = fetch(entry.uri, entry.member, entry.bytes, HASTY, version=f"v1@{number}")
        assert data == BEFORE[number][1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_on_s3_what_is_overwritten_has_other_ids_and_is_not_read_as_listed(s3, kind):
    place, before = f"{s3}/{kind}", KINDS[kind](BEFORE)
    files.write_bytes(place, before)
    found, old = listed(place), ids(place)
    assert ids(s3) == old
    files.write_bytes(place, before)  # the same bytes have the same etag
    assert ids(place) == old
    files.write_bytes(place, KINDS[kind](AFTER))
    assert not ids(place) & old
    assert {status(entry) for entry in found} == {"changed"}
    expected = [AFTER[1][1]] if kind == "a.bmp" else [data for _, data in AFTER]
    assert [read(entry) for entry in listed(place)] == expected


@pytest.mark.slow
def test_on_s3_an_archive_that_is_replaced_while_it_is_open_is_not_read_on(s3):
    place = f"{s3}/a.zip"
    images = [(f"{i}.bmp", random.Random(i).randbytes(1_500_000)) for i in range(4)]
    files.write_bytes(place, zipped(images, 0))
    found = listed(place)
    assert read(found[0]) == images[0][1]
    files.write_bytes(place, zipped(images[::-1], 0))
    assert status(found[2]) == "changed"
    assert [read(entry) for entry in listed(place)] == [data for _, data in images[::-1]]


@pytest.mark.slow
def test_on_s3_an_empty_member_is_empty(s3):
    files.write_bytes(f"{s3}/a.tar", tar([("a.bmp", b""), ("b.bmp", b"1")]))
    assert [read(entry) for entry in listed(f"{s3}/a.tar")] == [b"", b"1"]
