"""Fits that compare positions warn of pictures that lie further apart than a patch is large."""

from dataclasses import replace

import numpy as np
import pytest

from ops.detectors.cflow import CFlowSettings
from ops.detectors.padim import PaDiMSettings
from ops.detectors.patchcore import PatchCoreSettings
from ops.features.backbone import BackboneSettings
from ops.images.inspection import InspectionMask
from ops.images.resize import InputSettings
from pipelines.fitting.alignment import misplaced, placement_matters
from pipelines.fitting.picture_sizes import PictureSizes
from pipelines.fitting.request import FitRequest
from tests import pictures

PADIM = FitRequest("padim", PaDiMSettings(), BackboneSettings(), InputSettings(224))
PATCHCORE = replace(PADIM, method="patchcore", settings=PatchCoreSettings())
MASKED = replace(PATCHCORE, masks={"nut": InspectionMask.of(np.ones((8, 8), bool))})
#: The coarser one has patches of a fourteenth of the input: 7.1 %.
LAYERS = [(64, 28, 28), (128, 14, 14)]


def nuts(most: float = 0.0, degrees: float = 0.0, size: tuple[int, int] = (640, 480)):
    random = np.random.default_rng(0)
    drawn = [
        pictures.bracket(seed, random.uniform(-most, most), 0, random.uniform(-degrees, degrees))
        for seed in range(16)
    ]
    return PictureSizes({"nut": [size] * 16}, {"nut": np.stack(drawn)})


def test_placement_matters_to_methods_with_positions_and_to_masks():
    assert placement_matters(PADIM)
    assert placement_matters(replace(PADIM, method="cflow", settings=CFlowSettings()))
    assert not placement_matters(PATCHCORE)
    assert placement_matters(MASKED)


def test_shifts_beyond_a_patch_are_warned_of():
    (sentence,) = misplaced(nuts(0.12), PADIM, LAYERS)
    share = float(sentence.split("shifted by up to ")[1].split("%")[0])
    assert 9 < share < 13
    assert sentence == (
        f"warning: good images of nut are shifted by up to {share}% of the picture's side (90 % of "
        "16 pictures), and a patch of the coarsest layer is 7.1%; padim compares patches at the "
        "same position, so align the pictures, or choose a method that does not, such as patchcore"
    )


def test_turns_beyond_a_patch_are_warned_of():
    (sentence,) = misplaced(nuts(degrees=30), PADIM, LAYERS)
    degrees = float(sentence.split("turned by up to ")[1].split(" degrees")[0])
    assert 25 < degrees < 35
    share = float(sentence.split("moves a patch by ")[1].split("%")[0])
    assert share == pytest.approx(38.3 * np.radians(degrees), abs=0.5)


@pytest.mark.parametrize("places", [nuts(), nuts(0.05), nuts(degrees=5)])
def test_shifts_within_a_patch_are_not(places):
    assert list(misplaced(places, PADIM, LAYERS)) == []


def test_a_mask_is_warned_of_by_the_patches_of_tiles():
    tiled = replace(MASKED, input=InputSettings(64, fit="tile"))
    assert list(misplaced(nuts(0.12, size=(64, 64)), tiled, [(8, 4, 4)])) == []  # 25 %
    (sentence,) = misplaced(nuts(0.12), tiled, [(8, 4, 4)])  # 16 of 480 pixels
    assert "a patch of the coarsest layer is 3.3%; an inspection mask stays" in sentence


def test_detectors_without_small_pictures_are_silent():
    assert list(misplaced(PictureSizes({"nut": [(64, 64)]}), PADIM, LAYERS)) == []
