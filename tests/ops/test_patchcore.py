"""What PatchCore computes, against brute force and the bounds that its paper implies."""

import math

import pytest
import torch

from ops.group import Alone
from ops.method import Load, Notes
from ops.patchcore import PatchCore, PatchCoreSettings
from ops.shard import bytes_each

SMALL = {"dim": 24, "projection": 0, "ratio": 0.2, "neighbours": 5}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def fit(backbone, images, **settings) -> PatchCore:
    detector = PatchCore(PatchCoreSettings(**(SMALL | settings)), backbone)
    detector.gather(images, torch.arange(len(images)))
    detector.figures = detector.fit(Alone(), lambda *_: None, Notes()).figures
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


def test_a_bank_in_bounded_memory_proves_how_good_it_is(backbone, images):
    whole = fit(backbone, images, ratio=0.05)
    memory = 2 * 50 * bytes_each(24, 24)
    bounded = fit(backbone, images, ratio=0.05, memory=memory)
    table = torch.cdist(patches(bounded, images).flatten(0, 1), bounded.bank.double())
    figures = bounded.figures
    assert figures["bank"] == whole.figures["bank"]
    assert whole.figures["local_r"] == 0 < figures["local_r"]
    assert whole.figures["factor"] == 2 < figures["factor"]
    assert figures["radius"] == pytest.approx(figures["local_r"] + figures["union_r"])
    assert float(table.amin(dim=1).max()) <= figures["radius"] * (1 + 1e-5)
    assert whole.figures["radius"] <= figures["radius"]


def test_its_demand_is_what_a_fit_then_finds(backbone, images):
    settings = PatchCoreSettings(**SMALL | {"projection": 12})
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    demand = PatchCore.demand(settings, Load(64, shapes, 4, 1))
    fitted = fit(backbone, images, projection=12)
    assert demand.vectors == fitted.figures["patches"]
    assert demand.kept == fitted.figures["bank"]
    assert demand.model_bytes == fitted.bank.numel() * 4
    assert demand.fit_bytes > demand.vectors * 4 * 24
    halves = PatchCore.demand(settings, Load(64, shapes, 4, 2))
    assert demand.model_bytes < halves.fit_bytes < demand.fit_bytes
    bounded = PatchCore.demand(PatchCoreSettings(**SMALL, memory=1000), Load(64, shapes, 4, 1))
    assert bounded.fit_bytes == 1000 + 2 * bounded.model_bytes


def test_a_grown_bank_covers_old_and_new_patches(backbone, images):
    old = fit(backbone, images[:2], ratio=0.1)
    grown = PatchCore(old.settings, backbone)
    grown.grow(old.state(), old.figures)
    grown.gather(images[2:], torch.arange(2))
    figures = grown.fit(Alone(), lambda *_: None, Notes()).figures
    everything = patches(grown, images).flatten(0, 1)
    assert figures["images"] == 4
    assert figures["patches"] == len(everything)
    assert figures["bank"] == int(0.1 * len(everything))
    cover = torch.cdist(everything, grown.bank.double()).amin(dim=1).max()
    assert float(cover) <= figures["radius"] * (1 + 1e-5)
    assert figures["local_r"] == pytest.approx(old.radius)


class Kept(Notes):
    """Notes that stay, as a group's do when it breaks."""

    def __init__(self, found=None):
        self.found = found

    def read(self):
        return self.found

    def write(self, found):
        self.found = found


def test_a_merge_goes_on_from_the_notes_of_one_that_broke(backbone, images):
    def merged(notes):
        detector = PatchCore(PatchCoreSettings(**SMALL), backbone)
        detector.gather(images, torch.arange(4))
        return detector, detector.fit(Alone(), lambda *_: None, notes).figures

    notes = Kept()
    whole, _ = merged(notes)
    ids, gains, _ = notes.found
    assert len(ids) == len(whole.bank)
    resumed, figures = merged(Kept((ids[:30], gains[:30], 7)))
    assert torch.equal(resumed.bank, whole.bank)
    assert resumed.radius == whole.radius
    assert figures["rounds"] > 7
    other, _ = merged(Kept(([ids[0], ids[5]], [gains[0], gains[5]], 7)))
    assert not torch.equal(other.bank, whole.bank)  # it does go on from what it reads
