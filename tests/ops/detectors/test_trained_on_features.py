import pytest
import torch

from ops.detectors.detector import Checkpoint, settings_from
from ops.detectors.registry import detector_class
from ops.distributed import Alone
from ops.errors import UserError
from tests import pictures
from tests.ops.threads import together

IMAGES = 5
SETTINGS = {
    "fastflow": {"blocks": 2, "hidden": 0.1, "epochs": 3, "batch": 2},
    "csflow": {"scales": 2, "blocks": 1, "hidden": 2, "epochs": 3, "batch": 2},
}


def fitted(name, backbone, room=None):
    """A detector, and how many images went through the backbone in its fit."""
    kind = detector_class(name)
    detector = kind(settings_from(kind.Settings, SETTINGS[name]), backbone)
    if room is not None:
        detector._room = room
    passes, features = [], detector.features

    def counted(images):
        passes.append(len(images))
        return features(images)

    detector.features = counted
    drawn = torch.stack([torch.from_numpy(pictures.texture(s)) for s in range(IMAGES)]).float()
    images = (drawn / 255)[:, None].expand(-1, 3, -1, -1).contiguous()
    detector.add_images(images, torch.arange(IMAGES))
    fit = detector.fit(Alone(), lambda *_: None, Checkpoint())
    return detector.state(), fit.curves, sum(passes)


@pytest.mark.parametrize("name", SETTINGS)
def test_maps_are_computed_once_and_change_no_bit_of_the_fit(name, backbone):
    state, curves, once = fitted(name, backbone)
    again, same_curves, often = fitted(name, backbone, room=0)
    two, _, between = fitted(name, backbone, room=2 * map_bytes(name, backbone))
    assert often - once == 2 * IMAGES
    assert often - between == 2 * 2
    assert curves == same_curves
    for key in state:
        assert torch.equal(state[key], again[key])
        assert torch.equal(state[key], two[key])


def map_bytes(name, backbone):
    kind = detector_class(name)
    detector = kind(settings_from(kind.Settings, SETTINGS[name]), backbone)
    maps = detector.features(torch.zeros(1, 3, 64, 64))
    return sum(layer.numel() * 4 for layer in maps)


def test_kept_maps_have_the_values_and_memory_formats_of_computed_ones(backbone):
    kind = detector_class("fastflow")
    detector = kind(settings_from(kind.Settings, SETTINGS["fastflow"]), backbone)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    detector._size = (64, 64)
    samples = [(row, detector.sample(image, row)) for row, image in enumerate(images)]
    computed = detector.inputs(samples, 0)
    detector.inputs(samples[:1], 0)
    kept = detector.inputs([samples[2], samples[0], samples[1]], 1)
    for before, after in zip(computed, kept, strict=True):
        assert torch.equal(before[[2, 0, 1]], after)
        assert before.stride() == after.stride()
    assert [len(maps) for maps in detector.inputs([], 2)] == [0] * len(computed)


def drawn_images():
    drawn = torch.stack([torch.from_numpy(pictures.texture(s)) for s in range(IMAGES)]).float()
    return (drawn / 255)[:, None].expand(-1, 3, -1, -1).contiguous()


def whitened(name, backbone, group=None, rows=range(IMAGES)):
    """A detector with some of the images whose features are to be whitened."""
    kind = detector_class(name)
    detector = kind(settings_from(kind.Settings, SETTINGS[name] | {"whiten": True}), backbone)
    images = drawn_images()
    detector.add_images(images[list(rows)], torch.tensor(list(rows), dtype=torch.int64))
    detector._size = (64, 64)
    detector.prepare(detector.new_network(), group or Alone())
    return detector


@pytest.mark.parametrize("name", SETTINGS)
def test_whitened_channels_of_good_images_are_uncorrelated_and_of_variance_one(name, backbone):
    detector = whitened(name, backbone)
    for layer in detector.features(drawn_images()):
        vectors = layer.transpose(0, 1).flatten(1)
        values = torch.linalg.eigvalsh(torch.cov(vectors))
        torch.testing.assert_close(
            vectors.mean(dim=1), torch.zeros(len(vectors)), atol=2e-3, rtol=0
        )
        # The shrinkage takes from what hardly varies.
        assert float(values.max()) == pytest.approx(1, abs=0.02)
        assert float(values.min()) < 0.9
    assert not whitened_off(name, backbone)._whitenings


def whitened_off(name, backbone):
    kind = detector_class(name)
    detector = kind(settings_from(kind.Settings, SETTINGS[name]), backbone)
    detector.add_images(drawn_images(), torch.arange(IMAGES))
    detector.prepare(detector.new_network(), Alone())
    return detector


def test_whitening_is_that_of_all_workers_images_on_each(backbone):
    alone = whitened("fastflow", backbone)._whitenings
    shards = [range(3), range(3, IMAGES), range(0)]
    results = together(
        3, lambda group: whitened("fastflow", backbone, group, shards[group.rank])._whitenings
    )
    for found in results:
        for mine, first, expected in zip(found, results[0], alone, strict=True):
            assert torch.equal(mine.matrix, first.matrix)
            torch.testing.assert_close(mine.mean, expected.mean)
            torch.testing.assert_close(mine.matrix, expected.matrix, rtol=1e-4, atol=1e-4)


def test_features_that_are_all_alike_cannot_be_whitened(backbone):
    kind = detector_class("fastflow")
    settings = settings_from(kind.Settings, SETTINGS["fastflow"] | {"whiten": True})
    detector = kind(settings, backbone)
    detector.feature_maps = lambda images: [torch.ones(len(images), 4, 8, 8)]
    detector.add_images(drawn_images(), torch.arange(IMAGES))
    with pytest.raises(UserError, match=r"all alike.*set fastflow\.whiten = false"):
        detector.fit(Alone(), lambda *_: None, Checkpoint())
