"""What every detector must do. A new one is tested once its name is in DETECTORS."""

import contextlib
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from ops.detectors.detector import (
    Checkpoint,
    Detector,
    MapSettings,
    extended_maps,
    nearest_shown,
    settings_from,
    shown_cells,
)
from ops.detectors.image_batches import Inspection, Tiles, inspected_images
from ops.detectors.registry import DETECTORS, detector_class
from ops.detectors.score_tiles import score_tiles
from ops.detectors.trained import Trained
from ops.distributed import Alone, Group
from ops.errors import UserError
from ops.features.backbone import Backbone
from ops.images.decode import Picture
from ops.images.inspection import InspectionMask
from ops.images.packed_pixels import column
from ops.images.resize import InputSettings, geometry, pack, resize
from ops.results import anomaly_map
from tests import pictures
from tests.ops.threads import together

#: Settings that make a detector small enough for tests; others keep their defaults.
SMALL = {
    "patchcore": {"dim": 48, "projection": 12, "coreset_ratio": 0.03, "neighbours": 4},
    "patchcore whitened": {
        "metric": "whitened",
        "dim": 48,
        "projection": 12,
        "coreset_ratio": 0.03,
        "neighbours": 4,
    },
    "differnet": {
        "blocks": 2,
        "hidden": 16,
        "scales": 2,
        "views": 8,
        "score_transforms": 4,
        "epochs": 8,
        "batch": 3,
        "lr": 3e-3,
    },
    "fastflow": {"blocks": 2, "hidden": 0.1, "epochs": 2, "batch": 4},
    "cflow": {
        "blocks": 1,
        "condition": 8,
        "mixing": "hard",
        "epochs": 2,
        "batch": 4,
        "fibers": 256,
    },
    "csflow": {"scales": 2, "blocks": 1, "hidden": 2, "epochs": 1, "batch": 4},
    "glance": {
        "patch": 16,
        "stride": 8,
        "width": 8,
        "dim": 16,
        "epochs": 2,
        "local_epochs": 2,
        "batch": 4,
        "lr": 2e-3,
        "validation_images": 1,
        "tolerance": 0.02,
    },
    "padim": {"dim": 24},
    "spade": {"retrieved": 3},
    "ssnf": {"blocks": 2, "hidden": 4, "heads": 1, "epochs": 1, "batch": 4, "max_nll": 1e9},
}
SMALL["cflow whitened"] = SMALL["cflow"] | {"whiten": True}
BLOBS = [(20, 40), (45, 18), (32, 32)]
GOOD = 7

#: Detectors by name; settings of a second variant follow the name.
NAMES = [*DETECTORS, "patchcore whitened", "cflow whitened"]

every_detector = pytest.mark.parametrize("name", NAMES)


def kind_of(name: str) -> type[Detector]:
    return detector_class(name.split(maxsplit=1)[0])


def tolerance(name: str) -> float:
    """Relative difference that the order of images and their shards may make to a state."""
    if issubclass(kind_of(name), Trained):
        return 1e-3  # rounding, which training steps amplify
    return 1e-6 if name == "padim" else 0.0  # moments agree to 1e-10; the state is float32


def to_images(drawn: list[np.ndarray]) -> Tensor:
    grey = torch.from_numpy(np.stack(drawn)).float() / 255
    return grey[:, None].expand(-1, 3, -1, -1).contiguous()


@pytest.fixture(scope="module")
def good() -> Tensor:
    return to_images([pictures.texture(seed) for seed in range(GOOD)])


@pytest.fixture(scope="module")
def unseen() -> Tensor:
    """Three good images, then one with a blob at each place of BLOBS."""
    drawn = [pictures.texture(seed) for seed in range(100, 103)]
    blobs = [pictures.with_blob(pictures.texture(200), x, y) for x, y in BLOBS]
    return to_images(drawn + blobs)


def new(name: str, backbone: Backbone, **settings: object) -> Detector:
    kind = kind_of(name)
    return kind(settings_from(kind.Settings, SMALL.get(name, {}) | settings), backbone)


