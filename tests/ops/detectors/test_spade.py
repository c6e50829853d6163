"""What SPADE computes, against brute force in float64, and how its gallery is put together."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ops.detectors.detector import Checkpoint, FitCounts, Fitted
from ops.detectors.fit_cost import FitSize
from ops.detectors.spade import Spade, SpadeSettings
from ops.distributed import Alone
from ops.errors import UserError
from ops.features.backbone import Backbone, BackboneSettings
from tests.ops.threads import together

LAYERS = "features.3,features.6,features.12"  # maps of 7 x 7, 3 x 3 and 1 x 1 at 32 pixels


@pytest.fixture(scope="module")
def pyramids() -> Backbone:
    return Backbone(BackboneSettings("squeezenet1_1", LAYERS, "random"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def fit(backbone, images, **settings) -> Spade:
    detector = Spade(SpadeSettings(**settings), backbone)
    detector.add_images(images, torch.arange(len(images)))
    detector.fitted = detector.fit(Alone(), lambda *_: None, Checkpoint())
    return detector


def equal(one: Spade, other: Spade) -> bool:
    a, b = one.state(), other.state()
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def features(backbone, images) -> tuple[np.ndarray, list[np.ndarray]]:
    """Descriptors (B, D) and maps (B, h, w, C), float64, straight from the network."""
    *levels, last = (layer.double() for layer in backbone(images))
    return last.mean(dim=(2, 3)).numpy(), [m.permute(0, 2, 3, 1).numpy() for m in levels]


def brute(backbone, good, image, k, kappa=1, concat=False) -> tuple[float, torch.Tensor]:
    """Score and map (h, w) by scikit-learn's search, in float64."""
    from sklearn.neighbors import NearestNeighbors

    known, levels = features(backbone, good)
    mine, own = features(backbone, image[None])
    distance, rows = (
        NearestNeighbors(algorithm="brute").fit(known).kneighbors(mine, min(k, len(known)))
    )
    if concat:
        finest = levels[0].shape[1:3]
        levels, own = ([np.concatenate([repeated(m, finest) for m in x], 3)] for x in (levels, own))
    maps = []
    for level, x in zip(levels, own, strict=True):
        positions = level[rows[0]].reshape(-1, level.shape[-1])
        search = NearestNeighbors(algorithm="brute").fit(positions)
        near = search.kneighbors(x.reshape(-1, x.shape[-1]), kappa)[0].mean(axis=1)
        cells = torch.from_numpy(near.reshape(1, 1, *x.shape[1:3]))
        maps.append(F.interpolate(cells, size=own[0].shape[1:3], mode="bilinear"))
    return float((distance**2).mean()), torch.cat(maps).mean(dim=0)[0]


