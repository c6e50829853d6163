"""Pictures of a product that differ in depth are refused or said, and recorded."""

import pytest

from pipelines.fitting.coordinator import FitCoordinator
from pipelines.fitting.depths import Depths

Coordinator = FitCoordinator.__ray_metadata__.modified_class


def counted(*depths, setting=None, earlier=None):
    found = Depths(setting, earlier or {})
    for number, depth in enumerate(depths):
        found.add("bolt", depth, f"{number}.tif")
    return found


def test_files_of_sixteen_bits_beside_others_need_the_setting():
    mixed = counted(8, 16, 8)
    assert mixed.refusal() == (
        "the pictures of 'bolt' differ in depth (2 of 8 bits, such as 0.tif; 1 of 16 bits, such as "
        "1.tif); files of 16 bits may use fewer, and would then be too dark: give the bits that "
        "they use, such as --decode.bit_depth 12, or 16 for all"
    )
    given = counted(8, 16, 8, setting=16)
    assert given.refusal() == ""
    assert len(given.warnings()) == 1
    assert given.counts() == {"bolt": {"8": 2, "16": 1}}


@pytest.mark.parametrize(("depths", "warnings"), [((8, 8), 0), ((16, 16), 0), ((10, 12, 8), 1)])
def test_declared_depths_are_only_said(depths, warnings):
    assert counted(*depths).refusal() == ""
    assert len(counted(*depths).warnings()) == warnings


def test_a_grown_model_keeps_to_its_depths():
    grown = counted(16, earlier={"bolt": {"8": 30}})
    assert "30 of 8 bits; 1 of 16 bits, such as 0.tif" in grown.refusal()
    assert grown.counts() == {"bolt": {"8": 30, "16": 1}}


def test_products_may_differ_from_each_other():
    both = counted(8)
    both.add("nut", 16, "n.tif")
    assert (both.refusal(), both.warnings()) == ("", [])


def test_the_coordinator_counts_each_picture_once_and_refuses_at_the_first_mixture():
    coordinator = Coordinator(3, Depths(None, {}))
    first = {0: ("bolt", 8, "a.png"), 1: ("bolt", 8, "b.png")}
    assert coordinator.add_images([0, 1], {}, first) == (0, "")
    assert coordinator.add_images([0, 1], {}, first) == (0, "")
    assert coordinator.depths().counts() == {"bolt": {"8": 2}}
    assert coordinator.sizes() == {}
    failed, refusal = coordinator.add_images([2], {"x": "cut"}, {2: ("bolt", 16, "c.png")})
    assert failed == 1
    assert refusal.startswith("the pictures of 'bolt' differ in depth")
    assert coordinator.refusal() == refusal


def test_the_coordinator_keeps_the_sizes_of_each_product_once():
    coordinator = Coordinator(3, Depths(None, {}))
    coordinator.add_images([0], {}, {}, {"bolt": {(30, 20)}, "nut": {(8, 9)}})
    coordinator.add_images([1], {}, {}, {"bolt": {(30, 20), (40, 20)}})
    assert coordinator.sizes() == {"bolt": {(30, 20), (40, 20)}, "nut": {(8, 9)}}
