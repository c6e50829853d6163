"""Archives and tables of kinds that are not read, odd zips and odd tables: named, never silent."""

import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from ops.archives.entry import Search
from ops.archives.inventory import listed
from ops.archives.layouts import Layout, PathParser
from ops.archives.listing import EMPTY, IMAGE_SUFFIXES, entries
from ops.archives.other_kinds import kind_of, left_out_as
from ops.archives.tally import Tally
from tests.archives import parquet, place, read, statuses, tar, zipped

PNG = b"\x89PNG\r\n\x1a\n"
TWO = [("a.png", PNG + b"a"), ("b.png", PNG + b"b")]


def rows_of(folder) -> tuple[dict[str, str | None], Tally]:
    """Name of each row -> its problem, and the counts."""
    tally = Tally()
    found = listed(
        [str(folder)], PathParser(Layout("**/{name}"), "p"), IMAGE_SUFFIXES.split(), tally
    )
    rows = [row for batch in found for row in batch.to_pylist()]
    return {row["uri"].removeprefix(f"file://{folder}/"): row["problem"] for row in rows}, tally


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "t.tar.zst": "tar compressed with Zstandard",
        "T.TZST": "tar compressed with Zstandard",
        "t.tar.lz4": "tar compressed with LZ4",
        "t.tar.Z": "tar compressed with compress",
        "t.tar.lzma": "tar compressed with LZMA",
        "t.7z": "7z",
        "t.rar": "RAR",
        "t.cpio": "cpio",
        "t.z01": "parts of split archives",
        "t.tar.001": "parts of split archives",
        "t.arrow": "Arrow IPC",
        "t.feather": "Arrow IPC",
        "t.tfrecord": "TFRecord",
        "data.mdb": "LMDB",
        "t.h5": "HDF5",
        "t.npz": "NumPy",
        "t.iso": "disk image",
    }.items(),
)
def test_files_of_other_kinds_are_counted_by_their_kind(tmp_path, name, kind):
    place(tmp_path, name, b"anything")
    place(tmp_path, "a.png", PNG)
    rows, tally = rows_of(tmp_path)
    assert rows == {"a.png": None}
    reason = f"files of a kind that is not read ({kind})"
    assert [(r.split(";")[0], n) for r, n in tally.left_out.items()] == [(reason, 1)]
    assert tally.other_files == 0


@pytest.mark.parametrize("outer", ["o.tar", "o.zip"])
def test_archives_within_archives_are_counted(tmp_path, outer):
    inner = [("in.tar", tar(TWO)), ("in.zip", zipped(TWO)), ("in.tgz", b""), *TWO]
    place(tmp_path, outer, (tar if outer == "o.tar" else zipped)(inner))
    rows, tally = rows_of(tmp_path)
    assert rows == {f"{outer}#a.png": None, f"{outer}#b.png": None}
    ((reason, count),) = tally.left_out.items()
    assert (reason.split(",")[0], count) == ("archives within archives", 3)


def feather() -> bytes:
    out = io.BytesIO()
    pyarrow.feather.write_feather(pa.table({"image": [PNG]}), out)
    return out.getvalue()


MISNAMED = {
    "z.tar": (zipped(TWO), "a zip, not a tar"),
    "s.tar": (pa.compress(tar(TWO), codec="zstd", asbytes=True), "Zstandard, not a tar"),
    "s.tar.gz": (pa.compress(tar(TWO), codec="zstd", asbytes=True), "Zstandard, not a tar"),
    "l.tar": (lzma.compress(tar(TWO), format=lzma.FORMAT_ALONE), "LZMA, not a tar"),
    "c.tar": (b"070701" + b"0" * 600, "a cpio archive, not a tar"),
    "t.zip": (tar(TWO), "a tar, not a zip"),
    "r.zip": (b"Rar!\x1a\x07\x01\x00" + b"x" * 99, "a RAR archive, not a zip"),
    "7.zip": (b"7z\xbc\xaf\x27\x1c" + b"x" * 99, "a 7z archive, not a zip"),
    "g.zip": (gzip.compress(zipped(TWO)), "a gzip file, not a zip"),
    "f.parquet": (feather(), "an Arrow IPC file, not Parquet"),
    "e.parquet": (b"PARE" + b"x" * 99 + b"PARE", "an encrypted Parquet file, not Parquet"),
    "p.tar": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
    "h.zip": (b"<!DOCTYPE html><p>Sign in</p>", "a web page, not a zip"),
}


@pytest.mark.parametrize("name", MISNAMED)
def test_a_container_of_another_kind_than_its_name_says_is_a_problem_that_names_it(tmp_path, name):
    data, kind = MISNAMED[name]
    place(tmp_path, name, data)
    place(tmp_path, "a.png", PNG)
    rows, _ = rows_of(tmp_path)
    assert kind in rows.pop(name)
    assert rows == {"a.png": None}


def test_damage_of_the_kind_that_the_name_says_stays_damage(tmp_path):
    for name, data in {"a.zip": zipped(TWO)[:60], "a.tgz": tar(TWO, "w:gz")[:40]}.items():
        *_, last = entries(place(tmp_path, name, data))
        assert last.problem.startswith("the archive is damaged")
    assert kind_of(b"x" * 600) is None
    assert left_out_as("a.png", is_member=True) is None


