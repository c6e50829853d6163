"""PaDiM against its definition, and over shards."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from ops import maps, padim
from ops.group import Alone, Group
from ops.method import Load, Notes
from ops.moments import Moments
from ops.padim import PaDiM, PaDiMSettings, _whitening
from tests.ops.threads import together


@pytest.fixture(scope="module")
def images():
    return torch.rand(10, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def fit(detector, batches, group: Group):
    for i in range(int(group.all_reduce(torch.tensor([len(batches)]), "max"))):
        if i < len(batches):
            detector.gather(*batches[i])
        detector.share(group)
    detector.figures = detector.fit(group, lambda *_: None, Notes()).figures
    return detector


def fitted(backbone, images, **settings):
    detector = PaDiM(PaDiMSettings(**{"dim": 12} | settings), backbone)
    return fit(detector, [(images, torch.arange(len(images)))], Alone())


def test_distances_are_mahalanobis(backbone, images):
    detector = fitted(backbone, images[:8], ridge=0.05)
    maps = detector.score(images[8:]).map
    good = detector.embed(images[:8]).double().numpy()
    unseen = detector.embed(images[8:]).double().numpy()
    for y, x in ((0, 0), (7, 3), (14, 14)):
        mine = good[:, y, x]
        inverse = np.linalg.inv(np.cov(mine.T) + 0.05 * np.eye(12))
        for i in range(2):
            expected = mahalanobis(unseen[i, y, x], mine.mean(axis=0), inverse)
            assert float(maps[i, y, x]) == pytest.approx(expected, rel=1e-4)


def test_vectors_hold_the_chosen_channels_and_repeat_coarser_layers(backbone, images):
    detector = PaDiM(PaDiMSettings(dim=20), backbone)
    found = detector.embed(images[:1])
    fine, coarse = backbone(images[:1])
    times = fine.shape[-1] / coarse.shape[-1]
    whole = [fine[0, :, 5, 9], coarse[0, :, int(5 / times), int(9 / times)]]
    assert torch.equal(found[0, 5, 9], torch.cat(whole)[detector.channels])
    assert len(set(detector.channels.tolist())) == 20
    everything = PaDiM(PaDiMSettings(dim=0), backbone).embed(images[:1])
    assert everything.shape[-1] == fine.shape[1] + coarse.shape[1]


def test_the_channels_are_drawn_by_the_seed_and_kept(backbone, images):
    one, same, other = (fitted(backbone, images, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.channels, same.channels)
    assert not torch.equal(one.channels, other.channels)


def test_the_mean_image_scores_zero_and_the_image_score_is_the_drawn_maximum(backbone, images):
    detector = fitted(backbone, images)
    height, width = detector.grid.tolist()
    assert float(detector._distances(detector.mean[None]).max()) == 0
    scores = detector.score(images[:1])
    assert scores.map.shape == (1, height, width)
    assert float(scores.image) == pytest.approx(
        float(maps.draw(scores.map[0].numpy(), 64, 4.0).max())
    )


def test_squared_distances_of_gaussian_samples_are_about_d(backbone):
    detector = PaDiM(PaDiMSettings(ridge=1e-9), backbone)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    samples = torch.randn(4000, 2, 6, generator=generator) @ mixing
    moments = Moments(2, 6)
    moments.add(samples[:2000])
    detector.mean, detector.whitening = moments.mean.float(), _whitening(moments, 1e-9)
    found = [detector._distances(part) for part in torch.split(samples[2000:], 8)]
    assert float(torch.cat(found).square().mean()) == pytest.approx(6, rel=0.05)


ORDERS = {
    "as they lie": range(10),
    "backwards": range(9, -1, -1),
    "mixed": [3, 9, 0, 7, 1, 5, 8, 2, 6, 4],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_and_orders_change_moments_by_rounding_alone(
    backbone, images, shards, order, monkeypatch
):
    """The float64 factors, before they are rounded to float32."""
    kept = {}
    whole = padim._whitening

    def keep(moments, ridge):
        kept[id(moments)] = moments
        return whole(moments, ridge)

    monkeypatch.setattr(padim, "_whitening", keep)
    fitted(backbone, images)
    (expected,) = kept.values()
    kept.clear()
    order = list(order)

    def program(group: Group):
        detector = PaDiM(PaDiMSettings(dim=12), backbone)
        mine = order[group.rank :: group.size]
        fit(detector, [(images[[row]], torch.tensor([row])) for row in mine], group)
        return detector

    together(shards, program)
    found = sorted(kept.values(), key=lambda moments: float(moments.mean[0, 0]))
    at = {float(mean): i for i, mean in enumerate(expected.mean[:, 0].round(decimals=9))}
    places = [at[float(m.mean[0, 0].round(decimals=9))] for m in found]
    ordered = [found[i] for i in np.argsort(places)]
    for name in ("mean", "m2"):
        merged = torch.cat([getattr(moments, name) for moments in ordered])
        torch.testing.assert_close(merged, getattr(expected, name), rtol=1e-10, atol=1e-10)


def test_one_image_is_enough_and_broken_ones_are_counted(backbone, images):
    broken = images[:2].clone()
    broken[1] = torch.nan
    detector = fitted(backbone, broken)
    assert detector.figures["images"] == 2
    assert detector.figures["dropped_images"] == 1
    assert torch.allclose(detector.whitening[0], torch.eye(12) * 10)  # 1 / sqrt(0.01)
    assert detector.map_ceiling() > 0


def test_maps_of_good_images_stay_below_the_ceiling(backbone, images):
    detector = fitted(backbone, images[:6])
    assert float(detector.score(images[6:]).map.max()) < 4 * detector.map_ceiling()


def test_its_demand_is_what_a_fit_then_finds(backbone, images):
    settings = PaDiMSettings(dim=12)
    shapes = [tuple(layer.shape[1:]) for layer in backbone(images[:1])]
    demand = PaDiM.demand(settings, Load(64, shapes, 10, 1))
    detector = fitted(backbone, images)
    tensors = [detector.mean, detector.whitening, detector.channels]
    assert demand.model_bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert demand.vectors == 10 * demand.kept == 10 * detector.figures["positions"]
    assert PaDiM.demand(settings, Load(64, shapes, 10, 2)).fit_bytes < demand.fit_bytes
    rehearsal = PaDiM.rehearsal(settings, Load(64, shapes, 320, 2))
    rehearsal.work()
    assert rehearsal.times == pytest.approx(10 * demand.kept / 16 / 2)


def test_a_ridge_of_zero_is_refused():
    with pytest.raises(ValueError, match="ridge 0 must be larger than 0"):
        PaDiMSettings(ridge=0)


MEASURED = """
import resource, torch
torch.set_num_threads(1)
from ops.backbone import Backbone, BackboneSettings
from ops.group import Alone
from ops.method import Notes
from ops.padim import PaDiM, PaDiMSettings
backbone = Backbone(BackboneSettings("squeezenet1_1", "features.3,features.6", "random"))
detector = PaDiM(PaDiMSettings(dim=50), backbone)
generator = torch.Generator().manual_seed(0)
for start in range(0, {images}, 10):
    images = torch.rand(10, 3, 128, 128, generator=generator)
    detector.gather(images, torch.arange(start, start + 10))
    detector.share(Alone())
detector.fit(Alone(), lambda *_: None, Notes())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images():
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", MEASURED.format(images=count)]))
        for count in (100, 700)
    ]
    assert peaks[1] <= 1.05 * peaks[0]
