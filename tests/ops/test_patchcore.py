"""What PatchCore computes, against brute force and the bounds that its paper implies."""

import math

import pytest
import torch

from ops.group import Alone
from ops.patchcore import PatchCore, PatchCoreSettings

SMALL = {"dim": 24, "projection": 0, "ratio": 0.2, "neighbours": 5}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def fit(backbone, images, **settings) -> PatchCore:
    detector = PatchCore(PatchCoreSettings(**(SMALL | settings)), backbone)
    detector.gather(images, torch.arange(len(images)))
    detector.figures = detector.merge(Alone(), lambda *_: None)
    return detector


def patches(detector: PatchCore, images: torch.Tensor) -> torch.Tensor:
    return detector.embed(images).flatten(1, 2).double().clone()  # (B, h * w, d)


def test_scores_are_equations_6_and_7_in_float64(backbone, images):
    detector = fit(backbone, images[:3])
    bank = detector.bank.double()
    table = torch.cdist(
        patches(detector, images), bank, compute_mode="donot_use_mm_for_euclid_dist"
    )
    scores = detector.score(images)
    torch.testing.assert_close(scores.map.flatten(1).double(), table.amin(2), rtol=1e-4, atol=1e-6)
    for i in range(4):
        patch = int(table[i].amin(dim=1).argmax())
        nearest = int(table[i, patch].argmin())
        around = (bank - bank[nearest]).norm(dim=1).argsort()[:5]
        s = float(table[i, patch, nearest])
        weight = 1 - math.exp(s) / sum(math.exp(v) for v in table[i, patch, around].tolist())
        assert float(scores.image[i]) == pytest.approx(weight * s, rel=1e-4)


def test_without_weights_the_image_score_is_the_largest_patch_score(backbone, images):
    scores = fit(backbone, images[:2], reweight=False).score(images)
    assert torch.equal(scores.image, scores.map.flatten(1).amax(dim=1))


def test_the_weight_is_a_tie_breaker(backbone, images):
    plain, weighted = (fit(backbone, images[:2], reweight=r).score(images) for r in (False, True))
    share = (weighted.image / plain.image)[2:]
    assert (share >= 1 - 1 / 5 - 1e-6).all()
    assert (share < 1).all()


def test_a_bank_of_all_patches_gives_zero_maps_for_its_own_images(backbone, images):
    detector = fit(backbone, images[:2], ratio=1.0)
    scores = detector.score(images)
    assert (scores.map[:2] == 0).all()
    assert (scores.image[:2] == 0).all()
    assert (scores.image[2:] > 0).all()


def test_a_coreset_is_as_near_as_all_patches_up_to_its_radius(backbone, images):
    """Distances to the bank lie between those to all patches and those plus the radius."""
    full = fit(backbone, images[:2], ratio=1.0).score(images[2:]).map
    detector = fit(backbone, images[:2], ratio=0.1)
    part = detector.score(images[2:]).map
    assert (part >= full * (1 - 1e-5)).all()
    assert (part <= full + detector.radius * (1 + 1e-5)).all()


def test_the_bank_holds_unprojected_patches(backbone, images):
    detector = fit(backbone, images, projection=8)
    every = detector.embed(images).reshape(-1, 24)
    assert all((every == row).all(dim=1).any() for row in detector.bank)
    assert len(detector.bank.unique(dim=0)) == len(detector.bank)


@pytest.mark.parametrize(
    ("ratio", "cap", "expected"), [(0.1, 20_000, 19), (0.1, 7, 7), (1e-9, 9, 1)]
)
def test_ratio_and_cap_decide_the_size_of_the_bank(backbone, images, ratio, cap, expected):
    detector = fit(backbone, images, ratio=ratio, cap=cap)  # 4 images of 7 x 7 patches
    assert len(detector.bank) == expected
    assert detector.figures["patches"] == 196
    assert detector.figures["bank"] == expected
    assert detector.map_ceiling() > 0


def test_a_detector_that_is_not_fitted_says_so(backbone, images):
    with pytest.raises(ValueError, match="not fitted"):
        PatchCore(PatchCoreSettings(), backbone).score(images)


def test_the_map_ceiling_is_the_loneliest_of_the_bank(backbone, images):
    detector = fit(backbone, images, ratio=0.05)
    table = torch.cdist(detector.bank.double(), detector.bank.double())
    table.fill_diagonal_(torch.inf)
    assert detector.map_ceiling() == pytest.approx(float(table.amin(dim=1).max()), rel=1e-4)
