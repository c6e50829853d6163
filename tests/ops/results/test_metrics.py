from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from ops.results.anomaly_map import LEVELS, Scale
from ops.results.metrics import (
    Curve,
    PixelHistogram,
    average_precision,
    best_f1,
    compare_regions,
    roc,
)


def sample(seed: int, n: int = 200, values: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels; with ties if `values` are few."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.3
    scores = rng.normal(size=n) + labels
    return (scores if values is None else np.round(scores * values) / values), labels


@pytest.mark.parametrize("values", [None, 1, 3, 20])
@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_that_of_scikit_learn(seed, values):
    from sklearn.metrics import roc_auc_score

    scores, labels = sample(seed, values=values)
    area = roc(scores, labels).area()
    assert area == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("values", [None, 3])
def test_the_curve_of_images_is_that_of_scikit_learn(values):
    from sklearn.metrics import roc_curve

    scores, labels = sample(0, values=values)
    x, y, _ = roc_curve(labels, scores, drop_intermediate=False)
    curve = roc(scores, labels)
    assert np.allclose(curve.x, x, atol=1e-12)
    assert np.allclose(curve.y, y, atol=1e-12)


def test_auroc_of_equal_scores_is_a_half_and_of_one_kind_none():
    assert roc(np.ones(4), np.array([True, False, True, False])).area() == 0.5
    assert roc(np.ones(4), np.ones(4, bool)) is None
    assert roc(np.ones(4), np.zeros(4, bool)) is None
    assert roc(np.ones(0), np.zeros(0, bool)) is None


@pytest.mark.parametrize("values", [None, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_threshold_is_that_of_a_full_search(seed, values):
    scores, labels = sample(seed, 60, values)
    hits = {t: (labels & (scores >= t)).sum() for t in np.unique(scores)}
    tried = {t: 2 * hit / (labels.sum() + (scores >= t).sum()) for t, hit in hits.items()}
    highest = max(tried.values())
    best = best_f1(scores, labels)
    assert best.f1 == pytest.approx(highest)
    assert best.threshold == max(t for t, f1 in tried.items() if f1 > highest - 1e-12)
    called = scores >= best.threshold
    assert best.false_alarms == (called & ~labels).sum()
    assert best.misses == (~called & labels).sum()


def test_the_larger_of_two_equally_good_thresholds_is_taken():
    # F1 at 3: 2 * 1 / (1 + 2); at 1: 2 * 2 / (4 + 2): both are two thirds
    best = best_f1(np.array([3.0, 2.0, 1.5, 1.0]), np.array([True, False, False, True]))
    assert best.f1 == pytest.approx(2 / 3)
    assert (best.threshold, best.false_alarms, best.misses) == (3.0, 0, 1)


def test_without_defective_images_there_is_no_best_threshold():
    assert best_f1(np.arange(3.0), np.zeros(3, bool)) is None


@pytest.mark.parametrize("values", [None, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_scikit_learn(seed, values):
    from sklearn.metrics import average_precision_score

    scores, labels = sample(seed, values=values)
    expected = average_precision_score(labels, scores)
    assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert average_precision(scores, np.zeros(len(scores), bool)) is None
    assert average_precision(scores, np.ones(len(scores), bool)) == 1.0


Maps = list[tuple[np.ndarray, np.ndarray]]


def random_maps(seed: int, count: int = 5, levels: int = 65536, size: int = 24) -> Maps:
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
    from sklearn.metrics import roc_auc_score

    maps = random_maps(0, levels=levels)
    pixels = np.concatenate([m.ravel() for m, _ in maps])
    truth = np.concatenate([mask.ravel() for _, mask in maps])
    assert histogram(maps).roc().area() == pytest.approx(roc_auc_score(truth, pixels), abs=1e-12)


def slow_pro(maps: Maps, limit: float) -> float:
    """Step by step as its definition says: one threshold per distinct value, no histogram."""
    regions = []
    for number, (_, mask) in enumerate(maps):
        labels, count = label(mask, np.ones((3, 3)))
        regions += [(number, labels == region) for region in range(1, count + 1)]
    negatives = sum((~mask).sum() for _, mask in maps)
    curve = [(0.0, 0.0)]
    for t in sorted({v for levels, _ in maps for v in levels.ravel().tolist()}, reverse=True):
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
def test_pro_follows_its_definition(limit, levels):
    maps = random_maps(1, levels=levels)
    assert histogram(maps).pro_curve().area(limit) == pytest.approx(
        slow_pro(maps, limit), abs=1e-12
    )


def test_pro_of_a_perfect_map_is_one_and_of_an_inverted_one_is_zero():
    maps = [(np.where(mask, 60_000, 10).astype(np.uint16), mask) for _, mask in random_maps(2)]
    assert histogram(maps).pro_curve().area(0.3) == pytest.approx(1)
    inverted = [(np.where(mask, 10, 60_000).astype(np.uint16), mask) for _, mask in maps]
    assert histogram(inverted).pro_curve().area(0.3) == pytest.approx(0)


def test_a_small_region_counts_as_much_as_a_large_one():
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = mask[18, 18] = True
    levels = np.zeros((20, 20), np.uint16)
    levels[2:12, 2:12] = 9
    # Half of the regions at no false alarm, then straight to all of them at every false alarm.
    assert histogram([(levels, mask)]).pro_curve().area() == pytest.approx(0.75)


def test_regions_touch_at_corners():
    assert histogram(random_maps(0)[4:]).regions == label(random_maps(0)[4][1], np.ones((3, 3)))[1]
    mask = np.eye(5, dtype=bool)
    assert histogram([(np.zeros((5, 5), np.uint16), mask)]).regions == 1


def test_merging_shards_gives_the_same_as_all_at_once():
    maps = random_maps(3, count=6)
    merged = PixelHistogram()
    for shard in (maps[4:], maps[:1], [], maps[1:4]):
        merged.merge(histogram(shard))
    at_once = histogram(maps)
    assert np.allclose(merged.counts, at_once.counts, rtol=1e-12)
    assert (merged.images, merged.regions) == (6, at_once.regions)
    assert merged.pro_curve().area(0.3) == pytest.approx(at_once.pro_curve().area(0.3), abs=1e-12)
    assert merged.roc().area() == at_once.roc().area()


def test_without_defective_pixels_there_are_no_pixel_metrics():
    good = histogram([(np.zeros((4, 4), np.uint16), np.zeros((4, 4), bool))])
    assert (good.roc(), good.pro_curve()) == (None, None)
    bad = histogram([(np.zeros((4, 4), np.uint16), np.ones((4, 4), bool))])
    assert (bad.roc(), bad.pro_curve()) == (None, None)
    assert (PixelHistogram().roc(), PixelHistogram().pro_curve()) == (None, None)


def exact_and_rounded(seed: int, levels: int) -> tuple[list, PixelHistogram]:
    """Maps of float32 values, and the histogram of the same rounded to few grey levels."""
    rng = np.random.default_rng(seed)
    exact = []
    for _, mask in random_maps(seed, count=6, size=14):
        values = rng.normal(size=mask.shape) + 1.2 * gaussian_filter(mask.astype(float), 1)
        exact.append((values.astype(np.float32), mask))
    scale = Scale(-3.0, 6.0 / (levels - 1))  # some values lie beyond its ends
    rounded = [(scale.levels(v).clip(0, levels - 1), mask) for v, mask in exact]
    return exact, histogram(rounded)


@pytest.mark.parametrize(("seed", "levels"), [(0, 2), (1, 3), (2, 40), (0, 65536)])
def test_rounding_to_grey_levels_changes_areas_by_no_more_than_their_error(seed, levels):
    from sklearn.metrics import roc_auc_score

    exact, rounded = exact_and_rounded(seed, levels)
    values = np.concatenate([v.ravel() for v, _ in exact])
    truth = np.concatenate([mask.ravel() for _, mask in exact])
    good, bad, _ = rounded.counts
    error = rounded.roc().area_error()
    assert error == pytest.approx((good / good.sum() * bad / bad.sum()).sum() / 2, abs=1e-15)
    assert abs(rounded.roc().area() - roc_auc_score(truth, values)) <= error + 1e-12
    for limit in (0.05, 0.3):
        off = abs(rounded.pro_curve().area(limit) - slow_pro(exact, limit))
        assert off <= rounded.pro_curve().area_error(limit) + 1e-12


def test_the_error_is_small_for_maps_as_published_and_reached_at_worst():
    assert exact_and_rounded(0, 65536)[1].roc().area_error() < 1e-4
    # All on one grey level: the true area may be 0 or 1, and the straight line says a half.
    flat = histogram([(np.zeros_like(levels), mask) for levels, mask in random_maps(0)])
    assert (flat.roc().area(), flat.roc().area_error()) == (0.5, 0.5)
    # Up to a rate of 0.2 the true area may be 0 to 1; the straight line says 0.1.
    assert flat.pro_curve().area(0.2) == pytest.approx(0.1)
    assert flat.pro_curve().area_error(0.2) == pytest.approx(0.9)


def test_a_curve_thinned_for_drawing_stays_within_a_step():
    full = exact_and_rounded(1, 65536)[1].roc()
    few = full.thinned(0.02)
    assert len(few.x) <= 2 * (2 / 0.02 + 1) < len(full.x)
    assert (few.x[0], few.y[0], few.x[-1], few.y[-1]) == (0, 0, 1, 1)
    gap = np.abs(np.stack(full)[:, :, None] - np.stack(few)[:, None]).max(axis=0).min(axis=1)
    assert gap.max() <= 0.02
    corner = Curve(np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0]))
    assert np.array_equal(np.stack(corner.thinned()), np.stack(corner))


@pytest.mark.parametrize("levels", [4, 300, 65536])
def test_pixel_f1_is_that_of_a_full_search(levels):
    from sklearn.metrics import f1_score

    maps = random_maps(3, levels=levels)
    pixels = np.concatenate([m.ravel() for m, _ in maps]).astype(int)
    truth = np.concatenate([mask.ravel() for _, mask in maps])
    tried = {level: f1_score(truth, pixels >= level) for level in np.unique(pixels)}
    best = histogram(maps).best_f1()
    highest = max(tried.values())
    assert best.f1 == pytest.approx(highest, abs=1e-12)
    assert best.level == max(level for level, f1 in tried.items() if f1 > highest - 1e-12)
    for level in (0, 1, int(np.median(pixels)), int(pixels.max()), LEVELS - 1):
        expected = f1_score(truth, pixels >= level)
        assert histogram(maps).f1_at(level) == pytest.approx(expected, abs=1e-12)
    assert histogram(maps).f1_at(LEVELS) == 0.0


def test_without_defective_pixels_there_is_no_pixel_f1():
    empty = histogram([(np.zeros((4, 4), np.uint16), np.zeros((4, 4), bool))])
    assert empty.best_f1() is empty.f1_at(0) is None


@pytest.mark.parametrize("value", [-0.1, 0.0, 0.3, 0.30001, 6.5534, 6.5535, 7.0, np.inf])
def test_a_threshold_lies_below_the_first_level_that_is_larger(value):
    scale = Scale(0.0, 0.0001)
    level = scale.level_above(value)
    assert level == 0 or scale.scale * (level - 1) <= value
    assert level == LEVELS or scale.scale * level > value


def test_regions_of_a_map_are_compared_with_those_of_a_mask():
    above, mask = np.zeros((2, 12, 12), bool)
    mask[1:4, 1:4] = mask[6:9, 1:4] = mask[1:3, 8:10] = True
    above[3:5, 3:5] = True  # touches the first by one pixel
    above[5, 6] = above[6, 7] = True  # is one region by its corners, and false
    above[8, 3] = True  # touches the second, and is one pixel
    assert compare_regions(above, mask) == (2, 1)
    assert compare_regions(above, mask, least=2) == (1, 1)
    assert compare_regions(above, mask, least=3) == (1, 0)
    assert compare_regions(above, np.zeros_like(mask)) == (0, 3)
    assert compare_regions(np.zeros_like(above), mask) == (0, 0)
