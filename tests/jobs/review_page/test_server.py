"""The server of jobs.review over a published night of hostile names, without a browser."""

from __future__ import annotations

import datetime
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from jobs.review_page.server import Page, application
from ops.archives.fetch import FetchSettings
from ops.results import map_png, overlays
from ops.results.decision_table import DECISIONS
from ops.storage import files, uris
from ops.storage.paths import Out
from pipelines.review import queue
from pipelines.review.filters import Filter
from pipelines.review.nearest import Nearest
from pipelines.review.pictures import Pictures
from pipelines.tables import decisions, model_names, run_records
from tests import banks
from tests.drawn_nights import EVIL, FLAGGED, PRODUCTS, THRESHOLD, first_night
from tests.runs import finish, model_of

TOKEN = "t" * 43
HOST = "127.0.0.1:8420"
ORIGIN = {"Origin": f"http://{HOST}"}


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("out"))
    parts = [
        replace(part, fields=(("line", EVIL if number % 4 else "A"), ("shift", f"{number}")))
        if number < 100
        else part
        for number, part in enumerate(first_night(root))
    ]
    finish(root, parts, model_of(PRODUCTS), "2026-11-20", FLAGGED)
    return root, parts


@pytest.fixture
def served(night, tmp_path):
    """Two servers over one output folder, whose decisions start anew for each test."""
    root = str(tmp_path / "out")
    shutil.copytree(night[0], root, ignore=shutil.ignore_patterns("labels", "models"))
    out = Out(root)
    model = model_names.named(run_records.finished(out))
    with queue.opened(out, model) as first, queue.opened(out, model) as second:
        pages = [Page(q, Pictures(out, FetchSettings(), 2**20), "ann") for q in (first, second)]
        yield out, *(application(page, TOKEN, "n", [HOST]) for page in pages)


def client(app, with_token=True):
    made = TestClient(app, base_url=f"http://{HOST}")
    if with_token:
        assert made.get("/", params={"token": TOKEN}).status_code == 200
    return made


@pytest.fixture
def page(served):
    return client(served[1])


def listed(page, **values):
    return page.get("/api/parts", params=values).json()


def decide(page, image_id, decision, **more):
    return page.post(
        "/api/decisions", json={"image_id": image_id, "decision": decision} | more, headers=ORIGIN
    )


def test_without_the_token_nothing_is_answered(served):
    stranger = client(served[1], with_token=False)
    for path in ("/", "/page.js", "/api/parts", "/picture?id=x", "/?token=wrong", "/nothing"):
        assert stranger.get(path).status_code == 403, path
    assert decide(stranger, "x", "defect").status_code == 403
    assert stranger.get("/", headers={"Cookie": "n=wrong; n"}).status_code == 403


def test_the_cookie_is_bound_to_the_page_and_the_policy_forbids_all_else(served):
    answer = client(served[1], with_token=False).get("/", params={"token": TOKEN})
    assert answer.headers["Set-Cookie"] == f"n={TOKEN}; HttpOnly; SameSite=Strict; Path=/"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("other", ['j={"a": 1}', "a b=c", "x", "caf\xe9=\xe9", 'q="', "=", "n=old"])
def test_cookies_of_other_servers_on_the_host_do_not_hide_that_of_the_page(served, other):
    """Browsers send the cookies of every port of a host."""
    stranger = client(served[1], with_token=False)
    cookies = f"{other}; n={TOKEN}".encode("latin-1")
    assert stranger.get("/api/parts", headers={"Cookie": cookies}).status_code == 200
    cookies = f"{other}; n={TOKEN[1:]}".encode("latin-1")
    assert stranger.get("/api/parts", headers={"Cookie": cookies}).status_code == 403


def test_another_host_name_or_origin_is_refused(page):
    assert page.get("/api/parts", headers={"Host": "evil.example:8420"}).status_code == 403
    assert page.get("/api/parts", headers={"Host": "127.0.0.1:9"}).status_code == 403
    image_id = listed(page)["rows"][0]["image_id"]
    body = {"image_id": image_id, "decision": "defect"}
    others = ["http://evil.example", "null", "http://[", HOST, f"ftp://{HOST}", f"http://{HOST}.x"]
    for headers in ({}, *({"Origin": other} for other in others)):
        assert page.post("/api/decisions", json=body, headers=headers).status_code == 403
    assert listed(page)["decided"] == 0


