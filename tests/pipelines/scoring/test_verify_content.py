"""Samples of unchanged images: which are read, and which differ from what was scored. No Ray."""

from __future__ import annotations

import hashlib
import os

import pyarrow as pa
import pytest

from ops.archives import inventory
from ops.archives.fetch import FetchSettings
from ops.archives.hash_images import HashImages
from ops.archives.inventory import image_id
from ops.archives.listing import entries
from ops.storage import parquet
from ops.storage.paths import Out
from pipelines.cluster.resources import Resources
from pipelines.scoring import verify_content
from pipelines.scoring.verify_content import HashStep, Verified
from tests.archives import zipped
from tests.pipelines.tables.test_current_scores import MODELS, publish, row

NIGHT = "2026-11-22"


def quiet(*_):
    pass


def listed(out, found):
    rows = [
        {"image_id": image_id(e.uri, e.version), "uri": e.uri, "version": e.version}
        | {"bytes": e.bytes, "member": e.member, "product": "bolt"}
        for e in found
    ]
    parquet.write(out.warehouse(), inventory.SCHEMA, [pa.Table.from_pylist(rows, inventory.SCHEMA)])


def scored(entry, data, **more):
    return row(entry.uri, entry.version, content_sha256=hashlib.sha256(data).hexdigest(), **more)


@pytest.fixture
def archive(tmp_path):
    """Forty files of 4 bytes, and an output folder in which all of them are scored."""
    place, out = tmp_path / "parts", Out(str(tmp_path / "out"))
    place.mkdir()
    for i in range(40):
        (place / f"{i:02d}.bmp").write_bytes(b"%04d" % i)
    found = sorted(entries(str(place)))
    listed(out, found)
    publish(out, 0, [scored(e, b"%04d" % i) for i, e in enumerate(found)])
    return out, place, found


def sampled(out, share, night=NIGHT, again=()):
    rows = verify_content.sample(out, out.warehouse(), MODELS[0], night, share, again)
    return rows, [uri.rsplit("/", 1)[1] for uri in rows["uri"].to_pylist()]


def verified(rows):
    step = HashStep(HashImages(FetchSettings(attempts=1)), Resources())
    blocks = (rows.slice(at, 16) for at in range(0, len(rows), 16))
    return verify_content.compare(map(step.run_locally, blocks), len(rows), quiet)


def test_the_night_alone_chooses_the_sample(archive):
    out, _, found = archive
    _, quarter = sampled(out, 0.25)
    assert quarter == sampled(out, 0.25)[1]
    assert 3 < len(quarter) < 18
    assert quarter != sampled(out, 0.25, "2026-11-23")[1]
    assert set(quarter) < set(sampled(out, 0.5)[1])
    assert len(sampled(out, 1.0)[1]) == 40
    assert sampled(out, 0.0)[1] == []
    assert sampled(out, 0.0, again=[image_id(found[7].uri, found[7].version)])[1] == ["07.bmp"]


def test_only_unchanged_images_that_were_read_are_part_of_it(archive):
    out, place, found = archive
    publish(out, 1, [scored(found[0], b"x", product="nut"), row(found[1].uri, "2")])
    (place / "02.bmp").write_bytes(b"changed")
    now = sorted(entries(str(place)))
    listed(out, now)
    assert sampled(out, 1.0)[1] == [f"{i:02d}.bmp" for i in range(3, 40)]
    publish(out, 2, [row(now[3].uri, now[3].version, status="missing")])
    assert "03.bmp" in sampled(out, 1.0)[1]  # its score is still current


def test_images_with_other_bytes_are_found_and_named(archive):
    out, place, found = archive
    for name in ("05.bmp", "31.bmp"):
        times = os.stat(place / name)
        (place / name).write_bytes(b"rot!")
        os.utime(place / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    (place / "09.bmp").unlink()
    result = verified(sampled(out, 1.0)[0])
    assert (result.read, result.unread) == (39, 1)
    names = [e.uri for e in (found[5], found[31])]
    assert [each["uri"] for each in result.differing] == names
    assert [each["image_id"] for each in result.differing] == [
        image_id(e.uri, e.version) for e in (found[5], found[31])
    ]
    assert result.warning == (
        "2 of 39 unchanged images that --verify-content read do not have the bytes that were "
        f"scored, though their versions are the same; they are scored again: {', '.join(names)}"
    )


def test_damage_that_an_archive_notices_is_a_difference(tmp_path):
    out, file = Out(str(tmp_path / "out")), tmp_path / "a.zip"
    data = bytearray(zipped([("a.bmp", b"first"), ("b.bmp", b"second")], 0))
    file.write_bytes(data)
    found = list(entries(str(file)))
    listed(out, found)
    publish(out, 0, [scored(found[0], b"first"), scored(found[1], b"second")])
    times = file.stat()
    data[data.index(b"second")] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    result = verified(sampled(out, 1.0)[0])
    assert (result.read, result.unread) == (2, 0)
    assert [each["uri"] for each in result.differing] == [found[1].uri]


def test_a_long_warning_names_ten():
    many = [{"image_id": "i", "uri": f"u/{i}"} for i in range(12)]
    assert Verified(30, 0, many).warning.endswith("u/8, u/9 and 2 more")
    assert Verified(30, 2, []).warning == ""


def test_rows_of_parquet_are_read_in_their_order(tmp_path):
    place, out = str(tmp_path / "t.parquet"), Out(str(tmp_path / "out"))
    parquet.write(
        place, (table := pa.table({"image": [b"%d" % i for i in range(120)]})).schema, [table]
    )
    found = list(entries(place))
    listed(out, found)
    publish(out, 0, [scored(e, b"%d" % i) for i, e in enumerate(found)])
    rows, _ = sampled(out, 1.0)
    assert rows["member"].to_pylist() == list(range(120))
    assert verified(rows) == Verified(120, 0, [])
