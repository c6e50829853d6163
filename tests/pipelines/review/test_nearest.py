"""Similar good places of a part, with their pictures, and what is said where there are none."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ops.archives.fetch import FetchSettings
from ops.detectors import bank_origins
from ops.errors import UserError
from ops.storage import uris
from ops.storage.paths import Out
from pipelines.review import queue
from pipelines.review.filters import Filter
from pipelines.review.nearest import Nearest
from pipelines.review.pictures import NoPicture, Pictures
from pipelines.tables import model_names, run_records
from tests import banks


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory):
    """The folder of a night, its model, and the row of its worst part with the record."""
    root = tmp_path_factory.mktemp("night")
    _, _, model = banks.night(root)
    out = Out(str(root / "out"))
    with queue.opened(out, model_names.named(run_records.finished(out))) as parts:
        (row,) = parts.page(Filter(), 1)
        yield root, model, row, parts.record


def nearest(root, model, location=None, model_id=None):
    out = Out(str(root / "out"))
    shown = [Pictures(out, FetchSettings(), since=since) for since in ("it was scored", "the fit")]
    place = location or out.model(model.card.model_id)
    return Nearest(place, model_id or model.card.model_id, *shown)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)


def test_a_peak_and_three_good_places_are_framed_within_their_pictures(reviewed):
    root, model, row, record = reviewed
    found = nearest(root, model).of(row, record)
    # 15 x 15 patches of 80 x 60 pixels; the peak is at 79, 59, and four cells are shown around it.
    assert found["peak"] == {"box": [26, 6, 54, 54], "cell": [74, 56, 6, 4]}
    distances = [place["distance"] for place in found["places"]]
    assert len(distances) == 3
    assert 0 < distances[0] <= distances[1] <= distances[2]
    origins = bank_origins.from_bytes(model.origins, "").to_pylist()
    for place in found["places"]:
        origin = origins[place["vector"]]
        assert place["uri"] == origin["uri"]
        (left, top, width, height), (x, y, across, down) = place["box"], place["cell"]
        assert (x, y, x + across, y + down) == tuple(
            origin[side] for side in ("left", "top", "right", "bottom")
        )
        assert 0 <= left <= x
        assert x + across <= left + width <= 150
        assert 0 <= top <= y
        assert y + down <= top + height <= 90


def test_the_crop_of_a_good_place_has_the_pixels_of_its_picture(reviewed):
    root, model, row, record = reviewed
    compared = nearest(root, model)
    place = compared.of(row, record)["places"][1]
    left, top, width, height = place["box"]
    picture = Image.open(uris.parse(place["uri"]).location)
    original = np.asarray(picture).astype(int)[top : top + height, left : left + width]
    shown = pixels(nearest(root, model).crop(row, record, place["vector"], 999))
    assert shown.shape == original.shape
    assert np.abs(shown - original).mean() < 2  # a JPEG
    with pytest.raises(NoPicture, match="does not know which picture"):
        compared.crop(row, record, 10**6, 99)


def test_a_good_picture_that_changed_or_is_gone_says_so(reviewed):
    root, model, row, record = reviewed
    place = nearest(root, model).of(row, record)["places"][0]
    file = Path(uris.parse(place["uri"]).location)
    kept = file.read_bytes()
    try:
        Image.new("L", (150, 90)).save(file)
        with pytest.raises(NoPicture, match="the file has changed since the fit"):
            nearest(root, model).crop(row, record, place["vector"], 99)
        file.unlink()
        with pytest.raises(NoPicture, match="no longer exists"):
            nearest(root, model).crop(row, record, place["vector"], 99)
    finally:
        file.write_bytes(kept)


@pytest.mark.parametrize("name", ["left", "uri", "file"])
def test_origins_with_holes_are_damaged(reviewed, name):
    _, model, _, _ = reviewed
    rows = bank_origins.from_bytes(model.origins, "")
    place = rows.schema.get_field_index(name)
    holes = pa.nulls(len(rows), rows.schema.field(name).type)
    sink = pa.BufferOutputStream()
    pq.write_table(rows.set_column(place, name, holes), sink)
    with pytest.raises(UserError, match="origins of the bank of model m cannot be read"):
        bank_origins.from_bytes(sink.getvalue().to_pybytes(), "m")


def test_a_model_that_is_gone_or_another_one_says_so(reviewed):
    root, model, row, record = reviewed
    with pytest.raises(NoPicture, match="no complete model at"):
        nearest(root, model, str(root / "nothing")).of(row, record)
    with pytest.raises(NoPicture, match="the parts were scored by other; name its folder"):
        nearest(root, model, model_id="other").of(row, record)
    with pytest.raises(NoPicture, match="has no peak"):
        nearest(root, model).of(row | {"peak_x": None}, record)


def test_good_pictures_in_an_archive_are_found_by_their_member(reviewed, tmp_path):
    root, model, row, record = reviewed
    compared = nearest(root, model)
    vector = compared.of(row, record)["places"][0]["vector"]
    whole = compared.crop(row, record, vector, 999)
    origin = bank_origins.from_bytes(model.origins, "").to_pylist()[vector]
    file = Path(uris.parse(origin["uri"]).location)
    with tarfile.open(tmp_path / "good.tar", "w") as archive:
        archive.add(file, "x/good.png")
        member = archive.getmember("x/good.png").offset_data
    inside = {"uri": f"{uris.make(str(tmp_path / 'good.tar'))}#x/good.png", "member": member}
    compared._loaded.origin = lambda *_: origin | inside | {"bytes": file.stat().st_size}
    compared._good._cached.clear()
    assert compared.crop(row, record, vector, 999) == whole
