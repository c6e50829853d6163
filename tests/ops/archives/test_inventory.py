import io
import tarfile
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.archives import inventory, listing
from ops.archives.inventory import SCHEMA, Inventory, image_id, listed
from ops.archives.layouts import LAYOUTS, Layout, PathParser
from ops.archives.tally import Tally
from ops.errors import UserError
from ops.storage import parquet, uris

SUFFIXES = listing.IMAGE_SUFFIXES.split()


def rows_of(folder, layout=LAYOUTS["mvtec"], rows=10_000) -> tuple[list[dict], Tally]:
    tally = Tally()
    batches = listed([str(folder)], PathParser(layout, "p"), SUFFIXES, tally, rows)
    return [row for batch in batches for row in batch.to_pylist()], tally


def place(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_images_and_masks_are_listed_and_other_files_counted(tmp_path):
    place(tmp_path, "nut/train/good/0.png", "nut/test/bent/1.PNG", "nut/license.txt", "nut/odd.png")
    place(tmp_path, "nut/ground_truth/bent/1_mask.png")
    rows, tally = rows_of(tmp_path)
    assert (tally.images, tally.masks, tally.other_files, tally.unmatched) == (3, 1, 1, 1)
    assert tally.example_unmatched == "nut/odd.png"
    assert tally.other_suffixes == {".txt": 1}
    by_name = {row["uri"].rsplit("/", 1)[-1]: row for row in rows}
    assert by_name["1_mask.png"]["is_mask"]
    assert by_name["1_mask.png"]["mask_key"] == by_name["1.PNG"]["mask_key"]
    assert (by_name["1.PNG"]["label"], by_name["0.png"]["label"]) == (1, 0)
    assert by_name["odd.png"]["product"] is None


def test_ids_are_unique_and_follow_uri_and_version(tmp_path):
    place(tmp_path, *(f"p/test/good/{n}.png" for n in range(20)))
    first, second = rows_of(tmp_path)[0], rows_of(tmp_path, rows=3)[0]
    assert len({row["image_id"] for row in first}) == 20
    assert sorted(r["image_id"] for r in first) == sorted(r["image_id"] for r in second)
    assert image_id("a", "1") != image_id("a", "2") != image_id("b", "2")
    assert len(image_id("a", "1")) == 32


def test_a_member_without_a_suffix_is_no_image_in_a_tar_but_one_in_parquet(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("README", "1.png"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    pq.write_table(pa.table({"data": [b"x", b"y"]}), tmp_path / "b.parquet")
    rows, tally = rows_of(tmp_path, Layout("**/{name}"))
    assert (tally.images, tally.other_files) == (3, 1)
    assert not [row for row in rows if row["uri"].endswith("README")]


def test_a_damaged_archive_becomes_a_row_with_a_problem(tmp_path):
    place(tmp_path, "p/test/good/0.png", "broken.zip")
    rows, tally = rows_of(tmp_path)
    assert tally.problems == 1
    (problem,) = (row["problem"] for row in rows if row["problem"])
    assert "damaged" in problem


def test_a_name_that_is_not_utf8_still_has_an_address(tmp_path):
    name = b"latin-\xe9.png".decode("utf-8", "surrogateescape")
    place_bytes = tmp_path / name
    place_bytes.write_bytes(b"1")
    (row,), _ = rows_of(tmp_path, Layout("{name}"))
    assert row["uri"].endswith("/latin-%E9.png")


def test_a_name_composed_otherwise_is_the_same_product_and_joins_its_mask(tmp_path):
    """macOS writes an umlaut as a letter and a mark, other systems as one character."""
    nfc, nfd = (unicodedata.normalize(form, "Türgriff") for form in ("NFC", "NFD"))
    place(tmp_path, f"{nfc}/test/bent/1.png", f"{nfd}/test/bent/2.png")
    place(tmp_path, f"{nfd}/ground_truth/bent/1_mask.png")
    rows, tally = rows_of(tmp_path)
    assert (tally.images, tally.masks, tally.unmatched) == (2, 1, 0)
    assert {row["product"] for row in rows if not row["is_mask"]} == {nfc}
    (key,) = (row["mask_key"] for row in rows if row["is_mask"])
    assert key in {row["mask_key"] for row in rows if not row["is_mask"]}
    assert {uris.parse(row["uri"]).location for row in rows} == {
        f"{tmp_path}/{name}"
        for name in (
            f"{nfc}/test/bent/1.png",
            f"{nfd}/test/bent/2.png",
            f"{nfd}/ground_truth/bent/1_mask.png",
        )
    }


def test_patterns_and_products_are_compared_in_one_form(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "größe") for form in ("NFC", "NFD"))
    place(tmp_path, f"{nfc}/1.png", f"{nfd}/2.png")
    for form in (nfc, nfd):
        _, tally = rows_of(tmp_path, Layout(form + "/{name}", product=form))
        assert (tally.images, tally.unmatched) == (2, 0)
    assert PathParser(Layout("{name}", product=nfd), "p").product == nfc


@pytest.fixture
def stored(tmp_path) -> Inventory:
    rows = [{"image_id": f"{n:03d}", "uri": f"u{n}", "version": "1"} for n in range(25)]
    location = str(tmp_path / "inventory.parquet")
    parquet.write(location, SCHEMA, [pa.RecordBatch.from_pylist(rows, SCHEMA)], rows=10)
    return Inventory(location)


def test_rows_are_read_by_number_across_row_groups(stored):
    assert len(stored) == 25
    for start, stop in ((0, 25), (0, 10), (9, 11), (10, 20), (24, 25), (5, 99), (7, 7), (30, 40)):
        found = stored.rows(start, stop, ["uri"])["uri"].to_pylist()
        assert found == [f"u{n}" for n in range(start, min(stop, 25))]
    schema = stored.read().schema
    assert schema.equals(SCHEMA)
    assert schema.metadata == SCHEMA.metadata
    assert [field.metadata for field in schema] == [field.metadata for field in SCHEMA]


def test_a_row_group_is_decoded_once_for_many_spans_and_again_when_the_file_is_another(
    stored, monkeypatch
):
    decoded = []
    read = pq.ParquetFile.read_row_group

    def counted(table, group, columns):
        decoded.append(group)
        return read(table, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for start in (0, 3, 9, 10, 12):
        stored.rows(start, start + 1, ["uri"])
    assert decoded == [0, 1]
    rows = [{"image_id": "x", "uri": f"other{n}", "version": "2"} for n in range(25)]
    parquet.write(stored.location, SCHEMA, [pa.RecordBatch.from_pylist(rows, SCHEMA)], rows=10)
    assert stored.rows(3, 4, ["uri"])["uri"].to_pylist() == ["other3"]


def test_the_content_hash_differs_between_lists_and_not_between_files(stored, tmp_path):
    table = stored.read()

    def hash_of(table, rows) -> str:
        location = str(tmp_path / "other.parquet")
        parquet.write(location, SCHEMA, [table], rows=rows)
        return Inventory(location).content_hash()

    assert hash_of(table, 25) == stored.content_hash()
    assert hash_of(table.slice(1), 25) != stored.content_hash()
    # Of a list without parts and views as before there were any: runs keep their ids.
    assert stored.content_hash() == "26b9a6367e230f670df9ebc6396e54f3"
    hashes = {stored.content_hash()}
    for name in ("part", "view"):
        at = SCHEMA.get_field_index(name)
        named = table.set_column(at, SCHEMA.field(at), pa.array([None] * 24 + ["x"], pa.string()))
        hashes.add(hash_of(named, 25))
    at = SCHEMA.get_field_index("fields")
    for value in ("A", "B"):
        fields = pa.array([None] * 24 + [{"line": value}], SCHEMA.types[at])
        hashes.add(hash_of(table.set_column(at, SCHEMA.field(at), fields), 25))
    assert len(hashes) == 5


def test_parts_and_views_are_listed_and_are_in_one_form(tmp_path):
    place(tmp_path, "bolt/17/T\u00fcr/0.png", "bolt/18/side/0.png")
    layout = Layout("{product}/{part}/{view}/{name}")
    rows, _ = rows_of(tmp_path, layout)
    found = sorted((row["product"], row["part"], row["view"]) for row in rows)
    assert found == [("bolt", "17", "T\u00fcr"), ("bolt", "18", "side")]
    other = [{"image_id": "0", "uri": "0", "part": "U\u0308", "view": "o\u0308"}]
    location = str(tmp_path / "other.parquet")
    parquet.write(location, SCHEMA, [pa.Table.from_pylist(other, SCHEMA)])
    [read] = Inventory(location).read(["part", "view"]).to_pylist()
    assert read == {"part": "\u00dc", "view": "\u00f6"}


def test_other_fields_of_the_pattern_are_listed(tmp_path):
    place(tmp_path, "B/T\u00fcr/bolt/0.png", "A/late/bolt/0.png")
    rows, _ = rows_of(tmp_path, Layout("{line}/{shift}/{product}/{name}"))
    assert sorted(row["fields"] for row in rows) == [
        [("line", "A"), ("shift", "late")],
        [("line", "B"), ("shift", "T\u00fcr")],
    ]
    assert {row["product"] for row in rows} == {"bolt"}
    rows, _ = rows_of(tmp_path, Layout("**/{product}/{name}"))
    assert {row["fields"] for row in rows} == {None}


def test_fields_of_another_type_are_refused_before_anything_is_scored(tmp_path):
    table = pa.table({n: pa.nulls(1, t) for n, t in zip(SCHEMA.names, SCHEMA.types, strict=True)})
    wrong = table.drop_columns("fields").append_column("fields", pa.array([{"line": "A"}]))
    pq.write_table(wrong, tmp_path / "i.parquet")
    with pytest.raises(UserError, match=r"fields of .* is struct<line: string>, not map<string"):
        Inventory(str(tmp_path / "i.parquet"))


def test_products_are_those_of_its_images(tmp_path):
    rows = [{"image_id": str(n), "uri": str(n), "product": p} for n, p in enumerate("abb")]
    location = str(tmp_path / "of.parquet")
    parquet.write(location, SCHEMA, [pa.RecordBatch.from_pylist([*rows, {}], SCHEMA)], rows=2)
    assert Inventory(location).products() == {"a", "b"}


def test_a_table_with_other_columns_is_not_an_inventory(tmp_path):
    pq.write_table(pa.table({"uri": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="lacks the columns"):
        Inventory(str(tmp_path / "t.parquet"))


def test_every_column_has_a_meaning():
    assert all(field.metadata[b"meaning"] for field in inventory.SCHEMA)


def test_products_of_any_inventory_are_in_one_form(tmp_path):
    other = unicodedata.normalize("NFD", "T\u00fcr")
    rows = pa.Table.from_pylist([{"product": p} for p in (other, "T\u00fcr", "nut", None)], SCHEMA)
    parquet.write(location := str(tmp_path / "other.parquet"), SCHEMA, [rows])
    stored = Inventory(location)
    assert stored.read(["product"])["product"].to_pylist() == ["T\u00fcr", "T\u00fcr", "nut", None]
    assert stored.rows(0, 1)["product"].to_pylist() == ["T\u00fcr"]
    assert stored.products() == {"T\u00fcr", "nut"}
    assert stored.read(["uri"]).schema.names == ["uri"]
