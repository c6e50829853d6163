"""Fits on a cluster: every good image takes part, and broken ones are bounded."""

from __future__ import annotations

import pytest

from ops.detectors import bank_origins
from ops.storage import files, uris
from pipelines.cluster.resources import Resources
from pipelines.fitting import fit
from pipelines.fitting.request import NothingToFit
from tests.conftest import draw_archive
from tests.pipelines.scored_archive import SLOTS, nothing, request, take

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_every_good_image_is_in_the_bank_whatever_the_number_of_workers(cluster, tmp_path):
    """Odd counts over three workers: an equal split would leave images out."""
    folder = draw_archive(tmp_path / "archive", train=11, test=1)
    listed = take(folder, tmp_path / "inventory.parquet")
    models = {
        workers: fit.fit(
            listed,
            request(holdout=0.0),
            Resources(workers=workers, cpus=1, reader_cpus=0.5, batch=batch),
            nothing,
        )
        for workers, batch in ((1, 8), (3, 5))
    }
    for model in models.values():
        for card in model.card.products.values():
            assert card.counts.images == 11
            assert card.counts.patches == 11 * 15 * 15
    banks = [{p: t["bank"] for p, t in model.products.items()} for model in models.values()]
    for product, bank in banks[0].items():
        assert len(bank) == int(0.1 * 11 * 15 * 15)
        assert all((other[product] == bank).all() for other in banks[1:])
    assert len({model.card.model_id for model in models.values()}) == 1
    (data,) = {model.origins for model in models.values()}
    origins = bank_origins.from_bytes(data, "").to_pylist()
    assert len(origins) == sum(map(len, banks[0].values()))
    assert all(files.exists(uris.parse(row["uri"]).location) for row in origins)
    assert {row["file"] for row in origins} == {f"{product}.safetensors" for product in banks[0]}


def test_a_fit_over_its_limit_of_broken_images_says_so(cluster, tmp_path):
    folder = draw_archive(tmp_path / "archive", train=5, test=1)
    for i in range(3):
        (folder / "washer" / "train" / "good" / f"{i:03d}.png").write_bytes(b"broken")
    listed = take(folder, tmp_path / "inventory.parquet")
    with pytest.raises(NothingToFit, match=r"3 images of the fit cannot be read.*\(2\)"):
        fit.fit(listed, request(holdout=0.0, max_failed="2"), SLOTS, nothing)
