"""A night is a date, written with ASCII digits; a run judges by the rates of its settings."""

from __future__ import annotations

import pytest

from jobs import score
from ops.errors import SettingError
from ops.storage import files
from ops.storage.paths import Out
from pipelines.nights import other_rates
from pipelines.scoring.run import ScoreSettings, check_night
from tests.runs import Part, finish, model_of


@pytest.mark.parametrize("night", [None, "2026-11-20", "2024-02-29", "0001-01-01"])
def test_dates_are_nights(night):
    check_night(night)


@pytest.mark.parametrize(
    "night",
    [
        *("2026-13-45", "2026-02-29", "2026-00-10", "2026-11-00", "0000-01-01"),
        *("\u0662\u0660\u0662\u0666-\u0661\u0661-\u0662\u0660", "2026-11-2\uff10"),
        *("20261120", "2026-W47-5", "2026-11-20\n", " 2026-11-20", "2026-11-20T00", "../x", ""),
    ],
)
def test_anything_else_is_none(night):
    with pytest.raises(SettingError, match="must be a date such as 2026-11-20"):
        check_night(night)


def test_a_run_judges_by_the_rates_of_its_settings_and_records_them(tmp_path):
    model = model_of(["bolt", "nut"])
    held_out = {name: len(card.calibration.scores) for name, card in model.card.products.items()}
    parts = [Part(f"{name}/{n}", name, 0.5) for name in held_out for n in range(2)]
    ids = set()
    for rate, expected in (
        (None, dict.fromkeys(held_out, model.card.false_alarm_rate)),
        (0.5, {"bolt": 0.5, "nut": 0.5}),
        ({"nut": 0.5}, {"bolt": model.card.false_alarm_rate, "nut": 0.5}),
    ):
        settings = ScoreSettings("none", false_alarm_rate=rate)
        run = finish(str(tmp_path), parts, model, settings=settings)
        ids.add(run.run_id)
        record = files.read_json(run.out.run(run.run_id))
        assert record["false_alarm_rates"] == expected
        assert record["thresholds"] == {
            name: card.calibration.threshold(expected[name])
            for name, card in model.card.products.items()
        }
        assert ScoreSettings.of_record(record["settings"]) == settings
    assert len(ids) == 3


def test_a_rate_of_an_unknown_product_or_beyond_its_bounds_is_refused():
    card = model_of(["bolt"]).card
    with pytest.raises(SettingError, match=r"the model has no product 'nut'; it has bolt"):
        score.check(card, score.Settings("none", false_alarm_rate={"nut": 0.1}))
    for rate in (0, 1.5, {"bolt": 1.0}):
        with pytest.raises(SettingError, match=r"false_alarm_rate .* must lie between 0 and 1"):
            ScoreSettings("none", false_alarm_rate=rate)


def test_a_night_tells_of_runs_that_judged_by_other_rates(tmp_path):
    model, out = model_of(["bolt"]), Out(str(tmp_path))
    assert other_rates.sentence(out, model.card, 0.5) == ""
    for rate in (None, 0.5):
        settings = ScoreSettings("none", false_alarm_rate=rate)
        finish(out.root, [Part("1", "bolt", 0.5)], model, settings=settings)
        finish(out.root, [Part("1", "bolt", 0.5)], model_of(["bolt", "nut"]), settings=settings)
    told = "earlier runs that judged by other false-alarm rates than this night does: 1."
    for rate in (None, 0.5, {"bolt": 0.5}):
        assert other_rates.sentence(out, model.card, rate).startswith(told)
    assert "than this night does: 2." in other_rates.sentence(out, model.card, {"bolt": 0.4})
