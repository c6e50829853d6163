"""Taking inventories: no Ray, real files."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.archives.fetch import FetchSettings, fetch
from ops.archives.inventory import SCHEMA, Inventory
from ops.archives.layouts import LAYOUTS, Layout, PathParser
from ops.archives.listing import IMAGE_SUFFIXES
from ops.archives.system_files import SYSTEM_FILES
from ops.errors import UserError
from ops.failure import Failure
from pipelines.tables import take_inventory
from tests.archives import tar, zipped
from tests.conftest import DATA, ROOT

HASTY = FetchSettings(attempts=1)


def take(places, out, layout: Layout, product="parts", split=None):
    tally = take_inventory.take(
        [str(place) for place in places],
        str(out),
        PathParser(layout, product),
        IMAGE_SUFFIXES.split(),
        lambda *_: None,
        split,
    )
    return tally, pq.read_table(out)


def test_an_mvtec_folder_gives_sorted_rows_with_masks_of_defective_images(archive, tmp_path):
    tally, table = take([archive], tmp_path / "i.parquet", LAYOUTS["mvtec"])
    rows = table.to_pylist()
    assert table.schema.equals(SCHEMA)
    assert table.schema.metadata.items() >= SCHEMA.metadata.items()
    assert tally.images == len(rows) == 2 * (9 + 4 + 4)
    assert tally.masks == 8
    assert tally.kinds == {"train, good": 18, "test, good": 8, "test, defective": 8}
    assert [(r["product"], r["uri"]) for r in rows] == sorted(
        (r["product"], r["uri"]) for r in rows
    )
    assert {r["label"] for r in rows if r["split"] == "train"} == {0}
    bad = [r for r in rows if r["label"] == 1]
    assert len(bad) == 8
    assert all(r["defect"] == "blob" and r["mask_uri"].endswith("_mask.png") for r in bad)
    assert all(r["product"] in r["mask_uri"] for r in bad)
    assert all(r["mask_uri"] is None for r in rows if not r["label"])
    assert len({r["image_id"] for r in rows}) == len(rows)


def pack(archive, path):
    files = sorted(p for p in archive.rglob("*") if p.is_file())
    names = [str(p.relative_to(archive)) for p in files]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for file, name in zip(files, names, strict=True):
                packed.write(file, name)
    elif path.suffix == ".parquet":
        data = [file.read_bytes() for file in files]
        pq.write_table(pa.table({"path": names, "bytes": data}), path, row_group_size=7)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as packed:
            for file, name in zip(files, names, strict=True):
                packed.add(file, name)
    return path


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "a.parquet"])
def test_every_kind_of_archive_lists_the_same_images_with_the_same_bytes(archive, tmp_path, name):
    _, folder = take([archive], tmp_path / "f.parquet", LAYOUTS["mvtec"])
    _, packed = take([pack(archive, tmp_path / name)], tmp_path / "p.parquet", LAYOUTS["mvtec"])

    def content(table):
        return sorted(
            (r["product"], r["split"], r["label"], fetch(r["uri"], r["member"], r["bytes"]))
            for r in table.to_pylist()
        )

    assert content(packed) == content(folder)
    masks = [r["mask_uri"] for r in packed.to_pylist() if r["mask_uri"]]
    assert len(masks) == 8
    assert fetch(masks[0], None, None).startswith(b"\x89PNG")


def test_only_one_split_is_kept_on_request(archive, tmp_path):
    _, table = take([archive], tmp_path / "i.parquet", LAYOUTS["mvtec"], split="test")
    assert set(table["split"].to_pylist()) == {"test"}
    assert len(table) == 16


def test_without_a_pattern_all_images_are_of_one_product(archive, tmp_path):
    _, table = take([archive], tmp_path / "i.parquet", Layout("**/{name}"), "shelf")
    assert set(table["product"].to_pylist()) == {"shelf"}
    assert set(table["label"].to_pylist()) == {None}


def test_images_that_do_not_match_the_pattern_are_rows_without_a_product(archive, tmp_path):
    tally, table = take([archive], tmp_path / "i.parquet", Layout("{product}/train/*/{name}"))
    assert tally.unmatched == table["product"].null_count == 16 + 8
    assert len(table) == tally.images


def test_an_archive_without_images_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(take_inventory.EmptyArchive, match="it is empty"):
        take([tmp_path / "empty"], tmp_path / "i.parquet", LAYOUTS["mvtec"])
    (tmp_path / "empty" / "a.txt").write_text("x")
    with pytest.raises(take_inventory.EmptyArchive, match=r"1 files end in \.txt"):
        take([tmp_path / "empty"], tmp_path / "i.parquet", LAYOUTS["mvtec"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        take([tmp_path / "nowhere"], tmp_path / "i.parquet", LAYOUTS["mvtec"])
    assert not (tmp_path / "i.parquet").exists()


def test_a_truncated_tar_is_listed_up_to_the_damage_and_says_so(archive, tmp_path):
    complete = pack(archive, tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(complete[: len(complete) // 2])
    tally, table = take([tmp_path / "a.tar"], tmp_path / "i.parquet", LAYOUTS["mvtec"])
    assert tally.problems == 1
    problems = [r for r in table.to_pylist() if r["problem"]]
    assert len(problems) == 1
    assert "damaged" in problems[0]["problem"]
    assert len(table) == tally.images + 1 > 5


def test_archives_that_overlap_list_an_image_once(archive, tmp_path):
    _, table = take([archive, archive / "washer"], tmp_path / "i.parquet", Layout("**/{name}"))
    assert len(set(table["image_id"].to_pylist())) == len(table)


def test_a_tar_of_a_folders_inside_is_read_like_one_of_the_folder(archive, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        packed.add(archive, ".")
    tally, table = take([tmp_path / "a.tar"], tmp_path / "i.parquet", LAYOUTS["mvtec"])
    assert tally.unmatched == 0
    row = table.to_pylist()[0]
    assert fetch(row["uri"], row["member"], row["bytes"]).startswith(b"\x89PNG")


def test_damage_stays_listed_when_only_one_split_is_kept(archive, tmp_path):
    complete = pack(archive, tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(complete[: len(complete) // 2])
    _, table = take([tmp_path / "a.tar"], tmp_path / "i.parquet", LAYOUTS["mvtec"], split="train")
    assert len([r for r in table.to_pylist() if r["problem"]]) == 1


def test_duplicate_names_in_an_archive_stay_two_images(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        for content in (b"first", b"second"):
            member = tarfile.TarInfo("bolt/1.png")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    _, table = take([tmp_path / "a.tar"], tmp_path / "i.parquet", Layout("{product}/{name}"))
    rows = table.to_pylist()
    assert len({r["image_id"] for r in rows}) == 2
    assert {fetch(r["uri"], r["member"], r["bytes"]) for r in rows} == {b"first", b"second"}


def test_images_with_odd_names_can_be_read_through_the_table(tmp_path):
    names = ["a#b.png", "50%.png", "why?.png", "größe 1.png", "日本.png", "%23.png", "a\nb.png"]
    for name in names:
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_bytes(name.encode())
    broken = b"\xff\xfe.png"
    with open(bytes(tmp_path / "x") + b"/" + broken, "wb") as file:
        file.write(b"latin")
    _, table = take([tmp_path / "x"], tmp_path / "i.parquet", Layout("{name}"))
    contents = {fetch(r["uri"], None, r["bytes"]) for r in table.to_pylist()}
    assert contents == {name.encode() for name in names} | {b"latin"}


def test_slices_of_an_inventory_are_its_rows(archive, tmp_path):
    _, table = take([archive], tmp_path / "i.parquet", LAYOUTS["mvtec"])
    pq.write_table(table, tmp_path / "j.parquet", row_group_size=5)
    read = Inventory(str(tmp_path / "j.parquet"))
    assert len(read) == len(table)
    for start, stop in ((0, 3), (4, 6), (7, 23), (33, 34)):
        assert read.rows(start, stop).equals(table.slice(start, stop - start))
    assert read.content_hash() == Inventory(str(tmp_path / "i.parquet")).content_hash()


def test_what_was_left_out_is_recorded_by_reason(archive, tmp_path):
    parts = tmp_path / "parts"
    shutil.copytree(archive, parts)
    for name in ("washer/notes.txt", "washer/README", "washer/test/good/._000.png"):
        (parts / name).write_bytes(b"1")
    (parts / "washer/ground_truth/blob/000_mask.bmp").write_bytes(b"1")
    (parts / "washer/ground_truth/blob/099_mask.png").write_bytes(b"1")
    out = tmp_path / "i.parquet"
    tally, table = take([parts, parts / "."], out, LAYOUTS["mvtec"], split="test")
    kept = Inventory(str(out)).tally()
    assert kept == tally.record()
    assert kept["other_suffixes"] == {"(none)": 2, ".txt": 2}
    assert kept["left_out"] == {
        SYSTEM_FILES: 2,
        take_inventory.OTHER_SPLITS: 2 * 18,
        take_inventory.DUPLICATES: len(table),
        take_inventory.MORE_MASKS: 1,
        take_inventory.LONE_MASKS: 1,
    }


def test_rows_of_one_parquet_file_keep_its_order(tmp_path):
    names = [f"bolt/{n}.png" for n in range(25)]
    pq.write_table(pa.table({"path": names, "image": [b"1"] * 25}), tmp_path / "p.parquet")
    _, table = take([tmp_path], tmp_path / "i.parquet", Layout("**/{product}/{name}"))
    assert table["member"].to_pylist() == list(range(25))


def test_a_table_that_is_not_an_inventory_is_refused(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="is not an inventory"):
        Inventory(str(tmp_path / "x.parquet"))


@pytest.mark.skipif(not DATA.exists(), reason="the magnetic tile images are not at hand")
def test_the_magnetic_tiles_are_listed_as_their_authors_split_them(tmp_path):
    names = frozenset((DATA / "mtd" / "train_names.txt").read_text().split())
    layout = replace(LAYOUTS["mtd"], train_names=names)
    _, table = take([DATA / "mtd"], tmp_path / "i.parquet", layout)
    rows = table.to_pylist()
    assert len(rows) == 1344
    assert sum(r["split"] == "train" for r in rows) == 761
    assert sum(r["label"] == 1 for r in rows) == 392
    assert all(r["mask_uri"] for r in rows if r["label"])


LISTING = """
import resource, sys
from ops.storage import files, versions
from ops.archives.listing import IMAGE_SUFFIXES
from ops.archives.layouts import Layout, PathParser
from ops.archives.system_files import SYSTEM_FILES
from pipelines.tables import take_inventory

