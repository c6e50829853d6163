"""jobs.review as a person uses it: in a real browser by keyboard alone, and ended by Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ops.archives.fetch import FetchSettings
from ops.plain_text import printable
from ops.storage import files
from ops.storage.paths import Out
from pipelines.review import queue
from pipelines.review.filters import Filter
from pipelines.review.pictures import Pictures
from pipelines.tables import decisions, model_names, run_records
from tests import banks
from tests.browser import Browser, chromium
from tests.conftest import ROOT
from tests.drawn_nights import EVIL, FLAGGED, PRODUCTS, first_night
from tests.runs import finish, model_of

KEYS = {"d": "defect", "f": "false_alarm", "u": "unsure"}


@contextlib.contextmanager
def served(out, *words):
    """A server, and the address that it printed."""
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.review", "--out", out, "--port", "0", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            lines = iter(process.stdout.readline, "")
            yield process, next(filter(None, (re.search(r"http://\S+", line) for line in lines)))[0]
        finally:
            process.kill()


@pytest.fixture
def out(tmp_path):
    finish(str(tmp_path), first_night(str(tmp_path)), model_of(PRODUCTS), settings=FLAGGED)
    return str(tmp_path)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not chromium():
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    started = Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


def wait(browser, expression, seconds=10):
    for _ in range(20 * seconds):
        if browser.value(expression):
            return
        time.sleep(0.05)
    raise AssertionError(expression)


def press(browser, key):
    browser.press(key, ord(key.upper()), key)


def progress(browser):
    return browser.value("document.getElementById('decided').textContent")


@pytest.mark.slow
def test_all_flagged_parts_are_decided_by_keyboard_alone_and_survive_a_killed_server(out, browser):
    with served(out, "--who", "ann") as (process, address):
        browser.resize(1280, 860)
        browser.open(address)
        wait(browser, "document.querySelectorAll('#grid li').length > 0")
        assert "token" not in browser.value("location.href")
        flagged = browser.value("rows.length")
        assert flagged >= 20
        chosen = [list(KEYS)[i % 3] for i in range(flagged)]
        assert progress(browser) == f"0 of {flagged} decided"
        press(browser, "s")
        wait(browser, "document.activeElement.id === 'name'")
        names = []
        for number, key in enumerate(chosen):
            wait(browser, f"get('position').textContent.startsWith('{number + 1} of')")
            names.append(browser.value("current.row.image_id"))
            press(browser, key)
            wait(browser, f"get('decided').textContent.startsWith('{number + 1} of')")
        # Undo takes the last one back; what the screen reader is told says so.
        wait(browser, "get('told').textContent.includes('last part')")
        press(browser, "z")
        wait(browser, "get('told').textContent.startsWith('Undone')")
        assert progress(browser) == f"{flagged - 1} of {flagged} decided"
        press(browser, "f")
        wait(browser, f"get('decided').textContent.startsWith('{flagged} of')")
        # Zoom, map and regions by keys, and back to the card in the list.
        press(browser, "m")
        press(browser, "+")
        assert browser.value("view.scale / fitScale()") == pytest.approx(1.5, rel=0.01)
        assert (
            browser.value("get('heat').hidden && get('map').getAttribute('aria-pressed')")
            == "false"
        )
        wheel = (
            "new WheelEvent('wheel', {deltaY: -200, clientX: 300, clientY: 300, cancelable: true})"
        )
        browser.value(f"get('viewer').dispatchEvent({wheel})")
        assert browser.value("view.scale / fitScale()") == pytest.approx(1.5 * 1.6487, rel=0.01)
        wait(browser, "!get('detail').hidden && get('detail').naturalWidth > 0")
        browser.press("Escape", 27)
        wait(browser, "document.activeElement.closest('#grid') !== null")
        assert browser.value("window.ran") is None
        assert browser.complaints() == []
        asked = {re.match(r"\w+:/*[^/]*", url)[0] for url in browser.requests()}
        assert asked <= {re.match(r"\w+:/*[^/]*", address)[0], "data:,"}
        process.kill()
    found = {row["image_id"]: row["decision"] for row in decisions.current(Out(out)).to_pylist()}
    assert found == dict(zip(names, [KEYS[k] for k in [*chosen[:-1], "f"]], strict=True))
    # The next day the false alarms are left out, until they are asked for.
    dismissed = sum(decision == "false_alarm" for decision in found.values())
    with served(out) as (_, address):
        browser.open(address)
        wait(browser, "document.querySelectorAll('#grid li').length > 0")
        assert browser.value("get('shown').textContent") == f"{flagged - dismissed} parts"
        assert progress(browser) == "{0} of {0} decided".format(flagged - dismissed)
        told = browser.value("get('left-out').innerText")
        assert told.startswith(f"Left out: {dismissed} parts that a person called a false alarm")
        browser.value("get('show-left-out').click()")
        wait(browser, f"get('shown').textContent === '{flagged} parts'")
        assert browser.value("get('left-out').hidden") is True


@pytest.mark.slow
def test_fields_of_the_paths_are_filters_and_stand_beside_a_part(tmp_path, browser):
    out = str(tmp_path)
    parts = [
        replace(part, fields=(("line", EVIL if number % 4 else "A"),))
        for number, part in enumerate(first_night(out))
    ]
    finish(out, parts, model_of(PRODUCTS), settings=FLAGGED)
    with served(out) as (_, address):
        browser.resize(1280, 860)
        browser.open(address)
        wait(browser, "document.querySelectorAll('#grid li').length > 0")
        line = "form.elements.field_line"
        assert browser.value(f"{line}.options.length") == 3
        assert "<" in browser.value(f"[...{line}.options].map((o) => o.textContent).join()")
        browser.value("form.elements.verdict.value = ''")
        change = f"{line}.dispatchEvent(new Event('input', {{bubbles: true}}))"
        for value in ("A", EVIL):
            browser.value(f"({line}.value = {json.dumps(value)}, {change})")
            expected = sum(part.fields == (("line", value),) for part in parts)
            wait(browser, f"get('shown').textContent === '{expected} parts'")
        press(browser, "s")
        wait(browser, "document.activeElement.id === 'name'")
        facts = browser.value("[...get('facts').children].map((each) => each.textContent)")
        assert facts[facts.index("line") + 1] == printable(EVIL)
        assert browser.value("window.ran") is None
        assert browser.complaints() == []


@pytest.mark.slow
def test_nothing_is_said_to_be_saved_when_the_server_is_gone(out, browser):
    with served(out) as (process, address):
        browser.open(address)
        wait(browser, "document.querySelectorAll('#grid li').length > 0")
        press(browser, "s")
        wait(browser, "document.activeElement.id === 'name'")
        process.kill()
        process.wait()
        press(browser, "d")
        wait(browser, "get('told').textContent.includes('nothing was saved')")
        assert browser.value("get('position').textContent").startswith("1 of")
    assert decisions.published(Out(out)) == []


@pytest.mark.slow
def test_similar_good_places_are_shown_below_a_part_and_can_be_switched_off(tmp_path, browser):
    banks.night(tmp_path)
    out = str(tmp_path / "out")
    with served(out) as (_, address):
        browser.resize(1280, 860)
        browser.open(address)
        wait(browser, "document.querySelectorAll('#grid li').length > 0")
        press(browser, "s")
        # The first part waits for the import of torch and for the model.
        wait(browser, "document.querySelectorAll('#places img').length === 4", 90)
        wait(browser, "[...document.querySelectorAll('#places img')].every((i) => i.naturalWidth)")
        captions = "[...document.querySelectorAll('#places figcaption')].map((c) => c.innerText)"
        first, *others = browser.value(captions)
        assert first == "this part"
        assert all(re.fullmatch(r"distance [\d.]+\s+[345]\.png", text) for text in others)
        assert browser.value("get('nearest-told').textContent") == ""
        # Keys go on at once, and the strip is that of the part that is shown.
        press(browser, "j")
        wait(browser, "get('position').textContent.startsWith('2 of')")
        wait(browser, "document.querySelectorAll('#places img').length === 4")
        shown = browser.value("document.querySelector('#places img').src")
        assert browser.value("current.row.image_id") in shown
        (tmp_path / "good" / "3.png").unlink()
        for name in ("4", "5"):
            Image.new("L", (150, 90)).save(tmp_path / "good" / f"{name}.png")
        assert browser.complaints() == []
    with served(out) as (_, address):
        browser.open(address)
        wait(browser, "document.querySelectorAll('#grid li').length > 0")
        press(browser, "s")
        wait(browser, "document.querySelectorAll('#places span').length === 3", 90)
        told = browser.value(
            "[...document.querySelectorAll('#places span')].map((each) => each.textContent)"
        )
        gone = "No picture: it was listed, but no longer exists."
        assert set(told) <= {gone, "No picture: the file has changed since the fit."}
    (tmp_path / "out" / "models").rename(tmp_path / "elsewhere")
    with served(out) as (_, address):
        browser.open(address)
        wait(browser, "document.querySelectorAll('#grid li').length > 0")
        press(browser, "s")
        wait(browser, "get('nearest-told').textContent.startsWith('no complete model at')", 90)
    with served(out, "--nearest", "false") as (_, address):
        browser.open(address)
        wait(browser, "document.querySelectorAll('#grid li').length > 0")
        press(browser, "s")
        wait(browser, "get('whole').naturalWidth > 0")
        assert browser.value("get('nearest').hidden") is True


@pytest.mark.slow
def test_ctrl_c_ends_it_with_a_sentence(out):
    with served(out) as (process, address):
        with urllib.request.urlopen(address) as answer:
            assert answer.status == 200
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) == 130
        assert "stopped" in process.stdout.read()


def test_wrong_settings_are_refused_in_a_sentence(leave, tmp_path):
    code, _, err = leave("review", "--port", "70000")
    assert (code, "port 70000 must lie between 0 and 65535" in err) == (2, True)
    code, _, err = leave("review", "--out", str(tmp_path / "none"))
    assert (code, "holds no finished run" in err) == (1, True)


def test_a_port_that_is_taken_is_named(leave, out):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = leave("review", "--out", out, "--port", str(port))
    assert code == 1
    assert f"cannot listen at 127.0.0.1 port {port}" in err


@pytest.mark.slow
def test_pictures_and_decisions_lie_on_s3(s3, tmp_path):
    parts = first_night(str(tmp_path))
    parts = [replace(part, folder=f"{s3}/parts") for part in parts]
    for part in parts:
        data = (tmp_path / "parts" / part.name).read_bytes()
        files.write_bytes(f"{s3}/parts/{part.name}", data)
    finish(f"{s3}/out", parts, model_of(PRODUCTS), settings=FLAGGED)
    out = Out(f"{s3}/out")
    with queue.opened(out, model_names.named(run_records.finished(out))) as shown:
        row = shown.page(Filter(verdict="anomalous"), 1)[0]
        assert row["uri"].startswith("s3://")
        pictures = Pictures(out, FetchSettings())
        part = next(part for part in parts if part.image_id == row["image_id"])
        local = Image.open(tmp_path / "parts" / part.name)
        data = pictures.crop(row, shown.record, (5, 6, 45, 36), 99, lossless=True)
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(data))), np.asarray(local)[6:36, 5:45]
        )
        assert pictures.heat(row, shown.record, 80).startswith(b"\x89PNG")
        shown.decide(row["image_id"], "defect", "ann")
    (found,) = decisions.current(out).to_pylist()
    assert (found["image_id"], found["decision"]) == (row["image_id"], "defect")
