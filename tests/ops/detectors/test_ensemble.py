"""Several models as one: the score is that of the formula, whatever the batch and the inputs."""

import dataclasses

import numpy as np
import pytest

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import SCHEMA
from ops.detectors.ensemble import EnsembleSettings, check_members, common_scale, mean_map
from ops.detectors.model_folder import read_card, read_model, write_model
from ops.errors import SettingError, UserError
from ops.images.decode import DecodeSettings
from ops.images.read_images import Read
from ops.images.resize import InputSettings
from ops.results.anomaly_map import LEVELS, Scale, enlarge
from ops.results.combination import Position, combined
from ops.results.write_maps import DrawSketches
from ops.storage import files, uris
from ops.storage.paths import Out
from pipelines.scoring.stream import draw_step
from tests import pictures
from tests.ensembles import PRODUCT, detecting, ensemble_of, member, rows_of

SMALL, LARGE = InputSettings(size=64, exposure="median"), InputSettings(size=96)
UNSEEN = [pictures.texture(seed) for seed in (50, 51)]
UNSEEN += [pictures.with_blob(pictures.texture(52), 20, 40)]


@pytest.fixture(scope="module")
def members():
    return [member(SMALL), member(LARGE, layers="features.6"), member(SMALL, "spade")]


@pytest.fixture(scope="module", params=["mean", "smallest_p"])
def ensemble(members, request):
    return ensemble_of(members, request.param)


def grid(row):
    return np.frombuffer(row["patch_scores"], "<f4").reshape(-1, row["grid_width"])


def scores_of(model, drawn=UNSEEN, keep=False):
    return detecting(model, keep)(rows_of(drawn, model.card.inputs)).to_pylist()


def test_pictures_are_read_once_for_each_size_the_largest_first(ensemble):
    assert ensemble.card.inputs == (LARGE, InputSettings(size=64))
    assert ensemble.card.input == LARGE
    assert ensemble.members[0].card.inputs == (SMALL,)


def test_the_score_is_the_combination_of_its_members_scores(ensemble, members):
    alone = [scores_of(one) for one in members]
    values = [np.array([row["score"] for row in rows]) for rows in alone]
    known = [np.array(one.card.products[PRODUCT].calibration.scores) for one in members]
    expected = combined(values, known, ensemble.card.settings["combine"])
    found = scores_of(ensemble)
    assert [row["score"] for row in found] == expected.tolist()
    assert found[2]["score"] > max(row["score"] for row in found[:2])
    assert found[2]["is_anomalous"]
    assert found[2]["p_value"] == pytest.approx(1 / 9)
    for n, row in enumerate(found):
        maps = [grid(rows[n]) for rows in alone]
        assert (
            grid(row).tolist()
            == mean_map(maps, ensemble.card.products[PRODUCT].member_peaks).tolist()
        )


def test_maps_are_averaged_in_spreads_above_good_peaks_on_the_finest_grid():
    coarse, fine = np.array([[1, 3], [5, 7]], np.float32), np.ones((4, 6), np.float32)
    found = mean_map([coarse, fine], [Position(1.0, 2.0), Position(4.0, 0.5)])
    assert found.dtype == np.float32
    assert found == pytest.approx((enlarge((coarse - 1) / 2, (6, 4), (0, 0)) - 6) / 2, abs=1e-6)


def test_the_scale_holds_every_mean_of_maps_that_fit_the_members_scales(members):
    cards = [
        dataclasses.replace(one.card, map_scale=Scale(0.0, top / (LEVELS - 1)))
        for one, top in zip(members[:2], (10.0, 3.0), strict=True)
    ]
    peaks = [
        (Position(2.0, 1.0), Position(1.0, 0.5)),  # from -2 to 8, and from -2 to 4
        (Position(1.0, 0.5), Position(2.0, 1.0)),  # from -2 to 18, and from -2 to 1
    ]
    scale = common_scale(cards, peaks)
    assert scale.offset == -2.0
    assert scale.offset + scale.scale * (LEVELS - 1) == pytest.approx(9.5, abs=0.51)


def test_a_row_scores_the_same_bits_alone_and_among_others(ensemble):
    together = scores_of(ensemble)
    assert [scores_of(ensemble, [one])[0]["score"] for one in UNSEEN] == [
        row["score"] for row in together
    ]
    alone = scores_of(ensemble, UNSEEN[1:2])[0]
    assert alone["patch_scores"] == together[1]["patch_scores"]


def test_an_ensemble_that_was_read_back_scores_the_same_bits(ensemble, tmp_path):
    folder = str(tmp_path / "model")
    write_model(folder, ensemble)
    write_model(folder, ensemble)  # again, as after a kill
    result = read_model(folder)
    assert result.card == ensemble.card
    assert result.card.model_id == ensemble.card.model_id
    assert scores_of(result) == scores_of(ensemble)
    write_model(str(tmp_path / "copy"), result)
    assert read_card(str(tmp_path / "copy")).model_id == ensemble.card.model_id


