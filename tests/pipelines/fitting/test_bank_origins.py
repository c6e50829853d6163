"""The table of origins leads back to the vectors of a bank, over fits without a cluster."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from PIL import Image

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import SCHEMA
from ops.detectors import bank_origins
from ops.detectors.detector import Checkpoint
from ops.detectors.image_batches import Tiles, to_images
from ops.detectors.model_folder import read_model, write_model
from ops.detectors.patchcore import PatchCore, PatchCoreSettings
from ops.distributed import Alone
from ops.errors import UserError
from ops.features.backbone import Backbone
from ops.images.decode import DecodeSettings
from ops.images.read_images import Read
from ops.images.resize import InputSettings
from ops.storage import paths, uris
from pipelines.fitting import bank_origins as fitting
from pipelines.fitting.coordinator import FitCoordinator
from pipelines.fitting.depths import Depths
from pipelines.fitting.request import ALL, ROW
from pipelines.fitting.worker import _add_tiles, _contents
from pipelines.scoring.read_stage import CARRIED
from tests import pictures
from tests.conftest import tiny_model
from tests.ops.conftest import TINY

TILES = InputSettings(size=64, fit="tile", overlap=0.5)
WHOLE = InputSettings(size=64)
SMALL = PatchCoreSettings(dim=24, projection=0, coreset_ratio=0.05)
Coordinator = FitCoordinator.__ray_metadata__.modified_class


@pytest.fixture(scope="module")
def backbone():
    return Backbone(TINY)


def listed(folder, *seeds):
    """Rows to fit on of drawn pictures; their numbers are in another order."""
    rows = []
    for seed in seeds:
        pixels = pictures.texture(seed, 150)[:90]
        Image.fromarray(pixels).save(folder / f"{seed}.png")
        place = {"image_id": str(seed), "uri": uris.make(str(folder / f"{seed}.png"))}
        rows.append(place | {"product": "bolt"})
    table = pa.Table.from_pylist(rows, SCHEMA).select(list(CARRIED))
    return table.append_column(ROW, pa.array(range(len(rows))[::-1], pa.int64()))


def read(rows, settings):
    return Read(settings, DecodeSettings(), FetchSettings())(rows)


def fit(backbone, table, settings, name="bolt", earlier=None):
    """A detector that is fitted as a worker does, and the file of origins of its model."""
    detector = PatchCore(SMALL, backbone)
    if earlier:
        (product, state), *_ = earlier.products.items()
        detector.grow(state, earlier.card.products[product].counts)
    rows = read(table, settings)
    coordinator = Coordinator(len(rows), Depths(None, {}))
    coordinator.add_images(rows[ROW].to_pylist(), {}, {}, {}, _contents(rows))
    if settings.tiled:
        for part in Tiles(rows, settings, "cpu", range(len(rows))).batches(5):
            _add_tiles(part, rows[ROW].to_pylist(), detector)
    else:
        detector.add_images(to_images(rows, settings, "cpu"), torch.tensor(rows[ROW].to_pylist()))
    fitted = detector.fit(Alone(), lambda *_: None, Checkpoint())
    picks = {name: fitted.picks, "nut": None}
    data = fitting.kept(table, picks, coordinator.contents, settings, earlier)
    return detector, fitted, data


def vector_at(detector, origin, settings):
    """The patch vector of a place, from its picture alone."""
    row = pa.Table.from_pylist([{k: origin[k] for k in ("uri", "product")}], SCHEMA)
    pixels = read(row, settings)
    if settings.tiled:
        (part,) = Tiles(pixels, settings, "cpu", [0]).batches(1000)
        images = part.images[origin["tile"]][None]
    else:
        images = to_images(pixels, settings, "cpu")
    return detector.embed(images).flatten(1, 2)[0, origin["position"]]


@pytest.mark.parametrize("settings", [WHOLE, TILES], ids=["whole", "tiles"])
def test_each_origin_gives_back_its_vector_and_names_its_pixels(backbone, tmp_path, settings):
    table = listed(tmp_path, 3, 4, 5)
    detector, _, data = fit(backbone, table, settings)
    rows = bank_origins.from_bytes(data, "m").to_pylist()
    assert [row["vector"] for row in rows] == list(range(len(detector.bank)))
    assert {row["file"] for row in rows} == {"bolt.safetensors"}
    assert len({row["image_id"] for row in rows}) == 3
    for row in rows:
        assert torch.equal(vector_at(detector, row, settings), detector.bank[row["vector"]])
        assert row["uri"] == uris.make(str(tmp_path / f"{row['image_id']}.png"))
        assert (row["width"], row["height"]) == (150, 90)
        assert len(row["content_sha256"]) == 64
        assert (row["tile"] is None) == (settings is WHOLE)
    # Squashed, 7 x 7 patches share 150 x 90 pixels.
    if settings is WHOLE:
        row = rows[0]
        y, x = divmod(row["position"], 7)
        assert (row["left"], row["top"]) == (150 * x // 7, 90 * y // 7)


@pytest.mark.parametrize("settings", [WHOLE, TILES], ids=["whole", "tiles"])
@pytest.mark.parametrize(("name", "file"), [("bolt", "bolt.safetensors"), (ALL, paths.JOINT)])
def test_a_grown_bank_knows_where_its_earlier_vectors_were_from(
    backbone, tmp_path, settings, name, file
):
    old, fitted, data = fit(backbone, listed(tmp_path, 3, 4), settings, name)
    model = tiny_model("bolt")
    product = replace(model.card.products["bolt"], counts=fitted.counts, file=file)
    other = bank_origins.from_bytes(data, "m").slice(0, 1).to_pylist()[0] | {"file": "x"}
    both = pa.Table.from_pylist(
        [*bank_origins.from_bytes(data, "m").to_pylist(), other], bank_origins.SCHEMA
    )
    earlier = replace(
        model,
        card=replace(model.card, products={"bolt": product}),
        products={"bolt": old.state()},
        origins=bank_origins.to_bytes(both),
    )
    grown, *_, again = fit(backbone, listed(tmp_path, 7, 8), settings, name, earlier)
    rows = bank_origins.from_bytes(again, "m").to_pylist()
    assert rows.pop()["file"] == "x"  # of a detector that stays as it is
    assert [row["vector"] for row in rows] == list(range(len(grown.bank)))
    assert {row["image_id"] for row in rows} == {"3", "4", "7", "8"}
    for row in rows:
        assert torch.equal(vector_at(grown, row, settings), grown.bank[row["vector"]])
    # A model of an earlier release says nothing of its vectors.
    *_, partly = fit(
        backbone, listed(tmp_path, 7, 8), settings, name, replace(earlier, origins=b"")
    )
    new = bank_origins.from_bytes(partly, "m").to_pylist()
    assert new == [row for row in rows if row["image_id"] in {"7", "8"}]


def test_a_model_without_banks_has_no_such_file():
    nothing = SCHEMA.empty_table().append_column(ROW, pa.array([], pa.int64()))
    assert fitting.kept(nothing, {"bolt": None}, lambda _: {}, WHOLE, None) == b""


def test_origins_lie_in_the_model_folder_and_play_no_part_in_its_id(backbone, tmp_path):
    *_, data = fit(backbone, listed(tmp_path, 3), WHOLE)
    model = tiny_model("bolt")
    location = str(tmp_path / "model")
    write_model(location, replace(model, origins=data))
    again = read_model(location)
    assert again.origins == data
    assert again.card.model_id == model.card.model_id
    with pytest.raises(UserError, match=r"origins of the bank of model m cannot be read"):
        bank_origins.from_bytes(b"damaged", "m")
    assert len(bank_origins.from_bytes(b"", "m")) == 0