def fit(detector: Detector, batches: list[tuple[Tensor, list[int]]], group: Group) -> Detector:
    """Fit on this rank's batches of images and their numbers."""
    for i in range(int(group.all_reduce(torch.tensor([len(batches)]), "max"))):
        if i < len(batches):
            images, rows = batches[i]
            detector.add_images(images, torch.tensor(rows))
        detector.exchange(group)
    fitted = detector.fit(group, lambda stage, done, total: None, Checkpoint())
    assert all(math.isfinite(value) for value in fitted.fit_metrics.values())
    assert all(math.isfinite(value) for curve in fitted.curves.values() for value in curve)
    return detector


@pytest.fixture(scope="module")
def fitted(backbone, good) -> dict[str, Detector]:
    everything = [(good, list(range(GOOD)))]
    return {name: fit(new(name, backbone), everything, Alone()) for name in NAMES}


def equal_states(one: Detector, other: Detector) -> bool:
    return relative_difference(one, other) == 0


def relative_difference(one: Detector, other: Detector) -> float:
    """The largest difference of two states, relative to the largest entry of its tensor."""
    a, b = one.state(), other.state()
    assert a.keys() == b.keys()
    assert all(a[key].shape == b[key].shape for key in a)
    differences = {key: (a[key].double() - b[key].double()).abs().max() for key in a}
    return max(
        float(d / a[key].double().abs().max().clamp(min=1)) for key, d in differences.items()
    )


@every_detector
def test_scores_have_their_shapes_and_are_finite(name, fitted, unseen):
    scores = fitted[name].score(unseen)
    assert scores.image.shape == (len(unseen),)
    assert scores.map.ndim == 3
    assert len(scores.map) == len(unseen)
    for values in scores:
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
        assert not values.requires_grad


@every_detector
def test_an_image_scores_the_same_bits_in_any_batch_and_order(name, fitted, unseen):
    together = fitted[name].score(unseen)
    parts = [fitted[name].score(part) for part in unseen.flip(0).split([1, 3, 2])]
    assert torch.equal(torch.cat([part.image for part in parts]).flip(0), together.image)
    assert torch.equal(torch.cat([part.map for part in parts]).flip(0), together.map)


@every_detector
def test_planted_blobs_score_highest_and_maps_peak_inside_them(name, fitted, unseen):
    scores = fitted[name].score(unseen)
    assert scores.image[3:].min() > scores.image[:3].max()
    where = geometry(64, 64, InputSettings(size=64))
    for (x, y), values in zip(BLOBS, scores.map[3:], strict=True):
        peak = anomaly_map.peak(
            anomaly_map.upsample(values.numpy(), (64, 64), fitted[name].settings.sigma), where
        )
        # Whitened features that see a part of a blob are as unlike good ones as those of all of it.
        assert math.dist(peak, (x, y)) <= 7 + (3 if name == "cflow whitened" else 1)


@every_detector
def test_inputs_may_be_rectangles(name, backbone):
    """The upper half of textures: 64 x 32 pixels."""
    good = to_images([pictures.texture(seed)[:32] for seed in range(4)])
    quick = {"epochs": 1} if issubclass(kind_of(name), Trained) else {}
    detector = fit(new(name, backbone, **quick), [(good, list(range(4)))], Alone())
    scores = detector.score(good[:1])
    height, width = scores.map.shape[1:]
    assert torch.isfinite(scores.map).all()
    assert torch.isfinite(scores.image).all()
    assert (height, width) in {(7, 15), (8, 16), (4, 8), (32, 64), (3, 7)}
    restored = new(name, backbone)
    restored.load_state({key: value.clone() for key, value in detector.state().items()})
    assert torch.equal(restored.score(good[:1]).map, scores.map)


