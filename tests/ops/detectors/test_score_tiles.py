"""Pictures cut into tiles: one row, one score, one map; padding plays no part."""

import copy
import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from ops.archives.fetch import FetchSettings
from ops.detectors import image_batches
from ops.detectors.detector import Checkpoint, FitCounts, Scores, shown_cells
from ops.detectors.image_batches import Tiles, to_images
from ops.detectors.model_card import ModelCard, ProductCard
from ops.detectors.patchcore import PatchCore, PatchCoreSettings
from ops.detectors.score_images import ScoreImages
from ops.distributed import Alone
from ops.images.decode import DecodeSettings, Picture
from ops.images.packed_pixels import column, views
from ops.images.read_images import Read
from ops.images.resize import InputSettings, geometry, pack, resize
from ops.images.tiles import tile_id
from ops.results import map_png
from ops.results.anomaly_map import Scale, enlarge
from ops.results.calibration import Calibration
from ops.results.write_maps import DrawMaps, DrawSketches
from ops.storage import files, uris
from ops.storage.paths import Out
from tests import pictures
from tests.ops.conftest import TINY

TILES = InputSettings(size=64, fit="tile", overlap=0.5)
SETTINGS = PatchCoreSettings(dim=24, projection=0, coreset_ratio=0.05)


def texture(seed: int, width: int, height: int) -> np.ndarray:
    """A picture of one kind of surface, of any size."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 110 + 40 * np.sin(x / 3.0) * np.cos(y / 4.0)
    return np.clip(waves + random.normal(0, 4, waves.shape), 0, 255).astype(np.uint8)


def rows_of(drawn: list[np.ndarray], settings: InputSettings, depth: int = 8) -> pa.Table:
    """Rows as `Read` makes them."""
    inputs = [resize(Picture(pixels, depth), settings) for pixels in drawn]
    return pa.table(
        {
            "image_id": [f"{n:032x}" for n in range(len(drawn))],
            "product": ["nut"] * len(drawn),
            "status": ["ok"] * len(drawn),
            "reason": pa.nulls(len(drawn), pa.string()),
            "width": [pixels.shape[1] for pixels in drawn],
            "height": [pixels.shape[0] for pixels in drawn],
            "bit_depth": [depth] * len(drawn),
            "channels": [1 if pixels.ndim == 2 else 3 for pixels in drawn],
            "pixels": column([pack(pixels) for pixels in inputs]),
        }
    )


def add_tiles(detector, rows: pa.Table, settings: InputSettings, count: int = 7) -> None:
    for part in Tiles(rows, settings, "cpu", range(len(rows))).batches(count):
        ids = torch.tensor([tile_id(*place) for place in zip(part.rows, part.numbers, strict=True)])
        if part.inside is None:
            detector.add_images(part.images, ids)
        else:
            detector.add_inside(part.images, ids, part.inside)


class Tensors:
    """A model in memory."""

    def __init__(self, card, backbone, detector) -> None:
        self.card = card
        self.of_backbone = backbone.state
        self.masks = {}
        self.of_product = lambda product: detector.state()


@pytest.fixture(scope="module")
def tensors(backbone) -> Tensors:
    detector = PatchCore(SETTINGS, backbone)
    add_tiles(detector, rows_of([texture(n, 200, 150) for n in range(3)], TILES), TILES)
    detector.fit(Alone(), lambda *_: None, Checkpoint())
    product = ProductCard("nut.safetensors", "", FitCounts(1), {}, Calibration.of([0.1, 0.2, 0.3]))
    card = ModelCard(
        method="patchcore",
        settings=dataclasses.asdict(SETTINGS),
        backbone=TINY,
        backbone_sha256="",
        input=TILES,
        decode=DecodeSettings(),
        products={"nut": product},
        map_scale=Scale(0.0, 4 * detector.map_ceiling() / 65536),
        false_alarm_rate=0.5,
        fit={},
    )
    return Tensors(card, backbone, detector)


def of(tensors: Tensors, settings: InputSettings) -> Tensors:
    """The same model with another input."""
    changed = copy.copy(tensors)
    changed.card = dataclasses.replace(tensors.card, input=settings)
    return changed


def grid(row: dict) -> np.ndarray:
    return np.frombuffer(row["patch_scores"], "<f4").reshape(-1, row["grid_width"])


def test_a_picture_of_one_tile_scores_as_a_whole_input_to_the_last_bit(tensors):
    drawn = [texture(n, 64, 64) for n in range(4)]
    drawn[2][20:30, 20:30] = 255
    tiled = ScoreImages(tensors)(rows_of(drawn, TILES)).to_pylist()
    whole = InputSettings(size=64)
    squashed = ScoreImages(of(tensors, whole))(rows_of(drawn, whole)).to_pylist()
    for one, other in zip(tiled, squashed, strict=True):
        assert one["score"] == other["score"]
        # The weights of a single tile are 1 up to rounding.
        assert np.allclose(grid(one), grid(other), rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 5, 100])
def test_scores_and_maps_do_not_depend_on_batches_or_on_other_pictures(tensors, batch):
    drawn = [
        texture(n, *size) for n, size in enumerate([(150, 90), (64, 64), (300, 40), (90, 200)])
    ]
    expected = [ScoreImages(tensors)(rows_of([one], TILES)).to_pylist()[0] for one in drawn]
    found = ScoreImages(tensors, batch=batch)(rows_of(drawn, TILES)).to_pylist()
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == other["score"]
        assert one["patch_scores"] == other["patch_scores"]


def test_the_score_is_that_of_the_worst_tile(tensors):
    picture = texture(7, 200, 150)
    picture[100:110, 130:140] = 255
    rows = rows_of([picture], TILES)
    (row,) = ScoreImages(tensors)(rows).to_pylist()
    detector = tensors.card.new_detector(tensors.of_product("nut"), tensors.card.new_backbone(
        tensors.of_backbone()))  # fmt: skip
    scores = [
        detector.score(part.images).image for part in Tiles(rows, TILES, "cpu", [0]).batches(4)
    ]
    assert row["score"] == float(torch.cat(scores).max())
    assert len(torch.cat(scores)) == 6 * 4  # steps of 32
    assert row["is_anomalous"]


@pytest.mark.parametrize("place", [(30, 30), (64, 32), (62, 95), (96, 96), (150, 120), (4, 140)])
def test_a_defect_is_found_where_it_is_on_borders_of_tiles_too(tensors, tmp_path, place):
    x, y = place
    picture = texture(8, 200, 150)
    picture[y - 4 : y + 4, x - 4 : x + 4] = 255
    rows = rows_of([picture, texture(9, 200, 150)], TILES)
    draw = DrawMaps(
        "m", TILES, tensors.card.map_scale, 4.0, {"nut": 0.3}, Out(str(tmp_path)), "all"
    )
    scored, good = draw(ScoreImages(tensors)(rows)).to_pylist()
    assert abs(scored["peak_x"] - x) <= 8
    assert abs(scored["peak_y"] - y) <= 8
    assert scored["score"] > 1.5 * good["score"]
    decoded = map_png.decode(files.read_bytes(uris.parse(scored["map_uri"]).location))
    assert decoded.levels.shape == (150, 200)
    assert decoded.geometry == geometry(200, 150, TILES)


def test_maps_of_large_pictures_have_the_stated_number_of_pixels(tensors, tmp_path):
    settings = dataclasses.replace(TILES, map_pixels=5_000, scale=0.5)
    picture = texture(8, 400, 300)
    picture[100:124, 300:324] = 255
    model = of(tensors, settings)
    draw = DrawSketches(
        "m", settings, tensors.card.map_scale, 4.0, {"nut": 0.3}, Out(str(tmp_path)), "all", True
    )
    scored = ScoreImages(model, keep=True)(rows_of([picture], settings))
    (pixels,) = views(scored["pixels"])
    assert len(pixels) == 81 * 61  # the preview of the overlay
    (row,) = draw(scored).to_pylist()
    assert abs(row["peak_x"] - 312) <= 20
    assert abs(row["peak_y"] - 112) <= 20
    decoded = map_png.decode(files.read_bytes(uris.parse(row["map_uri"]).location))
    assert decoded.levels.shape == (61, 81)
    assert map_png.picture_size(decoded, settings, (400, 300)) == (400, 300)
    assert map_png.picture_size(decoded, settings, (4, 3)) == (400, 300)
    assert row["sketch"]


@pytest.mark.parametrize(("shift", "tolerance"), [(16, 0.06), (32, 0.01)])
def test_a_shifted_texture_has_the_same_map_shifted(tensors, shift, tolerance):
    wide = texture(20, 288 + shift, 96)
    wide[40:50, 150:160] = 255
    one, other = (
        enlarge(
            grid(ScoreImages(tensors)(rows_of([part], TILES)).to_pylist()[0]), (288, 96), (4, 4)
        )
        for part in (wide[:, :288], wide[:, shift:])
    )
    difference = np.abs(one[:, shift:] - other[:, :-shift])[
        :, 32:-32
    ]  # without the picture's border
    assert difference.max() <= tolerance * one.max()


@pytest.mark.parametrize("size", [(20, 200), (200, 20), (30, 40), (1, 1)])
def test_padding_is_neither_learnt_nor_scored(tensors, backbone, size):
    picture = texture(3, *size)
    rows = rows_of([picture], TILES)
    (part,) = Tiles(rows, TILES, "cpu", [0]).batches(100)
    assert part.inside is not None
    detector = PatchCore(SETTINGS, backbone)
    add_tiles(detector, rows, TILES)
    fitted = detector.fit(Alone(), lambda *_: None, Checkpoint())
    cells = shown_cells(part.inside, detector.embed(part.images).shape[1:3])
    assert fitted.counts.patches == int(cells.sum()) > 0
    assert fitted.counts.dropped_patches == 0
    known = tensors.card.new_detector(tensors.of_product("nut"), backbone)
    plain = known.score(part.images)
    inside = known.score_inside(part.images, part.inside)
    assert torch.equal(plain.map, inside.map)
    largest = plain.map.where(cells, -torch.inf).flatten(1).amax(1)
    without = PatchCore(dataclasses.replace(SETTINGS, reweight=False), backbone)
    without.load_state(known.state())
    assert torch.equal(without.score_inside(part.images, part.inside).image, largest)
    (row,) = ScoreImages(tensors)(rows).to_pylist()
    assert grid(row).max() <= largest.max() * 1.000001


def test_detectors_that_score_peaks_leave_padding_out_and_others_see_it(backbone):
    class Peaks(PatchCore):
        score_is_peak = True
        add_inside = PatchCore.__mro__[1].add_inside
        score_inside = PatchCore.__mro__[1].score_inside

        def score(self, images):
            maps = torch.tensor([[[1.0, 2.0], [3.0, torch.nan]]]).expand(len(images), 2, 2)
            return Scores(maps.flatten(1).amax(1), maps)

    inside = torch.zeros(1, 4, 4, dtype=torch.bool)
    inside[:, :3, :2] = True
    found = Peaks(SETTINGS, backbone).score_inside(torch.zeros(1, 3, 4, 4), inside)
    assert found.image.tolist() == [3.0]
    Peaks.score_is_peak = False
    whole = Peaks(SETTINGS, backbone).score_inside(torch.zeros(1, 3, 4, 4), inside)
    assert whole.image.isnan().all()


@pytest.mark.parametrize("exposure", ["median", "standard"])
@pytest.mark.parametrize("depth", [8, 16])
def test_tiles_are_exposed_as_the_whole_picture_is(exposure, depth):
    picture = texture(5, 64, 64).astype(np.uint8 if depth == 8 else np.uint16)
    picture[:, 32:] //= 3  # a half that is darker
    settings = InputSettings(size=64, exposure=exposure)
    whole = to_images(rows_of([picture], settings, depth), settings, "cpu")
    tiled = InputSettings(size=32, fit="tile", overlap=0, exposure=exposure)
    rows = rows_of([picture, picture // 2], tiled, depth)
    parts = list(Tiles(rows, tiled, "cpu", [0, 1]).batches(3))
    tiles = torch.cat([part.images for part in parts])
    assert torch.equal(tiles[0], whole[0, :, :32, :32])
    assert torch.equal(tiles[3], whole[0, :, 32:, 32:])
    assert [part.rows for part in parts] == [[0, 0, 0], [0, 1, 1], [1, 1]]
    half = to_images(rows_of([picture // 2], settings, depth), settings, "cpu")
    assert torch.equal(tiles[5], half[0, :, :32, 32:])


def test_grey_and_colour_pictures_of_all_depths_share_a_batch():
    grey, colour = texture(1, 40, 40), np.dstack([texture(n, 40, 40) for n in range(3)])
    settings = InputSettings(size=32, fit="tile", overlap=0)
    rows = pa.concat_tables([
        rows_of([grey], settings), rows_of([colour], settings),
        rows_of([grey.astype(np.uint16) * 257], settings, 16),
    ])  # fmt: skip
    (part,) = Tiles(rows, settings, "cpu", [0, 1, 2]).batches(100)
    assert part.rows == [0] * 4 + [1] * 4 + [2] * 4
    assert part.inside is None
    assert torch.allclose(part.images[:4], part.images[8:])
    expected = torch.from_numpy(colour[8:, 8:]).permute(2, 0, 1) / 255
    assert torch.equal(part.images[7], expected)


def test_no_batch_holds_more_tiles_than_asked_for(tensors, monkeypatch):
    seen = []
    batch = image_batches._batch

    def counted(images, *rest):
        seen.append(len(images))
        return batch(images, *rest)

    monkeypatch.setattr(image_batches, "_batch", counted)
    ScoreImages(tensors, batch=5)(rows_of([texture(0, 400, 300), texture(1, 64, 64)], TILES))
    assert max(seen) == 5
    assert sum(seen) == 12 * 9 + 1


def test_rows_that_failed_pass_through_and_a_score_that_is_not_finite_says_so(tensors, tmp_path):
    names = {"a.png": texture(0, 90, 70), "b.png": texture(1, 90, 70)}
    for name, drawn in names.items():
        (tmp_path / name).write_bytes(pictures.encoded(drawn))
    (tmp_path / "c.png").write_bytes(b"none")
    asked = [
        {"uri": uris.make(str(tmp_path / name)), "member": None, "bytes": None, "product": "nut",
         "problem": None, "image_id": name}
        for name in ("a.png", "c.png", "b.png")
    ]  # fmt: skip
    kinds = {"member": pa.int64(), "bytes": pa.int64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in asked[0]])
    table = pa.Table.from_pylist(asked, schema)
    (read,) = Read(TILES, DecodeSettings(), FetchSettings()).pieces(table)
    found = ScoreImages(tensors, keep=True)(read).to_pylist()
    assert [row["status"] for row in found] == ["ok", "unreadable", "ok"]
    assert [len(row["pixels"] or b"") for row in found] == [6300, 0, 6300]
    broken = dict(tensors.of_product("nut"))
    broken["bank"] = broken["bank"] * torch.nan
    model = of(tensors, TILES)
    model.of_product = lambda _: broken
    undefined = ScoreImages(model)(read).to_pylist()
    assert [row["status"] for row in undefined] == ["undefined", "unreadable", "undefined"]
