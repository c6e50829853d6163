"""Which images a fit rests on, and which it holds out."""

from __future__ import annotations

import pytest

from ops.detectors.patchcore import PatchCoreSettings
from ops.features.backbone import BackboneSettings
from pipelines.fitting.request import FitRequest, split
from tests.runs import Part, list_parts


def chosen(tmp_path, count, holdout):
    parts = [Part(f"{n}.png", "bolt", 1.0, label=0) for n in range(count)]
    listed = list_parts(str(tmp_path / "parts.parquet"), parts)
    request = FitRequest("patchcore", PatchCoreSettings(), BackboneSettings(), holdout=holdout)
    return split(listed, request)


@pytest.mark.parametrize(
    ("count", "holdout", "held_out"),
    [
        (1, 0.9, 0),
        (2, 0.9, 1),
        (2, 0.1, 1),
        (4, 0.99, 3),
        (20, 0.1, 2),
        (20, 0.0, 0),
        (20, 0.97, 19),
    ],
)
def test_of_each_product_one_image_at_least_is_fitted_on(tmp_path, count, holdout, held_out):
    result = chosen(tmp_path, count, holdout)
    assert (len(result.fit), len(result.held_out)) == (count - held_out, held_out)
    ids = result.fit["image_id"].to_pylist() + result.held_out["image_id"].to_pylist()
    assert len(set(ids)) == count
