"""A server of jobs.review that is killed while people decide loses and doubles no decision."""

from __future__ import annotations

import http.client
import json
import threading
import time
from urllib.parse import urlsplit

from ops.storage.paths import Out
from pipelines.tables import decisions
from tests.drawn_nights import FLAGGED, PRODUCTS, first_night
from tests.jobs.test_review import served
from tests.runs import finish, model_of

WORDS = ("defect", "false_alarm", "unsure")


class Person(threading.Thread):
    """Decides part after part until the server is gone; keeps what it was told is stored."""

    def __init__(self, address, who, image_ids):
        super().__init__()
        self.who, self.image_ids, self.address = who, image_ids, urlsplit(address)
        self.asked, self.stored = [], []

    def run(self):
        with Session(self.address) as session:
            for number, image_id in enumerate(self.image_ids):
                body = {"image_id": image_id, "decision": WORDS[number % 3], "who": self.who}
                said = (image_id, body["decision"], self.who)
                self.asked.append(said)
                try:
                    status, answer = session.ask("POST", "/api/decisions", body)
                except (http.client.HTTPException, OSError):
                    return
                assert (status, answer["row"]["decision"]) == (200, body["decision"])
                self.stored.append(said)


class Session(http.client.HTTPConnection):
    """A browser's connection, with the cookie of the page."""

    def __init__(self, address):
        super().__init__(address.netloc, timeout=20)
        self.headers = {"Origin": f"http://{address.netloc}"}
        self.request("GET", f"/?{address.query}")
        with self.getresponse() as answer:
            answer.read()
            self.headers["Cookie"] = answer.headers["Set-Cookie"].split(";")[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def ask(self, method, path, body=None):
        self.request(method, path, body and json.dumps(body), self.headers)
        with self.getresponse() as answer:
            return answer.status, json.loads(answer.read())


def test_a_server_killed_between_decisions_loses_none_and_counts_none_twice(tmp_path):
    root, out = str(tmp_path), Out(str(tmp_path))
    parts = first_night(root)
    finish(root, parts, model_of(PRODUCTS), settings=FLAGGED)
    with served(root, "--nearest", "false") as (process, address):
        names = ("ann", "bob")
        people = [
            Person(address, who, [part.image_id for part in parts[at::2]])
            for at, who in enumerate(names)
        ]
        for each in people:
            each.start()
        while sum(len(each.stored) for each in people) < 20:
            assert any(each.is_alive() for each in people)
            time.sleep(0.01)
        process.kill()
        for each in people:
            each.join(30)
            assert 1 <= len(each.stored) < len(each.image_ids)  # it was killed while they decided
    asked = {said for each in people for said in each.asked}
    stored = {said for each in people for said in each.stored}
    rows = decisions.read(decisions.published(out)).to_pylist()
    found = {(row["image_id"], row["decision"], row["who"]) for row in rows}
    # At most one request of each was on its way.
    assert stored <= found <= asked
    assert len(rows) == len(found)
    assert len(asked - stored) <= len(names)
    # The next server has the same, and goes on.
    last = people[0].asked[-1][0]
    with served(root, "--nearest", "false") as (_, address), Session(urlsplit(address)) as session:
        _, answer = session.ask("GET", "/api/parts?false_alarms=shown&limit=200")
        decided = {row["image_id"]: row["decision"] for row in answer["rows"] if row["decision"]}
        assert decided == {name: decision for name, decision, _ in found}
        assert (answer["listed"], answer["decided"]) == (120, len(found))
        body = {"image_id": last, "decision": "unsure", "filter": {"false_alarms": "shown"}}
        _, answer = session.ask("POST", "/api/decisions", body)
        assert answer["decided"] == len({*decided, last})
