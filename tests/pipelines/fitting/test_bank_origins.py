"""The table of origins leads back to the vectors of a bank, over fits without a cluster."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from ops.archives.inventory import SCHEMA
from ops.detectors import bank_origins
from ops.detectors.image_batches import Tiles, to_images
from ops.detectors.model_folder import read_model, write_model
from ops.errors import UserError
from ops.storage import paths, uris
from pipelines.fitting import bank_origins as fitting
from pipelines.fitting.request import ALL, ROW
from tests.banks import TILES, WHOLE, fit, listed, read
from tests.conftest import tiny_model


def vectors_of(detector, origins, settings):
    """The patch vector of each place, from its picture alone."""
    embedded = {}
    for uri in {origin["uri"] for origin in origins}:
        row = read(pa.Table.from_pylist([{"uri": uri, "product": "bolt"}], SCHEMA), settings)
        if settings.tiled:
            (part,) = Tiles(row, settings, "cpu", [0]).batches(1000)
            images = part.images
        else:
            images = to_images(row, settings, "cpu")
        embedded[uri] = detector.embed(images).flatten(1, 2)
    return [embedded[each["uri"]][each["tile"] or 0, each["position"]] for each in origins]


@pytest.mark.parametrize("settings", [WHOLE, TILES], ids=["whole", "tiles"])
def test_each_origin_gives_back_its_vector_and_names_its_pixels(tmp_path, settings):
    table = listed(tmp_path, 3, 4, 5)
    detector, _, data = fit(table, settings)
    rows = bank_origins.from_bytes(data, "m").to_pylist()
    assert [row["vector"] for row in rows] == list(range(len(detector.bank)))
    assert {row["file"] for row in rows} == {"bolt.safetensors"}
    assert len({row["image_id"] for row in rows}) == 3
    assert torch.equal(torch.stack(vectors_of(detector, rows, settings)), detector.bank.vectors)
    for row in rows:
        assert row["uri"] == uris.make(str(tmp_path / f"{row['image_id']}.png"))
        assert (row["width"], row["height"]) == (150, 90)
        assert len(row["content_sha256"]) == 64
        assert (row["tile"] is None) == (settings is WHOLE)
        if settings is WHOLE:  # 15 x 15 patches of 150 x 90 pixels
            y, x = divmod(row["position"], 15)
            box = [row[side] for side in ("left", "top", "right", "bottom")]
            assert box == [10 * x, 6 * y, 10 * x + 10, 6 * y + 6]


@pytest.mark.parametrize("settings", [WHOLE, TILES], ids=["whole", "tiles"])
@pytest.mark.parametrize(("name", "file"), [("bolt", "bolt.safetensors"), (ALL, paths.JOINT)])
def test_a_grown_bank_knows_where_its_earlier_vectors_were_from(tmp_path, settings, name, file):
    old, fitted, data = fit(listed(tmp_path, 3, 4), settings, name)
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
    grown, *_, again = fit(listed(tmp_path, 7, 8), settings, name, earlier)
    rows = bank_origins.from_bytes(again, "m").to_pylist()
    assert rows.pop()["file"] == "x"  # of a detector that stays as it is
    assert [row["vector"] for row in rows] == list(range(len(grown.bank)))
    assert {row["image_id"] for row in rows} == {"3", "4", "7", "8"}
    assert torch.equal(torch.stack(vectors_of(grown, rows, settings)), grown.bank.vectors)
    # A model that has lost its table says nothing of its vectors.
    *_, partly = fit(listed(tmp_path, 7, 8), settings, name, replace(earlier, origins=b""))
    new = bank_origins.from_bytes(partly, "m").to_pylist()
    assert new == [row for row in rows if row["image_id"] in {"7", "8"}]


def test_a_model_without_banks_has_no_such_file():
    nothing = SCHEMA.empty_table().append_column(ROW, pa.array([], pa.int64()))
    assert fitting.kept(nothing, {"bolt": None}, lambda _: {}, WHOLE, None) == b""


def test_origins_lie_in_the_model_folder_and_play_no_part_in_its_id(tmp_path):
    *_, data = fit(listed(tmp_path, 3), WHOLE)
    model = tiny_model("bolt")
    location = str(tmp_path / "model")
    write_model(location, replace(model, origins=data))
    again = read_model(location)
    assert again.origins == data
    assert again.card.model_id == model.card.model_id
    with pytest.raises(UserError, match=r"origins of the bank of model m cannot be read"):
        bank_origins.from_bytes(b"damaged", "m")
    assert len(bank_origins.from_bytes(b"", "m")) == 0
