"""What PaDiM computes, against SciPy, and what it holds while it is fitted."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from ops.detectors.detector import Checkpoint, FitCounts
from ops.detectors.fit_cost import FitSize
from ops.detectors.padim import PaDiM, PaDiMSettings
from ops.detectors.position_gaussians import GaussianFit
from ops.distributed import Alone
from ops.errors import UserError
from ops.results import anomaly_map
from tests.conftest import ROOT
from tests.ops.threads import together

DIM = 40


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def unfitted(backbone, **settings) -> PaDiM:
    return PaDiM(PaDiMSettings(**({"dim": DIM} | settings)), backbone)


def fit(backbone, images, **settings) -> PaDiM:
    detector = unfitted(backbone, **settings)
    for row, image in enumerate(images):
        detector.add_images(image[None], torch.tensor([row]))
        detector.exchange(Alone())
    detector.fitted = detector.fit(Alone(), lambda *_: None, Checkpoint())
    return detector


def test_maps_are_mahalanobis_distances_in_float64(backbone, images):
    detector = fit(backbone, images[:9])
    result = detector.score(images).map
    vectors = detector.embed(images).double().numpy()  # (12, 7, 7, d)
    for y, x in np.ndindex(vectors.shape[1:3]):
        fitted = vectors[:9, y, x]
        inverse = np.linalg.inv(np.cov(fitted, rowvar=False) + 0.01 * np.eye(DIM))
        expected = [mahalanobis(v, fitted.mean(axis=0), inverse) for v in vectors[:, y, x]]
        assert np.allclose(result[:, y, x], expected, rtol=1e-4)


def test_an_image_scores_the_maximum_of_its_drawn_map(backbone, images):
    detector = fit(backbone, images[:9], sigma=2.0)
    scores = detector.score(images)
    drawn = [anomaly_map.upsample(grid.numpy().copy(), (32, 32), 2.0).max() for grid in scores.map]
    assert scores.image.tolist() == [float(value) for value in drawn]


def test_the_mean_image_scores_zero_and_one_image_is_enough(backbone, images):
    detector = fit(backbone, images[:1])
    scores = detector.score(images[:2])
    assert scores.image[0] == 0
    assert not scores.map[0].any()
    apart = (detector.embed(images[1:2]) - detector.embed(images[:1])).norm(dim=3) / 0.1
    torch.testing.assert_close(scores.map[1:], apart, rtol=1e-5, atol=0)
    assert detector.map_ceiling() > 0


def test_embeddings_are_chosen_channels_with_coarser_layers_repeated(backbone, images):
    detector = unfitted(backbone)
    layers = backbone(images[:2])
    fine, coarse = (layer.permute(0, 2, 3, 1).numpy() for layer in layers)
    rows = np.arange(fine.shape[1]) * coarse.shape[1] // fine.shape[1]
    assert coarse.shape[1] < fine.shape[1]
    every = np.concatenate([fine, coarse[:, rows][:, :, rows]], axis=3)
    result = detector.embed(images[:2]).numpy()
    assert np.array_equal(result, every[..., detector.channels.numpy()])
    assert len(detector.channels.unique()) == DIM
    for all_of_them in (0, 10_000):
        assert np.array_equal(unfitted(backbone, dim=all_of_them).embed(images[:2]), every)


def test_channels_are_drawn_by_the_seed_and_stay_with_the_model(backbone, images):
    detector = fit(backbone, images[:3])
    assert not torch.equal(fit(backbone, images[:3], seed=1).channels, detector.channels)
    other = unfitted(backbone, seed=1)
    other.load_state(detector.state())
    assert torch.equal(other.score(images).map, detector.score(images).map)


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_moments_are_the_same_to_1e_10_for_any_shards_and_order(backbone, images, ranks, seed):
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    shards = order.tensor_split(ranks)

    def program(group):
        detector, mine = unfitted(backbone), shards[group.rank]
        for start in range(0, len(images), 3):
            if len(rows := mine[start : start + 3]):
                detector.add_images(images[rows], rows)
            detector.exchange(group)
        return detector._gaussians._moments

    parts = together(ranks, program)
    vectors = unfitted(backbone).embed(images).double().flatten(1, 2).numpy()
    assert [part.count for part in parts] == [len(images)] * ranks
    mean = torch.cat([part.mean for part in parts])
    result = torch.cat([part.covariance(slice(None)) for part in parts]).tril().numpy()
    expected = np.stack([np.tril(np.cov(v, rowvar=False)) for v in vectors.transpose(1, 0, 2)])
    assert np.allclose(mean, vectors.mean(axis=0), rtol=1e-10, atol=1e-12)
    assert np.abs(result - expected).max() <= 1e-10 * np.abs(expected).max()


def test_each_rank_holds_the_moments_of_its_positions_however_many_images(backbone, images):
    def held(ranks, repeats):
        def program(group):
            detector = unfitted(backbone)
            for _ in range(repeats):
                detector.add_images(images, torch.arange(len(images)))
                detector.exchange(group)
            assert not detector._gaussians._waiting
            moments = detector._gaussians._moments
            assert len(detector._gaussians._sample) <= 32
            return sum(t.numel() for t in [moments.mean, *moments._scatter])

        return together(ranks, program)

    (alone,) = held(1, 1)
    assert held(1, 4) == [alone]
    assert max(exchanges := held(3, 2)) <= alone / 3 + alone / 49
    assert sum(exchanges) == alone


def test_more_ranks_than_positions_still_fit(backbone):
    tiny = torch.rand(2, 3, 15, 15, generator=torch.Generator().manual_seed(1))
    alone = fit(backbone, tiny)
    ranks = alone.mean.shape[:2].numel() + 2

    def program(group):
        detector = unfitted(backbone)
        if group.rank == 0:
            detector.add_images(tiny, torch.arange(2))
        detector.exchange(group)
        detector.fit(group, lambda *_: None, Checkpoint())
        return detector.state()

    for state in together(ranks, program):
        assert torch.allclose(state["factor"], alone.factor, rtol=1e-5, atol=1e-6)


def test_images_with_features_that_are_not_finite_are_left_out_and_counted(backbone, images):
    spoilt = images[:5].clone()
    spoilt[3, 0, 0, 0] = torch.inf
    counts, metrics, *_ = fit(backbone, spoilt).fitted
    assert counts == FitCounts(5, dropped_images=1)
    assert metrics == {"positions": 49, "channels": DIM}
    with pytest.raises(UserError, match="no good image"):
        fit(backbone, images[:2] * torch.nan)


def test_a_ridge_that_is_too_small_is_refused_on_every_rank(backbone, images):
    def program(group):
        detector = unfitted(backbone, ridge=0.0)
        detector.add_images(images[:1], torch.arange(1))
        with pytest.raises(UserError, match=r"positive definite with --padim\.ridge 0;.* raise"):
            detector.fit(group, lambda *_: None, Checkpoint())

    together(2, program)


def test_images_of_another_size_are_refused(backbone, images):
    detector = fit(backbone, images[:2])
    with pytest.raises(UserError, match=r"\(15, 15, 40\).*fitted on \(7, 7, 40\)"):
        detector.score(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="not fitted"):
        unfitted(backbone).score(images)


@pytest.mark.parametrize("dim", [2, 8, 60])
def test_the_map_ceiling_is_how_far_an_image_may_be_from_a_fit_without_it(backbone, images, dim):
    """For more images than channels, and for fewer."""
    left_out = []
    for row in range(len(images)):
        rest = [other for other in range(len(images)) if other != row]
        left_out.append(fit(backbone, images[rest], dim=dim).score(images[[row]]).map)
    largest = float(torch.cat(left_out).max())
    ceiling = fit(backbone, images, dim=dim).map_ceiling()
    # The ridge of the fit without one image is taken for a tenth larger.
    assert ceiling == pytest.approx(largest, rel=0.06)


def test_the_sample_is_the_same_images_in_any_order():
    vectors = torch.arange(100.0)[:, None, None].expand(-1, 2, 3)
    samples = []
    for seed in range(3):
        gaussians = GaussianFit()
        order = torch.randperm(100, generator=torch.Generator().manual_seed(seed))
        for rows in order.split(7 + seed):
            gaussians._update_sample(vectors[rows], rows)
        assert torch.equal(gaussians._sample[:, 0, 0], gaussians._sample_rows.float())
        samples.append(set(gaussians._sample_rows.tolist()))
    assert samples == [samples[0]] * 3
    assert len(samples[0]) == 32


def test_the_estimate_is_what_a_fit_holds(backbone, images):
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    detector = fit(backbone, images)
    estimates = [
        PaDiM.estimate(detector.settings, FitSize(64, shapes, 12, workers)) for workers in (1, 2)
    ]
    assert estimates[0].vectors == 12 * 49
    assert estimates[0].kept == 49
    state = detector.state().values()
    assert estimates[0].model_bytes == sum(t.numel() * t.element_size() for t in state)
    moments = 2 * estimates[0].model_bytes  # float64
    assert moments < estimates[0].fit_bytes
    assert estimates[0].fit_bytes - estimates[1].fit_bytes > 0.4 * moments
    more = PaDiM.estimate(detector.settings, FitSize(64, shapes, 12_000, 1))
    assert more.fit_bytes == estimates[0].fit_bytes
    timing_probe = PaDiM.timing_probe(detector.settings, FitSize(64, shapes, 12, 2))
    assert timing_probe.times == 49 / 8 / 2
    whitening, definite = timing_probe.work()
    assert definite
    assert whitening.shape[1] == detector.factor.shape[1]


MEASURED = """
import sys, resource, torch
from ops.features.backbone import Backbone, BackboneSettings
from ops.distributed import Alone
from ops.detectors.detector import Checkpoint
from ops.detectors.padim import PaDiM, PaDiMSettings
torch.set_num_threads(1)
backbone = Backbone(BackboneSettings("squeezenet1_1", "features.3,features.6", "random"))
detector = PaDiM(PaDiMSettings(dim=100), backbone)
generator = torch.Generator().manual_seed(0)
for start in range(0, int(sys.argv[1]), 10):
    detector.add_images(torch.rand(10, 3, 112, 112, generator=generator), torch.arange(10))
    detector.exchange(Alone())
detector.fit(Alone(), lambda *_: None, Checkpoint())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.alone
def test_the_peak_of_memory_is_that_of_a_seventh_of_the_images():
    def peak(count: int) -> int:
        command = [sys.executable, "-c", MEASURED, str(count)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=110)
        return int(done.stdout)

    assert peak(700) <= 1.05 * peak(100)
