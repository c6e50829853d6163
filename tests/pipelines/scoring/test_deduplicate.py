"""Bytes that were scored before: which rows they complete, and with which maps."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest

from ops.images.failure import STATUSES
from ops.images.read_images import KNOWN
from ops.storage import files, uris
from ops.storage.paths import Out
from pipelines.scoring.chunks import ROWS
from pipelines.scoring.deduplicate import open_score_cache
from pipelines.scoring.run import ScoreSettings
from tests.pipelines.tables.test_current_scores import MODELS, publish, row

A, B, C = (letter * 64 for letter in "abc")
NOW = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)
COPIED = ("width", "height", "bit_depth", "score", "p_value", "is_anomalous", "peak_x", "peak_y")


@pytest.fixture
def out(tmp_path):
    """Two nights: A is flagged and has a map, B is not; C failed, and is known of another model."""
    out = Out(str(tmp_path))
    mapped = out.map(MODELS[0], "0" * 32)
    files.write_bytes(mapped, b"a map")
    flagged = row("/a", score=7.5, content_sha256=A, width=80, map_uri=uris.make(mapped))
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
        "scored_at": NOW,
    }
    return values | more


def completed(out, rows, **settings):
    with open_score_cache(out, MODELS[0], ScoreSettings(**settings)) as score_cache:
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
        assert whole | dict.fromkeys(COPIED) | {"status": KNOWN} == row_
        assert all(whole[name] is not None for name in COPIED)
        assert whole["status"] in STATUSES
    assert found[4]["width"] == 80


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
    with open_score_cache(out, MODELS[0], ScoreSettings(**settings)) as score_cache:
        contents = score_cache.contents()
    assert {content for content in (A, B, C) if contents.has(content, "bolt")} == expected
    assert not contents.has(A, "nut")


def test_an_equal_key_is_no_proof(out):
    """Another product or content that seems known is left to be scored."""
    found, score_cache = completed(out, [met(4, A, product="nut"), met(5, C)], maps="none")
    assert found == {}
    assert score_cache.lost == 2
