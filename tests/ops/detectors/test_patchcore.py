"""What PatchCore computes, against brute force and the bounds that its paper implies."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from ops.detectors import coreset_bank
from ops.detectors.detector import Checkpoint
from ops.detectors.fit_cost import FitSize
from ops.detectors.patchcore import PatchCore, PatchCoreSettings
from ops.distributed import Alone
from ops.errors import UserError
from ops.features import whitening
from ops.search.patch_store import bytes_per_vector
from tests.ops.threads import together

SMALL = {"dim": 24, "projection": 0, "coreset_ratio": 0.2, "neighbours": 5}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def fit(backbone, images, **settings) -> PatchCore:
    detector = PatchCore(PatchCoreSettings(**(SMALL | settings)), backbone)
    detector.add_images(images, torch.arange(len(images)))
    detector.fitted = detector.fit(Alone(), lambda *_: None, Checkpoint())
    return detector


def patches(detector: PatchCore, images: torch.Tensor) -> torch.Tensor:
    return detector.embed(images).flatten(1, 2).double().clone()  # (B, h * w, d)


def test_scores_are_equations_6_and_7_in_float64(backbone, images):
    detector = fit(backbone, images[:3])
    bank = detector.bank.vectors.double()
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


def test_reweighting_lowers_scores_by_at_most_one_over_the_number_of_neighbours(backbone, images):
    plain, weighted = (fit(backbone, images[:2], reweight=r).score(images) for r in (False, True))
    share = (weighted.image / plain.image)[2:]
    assert (share >= 1 - 1 / 5 - 1e-6).all()
    assert (share < 1).all()


def test_a_bank_of_all_patches_gives_zero_maps_for_its_own_images(backbone, images):
    detector = fit(backbone, images[:2], coreset_ratio=1.0)
    scores = detector.score(images)
    assert (scores.map[:2] == 0).all()
    assert (scores.image[:2] == 0).all()
    assert (scores.image[2:] > 0).all()


def test_a_coreset_is_as_near_as_all_patches_up_to_its_radius(backbone, images):
    """Distances to the bank lie between those to all patches and those plus the radius."""
    full = fit(backbone, images[:2], coreset_ratio=1.0).score(images[2:]).map
    detector = fit(backbone, images[:2], coreset_ratio=0.1)
    part = detector.score(images[2:]).map
    assert (part >= full * (1 - 1e-5)).all()
    assert (part <= full + detector.radius * (1 + 1e-5)).all()


def test_the_bank_holds_unprojected_patches(backbone, images):
    detector = fit(backbone, images, projection=8)
    every = detector.embed(images).reshape(-1, 24)
    assert all((every == row).all(dim=1).any() for row in detector.bank.vectors)
    assert len(detector.bank.vectors.unique(dim=0)) == len(detector.bank)


@pytest.mark.parametrize(
    ("ratio", "cap", "expected"), [(0.1, 20_000, 19), (0.1, 7, 7), (1e-9, 9, 1)]
)
def test_ratio_and_cap_decide_the_size_of_the_bank(backbone, images, ratio, cap, expected):
    detector = fit(
        backbone, images, coreset_ratio=ratio, max_bank_size=cap
    )  # 4 images of 7 x 7 patches
    assert len(detector.bank) == expected
    assert detector.fitted.counts.patches == 196
    assert detector.fitted.counts.bank == expected
    assert detector.map_ceiling() > 0


def test_a_detector_that_is_not_fitted_says_so(backbone, images):
    with pytest.raises(ValueError, match="not fitted"):
        PatchCore(PatchCoreSettings(), backbone).score(images)


def test_the_map_ceiling_is_the_largest_distance_within_the_bank(backbone, images):
    detector = fit(backbone, images, coreset_ratio=0.05)
    table = torch.cdist(detector.bank.vectors.double(), detector.bank.vectors.double())
    table.fill_diagonal_(torch.inf)
    assert detector.map_ceiling() == pytest.approx(float(table.amin(dim=1).max()), rel=1e-4)


def test_a_bank_in_bounded_memory_proves_how_good_it_is(backbone, images):
    whole = fit(backbone, images, coreset_ratio=0.05)
    memory = 2 * 50 * bytes_per_vector(24, 24)
    bounded = fit(backbone, images, coreset_ratio=0.05, fit_memory=memory)
    table = torch.cdist(patches(bounded, images).flatten(0, 1), bounded.bank.vectors.double())
    assert bounded.fitted.counts.bank == whole.fitted.counts.bank
    metrics, exact = bounded.fitted.fit_metrics, whole.fitted.fit_metrics
    assert exact["local_r"] == 0 < metrics["local_r"]
    assert exact["factor"] == 2 < metrics["factor"]
    assert metrics["radius"] == pytest.approx(metrics["local_r"] + metrics["union_r"])
    assert float(table.amin(dim=1).max()) <= metrics["radius"] * (1 + 1e-5)
    assert exact["radius"] <= metrics["radius"]


def vectors_of(detector: PatchCore, picks, images) -> torch.Tensor:
    """The vectors of the patches that picks name."""
    every = detector.bank.whitened(detector.embed(images).flatten(1, 2))
    return every[picks.images, picks.positions]


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "whitened"])
def test_the_picks_name_the_patch_that_each_vector_is(backbone, images, metric):
    detector = fit(backbone, images, metric=metric)
    picks = detector.fitted.picks
    assert picks.grid == tuple(detector.embed(images[:1]).shape[1:3])
    assert len(picks.images) == len(detector.bank) == 39
    found = vectors_of(detector, picks, images)
    if metric == "whitened":  # products of matrices round by their shapes
        torch.testing.assert_close(found, detector.bank.vectors, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(found, detector.bank.vectors)


def test_the_picks_are_the_same_on_several_workers_of_which_one_has_no_image(backbone, images):
    def program(group):
        detector = PatchCore(PatchCoreSettings(**SMALL), backbone)
        if group.rank:
            own = torch.arange(group.rank - 1, len(images), 2)
            detector.add_images(images[own], own)
        return detector.fit(group, lambda *_: None, Checkpoint()).picks

    alone = fit(backbone, images).fitted.picks
    for picks in together(3, program):
        assert picks.grid == alone.grid
        assert torch.equal(picks.images, alone.images)
        assert torch.equal(picks.positions, alone.positions)


def test_the_picks_of_a_bank_in_bounded_memory_name_its_vectors(backbone, images):
    detector = fit(backbone, images, fit_memory=2 * 50 * bytes_per_vector(24, 24))
    assert torch.equal(vectors_of(detector, detector.fitted.picks, images), detector.bank.vectors)


def test_the_picks_of_a_resumed_fit_are_those_of_one_that_was_not_ended(backbone, images):
    class Saved(Checkpoint):
        saved: tuple = ()

        def read(self):
            return ([*self.saved[0][:5]], [*self.saved[1][:5]], 1) if self.saved else None

        def write(self, content):
            self.saved = content

    whole = fit(backbone, images, coreset_ratio=0.1)
    checkpoint = Saved()
    for _ in range(2):
        detector = PatchCore(whole.settings, backbone)
        detector.add_images(images, torch.arange(4))
        picks = detector.fit(Alone(), lambda *_: None, checkpoint).picks
        assert torch.equal(picks.images, whole.fitted.picks.images)
        assert torch.equal(picks.positions, whole.fitted.picks.positions)


def test_the_estimate_is_what_a_fit_counts(backbone, images):
    settings = PatchCoreSettings(**SMALL | {"projection": 12})
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    estimate = PatchCore.estimate(settings, FitSize(64, shapes, 4, 1))
    detector = fit(backbone, images, projection=12)
    assert estimate.vectors == detector.fitted.counts.patches
    assert estimate.kept == detector.fitted.counts.bank
    assert estimate.model_bytes == detector.bank.vectors.numel() * 4
    assert estimate.fit_bytes > estimate.vectors * 4 * 24
    halves = PatchCore.estimate(settings, FitSize(64, shapes, 4, 2))
    assert estimate.model_bytes < halves.fit_bytes < estimate.fit_bytes
    bounded = PatchCore.estimate(
        PatchCoreSettings(**SMALL, fit_memory=1000), FitSize(64, shapes, 4, 1)
    )
    assert bounded.fit_bytes == 1000 + 2 * bounded.model_bytes


def test_a_grown_bank_covers_old_and_new_patches(backbone, images):
    old = fit(backbone, images[:2], coreset_ratio=0.1)
    grown = PatchCore(old.settings, backbone)
    grown.grow(old.state(), old.fitted.counts)
    grown.add_images(images[2:], torch.arange(2))
    counts, metrics, *_ = grown.fit(Alone(), lambda *_: None, Checkpoint())
    everything = patches(grown, images).flatten(0, 1)
    assert counts.images == 4
    assert counts.patches == len(everything)
    assert counts.bank == int(0.1 * len(everything))
    cover = torch.cdist(everything, grown.bank.vectors.double()).amin(dim=1).max()
    assert float(cover) <= metrics["radius"] * (1 + 1e-5)
    assert metrics["local_r"] == pytest.approx(old.radius)


def test_the_picks_of_a_grown_bank_name_vectors_of_the_earlier_one(backbone, images):
    old = fit(backbone, images[:2], coreset_ratio=0.1)
    grown = PatchCore(old.settings, backbone)
    grown.grow(old.state(), old.fitted.counts)
    grown.add_images(images[2:], torch.arange(2))
    picks = grown.fit(Alone(), lambda *_: None, Checkpoint()).picks
    is_old = picks.images == -1
    assert 0 < int(is_old.sum()) < len(is_old)
    assert torch.equal(old.bank.vectors[picks.positions[is_old]], grown.bank.vectors[is_old])
    new = type(picks)(picks.images[~is_old], picks.positions[~is_old], picks.grid)
    assert torch.equal(vectors_of(grown, new, images[2:]), grown.bank.vectors[~is_old])


class MemoryCheckpoint(Checkpoint):
    """A checkpoint that outlives the fit."""

    def __init__(self, content=None):
        self.content = content

    def read(self):
        return self.content

    def write(self, content):
        self.content = content


def test_the_greedy_resumes_from_its_checkpoint(backbone, images):
    def fitted(checkpoint):
        detector = PatchCore(PatchCoreSettings(**SMALL), backbone)
        detector.add_images(images, torch.arange(4))
        return detector, detector.fit(Alone(), lambda *_: None, checkpoint).fit_metrics

    checkpoint = MemoryCheckpoint()
    whole, _ = fitted(checkpoint)
    ids, gains, _ = checkpoint.content
    assert len(ids) == len(whole.bank)
    resumed, metrics = fitted(MemoryCheckpoint((ids[:30], gains[:30], 7)))
    assert torch.equal(resumed.bank.vectors, whole.bank.vectors)
    assert resumed.radius == whole.radius
    assert metrics["rounds"] > 7
    other, _ = fitted(MemoryCheckpoint(([ids[0], ids[5]], [gains[0], gains[5]], 7)))
    assert not torch.equal(other.bank.vectors, whole.bank.vectors)  # so it does read the checkpoint


def test_whitened_scores_are_mahalanobis_distances_in_float64(backbone, images):
    """Whitening comes before the coreset: the pick after the first is the farthest by them."""
    detector = fit(backbone, images[:3], metric="whitened", shrinkage=0.05, coreset_ratio=0.1)
    good = patches(detector, images[:3]).flatten(0, 1).numpy()
    covariance = np.cov(good.T)
    covariance += 0.05 * covariance.diagonal().mean() * np.eye(24)
    inverse = np.linalg.inv(covariance)
    result = cdist(detector.bank.vectors.double(), detector.bank.vectors.double())
    picks = good[[0, *cdist(good[:1], good, "mahalanobis", VI=inverse).argmax(axis=1)]]
    expected = cdist(picks, picks, "mahalanobis", VI=inverse)
    np.testing.assert_allclose(result[:2, :2], expected, rtol=1e-3, atol=1e-5)
    whole = fit(backbone, images[:3], metric="whitened", shrinkage=0.05, coreset_ratio=1.0)
    every = patches(detector, images).flatten(0, 1).numpy()
    table = cdist(every, good, "mahalanobis", VI=inverse).min(axis=1)
    maps = whole.score(images).map.flatten().double()
    np.testing.assert_allclose(maps, table, rtol=1e-3, atol=1e-5)
    assert (maps[: len(good)] == 0).all()


def test_scores_of_an_affine_copy_of_the_features_are_the_same_when_whitened(backbone, images):
    """That is what whitening is for; a Euclidean distance changes with the scale of a feature."""
    scale = torch.linspace(0.1, 5, 24)

    class Scaled(PatchCore):
        def embed(self, images):
            return super().embed(images) * scale + 3

    settings = PatchCoreSettings(
        **SMALL | {"coreset_ratio": 1.0}, metric="whitened", shrinkage=1e-9
    )
    maps = []
    for kind in (PatchCore, Scaled):
        detector = kind(settings, backbone)
        detector.add_images(images[:3], torch.arange(3))
        detector.fit(Alone(), lambda *_: None, Checkpoint())
        maps.append(detector.score(images[3:]).map)
    torch.testing.assert_close(*maps, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("reweight", [False, True])
def test_scores_of_metric_cosine_are_one_minus_the_cosine_in_float64(backbone, images, reweight):
    detector = fit(backbone, images[:3], metric="cosine", embedding="plain", reweight=reweight)
    plain = PatchCore(PatchCoreSettings(**SMALL, embedding="plain"), backbone)
    features = patches(plain, images)
    assert features.shape == (4, 49, 384)
    unit = features / features.norm(dim=-1, keepdim=True)
    expected = (1 - unit @ detector.bank.vectors.double().T).amin(dim=-1)
    scores = detector.score(images)
    assert scores.map.flatten(1).numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    largest = expected.amax(dim=1).numpy()
    found = scores.image.numpy()
    assert (found[-1] < largest[-1]) if reweight else found == pytest.approx(largest, abs=1e-6)
    table = 1 - detector.bank.vectors.double() @ detector.bank.vectors.double().T
    table.fill_diagonal_(torch.inf)
    assert detector.map_ceiling() == pytest.approx(float(table.amin(dim=1).max()), rel=1e-4)


def test_scores_of_metric_cosine_do_not_depend_on_the_batch(backbone, images):
    detector = fit(backbone, images[:3], metric="cosine", embedding="concat")
    alone = [detector.score(image) for image in images.split(1)]
    together = detector.score(images)
    assert torch.equal(together.image, torch.cat([one.image for one in alone]))
    assert torch.equal(together.map, torch.cat([one.map for one in alone]))


@pytest.mark.parametrize("shards", [[[3, 1], [0, 2]], [[], [2, 0, 3, 1]], [[2], [3], [1, 0]]])
def test_a_whitened_bank_is_the_same_bits_on_any_shards_by_a_sample(
    backbone, images, shards, monkeypatch
):
    monkeypatch.setattr(whitening, "SAMPLE", 70)
    monkeypatch.setattr(coreset_bank, "_CHUNK", 16)
    settings = {"metric": "whitened", "projection": 8}
    whole = fit(backbone, images, **settings).state()

    def program(group):
        detector = PatchCore(PatchCoreSettings(**SMALL | settings), backbone)
        for row in shards[group.rank]:
            detector.add_images(images[[row]], torch.tensor([row]))
        detector.fit(group, lambda *_: None, Checkpoint())
        return detector.state()

    for state in together(len(shards), program):
        assert all(torch.equal(state[key], whole[key]) for key in whole)
    monkeypatch.setattr(whitening, "SAMPLE", 71)
    other = fit(backbone, images, **settings).state()
    assert not torch.equal(other["whitening"], whole["whitening"])  # so the sample was one


def test_a_whitened_state_that_lies_anywhere_in_memory_scores_the_same_bits(backbone, images):
    detector = fit(backbone, images[:2], metric="whitened")
    state = detector.state()
    assert state.keys() == {"bank", "radius", "mean", "whitening"}
    for offset in (1, 2, 3):
        moved = {}
        for key, value in state.items():
            room = torch.empty(value.numel() + offset)
            moved[key] = room[offset:].view(value.shape).copy_(value)
        again = PatchCore(detector.settings, backbone)
        again.load_state(moved)
        for a, b in zip(again.score(images), detector.score(images), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_whitened_model_that_is_grown_stays_whitened_as_it_was(backbone, images, rank):
    old = fit(backbone, images[:2], coreset_ratio=0.1, metric="whitened")

    def program(group):
        grown = PatchCore(old.settings, backbone)
        if group.rank == rank:
            grown.grow(old.state(), old.fitted.counts)
        row = 2 + group.rank
        grown.add_images(images[[row]], torch.tensor([row]))
        return grown, grown.fit(group, lambda *_: None, Checkpoint())

    (grown, fitted), (other, _) = together(2, program)
    assert fitted.counts.images == 4
    mean, matrix = old.state()["mean"].double(), old.state()["whitening"].double()
    for detector in (grown, other):
        assert torch.equal(detector.state()["whitening"], old.state()["whitening"])
        assert torch.equal(detector.bank.vectors, grown.bank.vectors)
    new = (patches(old, images[2:]).flatten(0, 1) - mean) @ matrix
    everything = torch.cat([old.bank.vectors.double(), new])
    distance = torch.cdist(everything, grown.bank.vectors.double())
    assert float(distance.amin(dim=1).max()) <= fitted.fit_metrics["radius"] * (1 + 1e-5)
    assert float(distance.amin(dim=0).max()) < 1e-4  # every pick is one of the old bank or new


def test_the_estimate_includes_the_whitening(backbone, images):
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    plain, white = (
        PatchCore.estimate(PatchCoreSettings(**SMALL, metric=metric), FitSize(64, shapes, 4, 1))
        for metric in ("euclidean", "whitened")
    )
    state = fit(backbone, images, metric="whitened").state()
    matrices = 4 * (state["mean"].numel() + state["whitening"].numel())
    assert white.model_bytes == plain.model_bytes + matrices
    assert white.score_bytes == plain.score_bytes + matrices
    assert white.fit_bytes > plain.fit_bytes + 2 * matrices


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fit_memory": 10**9}, "fit_memory 1000000000 must be 0 with metric = whitened"),
        ({"shrinkage": 0.0}, "shrinkage 0.0 must be above 0"),
        ({"shrinkage": math.nan}, "shrinkage nan must be above 0"),
    ],
)
def test_settings_that_contradict_whitening_are_refused(settings, message):
    PatchCoreSettings(**settings)
    with pytest.raises(UserError, match=message):
        PatchCoreSettings(metric="whitened", **settings)


def test_patches_that_are_all_alike_cannot_be_whitened(backbone, images):
    class Alike(PatchCore):
        def embed(self, images):
            return torch.full_like(super().embed(images), 0.3)

    detector = Alike(PatchCoreSettings(**SMALL, metric="whitened"), backbone)
    detector.add_images(images, torch.arange(4))
    with pytest.raises(UserError, match="all alike"):
        detector.fit(Alone(), lambda *_: None, Checkpoint())
