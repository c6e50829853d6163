"""The record of a night that fails, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jobs.cli import entry
from jobs.tracking.record import Record
from ops.detectors.model_folder import write_model
from ops.errors import SettingError, UserError
from ops.storage import files
from ops.storage.paths import Out
from pipelines.nights.hooks import NightHooks
from pipelines.nights.night import Night
from pipelines.nights.settings import NightSettings
from pipelines.tables import run_records
from tests.conftest import tiny_model


@pytest.fixture
def world(tmp_path):
    write_model(str(tmp_path / "model"), tiny_model("bolt"))
    return SimpleNamespace(out=Out(str(tmp_path / "out")), model=str(tmp_path / "model"))


def night(world, error):
    """A night whose archive cannot be listed; its record, and what the tracker gets."""

    def fail(_):
        raise error

    tracked = Record("nightly")
    hooks = NightHooks(
        take_inventory=fail,
        archive=(),
        model_name="tiles v3, champion",
        tracked=tracked,
        tracker_page=lambda _: "",
        track_totals=lambda _: None,
        echo=lambda _: None,
        print_summary=lambda _: None,
        describe=entry.describe,
        progress=lambda *_: None,
        check_lock=lambda: None,
    )
    with pytest.raises(type(error)):
        Night(NightSettings(), world.out, world.model, "", hooks).run()
    name = max(files.names(world.out.nights()))
    return files.read_json(files.join(world.out.nights(), name)), tracked


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("no bucket at https://ann:s3cret@store"), "no bucket at https://***@store"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError: a bug"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_a_failed_night_records_its_error_and_its_end(world, error, told):
    record, tracked = night(world, error)
    assert record["error"] == told
    assert record["started"] <= record["ended"]
    assert (record["warnings"], record["model_name"]) == ([], "tiles v3, champion")
    assert tracked.metrics["warnings"] == 0.0


def test_a_night_that_failed_early_does_not_hide_what_a_killed_one_left(world):
    killed = {"started": "2026-11-20T00:00:00+00:00", "run_id": "2026-11-20-0", "night": "2026"}
    files.write_json(world.out.night("00000001-a"), killed)
    night(world, UserError("down"))
    assert run_records.last_night(world.out) == killed
    for number, record in ((7, {"error": "e", "run_id": "r"}), (8, {"ended": "now"})):
        files.write_json(world.out.night(f"{number:08d}-a"), record)
        assert run_records.last_night(world.out) == record


@pytest.mark.parametrize("share", ["x", "101%", -0.1, "nan"])
def test_a_share_of_anomalous_images_lies_between_0_and_1(share):
    with pytest.raises(SettingError, match=r"warn_anomalous .* must be a share from 0% to 100%"):
        NightSettings(warn_anomalous=share)
    assert NightSettings(warn_anomalous="25 %").anomalous_share() == 0.25


@pytest.mark.parametrize(
    "settings", [{"warn_trend": 1.0}, {"warn_trend": -0.1}, {"trend_nights": 0}]
)
def test_trends_have_bounds(settings):
    with pytest.raises(SettingError, match="must"):
        NightSettings(**settings)