def test_a_member_that_was_replaced_is_refused(members, tmp_path):
    folder = str(tmp_path / "model")
    write_model(folder, ensemble_of(members[:2]))
    write_model(str(tmp_path / "other"), members[2])
    (tmp_path / "model" / "_member-1").rename(tmp_path / "model" / "gone")
    with pytest.raises(UserError, match=r"no complete model at .*_member-1"):
        read_card(folder)
    (tmp_path / "other").rename(tmp_path / "model" / "_member-1")
    with pytest.raises(UserError, match="its members are not those that model"):
        read_card(folder)


def test_cards_of_other_models_do_not_speak_of_members(members, tmp_path):
    write_model(str(tmp_path / "model"), members[0])
    content = files.read_json(str(tmp_path / "model" / "model.json"))
    assert "members" not in content
    assert "member_peaks" not in content["products"][PRODUCT]


def test_the_reader_packs_the_inputs_of_all_members_from_one_decode(ensemble, tmp_path):
    (tmp_path / "a.png").write_bytes(pictures.encoded(UNSEEN[2]))
    (tmp_path / "b.png").write_bytes(b"no picture")
    listed = [
        {"uri": uris.make(str(tmp_path / name)), "product": PRODUCT, "image_id": f"{name}{name}"}
        for name in ("a.png", "b.png")
    ]
    inputs = ensemble.card.inputs
    read = Read(inputs[0], DecodeSettings(), FetchSettings(), further=inputs[1:])
    rows = read(SCHEMA.empty_table().from_pylist(listed, SCHEMA))
    assert rows["pixels"][0].as_py() == rows_of(UNSEEN[2:], inputs)["pixels"][0].as_py()
    scored = detecting(ensemble, keep=True)(rows)
    assert scored["status"].to_pylist() == ["ok", "unreadable"]
    assert scored["score"][0].as_py() == scores_of(ensemble)[2]["score"]
    draw = draw_step(ensemble, Out(""), "none", overlays=True, kind=DrawSketches)
    drawn = draw(scored).to_pylist()[0]
    assert np.hypot(drawn["peak_x"] - 20, drawn["peak_y"] - 40) <= 8
    assert drawn["sketch"].startswith(b"\x89PNG")


def test_an_image_that_one_member_cannot_score_is_undefined(members):
    broken = {name: tensor * np.nan for name, tensor in members[0].products[PRODUCT].items()}
    broken = {
        k: v if v.is_floating_point() else members[0].products[PRODUCT][k]
        for k, v in broken.items()
    }
    model = ensemble_of(members[:2])
    spoilt = dataclasses.replace(members[0], products={PRODUCT: broken})
    model = dataclasses.replace(model, members=(spoilt, members[1]))
    assert {row["status"] for row in scores_of(model)} == {"undefined"}


def test_members_that_do_not_fit_together_are_refused(members, ensemble):
    card = members[0].card
    with pytest.raises(UserError, match="at least 2 members, not 1"):
        check_members([card])
    with pytest.raises(UserError, match="member 2 is itself an ensemble"):
        check_members([card, ensemble.card])
    tiles = InputSettings(size=64, fit="tile")
    others = {
        "products": {"products": {"bolt": card.products[PRODUCT]}},
        "views": {"views": "separate"},
        "decode settings": {"decode": DecodeSettings(bit_depth=12)},
        "holdout": {"fit": {"holdout": 0.3}},
        "part of the picture": {"input": InputSettings(size=64, fit="crop")},
    }
    for what, changes in others.items():
        with pytest.raises(UserError, match=f"member 2 has other {what} than member 1: "):
            check_members([card, dataclasses.replace(card, **changes)])
    tiled = dataclasses.replace(card, input=tiles)
    check_members(
        [tiled, dataclasses.replace(tiled, input=dataclasses.replace(tiles, exposure="standard"))]
    )
    with pytest.raises(UserError, match="part of the picture"):
        check_members(
            [tiled, dataclasses.replace(tiled, input=dataclasses.replace(tiles, overlap=0.5))]
        )


def test_an_unknown_combination_is_refused_with_the_known():
    with pytest.raises(SettingError, match=r"combine 'max' must be one of .*mean.*smallest_p"):
        EnsembleSettings(combine="max")


def test_members_of_tiles_score_whole_pictures_together():
    tiles = InputSettings(size=64, fit="tile", overlap=0.5)
    pair = [
        member(tiles),
        member(dataclasses.replace(tiles, exposure="median"), layers="features.6"),
    ]
    model = ensemble_of(pair)
    assert len(model.card.inputs) == 1
    wide = np.concatenate(
        [pictures.texture(60), pictures.with_blob(pictures.texture(61), 30, 30)], axis=1
    )
    (row,) = scores_of(model, [wide], keep=True)
    values = [np.array([scores_of(one, [wide])[0]["score"]]) for one in pair]
    known = [np.array(one.card.products[PRODUCT].calibration.scores) for one in pair]
    assert row["score"] == combined(values, known, "mean")[0]
    assert grid(row).shape[1] > grid(row).shape[0]
    assert len(row["pixels"]) == 64 * 128
