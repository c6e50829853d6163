"""jobs.report with MLflow on SQLite, and its page in a real browser."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.tracking.record import Record
from jobs.tracking.tracker import EXPERIMENT, Tracker
from ops.archives.fetch import FetchSettings
from ops.storage import files
from ops.storage.paths import Out
from pipelines.reports import report, report_data
from pipelines.reports.report_data import ReportSettings
from pipelines.tables import run_records
from tests.browser import Browser, chromium
from tests.drawn_nights import FLAGGED, PRODUCTS, first_night, second_night
from tests.runs import Part, finish, model_of

TAB, ENTER, SPACE = ("Tab", 9), ("Enter", 13, "\r"), (" ", 32, " ")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two nights full of hostile names, and what the job says of them."""
    root = str(tmp_path_factory.mktemp("out"))
    model, before = model_of(PRODUCTS), first_night(root)
    finish(root, before, model, "2026-11-20", FLAGGED)
    finish(root, second_night(before), model, "2026-11-21", FLAGGED)
    return root


def reported(leave, *words):
    """The page that a job wrote."""
    code, output, err = leave("report", *words)
    assert code == 0, err
    (line,) = output.splitlines()
    return Path(line.removeprefix("report: "))


@pytest.mark.slow
def test_a_report_lies_where_it_says_and_with_the_tracker(leave, out):
    page = reported(leave, "--out", out, "--parts", "8", "--price-per-hour", "2")
    assert page.parent == Path(out, "reports")
    run_id = page.stem
    assert run_id.startswith("2026-11-21-")

    from mlflow import MlflowClient

    client = MlflowClient(Tracker(out).uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["run_id"] == run_id
    assert run.data.metrics["bytes"] == page.stat().st_size
    artifact = client.download_artifacts(run.info.run_id, "report.html")
    assert Path(artifact).read_bytes() == page.read_bytes()
    # An earlier run by name, and all of a night.
    first = min(Path(out, "runs").iterdir())
    assert reported(leave, first.stem, "--out", out, "--parts", "0").stem == first.stem
    night = reported(leave, "--night", "2026-11-20", "--out", out, "--parts", "0")
    assert night.stem == "2026-11-20"


@pytest.mark.slow
def test_a_report_lies_beside_its_tables_on_s3(leave, s3, tmp_path, monkeypatch):
    parts = first_night(str(tmp_path))
    finish(f"{s3}/out", parts, model_of(PRODUCTS), "2026-11-20", FLAGGED)
    finish(f"{s3}/out", second_night(parts), model_of(PRODUCTS), "2026-11-21", FLAGGED)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    code, output, err = leave("report", "--out", f"{s3}/out", "--parts", "9")
    assert code == 0, err
    location = output.strip().removeprefix("report: ")
    assert location.startswith(f"{s3}/out/reports/2026-11-21-")
    page = files.read_bytes(location).decode()
    assert page.count('<img src="data:image/jpeg;base64,') == 2 * 9
    assert "s3cr3t" not in page


@pytest.mark.parametrize(
    ("words", "sentence", "exit_code"),
    [
        (["--night", "2026-11-20"], "o holds no finished run of the night 2026-11-20", 1),
        (["2026-11-20-00"], "o holds no run 2026-11-20-00", 1),
        (["2026-11-20-00", "--night", "2026-11-20"], "name a run or a night, not both", 2),
        (["--night", "../x"], "must be a date", 2),
        ([], "o holds no finished run", 1),
        (["--parts", "100000"], "parts 100000 must lie between 0 and 1000", 2),
    ],
)
def test_errors_are_one_sentence(leave, words, sentence, exit_code):
    code, _, err = leave("report", *words, "--out", "o")
    assert code == exit_code
    assert sentence in err
    assert err.count("\n") == 1


def test_a_server_is_linked_without_its_password_and_a_database_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(str(tmp_path))
    assert tracker.page("r") == f"sqlite:///{tmp_path}/mlflow.db"
    tracker.uri = None
    assert tracker.page("r") == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:s3cret@127.0.0.1:9")  # nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert Tracker(str(tmp_path)).page("r") == "http://127.0.0.1:9"


@pytest.mark.slow
def test_the_scoring_of_the_run_is_linked_not_what_came_after(tmp_path, monkeypatch):
    tracker = Tracker(str(tmp_path))
    scored = tracker.deliver(Record("score", tags={"run_id": "r"}, started_ms=1000))
    tracker.deliver(Record("evaluate", tags={"run_id": "r"}, started_ms=2000))
    tracker.deliver(Record("score", tags={"run_id": "r"}, status="FAILED", started_ms=500))
    client = tracker._client()
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    # The same database, as if a server stood before it.
    tracker.uri = "http://tracker:5000"
    monkeypatch.setattr(Tracker, "_client", lambda _: client)
    server = f"http://tracker:5000/#/experiments/{experiment}"
    assert tracker.page("r") == f"{server}/runs/{scored}"
    assert tracker.page("another") == server


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium."""
    if not chromium():
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    started = Browser(tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def path(out):
    """The report of the second night."""
    settings = ReportSettings(parts=30, more_parts=0, thumbnail=64)
    runs = run_records.latest(Out(out), 1)
    return Path(report.report(Out(out), runs, "page", settings, FetchSettings(), lambda *_: None))


@pytest.fixture
def page(path, browser):
    """This report, opened anew on a laptop."""
    browser.ask("Page.setBypassCSP", enabled=False)
    browser.prefer("light")
    browser.resize(1280, 900)
    browser.open(path)
    return path


@pytest.mark.slow
def test_large_numbers_are_shown_with_commas(out, browser, tmp_path):
    runs, settings = run_records.latest(Out(out), 1), ReportSettings(parts=0)
    data = report_data.collect(Out(out), runs, settings, FetchSettings(), lambda *_: None)
    many = data._replace(statuses={"ok": 1234567, "unreadable": 2223})
    (tmp_path / "page.html").write_bytes(report.render(Out(out), many))
    browser.open(tmp_path / "page.html")
    totals = browser.value("document.querySelector('.totals').innerText").split()
    assert {"1,236,790", "2,223"} <= set(totals)
    assert "202f" not in browser.value("document.body.innerText")


ROWS = "[...document.querySelectorAll('#list tbody tr')]"


def in_sight(browser):
    """Rows of the list that can be seen, each as its cells' values."""
    visible = f"{ROWS}.filter(r => r.offsetHeight > 0)"
    return browser.value(f"{visible}.map(r => [...r.cells].map(c => c.dataset.value ?? ''))")


@pytest.mark.slow
@pytest.mark.parametrize("guarded", [True, False])
def test_no_hostile_name_runs_and_nothing_is_requested(page, browser, guarded):
    # Also without the policy that would stop what escaping had let through.
    browser.ask("Page.setBypassCSP", enabled=not guarded)
    browser.open(page)
    assert browser.value("window.ran") is None
    # Links would lead away.
    everything = "document.querySelectorAll('body *:not(a, a *)').forEach"
    for kind in ("mouseover", "error", "load"):
        browser.value(f"{everything}(e => e.dispatchEvent(new Event({kind!r})))")
    browser.value(f"{everything}(e => e.click?.())")
    assert browser.value("window.ran") is None
    # Pictures at the end are loaded when they come into sight.
    browser.value("window.scrollTo(0, document.body.scrollHeight)")
    assert browser.value("document.images.length") > 30
    requested = {url.partition(",")[0] for url in browser.requests()}
    assert requested <= {page.as_uri(), f"{page.as_uri()}#parts", "data:image/jpeg;base64", "data:"}
    assert page.as_uri() in requested


@pytest.mark.slow
def test_the_policy_lets_the_page_work_and_forbids_all_else(page, browser):
    assert browser.complaints() == []
    assert browser.value("getComputedStyle(document.querySelector('.unseen')).width") == "1px"
    shown = browser.value("document.images[0].naturalWidth")
    assert shown == 64
    browser.value("document.body.insertAdjacentHTML('beforeend', '<img src=http://127.0.0.1:9/x>')")
    browser.value("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=ran=1>')")
    assert browser.value("new Promise(done => setTimeout(done, 300))") is None
    assert browser.value("window.ran") is None
    assert any("Content Security Policy" in str(message) for message in browser.complaints())


@pytest.mark.slow
def test_a_heading_sorts_its_table_and_says_so(page, browser):
    for name, column, kind in (("Score", 3, float), ("p-value", 4, float), ("Name", 1, str)):
        heading = f"document.querySelectorAll('#list thead th')[{column}]"
        for _ in range(2):
            browser.value(f"{heading}.querySelector('button').click()")
            order = browser.value(f"{heading}.getAttribute('aria-sort')")
            sorted_headings = browser.value(
                "document.querySelectorAll('#list thead [aria-sort]').length"
            )
            assert sorted_headings == 1
            cells = [row[column] for row in in_sight(browser)]
            known = [kind(cell) for cell in cells if cell != ""]
            # What has no value stays below.
            assert cells[len(known) :] == [""] * (len(cells) - len(known))
            assert len(known) == (36 if name == "Name" else 30)
            if kind is float:
                assert known == sorted(known, reverse=order == "descending")
            else:
                ascending = browser.value(
                    f"{ROWS}.map(r => r.cells[1].dataset.value)"
                    ".sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))"
                )
                assert known == (ascending if order == "ascending" else ascending[::-1])


def select(browser, name, value):
    browser.value(
        f"(() => {{ const e = document.getElementById({name!r}); e.value = {value!r};"
        "e.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


@pytest.mark.slow
def test_filters_show_the_rows_that_match_all_of_them(page, browser):
    everything = in_sight(browser)
    assert len(everything) == 36
    select(browser, "product", "p:bolt")
    bolts = in_sight(browser)
    assert {row[2] for row in bolts} == {"bolt"}
    assert len(bolts) == sum(row[2] == "bolt" for row in everything)
    select(browser, "status", "unreadable")
    assert [row[3] for row in in_sight(browser)] == ["", ""]
    select(browser, "verdict", "yes")
    assert in_sight(browser) == []
    assert browser.value("document.querySelector('p.none').offsetHeight") > 0
    assert browser.value("document.getElementById('shown').textContent") == "0 of 36 shown"
    browser.value("document.querySelector('form.filters [type=reset]').click()")
    assert browser.value("new Promise(done => setTimeout(done, 100))") is None
    assert in_sight(browser) == everything
    # A product whose name is a tag can be chosen, too.
    evil = browser.value("document.querySelector('#product').options[1].value")
    assert "<b onclick" in evil
    browser.value("document.querySelector('#product').selectedIndex = 1")
    browser.value(
        "document.querySelector('#product').dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert len({row[2] for row in in_sight(browser)}) == 1


@pytest.mark.slow
def test_the_list_is_searched_and_sorted_by_keyboard_alone(page, browser):
    browser.value("document.getElementById('text').focus()")
    browser.write("PLAIN unread")
    assert {(row[1], row[3]) for row in in_sight(browser)} == {("plain.png", "")}
    browser.value("document.getElementById('text').select()")
    browser.write("plain nowhere")
    assert in_sight(browser) == []
    browser.value("document.getElementById('text').select()")
    browser.write("gnp.exe")
    assert {row[1] for row in in_sight(browser)} == {"\\u202egnp.exe"}
    focused = "document.activeElement.textContent"
    for _ in range(20):
        browser.press(*TAB)
        if browser.value(focused) == "p-value":
            break
    assert browser.value(focused) == "p-value"
    assert browser.value("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    browser.press(*ENTER)
    assert browser.value("document.activeElement.parentNode.ariaSort") == "descending"
    browser.press(*SPACE)
    assert browser.value("document.activeElement.parentNode.ariaSort") == "ascending"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_tables_stay_tables_to_a_screen_reader(page, browser, width):
    browser.resize(width, 844)
    browser.value("document.querySelector('details').open = true")
    roles = browser.roles()
    kinds = [role for role, _ in roles]
    assert kinds.count("table") == 4
    assert kinds.count("main") == kinds.count("banner") == 1
    assert kinds.count("columnheader") >= 6
    assert kinds.count("rowheader") > 36
    headings = [name for role, name in roles if role == "heading"]
    assert headings[0] == "Night of 2026-11-21"
    assert "Worst parts and failures" in headings
    named = {role: name for role, name in roles if role in {"searchbox", "status"}}
    assert named["searchbox"].startswith("Text")
    pictures = [name for role, name in roles if role in {"image", "img"}]
    assert len(pictures) > 30
    assert all(pictures)
    # Nothing but tables in their own frames is wider than the window.
    assert browser.value("document.documentElement.scrollWidth") <= width


def contrast(one, other):
    """The contrast ratio of two colours, by WCAG 2.2."""

    def luminance(colour):
        values = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page, browser, scheme):
    browser.prefer(scheme)
    ground = """(e => { while (e) { const c = getComputedStyle(e).backgroundColor;
        if (c !== 'rgba(0, 0, 0, 0)') return c; e = e.parentElement; } })"""
    pairs = browser.value(
        f"""[...document.querySelectorAll('body *')].filter(e => e.offsetHeight > 0
        && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
        .map(e => [getComputedStyle(e).color, {ground}(e), e.className + ' ' + e.tagName])"""
    )
    assert len(pairs) > 200
    worst = min((contrast(text, behind), what) for text, behind, what in set(map(tuple, pairs)))
    assert worst[0] >= 4.5, worst
    with Image.open(io.BytesIO(browser.picture())) as image:
        corner = image.convert("L").getpixel((2, 2))
    assert corner > 200 if scheme == "light" else corner < 50


@pytest.mark.slow
def test_a_page_without_parts_works_as_well(leave, tmp_path, browser):
    finish(str(tmp_path / "o"), [Part("a.png", "bolt", None)], model_of(["bolt"]))
    browser.open((tmp_path / reported(leave, "--out", "o")).absolute())
    assert browser.complaints() == []
    assert browser.value("document.getElementById('shown').textContent") == "1 of 1 shown"
    browser.open((tmp_path / reported(leave, "--out", "o", "--parts", "0")).absolute())
    assert browser.complaints() == []
    assert browser.value("document.getElementById('shown').textContent") == "0 of 0 shown"


@pytest.mark.slow
def test_decisions_stay_in_the_browser_and_are_saved_to_a_file(page, browser, path, tmp_path):
    browser.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.value("localStorage.clear()")
    browser.open(path)
    rows = "document.querySelectorAll('#list tr[data-image]')"
    press = f"{rows}[0].querySelector('[data-decision=false_alarm]').click(); "
    press += f"{rows}[1].querySelector('[data-decision=defect]').click(); "
    press += f"{rows}[2].querySelector('[data-decision=unsure]').click(); "
    press += f"{rows}[2].querySelector('[data-decision=unsure]').click()"  # taken back
    browser.value(press)
    browser.open(path)  # again
    assert browser.value("saving.querySelector('output').textContent").startswith("2 of ")
    browser.value("saving.elements.who.value = 'ann'; saving.requestSubmit()")
    for _ in range(100):
        if saved := list(tmp_path.glob("decisions-*.json")):
            break
        time.sleep(0.05)
    found = json.loads(saved[0].read_text())["decisions"]
    images = [browser.value(f"{rows}[{i}].dataset.image") for i in range(2)]
    assert [(d["image_id"], d["decision"], d["who"]) for d in found] == [
        (images[0], "false_alarm", "ann"),
        (images[1], "defect", "ann"),
    ]
    assert all(d["run_id"].startswith("2026-11-21") and d["decided_at"] for d in found)


@pytest.mark.slow
def test_on_paper_nothing_is_wider_than_a4(page, browser):
    width = 703  # 210 mm without margins of 12 mm, at 96 pixels an inch
    browser.resize(width, 1000)
    browser.medium("print")
    browser.value("dispatchEvent(new Event('beforeprint'))")
    try:
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("[...document.querySelectorAll('details')].every(d => d.open)")
        assert (
            browser.value("getComputedStyle(document.querySelector('.filters')).display") == "none"
        )
    finally:
        browser.medium("")
        browser.resize(1280, 900)