def repeated(level: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps (B, h, w, C) at another size, by nearest."""
    channels_first = torch.from_numpy(level).permute(0, 3, 1, 2)
    return F.interpolate(channels_first, size=size, mode="nearest").permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    "settings",
    [
        {"retrieved": 1},
        {"retrieved": 3},
        {"retrieved": 50},
        {"retrieved": 2, "nearest": 4},
        {"retrieved": 3, "pyramid": "concat"},
        {"retrieved": 3, "pyramid": "concat", "nearest": 2},
    ],
    ids=str,
)
def test_scores_and_maps_are_those_of_brute_force(settings, pyramids, images):
    scores = fit(pyramids, images[:5], **settings).score(images[5:])
    for image, score, values in zip(images[5:], *scores, strict=True):
        expected, cells = brute(
            pyramids,
            images[:5],
            image,
            settings["retrieved"],
            settings.get("nearest", 1),
            settings.get("pyramid") == "concat",
        )
        assert float(score) == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(values.double(), cells, rtol=1e-4, atol=0)


def test_one_layer_is_pyramid_and_descriptor(images):
    backbone = Backbone(BackboneSettings("squeezenet1_1", "features.6", "random"))
    detector = fit(backbone, images[:5])
    assert [tuple(level.shape) for level in detector.levels] == [(5, 3, 3, 256)]
    expected = detector.levels[0].double().mean(dim=(1, 2))
    torch.testing.assert_close(detector.descriptors.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(detector.score(images).map).all()


def test_images_of_the_gallery_are_at_no_distance_from_themselves(pyramids, images):
    scores = fit(pyramids, images[:5], retrieved=1).score(images)
    assert (scores.image[:5] == 0).all()
    assert (scores.map[:5] == 0).all()
    assert (scores.image[5:] > 0).all()
    assert (scores.map[5:].flatten(1).amax(dim=1) > 0).all()


def test_more_neighbours_than_positions_are_as_many_as_there_are(pyramids, images):
    most = fit(pyramids, images[:1], nearest=49).score(images[5:]).map  # 9 at the second level
    few = fit(pyramids, images[:1], nearest=9).score(images[5:]).map
    assert torch.isfinite(most).all()
    assert (most > few).any()


def test_of_images_at_the_same_distance_the_first_are_retrieved(pyramids, images):
    """Descriptors that are equal, pyramids that are not: the row decides which counts."""
    detector = fit(pyramids, images[:4], retrieved=1)
    state = {key: tensor.clone() for key, tensor in detector.state().items()}
    state["descriptors"][:] = state["descriptors"][0]
    detector.load_state(state)
    first = fit(pyramids, images[:1], retrieved=1).score(images[5:])
    tied = detector.score(images[5:])
    assert torch.equal(tied.image, first.image)
    assert torch.equal(tied.map, first.map)


@pytest.mark.parametrize("half", [False, True])
def test_a_grown_gallery_is_that_of_a_fit_on_everything(half, pyramids, images):
    old = fit(pyramids, images[:3], float16=half)

    def grown(group, shards):
        detector = Spade(old.settings, pyramids)
        if group.rank == 0:
            detector.grow(old.state(), old.fitted.counts)
        for row in shards[group.rank]:
            detector.add_images(images[3 + row][None], torch.tensor([row]))
        return detector, detector.fit(group, lambda *_: None, Checkpoint())

    whole = fit(pyramids, images, float16=half)
    results = [grown(Alone(), [[4, 0, 2, 1, 3]])]
    results += together(3, lambda group: grown(group, [[4], [0, 2], [1, 3]]))
    for detector, fitted in results:
        assert equal(detector, whole)
        assert fitted == whole.fitted == Fitted(FitCounts(8, dropped_images=0), {"gallery": 8})


def test_a_gallery_of_many_rounds_is_whole(pyramids):
    """More images than cross at a time, of which one rank has most."""
    many = torch.rand(21, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    whole = fit(pyramids, many)
    shards = [list(range(20, 1, -1)), [1], [0]]

    def program(group):
        detector = Spade(SpadeSettings(), pyramids)
        for row in shards[group.rank]:
            detector.add_images(many[row][None], torch.tensor([row]))
        detector.fit(group, lambda *_: None, Checkpoint())
        return detector

    for detector in together(3, program):
        assert equal(detector, whole)
        assert not detector._added


def test_images_that_are_no_numbers_are_left_out_and_counted(pyramids, images):
    spoilt = images.clone()
    spoilt[2, 0, 0, 0] = torch.nan
    detector = fit(pyramids, spoilt)
    assert detector.fitted == Fitted(FitCounts(8, dropped_images=1), {"gallery": 7})
    assert equal(detector, fit(pyramids, images[[0, 1, 3, 4, 5, 6, 7]]))


def test_half_the_memory_rounds_what_is_stored_and_nothing_else(pyramids, images):
    half, whole = (fit(pyramids, images[:5], float16=h, retrieved=2) for h in (True, False))
    assert [level.dtype for level in half.levels] == [torch.float16] * 2
    assert all(torch.equal(a, b.half()) for a, b in zip(half.levels, whole.levels, strict=True))
    rounded = Spade(whole.settings, pyramids)
    levels = {key: t.float() for key, t in half.state().items() if key != "descriptors"}
    rounded.load_state(levels | {"descriptors": whole.descriptors})
    for a, b in zip(half.score(images), rounded.score(images), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(half.score(images).map, whole.score(images).map)


def test_the_map_ceiling_is_what_images_left_out_reach(pyramids, images):
    detector = fit(pyramids, images[:4], retrieved=2)
    left_out = [
        fit(pyramids, images[[j for j in range(4) if j != i]], retrieved=2).score(images[i][None])
        for i in range(4)
    ]
    assert detector.map_ceiling() == max(float(scores.map.max()) for scores in left_out)
    assert fit(pyramids, images[:1]).map_ceiling() > 0


@pytest.mark.parametrize("half", [False, True])
def test_the_estimate_is_what_a_fit_holds(half, pyramids, images):
    shapes = [tuple(layer.shape[1:]) for layer in pyramids(images[:1])]
    settings = SpadeSettings(float16=half)
    estimate = Spade.estimate(settings, FitSize(64, shapes, 8, 1))
    detector = fit(pyramids, images, float16=half)
    size = sum(t.numel() * t.element_size() for t in detector.state().values())
    assert estimate.model_bytes == size
    assert estimate.vectors == estimate.kept == sum(t[..., 0].numel() for t in detector.levels)
    assert estimate.score_bytes > size
    many = Spade.estimate(settings, FitSize(64, shapes, 800, 4))
    assert many.model_bytes == 100 * size
    # A quarter, what crosses at a time, the whole, and the copy that is handed over.
    assert 2.25 * many.model_bytes < many.fit_bytes < 2.4 * many.model_bytes
    assert Spade.timing_probe(settings, FitSize(64, shapes, 8, 1)) is None


def test_settings_that_compare_with_nothing_are_refused():
    with pytest.raises(UserError, match="retrieved 0 must be at least 1"):
        SpadeSettings(retrieved=0)
    with pytest.raises(UserError, match="nearest -1 must be at least 1"):
        SpadeSettings(nearest=-1)
    with pytest.raises(UserError, match="pyramid 'both' must be levels or concat"):
        SpadeSettings(pyramid="both")


def test_a_detector_that_is_not_fitted_says_so(pyramids, images):
    with pytest.raises(ValueError, match="not fitted"):
        Spade(SpadeSettings(), pyramids).score(images)
