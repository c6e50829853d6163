"""Synthetic defects: places, sizes and reproducibility."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import label, median_filter

from ops.augment import synthetic_defects
from ops.augment.synthetic_defects import (
    Background,
    Rules,
    make,
    product_mask,
    rules_for,
)
from ops.images import synthetic_parts

#: The drawn washers are bright on a dark ground.
ON_DARK = Rules(background=Background(38, 25, 0.25, 0.7))


def pictures(product: str, count: int = 2) -> list[np.ndarray]:
    drawn = [synthetic_parts.draw(product, seed, 96).picture for seed in range(count)]
    return [picture.transpose(2, 0, 1) / 255.0 for picture in drawn]


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("product", "rules"), [("fabric", Rules()), ("washer", ON_DARK)])
def test_a_synthetic_image_differs_only_inside_the_mask(product, rules):
    destination, source = pictures(product)
    before = destination.copy()
    for seed in range(8):
        made = make(destination, source, rules, rng(seed))
        assert made.mask.any()
        assert (made.picture[:, ~made.mask] == destination[:, ~made.mask]).all()
        assert np.abs(made.picture - destination).max() > 0.02
        assert 0 <= made.picture.min() <= made.picture.max() <= 1
    assert (destination == before).all()


def test_the_same_seed_makes_the_same_and_another_another():
    destination, source = pictures("fabric")
    one, same, other = (make(destination, source, Rules(), rng(seed)) for seed in (1, 1, 2))
    assert (one.picture == same.picture).all()
    assert (one.mask == same.mask).all()
    assert (one.mask != other.mask).any()


def test_patches_keep_their_bounds():
    destination, source = pictures("fabric")
    rules = Rules(height=(0.1, 0.2), width=(0.2, 0.4), patches=1)
    for seed in range(30):
        rows, columns = np.nonzero(make(destination, source, rules, rng(seed)).mask)
        assert 0.1 * 96 - 3 <= np.ptp(rows) + 1 <= 0.2 * 96 - 1  # less a pixel of border each way
        assert 0.2 * 96 - 3 <= np.ptp(columns) + 1 <= 0.4 * 96 - 1


def test_each_further_patch_has_probability_one_half():
    destination, source = pictures("fabric")
    small = Rules(height=(0.1, 0.1), width=(0.1, 0.1), patches=3)
    counts = [label(make(destination, source, small, rng(n)).mask)[1] for n in range(60)]
    assert set(counts) == {1, 2, 3}
    assert 1.6 < np.mean(counts) < 2.3  # 2 but for patches that touch


def test_patches_overlap_with_the_product_where_a_rule_requires_it():
    destination, source = pictures("washer")
    rules = replace(ON_DARK, patches=1)
    products = [product_mask(p, rules.background) for p in (destination, source)]
    for seed in range(8):
        mask = make(destination, source, rules, rng(seed)).mask
        rows, columns = np.nonzero(mask)
        box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        assert products[0][box].mean() > 0.65
    assert products[0].mean() < 0.55  # so chance would not do it


def test_without_a_valid_place_the_image_does_not_change():
    destination, source = pictures("fabric")
    nowhere = Rules(background=Background(0, 255, 0.25, 0.7))  # all of it is background
    made = make(destination, source, nowhere, rng(0))
    assert not made.mask.any()
    assert (made.picture == destination).all()


def test_the_product_mask_differs_from_the_background_after_a_median():
    picture = pictures("washer")[0]
    found = product_mask(picture, Background(38, 25, 0, 0))
    plain = np.abs(picture.mean(axis=0) * 255 - 38) > 25
    assert (found == median_filter(plain.astype(np.uint8), 7).astype(bool)).all()
    assert product_mask(picture, None) is None


def test_categories_have_the_rules_of_the_table():
    assert rules_for("carpet") == rules_for("Class7") == rules_for("02")
    assert (rules_for("grid").patches, rules_for("grid").scale) == (4, (0.5, 2.0))
    screw = rules_for("screw")
    assert (screw.height, screw.width, screw.patches) == ((0.03, 0.12), (0.03, 0.12), 4)
    assert screw.background == Background(200, 60, 0.25, 0.5)
    assert rules_for("capsule").height == (0.03, 0.15)
    assert rules_for("capsule").width == (0.03, 0.4)
    assert rules_for("toothbrush").background == Background(20, 20, 0.25, 0.25)
    assert rules_for("01").background == Background(200, 60, 0.25, 0.7)
    assert len(synthetic_defects.CATEGORIES) == 15 + 3 + 10


def test_other_products_have_rules_too():
    assert rules_for("gearbox") == Rules()
    assert (Rules().height, Rules().width, Rules().patches) == ((0.03, 0.4), (0.03, 0.4), 3)
    assert Rules().background is None
