"""Rates that decisions speak for, as people ask for them, over a drawn history."""

from __future__ import annotations

import tomllib

import pytest

from jobs import nightly
from jobs.cli import entry
from ops.storage import files
from ops.storage.paths import Out
from pipelines.scoring.run import ScoreSettings
from pipelines.tables import decisions
from tests.pipelines.tables.test_current_scores import MODELS, publish, row

HOSTILE = 'b.olt "[x]"\n= "\x7f'


@pytest.fixture
def out(tmp_path):
    """A night: 20 parts of each product at p-values of 0.1 and 0.2, and 100 above."""
    out = Out(str(tmp_path / "out"))
    parts = [
        row(f"u/{number}/{i}", product=product, score=9.0 - level, p_value=level / 10, **verdict)
        for number, product in enumerate((HOSTILE, "nut"))
        for level, count in ((1, 20), (2, 20), (7, 100))
        for verdict in [{"is_anomalous": level <= 2, "content_sha256": f"{number}{level}" * 32}]
        for i in range(100 * level, 100 * level + count)
    ]
    parts.append(row("u/lost", status="missing", product="nut"))
    run_id = publish(out, 0, parts)
    record = {"run_id": run_id, "number": 1, "started": "2026-11-20T00", "model_id": MODELS[0]}
    record |= {"held_out": {HOSTILE: 9, "nut": 9, "bare": 0}}
    record["false_alarm_rates"] = {HOSTILE: 0.25, "nut": 0.25, "bare": 0.25}
    files.write_json(out.run(run_id), record | {"totals": {"images": 281}})
    return out


def decide(out, number, level, word, count, first=0):
    shown = [
        row(f"u/{number}/{i}", content_sha256=f"{number}{level}" * 32)
        | {"run_id": "2026-11-20-0000"}
        for i in range(100 * level + first, 100 * level + first + count)
    ]
    decisions.append(
        out, [decisions.decided(each, word, who="ada", source="page") for each in shown]
    )


def test_a_rate_for_each_product_is_written_as_settings_that_a_query_takes(leave, out):
    decide(out, 0, 1, "defect", 20)
    decide(out, 0, 2, "false_alarm", 20)
    decide(out, 1, 2, "false_alarm", 2)
    decide(out, 1, 7, "defect", 1)
    code, said, _ = leave("tune", "--miss-cost", "15", "--output", "tuned.toml")
    assert code == 0
    bolt, nut = (line.split()[-8:] for line in said.splitlines()[2:4])
    assert bolt == ["40", "0.2", "40", "0.1", "20", "20", "0", "0"]
    assert nut == ["2", "0.2", "40", "0.2", "40", "0", "0", "0"]
    saving = 20 - 15 * 20 / 22
    assert f"change the cost by {-saving:.1f} over images like these, by 40 decisions" in said
    assert (
        "nut: no proposal: 2 flagged parts are decided, and fewer alarms need 14 decisions" in said
    )
    assert "bare: no image was held out, so there is no rate to tune" in said
    assert said.count("more alarms cannot be judged") == 1  # somebody found a missed nut
    assert "parts that the model calls good are rarely looked at" in said
    tuned = tomllib.loads(files.read_bytes("tuned.toml").decode())
    assert tuned == {"false_alarm_rate": {HOSTILE: 0.1, "nut": 0.2}}
    words = ["query", "--where", "is_anomalous", "--columns", "product", "--output", "flagged.csv"]
    assert "80 images: flagged.csv" in leave(*words)[1]
    code, said, err = leave(*words, "--config", "tuned.toml")
    assert (code, err) == (0, "")
    assert "60 images: flagged.csv" in said
    # Products that are not named keep their verdicts.
    assert "60 images: flagged.csv" in leave(*words, "--false-alarm-rate", '{"nut": 0.1}')[1]


def test_decided_defects_among_parts_called_good_speak_for_more_alarms(leave, out):
    decide(out, 1, 7, "defect", 9)
    code, said, _ = leave("tune", "--miss-cost", "20")
    assert code == 0
    nut = said.splitlines()[3].split()
    assert nut == ["nut", "0", "0.2", "40", "0.7", "140", "0", "0", "9"]
    assert "nut: 0.7 instead of 0.2 is expected to change the cost by -80.0" in said
    assert "over images like these, by 9 decided defects among parts that are not flagged" in said
    assert "nut: more alarms cannot be judged" not in said


def test_decisions_of_other_bytes_count_for_nothing(leave, out):
    shown = row("u/1/200", content_sha256="9" * 64) | {"run_id": "2026-11-20-0000"}
    decisions.append(out, [decisions.decided(shown, "false_alarm", who="ada", source="page")] * 1)
    assert leave("tune", "--miss-cost", "20")[1].splitlines()[3].split()[1] == "0"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ([], 2, "name what a missed defect costs, in looks if you like: --miss-cost 50"),
        (["--miss-cost", "-1"], 2, "miss_cost -1 must lie between 1e-09 and 1e+12"),
        (["--miss-cost", "5", "--output", "x.csv"], 2, "output x.csv must end in .toml"),
        (["--miss-cost", "5"], 1, "out holds no decision of people; decide with"),
    ],
)
def test_what_cannot_be_tuned_is_said(leave, out, words, code, sentence):
    left, _, err = leave("tune", *words)
    assert left == code
    assert sentence in err


def test_an_unknown_product_among_rates_is_refused_with_the_known(leave, out):
    code, _, err = leave("query", "--false-alarm-rate", '{"nut": 0.1, "nit": 0.2}')
    assert code == 2
    assert "false_alarm_rate: the model has no product 'nit'; it has b.olt" in err
    code, _, err = leave("query", "--parts", "true", "--false-alarm-rate", '{"nit": 0.1}')
    assert code == 2
    assert "false_alarm_rate: the model has no product 'nit'" in err


def test_a_night_takes_tuned_rates_as_a_second_file_of_settings(tmp_path):
    night, tuned = tmp_path / "night.toml", tmp_path / "tuned.toml"
    night.write_text('archive = "parts"\nmaps = "all"\n')
    tuned.write_text('[false_alarm_rate]\nnut = 0.2\n"b.olt" = 0.1\n')
    words = ["--config", str(night), "--config", str(tuned)]
    settings, _ = entry.parse(nightly.Settings, nightly.__doc__, words)
    assert (settings.archive, settings.maps) == ("parts", "all")
    assert settings.false_alarm_rate == {"nut": 0.2, "b.olt": 0.1}
    assert settings.score_settings() == ScoreSettings(
        "all", false_alarm_rate={"nut": 0.2, "b.olt": 0.1}
    )