@every_detector
def test_a_detector_restored_from_its_state_scores_the_same_bits(name, fitted, backbone, unseen):
    state = {key: value.clone() for key, value in fitted[name].state().items()}
    restored = new(name, backbone)
    restored.load_state(state)
    for a, b in zip(restored.score(unseen), fitted[name].score(unseen), strict=True):
        assert torch.equal(a, b)
    assert equal_states(restored, fitted[name])
    assert restored.map_ceiling() == fitted[name].map_ceiling() > 0


@every_detector
def test_a_state_holds_only_tensors(name, fitted):
    state = fitted[name].state()
    assert state
    assert all(isinstance(tensor, Tensor) for tensor in state.values())


@every_detector
def test_the_same_seed_gives_the_same_detector(name, fitted, backbone, good):
    torch.manual_seed(12345)
    np.random.seed(12345)  # noqa: NPY002 - libraries may draw from it
    again = fit(new(name, backbone), [(good, list(range(GOOD)))], Alone())
    assert equal_states(again, fitted[name])


#: Batches of image numbers on each rank.
SHARDS = {
    "two, the first empty": [[], [[6, 5], [4, 3, 2], [1], [0]]],
    "two": [[[5], [0, 3], [6]], [[2, 1, 4]]],
    "three": [[[6]], [[0, 2], [4]], [[5, 3, 1]]],
    "three, one empty": [[[3, 1], [5, 0]], [], [[6], [4], [2]]],
}
SHARDING = [
    pytest.param(shards, id=name, marks=() if i == 0 else pytest.mark.slow)
    for i, (name, shards) in enumerate(SHARDS.items())
]


@every_detector
@pytest.mark.parametrize("shards", SHARDING)
def test_any_shards_batches_and_order_give_the_same_detector_on_every_rank(
    name, shards, fitted, backbone, good
):
    detectors = [new(name, backbone) for _ in shards]

    def program(group: Group) -> Detector:
        mine = shards[group.rank]
        return fit(detectors[group.rank], [(good[rows], rows) for rows in mine], group)

    for detector in together(len(shards), program):
        assert relative_difference(detector, fitted[name]) <= tolerance(name)


@every_detector
def test_an_unknown_setting_is_refused_with_the_known(name):
    kind = kind_of(name).Settings
    with pytest.raises(UserError, match=r"unknown settings \['rtaio'\].*known: \[.*'sigma'"):
        settings_from(kind, {"rtaio": 1})
    assert isinstance(settings_from(kind, {}), MapSettings)


@every_detector
def test_settings_are_frozen(name, fitted):
    with pytest.raises(AttributeError):
        fitted[name].settings.sigma = 1.0


@every_detector
def test_no_gradient_reaches_the_backbone(name, fitted, backbone, unseen):
    before = backbone.fingerprint()
    images = unseen[:1].clone().requires_grad_()
    fitted[name].score(images)
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
    assert backbone.fingerprint() == before


@every_detector
def test_a_fit_on_nothing_is_refused_on_every_rank(name, backbone):
    with pytest.raises(UserError, match="no good image"):
        fit(new(name, backbone), [], Alone())
    with pytest.raises(UserError, match="no good image"):
        together(2, lambda group: fit(new(name, backbone), [], group))


@every_detector
def test_an_image_with_features_that_are_not_finite_changes_neither_fit_nor_other_scores(
    name, fitted, backbone, good, unseen
):
    spoilt = good[:1] * torch.nan
    batches = [(torch.cat([spoilt, good]), [GOOD, *range(GOOD)])]
    again = fit(new(name, backbone), batches, Alone())
    assert relative_difference(again, fitted[name]) <= tolerance(name)
    scores = fitted[name].score(torch.cat([unseen[:1], spoilt]))
    assert torch.equal(scores.image[:1], fitted[name].score(unseen[:1]).image)
    assert not torch.isfinite(scores.image[1])


def test_an_unknown_method_is_refused_with_the_known():
    with pytest.raises(UserError, match="unknown method 'patchcroe'; known: patchcore, spade"):
        detector_class("patchcroe")


