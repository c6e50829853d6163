"""The input that a fit chooses from its pictures, what it says, and what others would cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ops.detectors.fit_cost import FitSize
from ops.detectors.registry import detector_class
from ops.features.backbone import Backbone, BackboneSettings
from ops.images.resize import InputSettings
from pipelines.fitting.choose_input import NetworkInput, choose_input, settled
from pipelines.fitting.compare_inputs import compare_inputs, name_of
from pipelines.fitting.picture_sizes import PictureSizes
from pipelines.fitting.plan import Plan
from pipelines.fitting.rehearsal import Rehearsal
from pipelines.fitting.request import FitRequest

NETWORK = BackboneSettings("squeezenet1_1", "features.3", "random")
AUTO = InputSettings(size="auto", fit="auto")
TAKES = NetworkInput(own=224, step=32, fixed=False, patches=784)
NO_TILES = detector_class("padim").no_tiles


@pytest.fixture(scope="module")
def network():
    return Backbone(NETWORK)


def request(method: str = "patchcore", asked: InputSettings = AUTO) -> FitRequest:
    return FitRequest(method, detector_class(method).Settings(), NETWORK, input=asked)


@pytest.fixture(autouse=True)
def _patches_of_eight_pixels(monkeypatch):
    monkeypatch.setattr(NetworkInput, "of", lambda *_: TAKES)


@pytest.mark.parametrize(
    ("sizes", "fit", "size"),
    [
        ([(64, 64)], "squash", 224),
        ([(239, 170)], "squash", 224),
        ([(240, 170)], "squash", "256x224"),
        ([(640, 480)], "squash", "640x480"),
        ([(640, 640)], "squash", 640),
        ([(704, 704)], "squash", 704),
        ([(720, 720)], "squash", 704),
        ([(721, 721)], "tile", 224),
        ([(2000, 200)], "squash", "1984x224"),
        ([(4000, 200)], "tile", 224),
        ([(4000, 3000)], "tile", 224),
        ([(60, 40), (900, 700), (40, 40), (600, 500), (610, 480)], "squash", "608x480"),
    ],
)
def test_pictures_are_seen_whole_up_to_a_number_of_patches_and_in_tiles_beyond(
    network, sizes, fit, size
):
    found = choose_input(request(), network, PictureSizes({"nut": sizes})).request.input
    assert (found.fit, found.size) == (fit, size)
    assert not found.is_open
    assert TAKES.patches_of(found.sides) <= 8192


def test_what_is_chosen_is_said_with_its_cost(network):
    def said(method: str, size: tuple[int, int]) -> list[str]:
        return choose_input(request(method), network, PictureSizes({"nut": [size]})).sentences

    assert said("patchcore", (4000, 3000)) == [
        "input: tiles of 224 px at the pictures' own resolution, 475 of a picture of 4,000 x 3,000 "
        "(--input.size auto): 372,400 patches a picture, 475 times those, and the time, of 224 x "
        "224"
    ]
    assert said("patchcore", (640, 480)) == [
        "input: 640 x 480 for pictures of 640 x 480 (--input.size auto): 4,800 patches a picture, "
        "6.12 times those, and the time, of 224 x 224"
    ]
    assert said("patchcore", (64, 48)) == [
        "input: 224 x 224 for pictures of 64 x 48 (--input.size auto): 784 patches a picture"
    ]
    whole, why = said("padim", (4000, 3000))
    assert whole.startswith(
        "input: 832 x 608 for pictures of 4,000 x 3,000 (--input.size auto): 7,9"
    )
    assert why == f"pictures are not cut into tiles: {NO_TILES}"
    assert len(said("padim", (640, 480))) == 1


def test_the_largest_product_decides_and_a_mixture_is_warned_of(network):
    mixed = PictureSizes({"nut": [(64, 64)], "bolt": [(640, 480)], "lost": []})
    found = choose_input(request(), network, mixed)
    assert found.request.input.size == "640x480"
    assert found.sentences[1].startswith(
        "warning: products have pictures from 64 x 64 to 640 x 480; one input, chosen from the "
        "largest, serves all"
    )
    alike = PictureSizes({"nut": [(600, 500)], "bolt": [(640, 480)]})
    assert len(choose_input(request(), network, alike).sentences) == 1


def test_what_is_set_by_hand_stays(network):
    pictures = PictureSizes({"nut": [(4000, 3000)]})
    for asked, expected in (
        (InputSettings(size=96), InputSettings(size=96)),
        (InputSettings(size=96, fit="auto"), InputSettings(size=96)),
        (InputSettings(size="auto", fit="tile"), InputSettings(size=224, fit="tile")),
        (InputSettings(size="auto", fit="crop"), InputSettings(size=224, fit="crop")),
        (InputSettings(size="network", fit="auto"), InputSettings(size=224)),
    ):
        assert settled(asked, 224) == expected
        assert choose_input(request(asked=asked), network, pictures) == (
            request(asked=expected),
            [],
        )
    squash = choose_input(request(asked=replace(AUTO, fit="squash")), network, pictures)
    assert (squash.request.input.fit, squash.request.input.size) == ("squash", "832x608")


def test_pictures_that_cannot_be_read_leave_the_networks_own_size(network):
    found = choose_input(request(), network, PictureSizes({"nut": []}))
    assert found.request.input == InputSettings()
    assert found.sentences == [
        "input: 224 x 224, the network's own size; no picture could be read to choose from"
    ]


def test_a_network_of_one_size_sees_tiles_of_it(network, monkeypatch):
    monkeypatch.setattr(NetworkInput, "of", lambda *_: replace(TAKES, fixed=True))
    small, large = PictureSizes({"nut": [(200, 200)]}), PictureSizes({"nut": [(400, 300)]})
    assert choose_input(request(), network, small).request.input == InputSettings()
    tiles = choose_input(request(), network, large).request.input
    assert tiles == InputSettings(fit="tile")
    assert choose_input(request("cflow"), network, large).request.input == InputSettings()


def test_patches_of_other_sides_divide_the_input():
    dinov2 = NetworkInput(own=518, step=14, fixed=False, patches=37 * 37)
    assert dinov2.near(640, 480) == (644, 518)
    assert dinov2.largest(4000, 3000) == (1470, 1092)
    assert all(side % 14 == 0 for side in dinov2.largest(4000, 3000))


def test_a_network_is_asked_what_it_takes(network, monkeypatch):
    monkeypatch.undo()
    takes = NetworkInput.of(request(), network)
    assert takes == NetworkInput(own=224, step=32, fixed=False, patches=55 * 55)


def test_other_inputs_are_compared():
    size = (4000, 3000)
    planned = Plan(2, {"nut": FitSize(224, [], 90, 2)}, {"nut": 90}, 15, {}, 0, 0, 15)
    asked = request(asked=InputSettings(fit="tile"))
    rows = compare_inputs(asked, TAKES, size, planned, Rehearsal(read=0.5, add=0.1, fit=0))
    table = [(name_of(r.input), r.patches, round(r.minutes, 2), r.detail.patch) for r in rows]
    assert table == [
        ("tiles of 224", 372_400, 48.0, 8.0),
        ("224 x 224", 784, 0.6, pytest.approx(142.9, abs=0.1)),
        ("832 x 608", 7904, 1.51, pytest.approx(39.5, abs=0.1)),
        ("tiles of 224, scale 0.5", 91_728, 12.2, 16.0),
    ]
    padim = request("padim", InputSettings())
    names = [
        name_of(r.input) for r in compare_inputs(padim, TAKES, size, planned, Rehearsal(1, 1, 1))
    ]
    assert names == ["224 x 224", "832 x 608"]