def listing(location, *_):
    for i in range(int(sys.argv[2])):
        yield versions.Stored(f"line-{i % 40:02d}/2026/{i:09d}.png", 100_000, f"etag{i:032d}")

files.listing, files.is_folder, files.exists = listing, lambda _: True, lambda _: False
path_parser = PathParser(Layout("{product}/**/{name}"), "p")
tally = take_inventory.take(["s3://bucket/parts"], sys.argv[1], path_parser,
                            IMAGE_SUFFIXES.split(), lambda *_: None, memory="512MB")
assert tally.images == int(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.alone
def test_a_million_objects_are_listed_in_bounded_memory(tmp_path):
    def peak(count: int) -> int:
        out = str(tmp_path / f"{count}.parquet")
        command = [sys.executable, "-c", LISTING, out, str(count)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return int(done.stdout)

    small, large = peak(10_000), peak(1_000_000)
    assert len(Inventory(str(tmp_path / "1000000.parquet"))) == 1_000_000
    # As Python objects alone a million entries would take over 500 MiB; sorting may use 512.
    assert large - small < 700


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize(
    ("images", "masks", "pairs"),
    [
        (2, 2, ["m0", "m1"]),
        (1, 2, ["m1"]),
        (2, 1, ["m0", "m0"]),
        (3, 2, ["m0", "m0", "m1"]),
    ],
)
def test_masks_of_one_name_belong_each_to_its_image(tmp_path, suffix, images, masks, pairs):
    members = [("bolt/test/cut/1.png", b"i%d" % i) for i in range(images)]
    members += [("bolt/ground_truth/cut/1_mask.png", b"m%d" % i) for i in range(masks)]
    members.append(("bolt/ground_truth/cut/2_mask.png", b"other"))
    members.append(("bolt/test/cut/2.png", b"two"))
    make = zipped(members) if suffix == "zip" else tar(members, "w:gz" if "." in suffix else "w")
    (tmp_path / f"t.{suffix}").write_bytes(make)
    out = tmp_path / "out" / "listed.parquet"
    places = [tmp_path / f"t.{suffix}"] * 2  # they overlap
    take(places, out, LAYOUTS["mvtec"])
    rows = Inventory(str(out)).read().to_pylist()
    got = [
        tuple(
            fetch(*place, HASTY).decode()
            for place in ((row["uri"], row["member"], row["bytes"]), (row["mask_uri"], None, None))
        )
        for row in rows
    ]
    assert got == [*((f"i{i}", mask) for i, mask in enumerate(pairs)), ("two", "other")]
    # A mask whose archive was rewritten is no other member.
    if masks > 1:
        other = [(f"new{i}.png", data) for i, (_, data) in enumerate(members)]
        make = zipped(other) if suffix == "zip" else tar(other, "w:gz" if "." in suffix else "w")
        (tmp_path / f"t.{suffix}").write_bytes(make)
        with pytest.raises(Failure, match="missing"):
            fetch(rows[0]["mask_uri"], None, None, HASTY)