def test_the_list_is_in_the_order_of_worst_first_and_products_take_turns(page, night):
    answer = listed(page, limit=200)
    assert answer["listed"] == answer["parts"] == 120
    rows = answer["rows"]
    flagged = [row["is_anomalous"] for row in rows]
    assert flagged == sorted(flagged, key=lambda each: (each is None, not each))
    assert {row["product"] for row in rows[:3]} == {row["product"] for row in rows}
    assert [row["place"] for row in rows] == list(range(120))
    assert sum(row["status"] == "unreadable" for row in rows[-6:]) == 6


def test_pages_by_offset_and_by_place_hold_every_part_once(page):
    everything = [row["image_id"] for row in listed(page, limit=200)["rows"]]
    paged = [
        r["image_id"] for at in range(0, 120, 50) for r in listed(page, offset=at, limit=50)["rows"]
    ]
    assert paged == everything
    assert [r["image_id"] for r in listed(page, after=9, limit=3)["rows"]] == everything[10:13]
    assert [r["image_id"] for r in listed(page, before=9, limit=2)["rows"]] == everything[8:6:-1]
    assert listed(page, offset=999)["rows"] == []
    assert page.get("/api/parts", params={"offset": "-1"}).status_code == 400


def test_filters_choose_what_they_say(page, night):
    parts = night[1]
    bolts = [p for p in parts if p.product == "bolt"]
    assert listed(page, product="bolt")["parts"] == len(bolts) == 40
    assert listed(page, product=EVIL)["parts"] == 40
    assert listed(page, product="' OR true --")["parts"] == 0
    above = sum(p.score is not None and p.score > 2 for p in parts)
    assert listed(page, verdict="anomalous")["parts"] == above > 0
    assert listed(page, status="unreadable")["parts"] == 6
    assert listed(page, night="2026-11-20")["parts"] == 120
    assert listed(page, night="2026-11-21")["parts"] == 0
    assert listed(page, text="PLAIN.png")["parts"] == sum("plain.png" in p.name for p in parts)
    assert listed(page, least_score="2")["parts"] == above
    assert listed(page, field_line="A")["parts"] == 25
    assert listed(page, field_line=EVIL)["parts"] == 75
    assert listed(page, field_line="A", field_shift="8", product="bolt")["parts"] == 1
    assert listed(page, **{"field_line'] = 'A' OR true --": "A"})["parts"] == 0
    assert listed(page, field_lane="A")["parts"] == 0
    assert listed(page, field_line="", fields="A")["parts"] == 120
    assert page.get("/api/parts", params={"verdict": "x"}).status_code == 400
    for wrong in ("x", "nan", "-NaN", "_"):
        assert page.get("/api/parts", params={"most_p": wrong}).status_code == 400


def test_hostile_names_come_as_text_with_their_invisible_characters_escaped(page):
    answer = page.get("/api/parts", params={"limit": 200})
    assert answer.headers["Content-Type"] == "application/json"
    rows = answer.json()["rows"]
    texts = [value for row in rows for value in row.values() if isinstance(value, str)]
    assert all(map(str.isprintable, texts))
    assert sum("\\u202egnp.exe" in row["uri"] for row in rows) > 0
    assert any("<script>" in row["uri"] for row in rows)  # as text, of which the page makes text
    told = page.get("/api/overview").json()
    assert {p["name"] for p in told["products"]} == set(PRODUCTS)
    assert all(p["label"].isprintable() for p in told["products"])
    line, shift = told["fields"]
    assert (line["label"], shift["label"]) == ("line", "shift")
    assert [(v["name"], v["parts"]) for v in line["values"]] == sorted([("A", 25), (EVIL, 75)])
    assert all(value["label"].isprintable() for value in line["values"])
    shown_fields = [text for row in rows for pair in row["fields"] for text in pair]
    assert len(shown_fields) == 400
    assert all(map(str.isprintable, shown_fields))


