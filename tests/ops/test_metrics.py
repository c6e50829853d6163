from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

from ops.metrics import PixelHistogram, auroc, best_f1


def sample(seed: int, n: int = 200, values: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels; with ties if `values` are few."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.3
    scores = rng.normal(size=n) + labels
    return (scores if values is None else np.round(scores * values) / values), labels


@pytest.mark.parametrize("values", [None, 1, 3, 20])
@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_that_of_scikit_learn(seed, values):
    scores, labels = sample(seed, values=values)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auroc_of_equal_scores_is_a_half_and_of_one_kind_nothing():
    assert auroc(np.ones(4), np.array([True, False, True, False])) == 0.5
    assert auroc(np.ones(4), np.ones(4, bool)) is None
    assert auroc(np.ones(4), np.zeros(4, bool)) is None
    assert auroc(np.ones(0), np.zeros(0, bool)) is None


@pytest.mark.parametrize("values", [None, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_threshold_is_that_of_trying_all(seed, values):
    scores, labels = sample(seed, 60, values)
    hits = {t: (labels & (scores >= t)).sum() for t in np.unique(scores)}
    tried = {t: 2 * hit / (labels.sum() + (scores >= t).sum()) for t, hit in hits.items()}
    highest = max(tried.values())
    found = best_f1(scores, labels)
    assert found.f1 == pytest.approx(highest)
    assert found.threshold == max(t for t, f1 in tried.items() if f1 > highest - 1e-12)
    called = scores >= found.threshold
    assert found.false_alarms == (called & ~labels).sum()
    assert found.misses == (~called & labels).sum()


def test_the_larger_of_two_equally_good_thresholds_is_taken():
    # F1 at 3: 2 * 1 / (1 + 2); at 1: 2 * 2 / (4 + 2): both are two thirds
    found = best_f1(np.array([3.0, 2.0, 1.5, 1.0]), np.array([True, False, False, True]))
    assert found.f1 == pytest.approx(2 / 3)
    assert (found.threshold, found.false_alarms, found.misses) == (3.0, 0, 1)


def test_without_defective_images_there_is_no_best_threshold():
    assert best_f1(np.arange(3.0), np.zeros(3, bool)) is None


Maps = list[tuple[np.ndarray, np.ndarray]]


def drawn(seed: int, count: int = 5, levels: int = 65536, size: int = 24) -> Maps:
    """Maps and masks: good images among them, regions that touch at corners and at the border."""
    rng = np.random.default_rng(seed)
    out: Maps = []
    for number in range(count):
        mask = np.zeros((size, size), bool)
        for _ in range(number % 3):
            y, x, h, w = *rng.integers(0, size - 2, 2), *rng.integers(1, 7, 2)
            mask[y : y + h, x : x + w] = True
        if number == 4:
            mask[0, 0] = mask[1, 1] = mask[2, 0] = True  # one region of three, by its corners
        raw = (rng.normal(size=(size, size)) + 1.5 * mask + 4) / 10
        out.append((np.rint(raw.clip(0, 1) * (levels - 1)).astype(np.uint16), mask))
    return out


def histogram(maps: Maps) -> PixelHistogram:
    out = PixelHistogram()
    for levels, mask in maps:
        out.add(levels, mask)
    return out


@pytest.mark.parametrize("levels", [5, 300, 65536])
def test_pixel_auroc_is_that_of_scikit_learn_over_all_pixels(levels):
    maps = drawn(0, levels=levels)
    pixels = np.concatenate([m.ravel() for m, _ in maps])
    truth = np.concatenate([mask.ravel() for _, mask in maps])
    assert histogram(maps).auroc() == pytest.approx(roc_auc_score(truth, pixels), abs=1e-12)


def slow_pro(maps: Maps, limit: float) -> float:
    """Step by step as its definition says: one threshold per distinct value, no histogram."""
    regions = []
    for number, (_, mask) in enumerate(maps):
        labels, count = label(mask, np.ones((3, 3)))
        regions += [(number, labels == region) for region in range(1, count + 1)]
    negatives = sum((~mask).sum() for _, mask in maps)
    curve = [(0.0, 0.0)]
    for t in sorted({int(v) for levels, _ in maps for v in levels.ravel()}, reverse=True):
        alarms = sum(((levels >= t) & ~mask).sum() for levels, mask in maps)
        overlaps = [(maps[n][0] >= t)[region].mean() for n, region in regions]
        curve.append((alarms / negatives, float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 < limit:
            end = min(x1, limit)
            at_end = y1 if x1 <= limit else y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + at_end) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [4, 60])
def test_pro_is_that_of_following_its_definition(limit, levels):
    maps = drawn(1, levels=levels)
    assert histogram(maps).pro(limit) == pytest.approx(slow_pro(maps, limit), abs=1e-12)


def test_pro_of_a_perfect_map_is_one_and_of_an_inverted_one_is_zero():
    maps = [(np.where(mask, 60_000, 10).astype(np.uint16), mask) for _, mask in drawn(2)]
    assert histogram(maps).pro() == pytest.approx(1)
    inverted = [(np.where(mask, 10, 60_000).astype(np.uint16), mask) for _, mask in maps]
    assert histogram(inverted).pro() == pytest.approx(0)


def test_a_small_region_counts_as_much_as_a_large_one():
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = mask[18, 18] = True
    found = np.zeros((20, 20), np.uint16)
    found[2:12, 2:12] = 9
    # Half of the regions at no false alarm, then straight to all of them at every false alarm.
    assert histogram([(found, mask)]).pro(1.0) == pytest.approx(0.75)


def test_regions_touch_at_corners():
    assert histogram(drawn(0)[4:]).regions == label(drawn(0)[4][1], np.ones((3, 3)))[1]
    mask = np.eye(5, dtype=bool)
    assert histogram([(np.zeros((5, 5), np.uint16), mask)]).regions == 1


def test_merging_shards_gives_the_same_as_all_at_once():
    maps = drawn(3, count=6)
    merged = PixelHistogram()
    for shard in (maps[4:], maps[:1], [], maps[1:4]):
        merged.merge(histogram(shard))
    whole = histogram(maps)
    assert np.allclose(merged.counts, whole.counts, rtol=1e-12)
    assert (merged.images, merged.regions) == (6, whole.regions)
    assert merged.pro() == pytest.approx(whole.pro(), abs=1e-12)
    assert merged.auroc() == whole.auroc()


def test_without_defective_pixels_there_are_no_pixel_metrics():
    good = histogram([(np.zeros((4, 4), np.uint16), np.zeros((4, 4), bool))])
    assert (good.auroc(), good.pro()) == (None, None)
    bad = histogram([(np.zeros((4, 4), np.uint16), np.ones((4, 4), bool))])
    assert (bad.auroc(), bad.pro()) == (None, None)
    assert (PixelHistogram().auroc(), PixelHistogram().pro()) == (None, None)
