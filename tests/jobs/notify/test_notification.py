"""Messages of nights, received by a server on loopback."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.notify import deliver
from jobs.notify.notification import EndingNight, NotifySettings, notifying, send_all
from ops.errors import SettingError, UserError
from ops.storage import files
from ops.storage.paths import Out
from tests.runs import Part, finish, model_of

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "message.schema.json").read_text())
SECRET = "T00/B11/s3cretpath"
HOSTILE = "<!channel> [x](http://evil) <script>\n\u202e"


@pytest.fixture
def server(monkeypatch):
    """Answers with the statuses of `answers`, the last one for ever; 0 closes the connection."""
    monkeypatch.setattr(deliver, "PAUSES", (0.01, 0.01))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    told = SimpleNamespace(answers=[200], got=[], paths=[], keys=[], wait=0.0)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told.got.append(json.loads(body) if body else None)
            told.paths.append(self.path)
            told.keys.append(self.headers["Idempotency-Key"])
            status = told.answers.pop(0) if len(told.answers) > 1 else told.answers[0]
            time.sleep(told.wait)
            if status == 0:
                return
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"{told.url}/elsewhere")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_):
            """Writes nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    told.url = f"http://127.0.0.1:{http.server_port}"
    told.secret = f"{told.url}/{SECRET}"
    yield told
    http.shutdown()
    http.server_close()


def night(**more):
    """The record of a night that was good, unless `more` says otherwise."""
    totals = {"images": 1200, "copied": 3, "anomalous": 12, "failed": 1, "images_per_second": 21.5}
    record = {
        "started": "2026-11-20T01:00:00+00:00",
        "ended": "2026-11-20T01:01:00+00:00",
        "night": "2026-11-20",
        "model_id": "4f2a" * 8,
        "model_name": "tiles v3, champion",
        "run_id": "2026-11-20-0",
        "products": ["bolt"],
        **{"listed": 5000, "new": 1200, "changed": 0, "retried": 0, "differing": 0},
        "totals": {**totals, "statuses": {"ok": 1199, "unreadable": 1}},
        "warnings": [],
        "report": "out/reports/2026-11-20-0.html",
    }
    return record | more


def ending_of(record):
    """A night to tell of, and what is written of it."""
    ending, written = EndingNight(), []
    ending.record = record
    ending.write = lambda: written.append(json.loads(json.dumps(record)))
    return ending, written


DRIFTED = "scores of 'bolt' drifted: PSI 0.41 exceeds --warn-drift 0.25"


@pytest.mark.parametrize(
    ("more", "status", "text"),
    [
        ({}, "good", "1,200 images under tiles v3, champion: 12 anomalous, 1 failed; 0 warnings."),
        (
            {"warnings": [DRIFTED]},
            "warned",
            "1,200 images under tiles v3, champion: 12 anomalous, 1 failed; 1 warnings.",
        ),
        (
            {"error": "no bucket at https://ann:s3cret@store"},
            "failed",
            "The night 2026-11-20 failed: no bucket at https://***@store",
        ),
    ],
)
def test_a_message_is_received_once_and_fits_the_schema(server, tmp_path, more, status, text):
    ending, written = ending_of(night(**more))
    settings = NotifySettings(server.secret, notify_ping=f"{server.url}/ping")
    for _ in range(2):
        send_all(settings, Out("out"), ending)
    (message,) = (each for each in server.got if each)
    jsonschema.validate(message, SCHEMA, format_checker=jsonschema.FormatChecker())
    assert (message["status"], message["text"]) == (status, text)
    assert message["warnings"] == more.get("warnings", [])
    assert message["images"]["listed"] == 5000
    assert message["images"]["scored"] == 1200
    assert server.paths.count("/ping") == (0 if status == "failed" else 2)
    assert written[0]["notified"] == {"id": message["id"]}  # before it is sent
    assert written[-1]["notified"] == {"id": message["id"], "outcome": "delivered"}
    assert server.keys[0] == message["id"]


@pytest.mark.parametrize("form", ["slack", "teams"])
def test_names_in_a_chat_are_neither_links_nor_mentions(server, form):
    warnings = [f"{HOSTILE} {number} {'x' * 600}" for number in range(30)]
    ending, _ = ending_of(night(warnings=warnings, products=[HOSTILE]))
    send_all(NotifySettings(server.secret, form), Out("out"), ending)
    (message,) = server.got
    shown = json.dumps(message, ensure_ascii=False)
    assert "\u202e" not in shown
    assert "and 20 more warnings" in shown
    assert len(shown) < 12_000
    if form == "slack":
        assert {block["text"]["type"] for block in message["blocks"]} == {"plain_text"}
        assert max(len(block["text"]["text"]) for block in message["blocks"]) <= 600
        assert message["text"].startswith("WARNED: nightly 2026-11-20, &lt;!channel&gt; [x]")
    else:
        (card,) = (each["content"] for each in message["attachments"])
        runs = [run for block in card["body"] for run in block["inlines"]]
        assert {block["type"] for block in card["body"]} == {"RichTextBlock"}
        assert {run["type"] for run in runs} == {"TextRun"}