@every_detector
def test_a_product_with_one_good_image_gets_a_detector(name, backbone):
    kind = kind_of(name)
    detector = kind(settings_from(kind.Settings, SMALL.get(name, {})), backbone)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    detector.add_images(image, torch.tensor([0]))
    assert detector.fit(Alone(), lambda *_: None, Checkpoint()).counts.images == 1
    scores = detector.score(image.flip(3))
    assert torch.isfinite(scores.image).all()
    assert torch.isfinite(scores.map).all()


#: Left of a slanted line, of pictures of 90 x 70 pixels.
MASK = np.add.outer(np.arange(70), 2 * np.arange(90)) < 120
INPUTS = {
    "squash": InputSettings(64, exposure="standard"),
    "crop": InputSettings(64, "crop", 72, exposure="median"),
    "tile": InputSettings(64, "tile", overlap=0.5, exposure="standard"),
}


def scored(detector: Detector, drawn: np.ndarray, settings: InputSettings, mask: InspectionMask):
    """Score and map (h, w) of a picture of which only the mask is inspected."""
    picture = resize(mask.covered(Picture(drawn, 8)), settings)
    kinds = {"width": [drawn.shape[1]], "height": [drawn.shape[0]], "channels": [1]}
    rows = pa.table({**kinds, "bit_depth": [8], "pixels": column([pack(picture)])})
    where = (rows, settings, "cpu", [0], Inspection([mask], (0.485, 0.456, 0.406)))
    if settings.tiled:
        values, maps = score_tiles(detector, Tiles(*where), 4, contextlib.nullcontext)
        return float(values[0]), maps[0]
    images, inside = inspected_images(*where)
    found = detector.score_inside(images, inside)
    return float(found.image), extended_maps(list(found.map.numpy()), inside, [True])[0]


@every_detector
@pytest.mark.parametrize("how", INPUTS)
def test_a_defect_outside_of_the_mask_changes_no_score_by_a_bit(name, how, fitted):
    detector, mask = fitted[name], InspectionMask.of(MASK)
    if INPUTS[how].tiled and detector.no_tiles:
        pytest.skip(detector.no_tiles)
    good = pictures.texture(300, 90)[:70]
    other = np.where(MASK, good, np.random.default_rng(1).integers(0, 256, MASK.shape))
    score, values = scored(detector, good, INPUTS[how], mask)
    changed, others = scored(detector, other.astype(np.uint8), INPUTS[how], mask)
    assert changed == score
    assert np.array_equal(others, values)
    assert math.isfinite(score)
    if how == "squash":
        seen = pictures.with_blob(good, 20, 30)
        assert scored(detector, seen, INPUTS[how], mask)[0] != score


@every_detector
def test_what_is_not_inspected_is_fitted_as_if_it_were_not_there(name, backbone, good):
    """The cells outside play no part in a fit, or show the same constant in every picture."""
    inside = torch.zeros(2, 64, 64, dtype=torch.bool)
    inside[:, :, :40] = True
    images = good[:2].where(inside[:, None], 0.45)
    detector = new(name, backbone)
    detector.add_inside(images, torch.arange(2), inside)
    detector.exchange(Alone())
    counts = detector.fit(Alone(), lambda *_: None, Checkpoint()).counts
    assert counts.images == 2
    if name.startswith("patchcore"):
        cells = shown_cells(inside, detector.embed(images).shape[1:3])
        assert counts.patches == int(cells.sum()) < cells.numel()
    if name == "padim":
        places = nearest_shown(inside[:1], detector.mean.shape[:2])[0]
        assert torch.equal(detector.mean.flatten(0, 1), detector.mean.flatten(0, 1)[places])
    if name == "spade":
        (level,) = detector.levels
        places = nearest_shown(inside[:1], level.shape[1:3])[0]
        assert torch.equal(level.flatten(1, 2), level.flatten(1, 2)[:, places])
        assert len(set(places.tolist())) < len(places)