def test_of_fields_with_many_values_those_with_most_anomalous_parts_are_filters(page, monkeypatch):
    shift = page.get("/api/overview").json()["fields"][1]["values"]
    assert len(shift) == 100
    monkeypatch.setattr(queue, "_MOST", {"fields": 1, "values": 5})
    (only,) = page.get("/api/overview").json()["fields"]
    assert only["name"] == "line"
    monkeypatch.setattr(queue, "_MOST", {"fields": 2, "values": 5})
    few = page.get("/api/overview").json()["fields"][1]["values"]
    assert len(few) == 5
    assert {value["anomalous"] for value in few} == {1}
    assert [value["name"] for value in few] == sorted(value["name"] for value in few)


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_crop_has_the_pixels_of_the_archive_and_a_whole_picture_its_size(page):
    rows = [
        r for r in listed(page, limit=200)["rows"] if r["status"] == "ok" and "plain" in r["uri"]
    ]
    original = np.asarray(Image.open(uris.parse(rows[0]["uri"]).location))
    box = {"x": 20, "y": 10, "w": 30, "h": 25, "kind": "png"}
    answer = page.get("/picture", params={"id": rows[0]["image_id"]} | box)
    assert answer.headers["Content-Type"] == "image/png"
    assert np.array_equal(pixels(answer.content), original[10:35, 20:50])
    # What lies outside is cut off, and nothing is enlarged.
    edge = {"x": 70, "y": 0, "w": 500, "h": 500, "kind": "png"}
    shown = pixels(page.get("/picture", params={"id": rows[0]["image_id"]} | edge).content)
    assert np.array_equal(shown, original[:, 70:])
    whole = page.get("/picture", params={"id": rows[0]["image_id"], "side": 40})
    assert whole.headers["Content-Type"] == "image/jpeg"
    assert pixels(whole.content).shape == (30, 40, 3)
    far = {"x": 80, "y": 0, "w": 5, "h": 5}
    assert page.get("/picture", params={"id": rows[0]["image_id"]} | far).status_code == 404


def test_a_file_that_changed_and_a_part_that_failed_say_why_there_is_no_picture(page):
    rows = [r for r in listed(page, limit=200)["rows"] if "plain" in r["uri"]]
    failed = listed(page, status="unreadable")["rows"][0]
    answer = page.get("/picture", params={"id": failed["image_id"]})
    assert (answer.status_code, answer.json()["error"][:19]) == (404, "no picture was read")
    ok = next(r for r in rows if r["status"] == "ok")
    place = Path(uris.parse(ok["uri"]).location)
    kept = place.read_bytes()
    try:
        Image.new("RGB", (80, 60)).save(place, "PNG")
        answer = page.get("/picture", params={"id": ok["image_id"]})
    finally:
        place.write_bytes(kept)
    assert answer.json() == {"error": "the file has changed since it was scored"}
    assert page.get("/picture", params={"id": "no such"}).status_code == 404


def test_the_map_is_coloured_where_it_is_above_the_threshold(page):
    flagged = listed(page, verdict="anomalous")["rows"][0]
    answer = page.get("/heat", params={"id": flagged["image_id"]})
    heat = pixels(answer.content)
    assert heat.shape == (60, 80, 4)
    assert heat[..., 3].max() > 0 == heat[..., 3].min()
    decoded = map_png.decode(files.read_bytes(uris.parse(flagged["map_uri"]).location))
    values = overlays.map_resized(decoded, (80, 60), (80, 60), outside=0)
    assert np.array_equal(heat[..., 3] > 0, values > THRESHOLD)
    normal = listed(page, verdict="normal")["rows"][0]
    assert page.get("/heat", params={"id": normal["image_id"]}).status_code == 404


def test_a_decision_is_stored_before_the_answer_and_a_new_server_knows_it(served):
    out, first, _ = served
    ann = client(first)
    image_id = listed(ann, verdict="anomalous")["rows"][0]["image_id"]
    answer = decide(ann, image_id, "false_alarm", filter={"verdict": "anomalous"})
    assert answer.status_code == 200
    assert answer.json()["decided"] == 1
    assert answer.json()["row"]["decision"] == "false_alarm"
    (row,) = decisions.current(out).to_pylist()
    assert (row["image_id"], row["decision"]) == (image_id, "false_alarm")
    assert (row["who"], row["source"]) == ("ann", "page")
    with queue.opened(out, model_names.named(run_records.finished(out))) as again:
        assert again.part(image_id)["decision"] == "false_alarm"
    assert [r["image_id"] for r in listed(ann, decided="false_alarm")["rows"]] == [image_id]
    assert listed(ann, decided="no")["parts"] == 119


def test_undo_takes_a_decision_back_and_every_step_stays_on_record(served):
    out, first, _ = served
    ann = client(first)
    image_id = listed(ann)["rows"][0]["image_id"]
    for decision in ("defect", "unsure", "undecided"):
        assert decide(ann, image_id, decision).status_code == 200
    assert listed(ann)["decided"] == 0
    assert len(decisions.published(out)) == 3
    part = ann.get("/api/part", params={"id": image_id}).json()
    assert part["row"]["decision"] is None


