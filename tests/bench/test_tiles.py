"""The benchmark of all detectors on a folder of images, on a drawn product."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ops.features.backbone import Backbone, BackboneSettings
from tests.bench import tiles
from tests.bench.remembered import RememberingBackbone
from tests.bench.tile_ensembles import combine
from tests.bench.tile_images import Change
from tests.bench.tile_metrics import Answers
from tests.conftest import draw_archive


def test_a_row_for_each_preset_and_change_of_the_images(tmp_path, capsys):
    draw_archive(tmp_path, train=3, test=2, size=64)
    words = ["--data", str(tmp_path), "--layout", "mvtec", "--weights", "random"]
    words += ["--presets", "patchcore-squeezenet", "fastflow-squeezenet", "--epochs", "1"]
    words += ["--exposure", "median", "--changes", "as_is", "x0.7"]
    assert tiles.main([*words, "--", "--input.size", "64"]) == 0
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ") and "squeezenet" in line
    ]
    products = {row[0].split(", ")[1] for row in rows}
    assert len(rows) == 2 * 2 * len(products)
    assert [row[1] for row in rows[:2]] == ["as_is", "x0.7"]
    for row in rows:
        assert all(0 <= float(cell) <= 1 for cell in row[2:7])
        assert row[10].endswith("MB")


def test_changes_of_brightness_and_gamma_are_those_of_integers():
    pixels = np.array([[[0], [100], [255]]], np.uint8)
    assert Change.named("x1.3")(pixels, 255).ravel().tolist() == [0, 130, 255]
    assert Change.named("gamma0.5")(pixels, 255).ravel().tolist() == [0, 160, 255]
    assert Change.named("as_is")(pixels, 255) is pixels
    with pytest.raises(SystemExit, match="unknown change 'darker'; give as_is"):
        Change.named("darker")


def test_remembered_features_are_the_same_bits_and_their_seconds_are_known():
    settings = BackboneSettings("squeezenet1_1", "features.3", "random")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, remembering = Backbone(settings), RememberingBackbone(settings)
    remembering.expect(images[:2])
    for _ in range(2):
        assert torch.equal(remembering(images)[0], plain(images)[0])
    assert remembering.saved > 0
    with torch.inference_mode():
        kept = remembering(images)[0]
    weight = torch.ones((), requires_grad=True)
    (kept * weight).sum().backward()  # as a training would, behind a score
    assert float(weight.grad) == pytest.approx(float(kept.sum()), rel=1e-4)


def test_an_ensemble_of_presets_and_the_losses_of_held_out_images(tmp_path, capsys):
    draw_archive(tmp_path, train=12, test=3, size=64)
    words = ["--data", str(tmp_path), "--layout", "mvtec", "--weights", "random"]
    words += ["--presets", "patchcore-squeezenet", "fastflow-squeezenet", "--epochs", "2"]
    words += ["--held-out", "0.5", "--ensembles", "patchcore-squeezenet+fastflow-squeezenet"]
    assert tiles.main([*words, "--", "--input.size", "64x48"]) == 0
    lines = capsys.readouterr().out.splitlines()
    losses = [line.split("held-out loss ")[1] for line in lines if "epoch" in line]
    assert len(losses) % 2 == 0
    assert len(set(losses)) == len(losses) > 0
    rows = [line.split("|") for line in lines if "| patchcore-squeezenet+" in line]
    assert len(rows) == len(losses) // 2
    assert all(0 <= float(cell) <= 1 for row in rows for cell in row[3:8])
    with pytest.raises(SystemExit, match=r"--ensembles names \['spade'\]"):
        tiles.main([*words, "--ensembles", "spade"])


def test_the_ensemble_of_a_detector_with_itself_orders_images_as_it_does():
    held_out = Answers([1.0, 2.0, 4.0], [np.full((2, 2), v, np.float32) for v in (1, 2, 4)], 1.0)
    scored = Answers([3.0, 9.0], [np.eye(2, dtype=np.float32), np.eye(4, dtype=np.float32)], 2.0)
    both = combine([(scored, held_out), (scored, held_out)])
    # Median 2, and half the distance between the quartiles 1.5 and 3.
    assert both.scores == pytest.approx([(3 - 2) / 0.75, (9 - 2) / 0.75])
    np.testing.assert_allclose(both.maps[0], (np.eye(2) - 2) / 0.75, rtol=1e-6)
    assert both.seconds == 4
