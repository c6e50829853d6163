"""A fit leaves out images that crash every process that reads them, and lists them."""

from __future__ import annotations

import functools

import pytest

from ops.images.read_images import Read
from pipelines.fitting import calibrate, fit
from pipelines.fitting.quarantine import find_crashing_images
from pipelines.fitting.request import split
from tests.pipelines.deadly import Deadly, DeadlyStream
from tests.pipelines.scored_archive import SLOTS, nothing, request, take

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def inventory(cluster, archive, tmp_path_factory):
    return take(archive, tmp_path_factory.mktemp("inventory") / "inventory.parquet")


def reader(kind, **more):
    return kind(request().input, request().decode, request().fetch, **more)


@pytest.mark.campaign
def test_images_that_crash_processes_are_found_among_the_others(inventory):
    rows = split(inventory, request()).fit
    uris = rows["uri"].to_pylist()
    victims = (uris[1], uris[2], uris[-1])
    reports = []
    crashing = find_crashing_images(
        reader(Deadly, victims=victims), rows, SLOTS, lambda *report: reports.append(report)
    )
    ids = dict(zip(uris, rows["image_id"].to_pylist(), strict=True))
    assert set(crashing) == {ids[uri] for uri in victims}
    assert all("every process that handled it died" in reason for reason in crashing.values())
    assert {stage for stage, *_ in reports} == {"quarantine"}
    assert find_crashing_images(reader(Read), rows, SLOTS, nothing) == {}


def test_a_fit_and_its_calibration_leave_them_out(inventory, monkeypatch):
    chosen = split(inventory, request())
    fitted, held_out = (
        next(uri for uri in rows["uri"].to_pylist() if "washer" in uri)
        for rows in (chosen.fit, chosen.held_out)
    )
    victims = (fitted, held_out)
    monkeypatch.setattr(fit, "_RESTARTS", 0)  # each takes a minute, and ends like the first
    monkeypatch.setattr(fit, "Read", functools.partial(Deadly, victims=victims))
    monkeypatch.setattr(
        calibrate, "ScoringStream", functools.partial(DeadlyStream, victims=victims)
    )
    card = fit.fit(inventory, request(max_failed="1"), SLOTS, nothing).card
    assert card.fit["failed"] == 1
    (failure,) = card.fit["failures"]
    assert failure.startswith(f"{fitted}: every process that handled it died")
    counts = {name: product.counts.images for name, product in card.products.items()}
    of_all = {name: chosen.fit["product"].to_pylist().count(name) for name in card.products}
    assert counts == of_all | {"washer": of_all["washer"] - 1}
    held = {name: len(product.calibration.scores) for name, product in card.products.items()}
    of_all = {name: chosen.held_out["product"].to_pylist().count(name) for name in card.products}
    assert held == of_all | {"washer": of_all["washer"] - 1}