def test_empty_containers_are_counted(tmp_path):
    empty = pa.table({"image": pa.array([], pa.binary())})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w"):
        pass
    out_zip = io.BytesIO()
    with zipfile.ZipFile(out_zip, "w"):
        pass
    for name, data in {"a.tar": out.getvalue(), "a.zip": out_zip.getvalue()}.items():
        place(tmp_path, name, data)
    place(tmp_path, "a.parquet", parquet(empty))
    rows, tally = rows_of(tmp_path)
    assert rows == {}
    assert tally.left_out == {EMPTY: 3}


def table(*columns: tuple[str, list, pa.DataType | None]) -> bytes:
    arrays = [pa.array(values, kind) for _, values, kind in columns]
    return parquet(pa.Table.from_arrays(arrays, [name for name, *_ in columns]))


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ONE = {"bytes": PNG, "path": "a.png"}
UNREAD = {
    "list of structs": (("images", [[ONE, ONE]], pa.list_(STRUCT)), "several images in each row"),
    "list of bytes": (("images", [[PNG]], pa.list_(pa.binary())), "several images in each row"),
    "map": (("images", [[("a", PNG)]], pa.map_(pa.string(), pa.binary())), "several images"),
    "base64": (("image", ["iVBORw0KGgo="], None), "decode it if it is base64"),
    "paths": (("image", ["/data/a.png"], None), "list the files named"),
    "numbers": (("image", [[1.0]], pa.list_(pa.float32())), "['image'] hold numbers"),
    "rows of pixels": (("image", [[[1]]], pa.list_(pa.list_(pa.uint8()))), "hold numbers"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_a_table_without_image_files_says_what_it_holds_instead(tmp_path, case):
    column, sentence = UNREAD[case]
    place(tmp_path, "t.parquet", table(column, ("label", [1], None)))
    rows, _ = rows_of(tmp_path)
    assert rows["t.parquet"].startswith("no image can be taken from it: ")
    assert sentence in rows["t.parquet"]


def test_columns_of_one_name_do_not_end_the_listing(tmp_path):
    twice = table(("image", [PNG], None), ("image", [PNG], None), ("name", ["a.png"], None))
    place(tmp_path, "t.parquet", twice)
    names = table(("image", [PNG], None), ("name", ["x.png"], None), ("name", ["y.png"], None))
    place(tmp_path, "u.parquet", names)
    rows, _ = rows_of(tmp_path)
    assert "several columns are called ['image']" in rows.pop("t.parquet")
    assert rows == {"u.parquet#0/000000000": None}


def test_a_table_with_a_named_column_of_one_name_twice_is_a_problem_too(tmp_path):
    twice = table(("image", [PNG], None), ("image", [PNG], None))
    (entry,) = entries(place(tmp_path, "t.parquet", twice), Search("image"))
    assert "several columns" in entry.problem


def with_unicode_path(name: str, unicode_name: str, crc: int | None = None) -> zipfile.ZipInfo:
    crc = zlib.crc32(name.encode("cp437")) if crc is None else crc
    content = struct.pack("<BI", 1, crc) + unicode_name.encode()
    info = zipfile.ZipInfo(name)
    info.extra = struct.pack("<HH", 0x9999, 1) + b"x"
    info.extra += struct.pack("<HH", 0x7075, len(content)) + content
    return info


def test_a_zip_with_names_in_unicode_beside_those_of_a_code_page(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(with_unicode_path("T_r/1.png", "T\u00fcr/1.png"), b"1")
        archive.writestr(with_unicode_path("old.png", "other.png", crc=1), b"2")
        archive.writestr(with_unicode_path("up.png", "../../up.png"), b"3")
    found = list(entries(place(tmp_path, "t.zip", out.getvalue())))
    assert [(entry.name, read(entry)) for entry in found] == [
        ("T\u00fcr/1.png", b"1"),
        ("old.png", b"2"),
        ("up.png", b"3"),
    ]
    assert [read(entry, by_member=False) for entry in found] == [b"1", b"2", b"3"]


def at_directory(data: bytes, offset: int, value: bytes) -> bytes:
    """A zip with other bytes at an offset of the first entry of its directory."""
    at = data.index(b"PK\x01\x02") + offset
    return data[:at] + value + data[at + len(value) :]


def test_odd_zips(tmp_path):
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in TWO:
            archive.writestr(name, content)
    data = plain.getvalue()
    cases = {
        "self-extracting": (b"MZ" + b"stub" * 999 + data, ["ok", "ok"]),
        "trailing bytes": (data + b"garbage", ["ok", "ok"]),
        "wrong CRC": (at_directory(data, 16, b"\x00\x01\x02\x03"), ["unreadable", "ok"]),
        "deflate64": (at_directory(data, 10, b"\x09\x00"), ["unsupported", "ok"]),
        "other name in its header": (at_directory(data, 46, b"c"), ["unreadable", "ok"]),
        "split": (at_directory(data, 34, b"\x01\x00"), ["problem"]),
    }
    for number, (case, (content, expected)) in enumerate(cases.items()):
        assert (case, statuses(place(tmp_path, f"{number}.zip", content))) == (case, expected)
    (split,) = entries(str(tmp_path / "5.zip"))
    assert "a part of a split zip" in split.problem


def test_extension_types_and_dictionaries_of_large_binary(tmp_path):
    values = pa.array([PNG + b"1", PNG + b"2", PNG + b"1"], pa.large_binary()).dictionary_encode()
    out = io.BytesIO()
    pq.write_table(pa.table({"image": values, "name": ["a.png", "b.png", "c.png"]}), out)
    found = list(entries(place(tmp_path, "d.parquet", out.getvalue())))
    assert [read(entry)[8:] for entry in found] == [b"1", b"2", b"1"]
