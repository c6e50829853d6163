"""The images that a night has to score, for random inventories and histories."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from ops.archives import inventory
from ops.archives.inventory import Inventory, image_id
from ops.archives.layouts import Layout, PathParser
from ops.failure import TRANSIENT
from ops.storage import files, parquet
from ops.storage.paths import Out
from ops.storage.s3 import bucket_and_key, file_system
from pipelines.tables import current_scores, pending, take_inventory
from tests.ops.archives.test_identity import AFTER, BEFORE, KINDS, status
from tests.ops.archives.test_identity import listed as entries
from tests.pipelines.tables.test_current_scores import MODELS, publish, row


@pytest.fixture
def out(tmp_path):
    return Out(str(tmp_path / "out"))


def listed(out, images):
    """An inventory of (uri, version, product)."""
    rows = [
        {"image_id": image_id(u, v), "uri": u, "version": v, "product": p, "bytes": 1}
        for u, v, p in images
    ]
    location = out.warehouse()
    parquet.write(location, inventory.SCHEMA, [pa.Table.from_pylist(rows, inventory.SCHEMA)])
    return location


def find(out, images, model=MODELS[0], retry=TRANSIENT, **more):
    to = f"{out.root}/pending.parquet"
    counts = pending.find_pending(out, listed(out, images), model, retry, to, **more)
    rows = Inventory(to).read().to_pylist() if counts.images else []
    return counts, [(r["uri"], r["version"]) for r in rows]


def test_on_the_first_night_everything_is_new_and_sorted_as_an_inventory(out):
    counts, rows = find(out, [("u/2", "1", "a"), ("u/1", "1", "b"), ("u/0", "1", None)])
    assert (counts.new, counts.changed, counts.retried, counts.runs) == (3, 0, 0, ())
    assert rows == [("u/2", "1"), ("u/1", "1"), ("u/0", "1")]


def test_new_changed_renamed_and_transiently_failed_images_are_pending(out):
    rows = [row(f"u/{i}") for i in range(3)]
    rows += [row(f"u/{status}", status=status) for status in (*TRANSIENT, "unreadable")]
    rows += [row("u/what", product="nut", status="unknown_product"), row("u/gone")]
    run = publish(out, 0, rows)
    images = [(r["uri"], "1", r["product"]) for r in rows if r["uri"] != "u/gone"]
    counts, uris = find(out, images)
    assert (counts.new, counts.changed, counts.retried, counts.runs) == (
        0,
        0,
        len(TRANSIENT),
        (run,),
    )
    assert {uri for uri, _ in uris} == {f"u/{status}" for status in TRANSIENT}
    images[0] = ("u/0", "2", "bolt")
    images[1] = ("u/1", "1", "nut")
    counts, uris = find(out, [*images, ("u/new", "1", "bolt")], retry=["unreadable"])
    assert (counts.new, counts.changed, counts.retried) == (1, 2, 1)
    assert counts.runs == (run,)  # so it is another run than one of the same list before that
    assert {u for u, _ in uris} == {"u/0", "u/1", "u/new", "u/unreadable"}


def test_under_another_model_everything_is_pending_again(out):
    publish(out, 0, [row("u/1"), row("u/2", status="unreadable")])
    counts, _ = find(out, [("u/1", "1", "bolt"), ("u/2", "1", "bolt")], MODELS[1])
    assert (counts.new, counts.changed, counts.retried) == (2, 0, 0)


@pytest.mark.parametrize(
    ("part", "view", "changed"),
    [("17", "top", 0), ("17", "side", 1), ("18", "top", 1), (None, "top", 1), ("17", None, 1)],
)
def test_an_image_of_another_part_or_view_has_changed(out, part, view, changed):
    publish(out, 0, [row("u/0", part="17", view="top")])
    images = [{"image_id": image_id("u/0", "1"), "uri": "u/0", "version": "1", "product": "bolt"}]
    table = pa.Table.from_pylist([images[0] | {"part": part, "view": view}], inventory.SCHEMA)
    parquet.write(out.warehouse(), inventory.SCHEMA, [table])
    to = f"{out.root}/pending.parquet"
    counts = pending.find_pending(out, out.warehouse(), MODELS[0], TRANSIENT, to)
    assert (counts.changed, counts.images) == (changed, changed)
    publish(out, 1, [row("u/0", part=part, view=view)])
    [current] = current_scores.current(out, MODELS[0]).to_pylist()
    assert (current["part"], current["view"]) == (part, view)


@pytest.mark.parametrize(
    ("fields", "changed"),
    [({"line": "A"}, 0), ({"line": "B"}, 1), ({"line": "A", "shift": "1"}, 1), (None, 1)],
)
def test_an_image_of_other_fields_has_changed_and_is_then_in_the_view_once(out, fields, changed):
    publish(out, 0, [row("u/0", fields={"line": "A"})])
    image = {"image_id": image_id("u/0", "1"), "uri": "u/0", "version": "1", "product": "bolt"}
    table = pa.Table.from_pylist([image | {"fields": fields}], inventory.SCHEMA)
    parquet.write(out.warehouse(), inventory.SCHEMA, [table])
    to = f"{out.root}/pending.parquet"
    counts = pending.find_pending(out, out.warehouse(), MODELS[0], TRANSIENT, to)
    assert (counts.changed, counts.images) == (changed, changed)
    publish(out, 1, [row("u/0", fields=fields)])
    [current] = current_scores.current(out, MODELS[0]).to_pylist()
    assert current["fields"] == (fields and sorted(fields.items()))


def test_nothing_is_written_if_nothing_is_pending(out, tmp_path):
    publish(out, 0, [row("u/1")])
    counts, rows = find(out, [("u/1", "1", "bolt")])
    assert (counts.images, rows) == (0, [])
    assert not (tmp_path / "out" / "pending.parquet").exists()


def test_members_of_one_name_are_pending_together(out):
    publish(out, 0, [row("t#x", "@1"), row("t#x", "@2", status="missing"), row("t#y", "@3")])
    members = [("t#x", "@1", "bolt"), ("t#x", "@2", "bolt"), ("t#y", "@3", "bolt")]
    counts, rows = find(out, members)
    assert counts.retried == 1
    assert rows == [("t#x", "@1"), ("t#x", "@2")]


def test_images_with_other_bytes_than_the_scored_ones_are_pending(out):
    run = publish(out, 0, [row("u/1"), row("u/2"), row("u/3", status="missing")])
    images = [(f"u/{i}", "1", "bolt") for i in (1, 2, 3)]
    differing = [image_id("u/2", "1"), image_id("u/3", "1"), "0" * 32]
    counts, rows = find(out, images, differing=differing)
    assert (counts.new, counts.changed, counts.retried, counts.differing) == (0, 0, 0, 2)
    assert (rows, counts.runs) == ([("u/2", "1"), ("u/3", "1")], (run,))


def test_a_second_night_over_the_same_archive_only_retries_failures(out):
    """Nights of files that come, change, return to old versions, and fail."""
    rng = random.Random(5)
    last: dict[tuple[str, str], str] = {}
    versions: dict[str, int] = {}
    scored = set()  # a version that has a score needs no other when it comes back and fails
    for number in range(8):
        for i in rng.sample(range(8), 5):
            versions[f"u/{i}"] = rng.randint(1, 3)
        images = [(uri, str(version), "bolt") for uri, version in sorted(versions.items())]
        counts, before = find(out, images)
        statuses = [rng.choice(["ok", "ok", "missing", "unreadable"]) for _ in before]
        if before:
            rows = [row(uri, v, s) for (uri, v), s in zip(before, statuses, strict=True)]
            publish(out, number, rows)
        counts, work = find(out, images)
        assert counts.new == counts.changed == 0
        last |= dict(zip(before, statuses, strict=True))
        scored |= {key for key, status in last.items() if status == "ok"}
        scored -= {key for key, status in last.items() if status == "unreadable"}
        missing = {k for k, status in last.items() if status == "missing"} - scored
        assert set(work) == missing & {(uri, version) for uri, version, _ in images}
        assert len(work) == counts.retried


class Nights:
    """Nights over a prefix on S3 that score all that is due."""

    def __init__(self, out, place):
        self.out, self.place, self.nights = out, place, 0

    def take(self) -> tuple[int, int]:
        """List, score what is due, and return how many images were new and changed."""
        parser = PathParser(Layout("**/{name}"), "bolt")
        path, to = self.out.warehouse(), f"{self.out.root}/pending.parquet"
        take_inventory.take([self.place], path, parser, [".bmp"], lambda *_: None)
        found = pending.find_pending(self.out, path, MODELS[0], TRANSIENT, to)
        if found.images:
            due = Inventory(to).read().to_pylist()
            publish(self.out, self.nights, [row(image["uri"], image["version"]) for image in due])
            self.nights += 1
        return found.new, found.changed


def upload(place: str, data: bytes, part: int) -> None:
    """Write an object in parts, whose size its etag depends on."""
    bucket, key = bucket_and_key(place)
    call, to = file_system().call_s3, {"Bucket": bucket, "Key": key}
    upload = to | {"UploadId": call("create_multipart_upload", **to)["UploadId"]}
    parts = []
    for number, start in enumerate(range(0, len(data), part), 1):
        body = data[start : start + part]
        etag = call("upload_part", **upload, PartNumber=number, Body=body)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    call("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})


@pytest.mark.slow
def test_on_s3_only_what_was_overwritten_with_other_bytes_is_due(s3, out):
    nights = Nights(out, f"{s3}/parts")
    before = {kind: make(BEFORE) for kind, make in KINDS.items()}
    for kind, data in before.items():
        files.write_bytes(f"{s3}/parts/{kind}", data)
    images = 1 + 3 * (len(KINDS) - 1)
    assert nights.take() == (images, 0)
    assert nights.take() == (0, 0)
    for kind, data in before.items():
        files.write_bytes(f"{s3}/parts/{kind}", data)
    assert nights.take() == (0, 0)
    for kind, make in KINDS.items():
        files.write_bytes(f"{s3}/parts/{kind}", make(AFTER))
        assert nights.take() == (0, 1 if kind == "a.bmp" else 3), kind
    assert nights.take() == (0, 0)


@pytest.mark.slow
def test_on_s3_etags_of_uploads_in_parts_are_versions(s3, out):
    place, nights = f"{s3}/parts/a.bmp", Nights(out, f"{s3}/parts")
    before, after = (bytes([value]) * (6 * 2**20) for value in (1, 2))
    upload(place, before, 5 * 2**20)
    (entry,) = entries(place)
    assert entry.version.endswith("-2")
    assert nights.take() == (1, 0)
    upload(place, before, 5 * 2**20)
    assert nights.take() == (0, 0)
    upload(place, after, 5 * 2**20)
    assert status(entry) == "changed"
    assert nights.take() == (0, 1)
    upload(place, after, 6 * 2**20)  # the same bytes with another etag: due, but not scored
    assert nights.take() == (0, 1)


@pytest.mark.slow
def test_on_s3_an_earlier_version_of_an_object_that_returns_is_due(s3, out):
    place, nights = f"{s3}/parts/a.bmp", Nights(out, f"{s3}/parts")
    bucket, key = s3.removeprefix("s3://"), "parts/a.bmp"
    call = file_system().call_s3
    call("put_bucket_versioning", Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    files.write_bytes(place, b"good")
    (first,) = entries(place)
    assert nights.take() == (1, 0)
    files.write_bytes(place, b"flaw")
    (second,) = entries(place)
    assert nights.take() == (0, 1)
    newest = call("list_object_versions", Bucket=bucket, Prefix=key)["Versions"][0]
    call("delete_object", Bucket=bucket, Key=key, VersionId=newest["VersionId"])
    assert entries(place) == [first]
    assert status(second) == "changed"
    assert nights.take() == (0, 1)
    assert nights.take() == (0, 0)
    files.remove_file(place)  # leaves a marker
    assert status(first) == "missing"
