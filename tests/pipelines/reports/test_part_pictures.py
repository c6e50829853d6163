"""Pictures of parts in a report: as they were scored, or a sentence that says why not."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import SCHEMA, image_id
from ops.archives.listing import entries
from ops.images.decode import DecodeSettings
from ops.images.resize import InputSettings, geometry
from ops.results import map_png
from ops.results.anomaly_map import Scale
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from pipelines.reports.part_pictures import PartPictures
from tests import tiffs
from tests.drawn_nights import collect, pictured
from tests.runs import Part, finish, model_of


def test_pictures_are_shown_as_they_were_scored_or_a_sentence_says_why_not(tmp_path):
    root = str(tmp_path)
    names = ("there", "gone", "replaced", "no_map", "quiet")
    parts = [
        pictured(root, Part(f"{name}.png", "bolt", 9.0 - i * 2, folder=f"{root}/parts"))
        for i, name in enumerate(names)
    ]
    run = finish(root, parts, model_of(["bolt"]))
    os.remove(f"{root}/parts/gone.png")
    Image.new("L", (80, 60)).save(f"{root}/parts/replaced.png")
    os.remove(run.out.map(run.model.card.model_id, parts[3].image_id))
    shown = [part.pictures for part in collect(run.out).parts]
    images, overlay = ([bool(getattr(s, kind)) for s in shown] for kind in ("image", "overlay"))
    assert images == [True, False, False, True, True]
    assert overlay == [True, False, False, False, False]
    assert [s.note for s in shown] == [
        "",
        "No picture: it was listed, but no longer exists.",
        "No picture: the file has changed since it was scored.",
        "The anomaly map cannot be read.",
        "No anomaly map was written.",
    ]
    assert not any(s.close_up for s in shown)
    assert all(part.pictures.close_up for part in collect(run.out, parts=1, thumbnail=32).parts)


def drawing(root, decode=DecodeSettings()):
    fetch = FetchSettings(attempts=1)
    return PartPictures(Out(root), {}, InputSettings(), decode, fetch, 64, 9999)


def test_pictures_are_decoded_by_the_settings_of_the_model(tmp_path):
    values = np.linspace(0, 2, 48, dtype=np.float32).reshape(6, 8)
    data = tiffs.file(tiffs.page(values * 0, 32), tiffs.page(values, 32))
    (tmp_path / "a.tif").write_bytes(data)
    row = {"uri": uris.make(str(tmp_path / "a.tif")), "map_uri": None, "peak_x": 0, "peak_y": 0}
    row |= {"content_sha256": hashlib.sha256(data).hexdigest(), "image_id": "1", "product": "bolt"}

    def pictures(**decode):
        [part] = drawing(str(tmp_path), DecodeSettings(range="0,2", **decode)).parts([row], [])
        return part.pictures

    shown = pictures(page=2)
    assert (bool(shown.image), shown.note) == (True, "No anomaly map was written.")
    assert "it has 2 frames or pages" in pictures().note


def in_tar(root, members):
    """Parts that are members of one tar, and its inventory rows, in the order of the tar."""
    path = f"{root}/t.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return list(entries(path))


def png(value, size=(80, 60)):
    out = io.BytesIO()
    Image.new("L", size, value).save(out, "PNG")
    return out.getvalue()


def located(root, found, members):
    """Pictures of rows that name members by their address alone, as a score table does."""
    rows = [
        {"image_id": image_id(e.uri, e.version), "uri": e.uri, "version": e.version}
        | {"member": e.member, "bytes": e.bytes}
        for e in found
    ]
    inventory = f"{root}/listed.parquet"
    parquet.write(inventory, SCHEMA, [pa.Table.from_pylist(rows, SCHEMA)])
    scored = [
        {"image_id": row["image_id"], "uri": row["uri"], "bit_depth": 8, "map_uri": None}
        | {"peak_x": 0, "peak_y": 0, "content_sha256": hashlib.sha256(data).hexdigest()}
        for row, (_, data) in zip(rows, members, strict=True)
    ]
    draw = drawing(root)
    return {p.row["image_id"]: p.pictures for p in draw.parts(scored[::-1], [inventory])}, scored


def test_members_of_one_name_are_shown_each_with_its_own_bytes(tmp_path):
    members = [("a.png", png(20)), ("a.png", png(220)), ("b.png", png(120))]
    shown, rows = located(str(tmp_path), in_tar(str(tmp_path), members), members)
    levels = []
    for row in rows:
        data = base64.b64decode(shown[row["image_id"]].image.partition(",")[2])
        levels.append(round(float(np.asarray(Image.open(io.BytesIO(data))).mean())))
    assert levels == [20, 220, 120]


def test_members_of_a_rewritten_archive_are_found_by_name(tmp_path):
    members = [("a.png", png(20)), ("b.png", png(120))]
    found = in_tar(str(tmp_path), members)
    in_tar(str(tmp_path), [("new.png", png(1, (300, 300)) + b"x" * 999), members[1]])
    shown, rows = located(str(tmp_path), found, members)
    notes = [shown[row["image_id"]].note for row in rows]
    assert notes == [
        "No picture: the archive no longer contains it.",
        "No anomaly map was written.",
    ]


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_a_map_of_another_shape_is_left_out_with_both_shapes(fit):
    settings = InputSettings(32, fit=fit, short_side=40)
    for drawn in ((80, 60), (60, 80), (81, 61), (32, 32), (1000, 37)):
        values = np.zeros((32, 32), np.float32)
        png_of_map = map_png.encode(values, Scale(0.0, 1.0), geometry(*drawn, settings), "m")
        decoded = map_png.decode(png_of_map)
        assert map_png.picture_size(decoded, settings, drawn) == drawn
        assert map_png.picture_size(decoded, settings, (64, 48)) == drawn


def test_a_map_of_a_picture_that_stands_upright_now_is_not_laid_over_it(tmp_path):
    root = str(tmp_path)
    part = pictured(root, Part("a.png", "bolt", 9.0, folder=f"{root}/parts"))
    run = finish(root, [part], model_of(["bolt"]))
    Image.new("L", (60, 80)).save(f"{root}/parts/a.png")
    table = run.out.table("2026-11-20", run.run_id)
    rows = parquet.read(table)
    data = files.read_bytes(f"{root}/parts/a.png")
    digest = pa.array([hashlib.sha256(data).hexdigest()])
    at = rows.schema.get_field_index("content_sha256")
    parquet.write(table, rows.schema, [rows.set_column(at, rows.schema.field(at), digest)])
    (shown,) = [part.pictures for part in collect(run.out).parts]
    assert shown.image
    assert not shown.overlay
    assert shown.note == (
        "The anomaly map is left out: it was drawn for a picture of 80 x 60 px, and this one has "
        "60 x 80."
    )
