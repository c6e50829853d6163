"""Rows of old nights are removed; the current score of an image never is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ops.archives.inventory import image_id
from ops.results import score_table
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from pipelines.tables import current_scores, decisions
from pipelines.tables.lock import LostLock
from pipelines.tables.retention import Refused, expire
from tests.pipelines.tables.test_current_scores import MODELS, publish, random_history, row


@pytest.fixture
def out(tmp_path):
    return Out(str(tmp_path / "out"))


def current(out):
    """All current rows, and whether their maps are there."""
    rows = [r for model in MODELS for r in current_scores.current(out, model).to_pylist()]
    assert all(os.path.exists(uris.parse(r["map_uri"]).location) for r in rows if r["map_uri"])
    return sorted(map(str, rows))


def nightly(out, day, rows):
    """A night's table with its maps and its run's record. Each number is a night of its own."""
    full = []
    for r in rows:
        if r["status"] == "ok":
            place = out.map(r["model_id"], r["image_id"])
            files.write_bytes(place, b"map")
            files.write_bytes(out.overlay(r["model_id"], r["image_id"]), b"overlay")
            full.append(r | {"map_uri": uris.make(place)})
        else:
            full.append(r)
    run_id = publish(out, 20 * day, full)
    record = {
        "run_id": run_id,
        "number": 20 * day + 1,
        "started": "2026-11-20T00",
        "totals": {"images": 1},
        "model_id": rows[0]["model_id"],
    }
    files.write_json(out.run(run_id), record)
    return out.table(run_id[:10], run_id)


def maps(out):
    return sorted(path.stem for path in Path(out.root, "maps").rglob("*.png"))


def test_superseded_rows_and_their_maps_are_removed(out):
    first = nightly(out, 0, [row("u/1"), row("u/2"), row("u/3", status="missing")])
    second = nightly(out, 1, [row("u/3"), row("u/1", "2")])
    third = nightly(out, 2, [row("u/2", score=3.0)])
    before = current(out)
    removed = expire(out, 1, [], remove=False)
    assert [(f.table, f.rows, f.kept_rows) for f in removed.tables] == [(first, 3, 0)]
    assert removed.maps == 1  # of the version that u/1 no longer has; u/2 shares its own with newer
    assert len(maps(out)) == 4
    assert expire(out, 1, [], remove=True) == removed
    assert current_scores.published(out) == [second, third]
    assert current(out) == before
    assert maps(out) == sorted([image_id("u/1", "2"), image_id("u/2", "1"), image_id("u/3", "1")])
    assert not os.path.exists(out.overlay(MODELS[0], image_id("u/1", "1")))
    assert files.read_json(out.run("2026-11-20-0000"))["expired"]["rows"] == 0
    assert expire(out, 1, [], remove=True).tables == ()


def test_decisions_stay_when_the_scores_that_were_shown_go(out):
    nightly(out, 0, [row("u/1")])
    (shown,) = current_scores.current(out, MODELS[0]).to_pylist()
    false_alarm = decisions.decided(shown, "false_alarm", who="ann", source="page")
    location = decisions.append(out, [false_alarm])
    kept = files.read_bytes(location)
    nightly(out, 1, [row("u/1", score=2.0)])
    assert [table.kept_rows for table in expire(out, 1, [], remove=True).tables] == [0]
    assert decisions.published(out) == [location]
    assert files.read_bytes(location) == kept


def test_a_table_that_is_still_needed_keeps_its_current_rows_alone(out):
    first = nightly(out, 0, [row("u/1"), row("u/2")])
    nightly(out, 1, [row("u/1", "2", status="unreadable")])
    before = current(out)
    (table_of_run,) = expire(out, 1, [], remove=True).tables
    assert (table_of_run.rows, table_of_run.kept_rows) == (2, 1)
    table = parquet.read(first)
    assert table["uri"].to_pylist() == ["u/2"]
    assert score_table.violations(table) == []
    assert current(out) == before


def test_rows_of_a_retired_model_are_removed_where_another_model_has_a_score(out):
    nightly(out, 0, [row("u/1"), row("u/2"), row("u/3")])
    nightly(out, 1, [row("u/1", model=MODELS[1]), row("u/2", model=MODELS[1], status="missing")])
    assert expire(out, 1, [], remove=True).tables == ()
    with pytest.raises(Refused, match="is the model of the latest run"):
        expire(out, 1, [MODELS[1]], remove=True)
    with pytest.raises(Refused, match="have no rows"):
        expire(out, 1, ["c"], remove=True)
    (table_of_run,) = expire(out, 1, [MODELS[0]], remove=True).tables
    assert (table_of_run.rows, table_of_run.kept_rows) == (3, 2)
    remaining = current_scores.current(out, MODELS[0])["uri"].to_pylist()
    assert sorted(remaining) == ["u/2", "u/3"]


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_whatever_the_history_what_is_current_stays_current(out, seed):
    random_history(out, seed)
    before, rows = current(out), sum(len(parquet.read(t)) for t in current_scores.published(out))
    # All drawn runs are of one night; each becomes a night of its own.
    for day, place in enumerate(current_scores.published(out)):
        run_id = place.split("/run=")[1].split("/")[0]
        files.write_bytes(out.table(f"2026-12-{day + 1:02d}", run_id), files.read_bytes(place))
        files.remove_file(place)
    removed = expire(out, 1, [], remove=True)
    assert current(out) == before
    assert sum(len(parquet.read(t)) for t in current_scores.published(out)) == rows - sum(
        f.rows - f.kept_rows for f in removed.tables
    )
    assert removed.tables


def test_maps_outside_of_the_output_folder_are_not_removed(out, tmp_path):
    foreign = tmp_path / "foreign.png"
    foreign.write_bytes(b"x")
    publish(out, 0, [row("u/1", map_uri=uris.make(str(foreign)))])
    publish(out, 20, [row("u/1", "2")])
    assert expire(out, 1, [], remove=True).maps == 0
    assert foreign.exists()


def test_unclear_cases_are_refused(out):
    nightly(out, 0, [row("u/1")])
    with pytest.raises(Refused, match="keep_nights 0"):
        expire(out, 0, [], remove=True)
    files.write_bytes(f"{out.work('2026-11-20-ab')}/started", b"")
    with pytest.raises(Refused, match=r"2026-11-20-ab under .* are unfinished"):
        expire(out, 1, [], remove=True)
    files.remove_folder(out.work())
    files.write_bytes(f"{out.scores()}/part-00000.parquet", b"")
    with pytest.raises(Refused, match="is not the table of a night"):
        expire(out, 1, [], remove=True)


def test_the_failure_that_keeps_an_older_score_current_stays_with_it(out):
    """Two members of one name: the second night met both, and could not read the first."""
    one = row("u/1", "1")
    nightly(out, 0, [one])
    nightly(out, 1, [row("u/1", "2"), row("u/1", "1", status="unavailable")])
    nightly(out, 2, [row("u/2")])
    before = current_scores.current(out, MODELS[0]).to_pylist()
    assert len(before) == 3
    for _ in range(2):
        expire(out, 1, [], remove=True)
        assert current_scores.current(out, MODELS[0]).to_pylist() == before


def test_nothing_is_removed_once_the_lock_is_lost(out):
    nightly(out, 0, [row("u/1")])
    nightly(out, 1, [row("u/1")])
    before = current_scores.published(out)

    def lost():
        raise LostLock("lost")

    expire(out, 1, [], remove=False, check=lost)
    with pytest.raises(LostLock):
        expire(out, 1, [], remove=True, check=lost)
    assert current_scores.published(out) == before
    assert expire(out, 1, [], remove=True).tables


def test_a_run_that_starts_during_the_queries_is_refused(out, monkeypatch):
    nightly(out, 0, [row("u/1")])
    nightly(out, 1, [row("u/1")])
    before = current_scores.published(out)
    opened = current_scores.opened

    def begun(*asked):
        files.write_bytes(f"{out.work('2026-11-22-ab')}/started", b"")
        return opened(*asked)

    monkeypatch.setattr(current_scores, "opened", begun)
    with pytest.raises(Refused, match=r"2026-11-22-ab under .* are unfinished"):
        expire(out, 1, [], remove=True)
    assert current_scores.published(out) == before


def scores(database, _):
    rows = database.sql(f"SELECT uri, score FROM current_scores('{MODELS[0]}') ORDER BY uri")
    return rows.fetchall()


def test_a_reader_reads_again_when_a_table_is_removed_under_it(out):
    nightly(out, 0, [row("u/1")])
    nightly(out, 1, [row("u/1", score=2.0)])
    tries = []

    def read(database, check):
        if not tries:
            expire(out, 1, [], remove=True)
        tries.append(1)
        return scores(database, check)

    assert current_scores.read_consistently(out, read) == [("u/1", 2.0)]
    assert len(tries) == 2


def test_a_reader_does_not_miss_rows_that_a_later_night_superseded(out):
    """It listed its tables before that night; then the night's end made its rows superfluous."""
    nightly(out, 0, [row("u/1"), row("u/2")])
    tries = []

    def read(database, check):
        if not tries:
            nightly(out, 1, [row("u/1", score=2.0)])
            expire(out, 1, [], remove=True)
        tries.append(1)
        result = scores(database, check)
        if len(tries) == 1:
            assert result == [("u/2", 1.0)]  # neither as it was nor as it is
            with pytest.raises(current_scores.TablesChanged):
                check()
        return result

    assert current_scores.read_consistently(out, read) == [("u/1", 2.0), ("u/2", 1.0)]
    assert len(tries) == 2


