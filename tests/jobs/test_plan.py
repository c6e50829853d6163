"""What jobs.plan says of a fit: no Ray."""

from __future__ import annotations

import pytest

from jobs import plan
from ops.detectors.fit_cost import FitSize, ResourceEstimate
from pipelines.fitting.plan import Plan


@pytest.mark.parametrize(
    ("units", "said"),
    [(10, "10 images are held out"), (4, "10 images of 4 parts are held out")],
)
def test_held_out_images_of_one_part_are_told_as_parts(units, said, capsys):
    size, estimate = FitSize(224, [(8, 28, 28)], 90, 3), ResourceEstimate(1, 1, 1, 1, 1, "")
    plan._print_summary(Plan(1, {"nut": size}, {"nut": 90}, 10, {"nut": estimate}, 0, 0, units))
    assert f"{said} for calibration" in capsys.readouterr().out
