import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.archives import parquet_rows
from ops.archives.entry import Search
from ops.archives.fetch import FetchSettings, fetch
from ops.archives.listing import entries
from ops.archives.parquet_rows import OWN_TABLES, ParquetReader
from ops.archives.tally import Tally
from ops.failure import Failure

HASTY = FetchSettings(attempts=1)
PNG = [b"\x89PNG\r\n\x1a\n" + bytes([n]) * (16 + n) for n in range(4)]
NAMES = [f"washer/p{n}.png" for n in range(4)]


def found(tmp_path, table: pa.Table, column: str = "") -> tuple[dict[str, object], Tally]:
    """Rows as name -> bytes read by number, which must equal those read by name, or problem."""
    place, tally, out = tmp_path / "a.parquet", Tally(), {}
    pq.write_table(table, place, row_group_size=3)
    for entry in entries(str(place), Search(column), tally):
        if entry.problem:
            out["problem"] = entry.problem
            continue
        try:
            out[entry.name] = fetch(entry.uri, entry.member, entry.bytes, HASTY)
            assert fetch(entry.uri, None, None, HASTY) == out[entry.name]
        except Failure as failure:
            out[entry.name] = failure.status
    return out, tally


TRUTH = dict(zip(NAMES, PNG, strict=True))
TEXTS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "dictionary of large": pa.dictionary(pa.uint32(), pa.large_string()),
}


@pytest.mark.parametrize("kind", TEXTS.values(), ids=TEXTS)
def test_names_of_every_type_of_text(tmp_path, kind):
    names = pa.array(NAMES).cast(kind)
    assert found(tmp_path, pa.table({"path": names, "image": PNG}))[0] == TRUTH


def octets(kind: pa.DataType) -> pa.Array:
    return pa.array([list(data) for data in PNG], kind)


LONG = [data.ljust(27, b"\0") for data in PNG]
BYTES = {
    "binary": lambda: pa.array(PNG, pa.binary()),
    "large_binary": lambda: pa.array(PNG, pa.large_binary()),
    "binary_view": lambda: pa.array(PNG, pa.binary_view()),
    "dictionary": lambda: pa.array(PNG, pa.binary()).dictionary_encode(),
    "fixed_size_binary": lambda: pa.array(LONG, pa.binary(27)),
    "list": lambda: octets(pa.list_(pa.uint8())),
    "large_list": lambda: octets(pa.large_list(pa.uint8())),
    "list of int8": lambda: octets(pa.list_(pa.uint8())).cast(pa.list_(pa.int8()), safe=False),
    "fixed_size_list": lambda: pa.array([list(d) for d in LONG], pa.list_(pa.uint8(), 27)),
}


@pytest.mark.parametrize("kind", BYTES)
def test_images_of_every_type_of_bytes(tmp_path, kind):
    table = pa.table({"path": NAMES, "image": BYTES[kind]()})
    truth = dict(zip(NAMES, LONG, strict=True)) if "fixed" in kind else TRUTH
    assert found(tmp_path, table)[0] == truth


@pytest.mark.parametrize(
    ("outer", "data", "name"),
    [("image", "bytes", "path"), ("photo", "data", "filename"), ("x", "content", "name")],
)
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_structs_whatever_their_fields_are_called(tmp_path, outer, data, name, kind):
    rows = [{data: d, name: n} for d, n in zip(PNG, NAMES, strict=True)]
    struct = pa.struct([(data, kind), (name, pa.large_string())])
    table = pa.table({outer: pa.array(rows, struct), "label": range(4)})
    got, tally = found(tmp_path, table)
    assert got == TRUTH
    assert tally.columns == {f"{outer}.{data}": 1}


def test_structs_in_structs(tmp_path):
    rows = [{"image": {"bytes": d, "path": n}} for d, n in zip(PNG, NAMES, strict=True)]
    got, tally = found(tmp_path, pa.table({"sample": rows}))
    assert (got, tally.columns) == (TRUTH, {"sample.image.bytes": 1})