@pytest.mark.parametrize(
    ("form", "answers", "requests", "outcome"),
    [
        ("json", [500, 200], 2, "delivered"),
        ("json", [0, 200], 2, "delivered"),
        ("json", [500], 3, "answer 500"),
        ("json", [404], 1, "answer 404"),
        ("json", [302], 1, "answer 302, and redirects are not followed"),
        ("json", [307], 1, "answer 307, and redirects are not followed"),
        ("slack", [503, 429, 200], 3, "delivered"),
        ("slack", [500], 1, "answer 500"),
        ("slack", [0], 1, "no answer (RemoteDisconnected)"),
    ],
)
def test_a_request_is_repeated_only_if_it_cannot_arrive_twice(
    server, capsys, form, answers, requests, outcome
):
    server.answers = answers
    ending, _ = ending_of(night())
    send_all(NotifySettings(server.secret, form), Out("out"), ending)
    assert ending.record["notified"]["outcome"] == outcome
    assert server.paths == [f"/{SECRET}"] * requests
    assert len(set(server.keys)) == 1
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err + json.dumps(ending.record)
    assert (outcome in shown.out) is (outcome != "delivered")


def test_a_server_that_is_silent_or_absent_fails_no_night(server, monkeypatch, capsys):
    monkeypatch.setattr(deliver, "TIMEOUT", 0.2)
    server.wait = 1.0
    for form, requests in (("slack", 1), ("json", 3)):
        server.paths.clear()
        ending, _ = ending_of(night())
        send_all(NotifySettings(server.secret, form), Out("out"), ending)
        outcome = ending.record["notified"]["outcome"]
        assert outcome in {"no answer within 0.2 s", "no answer (TimeoutError)"}
        assert len(server.paths) == requests
    ending, _ = ending_of(night())
    send_all(NotifySettings(f"http://127.0.0.1:9/{SECRET}"), Out("out"), ending)
    assert ending.record["notified"]["outcome"] == "no connection (ConnectionRefusedError)"
    assert SECRET not in capsys.readouterr().out


def test_a_night_that_fails_before_it_has_a_record_sends_a_message(server):
    with (
        pytest.raises(UserError, match="no complete model"),
        notifying(NotifySettings(server.secret), Out("out")),
    ):
        raise UserError("no complete model at m")
    (message,) = server.got
    jsonschema.validate(message, SCHEMA)
    assert (message["status"], message["error"]) == ("failed", "no complete model at m")


def test_figures_are_in_the_format_of_prometheus(tmp_path):
    out = str(tmp_path / "out")
    product = 'bolt"\n\\'
    parts = [Part(f"{i}.png", product, 3.0 if i < 2 else None if i < 3 else 1.0) for i in range(9)]
    run = finish(out, parts, model_of([product]))
    totals = files.read_json(Out(out).run(run.run_id))["totals"]
    record = night(run_id=run.run_id, totals=totals)
    file = tmp_path / "nightloupe.prom"
    settings = NotifySettings(notify_metrics=str(file))
    send_all(settings, Out(out), ending_of(record)[0])
    samples = read_samples(file)
    escaped = 'bolt"\\n\\'  # a line break is shown as two characters
    for state, images in (("scored", 9), ("failed", 1), ("anomalous", 2)):
        key = ("nightloupe_night_product_images", escaped, state)
        assert samples[key] == images
    assert samples["nightloupe_night_images", None, "listed"] == 5000
    assert samples["nightloupe_night_failed", None, None] == 0
    ended = samples["nightloupe_night_end_timestamp_seconds", None, None]
    assert samples["nightloupe_last_good_night_timestamp_seconds", None, None] == ended
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*"))

    # The next one fails before it scores; the time of the good one stays.
    files.write_json(Out(out).night("00000001-a"), record)
    failed = {"started": "2026-11-21T01:00:00+00:00", "ended": "2026-11-21T01:00:05+00:00"}
    send_all(settings, Out(out), ending_of(failed | {"error": "down"})[0])
    samples = read_samples(file)
    assert samples["nightloupe_night_failed", None, None] == 1
    assert samples["nightloupe_last_good_night_timestamp_seconds", None, None] == ended


def read_samples(file):
    families = text_string_to_metric_families(file.read_text())
    return {
        (sample.name, sample.labels.get("product"), sample.labels.get("state")): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (NotifySettings(notify=f"ftp://host/{SECRET}"), "--notify must be an address such as"),
        (NotifySettings(notify=f"https:///{SECRET}"), "--notify must be an address such as"),
        (NotifySettings(notify_ping=f"https://a:b@host/{SECRET}"), "--notify-ping must be"),
        (NotifySettings(notify=f"https://host/{SECRET}\nx"), "--notify must be an address"),
        (NotifySettings(notify=f"https://host:{SECRET}"), "--notify must be an address"),
        (NotifySettings(notify_form="mail"), "--notify-form 'mail' is none of json, slack, teams"),
        (NotifySettings(notify_metrics="figures.txt"), "whose name ends in .prom"),
        (NotifySettings(notify_metrics="s3://b/x.prom"), "must be a local file"),
    ],
)
def test_wrong_addresses_are_refused_and_not_shown(settings, sentence):
    with pytest.raises(SettingError, match=sentence) as refused:
        settings.check_notify()
    assert SECRET not in str(refused.value)


def test_records_of_settings_hold_no_address(server):
    settings = NotifySettings(server.secret, notify_ping="https://hc-ping.com/uuid")
    settings.check_notify()
    assert settings.without_addresses() == {
        "notify": "http://127.0.0.1/***",
        "notify_ping": "https://hc-ping.com/***",
    }
