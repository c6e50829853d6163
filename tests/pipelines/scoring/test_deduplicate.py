"""Bytes that were scored before: which rows they complete, and with which maps."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from ops.archives.fetch import OTHER_CHANGE_TIME
from ops.archives.inventory import SCHEMA, image_id
from ops.failure import STATUSES, TRANSIENT
from ops.images.read_images import KNOWN
from ops.results.regions import RegionSettings
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from pipelines.scoring.chunks import ROWS
from pipelines.scoring.deduplicate import open_score_cache
from pipelines.scoring.run import ScoreSettings
from pipelines.tables import current_scores, retention
from pipelines.tables.pending import find_pending
from tests.pipelines.tables.test_current_regions import region, write_regions
from tests.pipelines.tables.test_current_scores import MODELS, publish, row

A, B, C, D = (letter * 64 for letter in "abcd")
NOW = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)
COPIED = ("width", "height", "bit_depth", "score", "p_value", "is_anomalous", "peak_x", "peak_y")


@pytest.fixture
def out(tmp_path):
    """Two nights: A is flagged and has a map, B is not; C failed, and is known of another model."""
    out = Out(str(tmp_path))
    mapped = out.map(MODELS[0], "0" * 32)
    files.write_bytes(mapped, b"a map")
    flagged = row(
        "/a", score=7.5, content_sha256=A, width=80, reason="a note", map_uri=uris.make(mapped)
    )
    publish(out, 0, [flagged, row("/b", score=2.0, content_sha256=B)])
    publish(out, 1, [row("/c", status="undefined", content_sha256=C)])
    publish(out, 2, [row("/c", content_sha256=C, model=MODELS[1])])
    return out


def met(position, content, product="bolt", status=KNOWN, **more):
    values = dict.fromkeys(ROWS.names) | {
        "inventory_row": position,
        "image_id": f"{position:032x}",
        "uri": f"file:///new/{position}",
        "product": product,
        "content_sha256": content,
        "status": status,
        "model_id": MODELS[0],
        "run_id": "run",
        "run_number": 1,
        "scored_at": NOW,
    }
    return values | more


#: Thresholds of a night, by detector.
LIMITS = {"bolt": 4.5, "nut": 4.5, "bolt/top": 4.5, "bolt/side": 4.5}


def completed(out, rows, limits=LIMITS, **settings):
    with open_score_cache(out, MODELS[0], ScoreSettings(**settings), limits) as score_cache:
        found = score_cache.complete(pa.Table.from_pylist(rows, ROWS))
        return {r["inventory_row"]: r for r in found.to_pylist()}, score_cache


def test_a_row_gets_what_its_bytes_were_given_and_keeps_its_own_name(out):
    rows = [met(4, A), met(5, B), met(6, A), met(7, B, status="unreadable", reason="cut short")]
    found, score_cache = completed(out, rows, maps="none")
    assert sorted(found) == [4, 5, 6, 7]
    assert found[7] == rows[3]
    assert (score_cache.copied, score_cache.lost) == (3, 0)
    assert [found[n]["score"] for n in (4, 5, 6)] == [7.5, 2.0, 7.5]
    for row_ in rows[:3]:
        whole = found[row_["inventory_row"]]
        assert whole | dict.fromkeys([*COPIED, "reason"]) | {"status": KNOWN} == row_
        assert all(whole[name] is not None for name in COPIED)
        assert whole["status"] in STATUSES
    assert (found[4]["width"], found[4]["reason"], found[5]["reason"]) == (80, "a note", None)


def test_regions_are_copied_where_they_were_told_by_the_same_settings(out):
    """Regions under two nights; a third has lost its table, a fourth other settings."""
    told = {"false_alarm_rate": 0.01, "min_area": 0.0}
    for number, letter in enumerate("abcd"):
        run_id = publish(out, 4 + number, [row(f"/r{letter}", content_sha256=letter * 64)])
        settings = told if letter != "d" else told | {"min_area": 5.0}
        record = {"run_id": run_id, "number": 5 + number, "started": "x", "regions": settings}
        files.write_json(out.run(run_id), record | {"model_id": MODELS[0]})
        if letter != "c":
            of = [region(f"/r{letter}", run_id, n) for n in (2, 1)] if letter == "a" else []
            write_regions(out, run_id, of)
    rows = [met(n, letter * 64) for n, letter in enumerate("abcd")]
    with open_score_cache(
        out, MODELS[0], ScoreSettings(maps="none"), LIMITS, regions=RegionSettings(0.01)
    ) as score_cache:
        assert not score_cache.contents().has(C, "bolt")
        found = score_cache.complete(pa.Table.from_pylist(rows, ROWS)).to_pylist()
    by_row = {each["inventory_row"]: each["regions"] for each in found}
    assert sorted(by_row) == [0, 1]
    assert ([each["number"] for each in by_row[0]], by_row[1]) == ([1, 2], [])
    assert by_row[0][1] == {name: region("/ra", "", 2)[name] for name in by_row[0][1]}


def test_notes_about_the_content_are_copied_and_those_about_the_file_are_not(out):
    doubted = f"{OTHER_CHANGE_TIME}; it has 8 bits"
    publish(out, 3, [row("/d", content_sha256=C, reason=doubted)])
    publish(out, 4, [row("/e", content_sha256=D, reason=OTHER_CHANGE_TIME)])
    rows = [met(1, C), met(2, D), met(3, C, reason=OTHER_CHANGE_TIME), met(4, A, reason="x")]
    found, _ = completed(out, rows, maps="none")
    assert [found[n]["reason"] for n in range(1, 5)] == [
        "it has 8 bits",
        None,
        doubted,
        "x; a note",
    ]


@pytest.mark.parametrize(("maps", "with_map"), [("none", []), ("flagged", [4]), ("top:3", [])])
def test_maps_are_copied_where_they_are_wanted(out, maps, with_map):
    found, _ = completed(out, [met(4, A), met(5, B)], maps=maps)
    assert [n for n in (4, 5) if found[n]["map_uri"]] == with_map
    for number in with_map:
        location = out.map(MODELS[0], f"{number:032x}")
        assert found[number]["map_uri"] == uris.make(location)
        assert files.read_bytes(location) == b"a map"


def test_what_lacks_its_map_is_scored_again(out):
    found, score_cache = completed(out, [met(4, A), met(5, B)], maps="all")
    assert sorted(found) == [4]
    assert score_cache.lost == 1
    files.remove_file(out.map(MODELS[0], "0" * 32))
    found, score_cache = completed(out, [met(4, A), met(5, B)], maps="flagged")
    assert sorted(found) == [5]
    assert (score_cache.copied, score_cache.lost) == (1, 1)


def test_a_map_that_other_bytes_of_one_version_overwrote_is_not_copied(out):
    """A disk lost bits of /a, which was scored again, and then its backup returns."""
    place = uris.make(out.map(MODELS[0], "0" * 32))
    publish(out, 3, [row("/a", score=8.0, content_sha256=C, map_uri=place)])
    found, score_cache = completed(out, [met(4, A), met(5, B), met(6, C)], maps="flagged")
    assert (sorted(found), score_cache.lost) == ([5], 2)
    found, _ = completed(out, [met(4, A), met(6, C)], maps="none")
    assert [found[number]["score"] for number in (4, 6)] == [7.5, 8.0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"maps": "none"}, {A, B}),
        ({"maps": "flagged"}, {A, B}),
        ({"maps": "all"}, {A}),
        ({"maps": "none", "overlays": True}, {A, B}),
        ({"maps": "flagged", "overlays": True}, {B}),
        ({"maps": "all", "overlays": True}, set()),
    ],
)
def test_known_is_what_was_scored_under_the_model_and_has_the_pictures_wanted(
    out, settings, expected
):
    with open_score_cache(out, MODELS[0], ScoreSettings(**settings), LIMITS) as score_cache:
        contents = score_cache.contents()
    assert {content for content in (A, B, C) if contents.has(content, "bolt")} == expected
    assert not contents.has(A, "nut")


def test_an_equal_key_is_no_proof(out):
    """Another product or content that seems known is left to be scored."""
    found, score_cache = completed(out, [met(4, A, product="nut"), met(5, C)], maps="none")
    assert found == {}
    assert score_cache.lost == 2


def test_with_separate_views_a_score_is_copied_within_its_view(tmp_path):
    out = Out(str(tmp_path))
    publish(out, 0, [row("/a", part="1", view="top", score=7.5, content_sha256=A)])
    rows = [met(4, A, view="top", part="2"), met(5, A, view="side"), met(6, A)]
    for views, copied in {"separate": [4], "pooled": [4, 5, 6]}.items():
        with open_score_cache(
            out, MODELS[0], ScoreSettings(maps="none"), LIMITS, views
        ) as score_cache:
            assert score_cache.contents().has(A, "bolt/top" if views == "separate" else "bolt")
            found = score_cache.complete(pa.Table.from_pylist(rows, ROWS)).to_pylist()
        assert sorted(r["inventory_row"] for r in found) == copied
        assert {(r["part"], r["view"]) for r in found if r["inventory_row"] == 4} == {("2", "top")}


def test_of_a_rewritten_archive_only_the_changed_member_is_scored(tmp_path):
    """All members are due and read; those with known bytes keep score and map under a new id."""
    out = Out(str(tmp_path))
    members = [(f"file:///t.tar#{i}", f"v1@{i}", letter * 64) for i, letter in enumerate("abc")]
    before = [_scored(out, *each, score=7.5) for each in members]
    old_maps = [uris.parse(each["map_uri"]).location for each in before]
    for location in old_maps:
        files.write_bytes(location, location.encode())
    publish(out, 0, before)
    after = [(uri, f"v2@{i}", "d" * 64 if i == 1 else content)
             for i, (uri, _, content) in enumerate(members)]  # fmt: skip
    listed = [
        {"image_id": image_id(uri, version), "uri": uri, "version": version, "product": "bolt"}
        for uri, version, _ in after
    ]
    parquet.write(out.warehouse(), SCHEMA, [pa.Table.from_pylist(listed, SCHEMA)])

    def pending():
        found = find_pending(out, out.warehouse(), MODELS[0], TRANSIENT, str(tmp_path / "due"))
        return found.new, found.changed, found.retried, found.differing

    assert pending() == (0, 3, 0, 0)
    with open_score_cache(out, MODELS[0], ScoreSettings(maps="flagged"), LIMITS) as score_cache:
        contents = score_cache.contents()
        assert [contents.has(content, "bolt") for *_, content in after] == [True, False, True]
        rows = [
            met(i, content, uri=uri, image_id=image_id(uri, version))
            for i, (uri, version, content) in enumerate(after)
            if i != 1
        ]
        copied = score_cache.complete(pa.Table.from_pylist(rows, ROWS)).to_pylist()
        copied.sort(key=lambda each: each["inventory_row"])
        assert (score_cache.copied, score_cache.lost) == (2, 0)
    assert [row_["score"] for row_ in copied] == [7.5, 7.5]
    scored = _scored(out, *after[1], score=1.0) | {"map_uri": None}
    publish(out, 24, [{k: v for k, v in r.items() if k in scored} for r in copied] + [scored])
    assert pending() == (0, 0, 0, 0)
    current = current_scores.current(out, MODELS[0]).to_pylist()
    assert {r["image_id"]: r["score"] for r in current} == {
        image_id(*after[0][:2]): 7.5,
        image_id(*after[1][:2]): 1.0,
        image_id(*after[2][:2]): 7.5,
    }
    retention.expire(out, 1, [], remove=True)
    assert current_scores.current(out, MODELS[0]).num_rows == 3
    assert not any(map(files.exists, old_maps))
    new_maps = [uris.parse(r["map_uri"]).location for r in copied]
    assert [files.read_bytes(place).decode() for place in new_maps] == [old_maps[0], old_maps[2]]


def _scored(out, uri, version, content, score):
    location = out.map(MODELS[0], image_id(uri, version))
    more = {"content_sha256": content, "map_uri": uris.make(location)}
    return row(uri, version, score=score, **more)


def test_verdicts_of_known_contents_are_by_the_thresholds_of_tonight(out):
    rows = [met(4, A), met(5, B)]
    for limit, verdicts in {1.5: [True, True], 4.5: [True, False], 8.0: [False, False]}.items():
        found, _ = completed(out, rows, {"bolt": limit}, maps="none")
        assert [found[number]["is_anomalous"] for number in (4, 5)] == verdicts
    # Of B there is no map, which tonight would draw; it is scored again.
    found, score_cache = completed(out, rows, {"bolt": 1.5}, maps="flagged")
    assert (sorted(found), score_cache.lost) == ([4], 1)
    found, _ = completed(out, rows, {"bolt": None}, maps="none")
    assert [found[number]["is_anomalous"] for number in (4, 5)] == [None, None]