MD5 = [random.Random(n).randbytes(16) for n in range(4)]
JSON = [b"{}"] * 4
MASKS = [b"\x89PNG mask"] * 4
CHOICES = {
    "md5 first": ({"md5": MD5, "image": PNG}, "image"),
    "by name before content": ({"mask": MASKS, "image": PNG}, "image"),
    "by name in any case": ({"md5": MD5, "Image": PNG}, "Image"),
    "webdataset": ({"json": JSON, "txt": JSON, "jpg": PNG}, "jpg"),
    "by content": ({"checksum": MD5, "json": JSON, "part": PNG}, "part"),
    "a general name by content": ({"data": JSON, "part": PNG}, "part"),
    "the first after nulls": ({"a": [None, b"{}", None, None], "b": [None, *PNG[1:]]}, "b"),
    "none like an image": ({"md5": MD5, "json": JSON}, "md5"),
    "two names by content": ({"jpg": JSON, "png": PNG}, "png"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_column_of_images_is_chosen_and_stays_in_the_address(tmp_path, case):
    columns, chosen = CHOICES[case]
    table = pa.table({"path": NAMES, **columns})
    pq.write_table(table, tmp_path / "a.parquet")
    tally = Tally()
    uris = [entry.uri for entry in entries(str(tmp_path / "a.parquet"), tally=tally)]
    assert uris[1] == f"file://{tmp_path}/a.parquet?column={chosen}#1/{NAMES[1]}"
    assert tally.columns == {chosen: 1}
    assert fetch(uris[1], 1, None, HASTY) == columns[chosen][1]
    assert fetch(uris[1], None, None, HASTY) == columns[chosen][1]


def test_the_setting_overrides_the_choice(tmp_path):
    table = pa.table({"path": NAMES, "image": PNG, "raw": LONG, "n": range(4)})
    assert found(tmp_path, table, "raw")[0] == dict(zip(NAMES, LONG, strict=True))
    for column in ("n", "gone"):
        got, _ = found(tmp_path, table, column)
        assert "columns that do: image, raw" in got["problem"]


def test_rows_without_a_name_take_the_next_column_or_their_number(tmp_path):
    rows = [{"bytes": d, "path": n} for d, n in zip(PNG, [NAMES[0], None, "", None], strict=True)]
    table = pa.table({"image": rows, "name": [None, "b.png", None, None]})
    got, _ = found(tmp_path, table)
    assert list(got) == [NAMES[0], "b.png", "000000002", "000000003"]


def test_tables_of_this_project_are_no_images(tmp_path):
    table = pa.table({"x": [b"1"]}, metadata=None).replace_schema_metadata({"nightloupe": "1"})
    got, tally = found(tmp_path, table)
    assert (got, tally.left_out) == ({}, {OWN_TABLES: 1})


def reader(rows: int, group: int, size: int = 1000) -> ParquetReader:
    out = io.BytesIO()
    data = [n.to_bytes(4, "big") * (size // 4) for n in range(rows)]
    pq.write_table(pa.table({"image": data}), out, row_group_size=group, compression="zstd")
    return ParquetReader(out, None)


def number(read: ParquetReader, row: int) -> int:
    return int.from_bytes(read.read("", row, 4)[:4], "big")


def test_rows_in_order_read_each_group_once():
    read = reader(2000, 100)
    assert [number(read, row) for row in range(2000)] == list(range(2000))
    assert read.groups_read == 20


def test_rows_that_threads_ask_for_out_of_order_read_each_group_once():
    read, rng = reader(2000, 100), random.Random(0)
    for start in range(0, 2000, 32):
        rows = list(range(start, min(start + 32, 2000)))
        rng.shuffle(rows)
        assert [number(read, row) for row in rows] == rows
    assert read.groups_read == 20


def test_any_order_of_rows_is_right(monkeypatch):
    monkeypatch.setattr(parquet_rows, "_KEPT_BYTES", 0)
    read, rows = reader(300, 70), list(range(300))
    random.Random(1).shuffle(rows)
    assert [number(read, row) for row in rows] == rows
    for row in (300, -1):
        with pytest.raises(KeyError):
            read.read("", row, 4)


def test_a_row_group_is_never_held_as_a_whole(monkeypatch):
    monkeypatch.setattr(parquet_rows, "_BATCH_BYTES", 2**16)
    monkeypatch.setattr(parquet_rows, "_KEPT_BYTES", 2**18)
    read = reader(1000, 1000)
    most = 0
    for row in range(1000):
        assert number(read, row) == row
        most = max(most, sum(array.nbytes for _, array in read._kept))
    assert read.groups_read == 1
    assert most < 2**18 + 2**17
