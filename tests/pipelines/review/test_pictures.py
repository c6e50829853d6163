"""What is decoded for views and details of pictures."""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict

import numpy as np
from PIL import Image

from ops.archives.fetch import FetchSettings
from ops.images.decode import DecodeSettings
from ops.images.resize import InputSettings
from ops.storage import uris
from ops.storage.paths import Out
from pipelines.reports import part_files
from pipelines.review.pictures import Pictures
from tests import pictures


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_view_decodes_a_fraction_once_and_details_the_whole_once(tmp_path, monkeypatch):
    pixels = np.full((600, 1000, 3), 90, np.uint8)
    pixels[300:, 500:] = 200
    data = pictures.encoded(pixels, "JPEG", quality=95)
    (tmp_path / "a.jpg").write_bytes(data)
    row = {
        **{"uri": uris.make(str(tmp_path / "a.jpg")), "image_id": "a", "run_id": "r"},
        **{"content_sha256": hashlib.sha256(data).hexdigest(), "width": 1000, "height": 600},
    }
    record = {"input": asdict(InputSettings()), "decode": asdict(DecodeSettings())}
    asked = []
    decode = part_files.decode

    def counted(data, settings, least_side):
        asked.append(least_side)
        return decode(data, settings, least_side=least_side)

    monkeypatch.setattr(part_files, "decode", counted)
    shown = Pictures(Out(str(tmp_path)), FetchSettings())
    assert pixels_of(shown.crop(row, record, None, 240)).shape == (144, 240, 3)
    assert shown.cached_bytes == 150 * 250 * 3
    shown.crop(row, record, None, 250)
    shown.crop(row, record, None, 100)
    assert asked == [240]
    assert pixels_of(shown.crop(row, record, None, 400)).shape == (240, 400, 3)
    assert asked == [240, 400]
    # A detail has the pixels of the file, and later views are taken from it.
    for left in (400, 600):
        box = (left, 200, left + 100, 500)
        detail = pixels_of(shown.crop(row, record, box, 300, lossless=True))
        assert np.array_equal(detail, decode(data).pixels[200:500, left : left + 100])
    shown.crop(row, record, None, 900)
    assert asked == [240, 400, None]
    assert shown.cached_bytes == 1000 * 600 * 3
    # What cannot be decoded at a fraction is decoded once.
    Image.fromarray(pixels).save(tmp_path / "a.png")
    png = (tmp_path / "a.png").read_bytes()
    row |= {"uri": uris.make(str(tmp_path / "a.png")), "image_id": "b"}
    row |= {"content_sha256": hashlib.sha256(png).hexdigest()}
    shown.crop(row, record, None, 240)
    detail = pixels_of(shown.crop(row, record, (0, 0, 9, 9), 9, lossless=True))
    assert np.array_equal(detail, pixels[:9, :9])
    assert asked == [240, 400, None, 240]