def test_of_two_people_the_last_wins_and_is_told_what_was_replaced(served):
    _, first, second = served
    ann, bob = client(first), client(second)
    image_id = listed(ann)["rows"][0]["image_id"]
    seen = bob.get("/api/overview").json()["seen"]
    assert decide(ann, image_id, "defect", who="ann").json()["replaced"] is None
    # Bob's page has not heard of it when he decides.
    replaced = decide(bob, image_id, "false_alarm", who="bob").json()["replaced"]
    assert (replaced["who"], replaced["decision"]) == ("ann", "defect")
    news = ann.get("/api/news", params={"seen": 1}).json()
    (row,) = news["rows"]
    assert (row["who"], row["decision"], news["new_night"]) == ("bob", "false_alarm", False)
    assert bob.get("/api/news", params={"seen": seen}).json()["seen"] == 2
    # One that was shown is replaced without a word.
    again = decide(ann, image_id, "unsure", who="ann", seen=row["decided_at"])
    assert again.json()["replaced"] is None


def test_alarms_that_were_dismissed_before_the_list_was_read_are_left_out_and_counted(served):
    out, first, second = served
    ann, bob = client(first), client(second)
    flagged = [row["image_id"] for row in listed(ann, verdict="anomalous")["rows"]]
    normal = listed(ann, verdict="normal")["rows"][0]["image_id"]
    for image_id, decision in ((flagged[0], "false_alarm"), (flagged[1], "false_alarm")):
        decide(ann, image_id, decision)
    decide(ann, flagged[2], "defect")
    decide(ann, normal, "false_alarm")
    of_another = ann.get("/api/part", params={"id": flagged[3]}).json()["row"]
    row = rows_of(out)[of_another["image_id"]] | {"model_id": "another"}
    decisions.append(out, [decisions.decided(row, "false_alarm", who="cy", source="page")])
    # In the list that is open nothing goes from under the eyes.
    known = listed(ann, limit=200)
    assert (known["parts"], known["listed"], known["left_out"]) == (120, 120, 0)
    ann.post("/api/load", headers=ORIGIN)
    answer = listed(ann, limit=200)
    counts = {name: answer[name] for name in ("parts", "listed", "decided", "left_out")}
    assert counts == {"parts": 118, "listed": 118, "decided": 3, "left_out": 2}
    shown = {row["image_id"] for row in answer["rows"]}
    assert not shown & {*flagged[:2]}
    assert {*flagged[2:], normal} <= shown
    everything = listed(ann, false_alarms="shown")
    assert (everything["parts"], everything["decided"], everything["left_out"]) == (120, 5, 0)
    for decided, number in {"yes": 5, "false_alarm": 4, "defect": 1, "no": 115}.items():
        assert listed(ann, decided=decided)["parts"] == number, decided
    assert ann.get("/api/part", params={"id": flagged[0]}).status_code == 200
    assert ann.get("/api/parts", params={"false_alarms": "x"}).status_code == 400
    # One that another person takes back is in the list again.
    decide(bob, flagged[0], "undecided")
    ann.get("/api/news", params={"seen": 0})
    answer = listed(ann, limit=200)
    assert (answer["parts"], answer["left_out"]) == (119, 1)
    assert flagged[0] in {row["image_id"] for row in answer["rows"]}


def rows_of(out):
    """The rows of the list with all columns, by image."""
    with queue.opened(out, model_names.named(run_records.finished(out))) as parts:
        return {row["image_id"]: row for row in parts.page(Filter(false_alarms="shown"), 200)}


def test_after_any_decisions_an_open_list_is_that_of_a_new_server(served):
    """Rows are changed as decisions come; a new server joins all decisions anew."""
    out, first, _ = served
    ann, random = client(first), np.random.default_rng(0)
    rows = rows_of(out)
    images = list(rows)[:12]
    model = model_names.named(run_records.finished(out))
    for number in range(40):
        image_id, decision = random.choice(images), random.choice(list(DECISIONS))
        if number % 3:
            assert decide(ann, str(image_id), str(decision)).status_code == 200
        else:  # by another program, also of regions, of other bytes, and of other times
            row = dict(rows[str(image_id)])
            if number % 2:
                row |= {"content_sha256": "f" * 64}
            region = int(random.integers(1, 3)) if number % 4 else None
            at = row["scored_at"].astimezone(datetime.UTC) + datetime.timedelta(hours=number)
            made = decisions.decided(
                row, str(decision), who="cy", source="csv", region=region, at=at
            )
            decisions.append(out, [made])
    ann.get("/api/news", params={"seen": 0})
    with queue.opened(out, model) as again:
        new = again.page(Filter(false_alarms="shown"), 200)
        expected = {r["image_id"]: (r["decision"], r["who"]) for r in new}
        assert again.counts(Filter(false_alarms="shown")) == {
            name: number
            for name, number in listed(ann, false_alarms="shown").items()
            if name != "rows"
        }
    found = listed(ann, false_alarms="shown", limit=200)["rows"]
    assert {r["image_id"]: (r["decision"], r["who"]) for r in found} == expected
    assert sum(decision is not None for decision, _ in expected.values()) >= 5