def test_a_new_table_does_not_disturb_a_reader(out):
    nightly(out, 0, [row("u/1")])

    def read(database, check):
        nightly(out, 1, [row("u/1", score=2.0)])
        return scores(database, check)

    assert current_scores.read_consistently(out, read) == [("u/1", 1.0)]


def test_a_reader_gives_up_with_the_remedy_if_tables_never_stay(out, monkeypatch):
    monkeypatch.setattr(current_scores, "_PAUSES", (0.0, 0.0))
    place = nightly(out, 0, [row("u/1")])

    def read(database, check):
        files.write_bytes(place, files.read_bytes(place))
        return scores(database, check)

    with pytest.raises(current_scores.TablesChanged, match="start the same command again when it"):
        current_scores.read_consistently(out, read)


def test_records_are_marked_before_maps_and_tables_go(out, monkeypatch):
    nightly(out, 0, [row("u/1", "1")])
    nightly(out, 1, [row("u/1", "2")])
    marked = []
    remove = files.remove_file

    def remove_file(place):
        marked.append(files.read_json(out.run("2026-11-20-0000")).get("expired", {}).get("rows"))
        remove(place)

    monkeypatch.setattr(files, "remove_file", remove_file)
    expire(out, 1, [], remove=True)
    assert marked == [0, 0, 0, 0]  # the map, its overlay, the tables of regions and scores