def test_wrong_decisions_are_refused_with_a_sentence(page):
    image_id = listed(page)["rows"][0]["image_id"]
    assert "must be one of defect" in decide(page, image_id, "maybe").json()["error"]
    assert "no part of the list" in decide(page, "x", "defect").json()["error"]
    assert decide(page, image_id, "defect", who="a\u202eb").status_code == 400
    assert decide(page, image_id, "defect", who="a" * 101).status_code == 400
    for wrong in ({"verdict": "x"}, {"text": 5}, ["text"], "text"):
        assert decide(page, image_id, "defect", filter=wrong).status_code == 400
    assert decide(page, image_id, ["defect"]).status_code == 400
    half = {"image_id": image_id, "decision": "defect", "filter": {"text": "\ud800"}}
    halves = [half, half | {"filter": {"field_\ud800": "x"}}, half | {"image_id": "\ud800"}]
    encoded = [json.dumps(each).encode() for each in halves]
    for body in (b"[]", b"\xff", b"{", b"x" * 200_000, b"[" * 50_000, *encoded):
        assert page.post("/api/decisions", content=body, headers=ORIGIN).status_code == 400
    assert listed(page)["decided"] == 0


def test_a_decision_is_taken_under_a_filter_of_a_name_as_long_as_a_path(page):
    image_id = listed(page)["rows"][0]["image_id"]
    answer = decide(page, image_id, "defect", filter={"product": "\u6f22" * 4096})
    assert (answer.status_code, answer.json()["parts"]) == (200, 0)
    assert listed(page)["decided"] == 1


def test_pictures_are_kept_up_to_a_number_of_bytes(night):
    out = Out(night[0])
    with queue.opened(out, model_names.named(run_records.finished(out))) as parts:
        rows = [r for r in parts.page(Filter(), 200) if r["status"] == "ok"][:5]
        each = 80 * 60 * 3
        pictures = Pictures(out, FetchSettings(), cache_bytes=2 * each + 1)
        for row in rows:
            pictures.crop(row, parts.record, None, 80)
        assert pictures.cached_bytes == 2 * each


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A server that compares parts with the bank of their model, and the folder of the night."""
    root = tmp_path_factory.mktemp("compared")
    _, _, fitted = banks.night(root)
    out = Out(str(root / "out"))
    with queue.opened(out, model_names.named(run_records.finished(out))) as parts:
        pictures, good = (Pictures(out, FetchSettings()) for _ in range(2))
        model_id = fitted.card.model_id
        nearest = Nearest(out.model(model_id), model_id, pictures, good)
        yield application(Page(parts, pictures, "ann", nearest), TOKEN, "n", [HOST]), root


def test_the_page_is_given_similar_good_places_with_their_pictures(compared):
    page = client(compared[0])
    assert page.get("/api/overview").json()["nearest"] is True
    row = listed(page)["rows"][0]
    answer = page.get("/api/nearest", params={"id": row["image_id"]})
    assert answer.headers["Cache-Control"] == "no-store"
    found = answer.json()
    assert found["peak"]["box"] == [26, 6, 54, 54]
    assert len(found["places"]) == 3
    for place in found["places"]:
        asked = {"id": row["image_id"], "vector": place["vector"], "side": 40}
        picture = page.get("/good", params=asked)
        assert picture.headers["Content-Type"] == "image/jpeg"
        width, height = place["box"][2:]
        assert max(pixels(picture.content).shape[:2]) == min(40, max(width, height))
    wrong = {"id": row["image_id"], "vector": 10**6}
    assert page.get("/good", params=wrong).status_code == 404
    assert page.get("/good", params=wrong | {"vector": "x"}).status_code == 400
    assert page.get("/api/nearest", params={"id": "none"}).status_code == 404
    assert client(compared[0], with_token=False).get("/api/nearest?id=x").status_code == 403


def test_a_page_without_a_bank_says_that_it_compares_nothing(page):
    assert page.get("/api/overview").json()["nearest"] is False
    row = listed(page)["rows"][0]
    answer = page.get("/api/nearest", params={"id": row["image_id"]})
    reason = "parts are not compared with good places"
    assert answer.json() == {"reason": reason, "places": []}
    assert page.get("/good", params={"id": row["image_id"]}).status_code == 404
