"""jobs.trends, locally and on S3, and its page in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.storage import files
from tests.browser import Browser, chromium
from tests.pipelines.reports.test_trends import NONE, PRODUCTS, parts_of
from tests.runs import finish, model_of


def draw(root):
    """Three nights under two models."""
    for n in range(3):
        finish(root, parts_of(n), model_of(PRODUCTS, seed=n // 2), f"2026-11-2{n}", NONE)


def test_both_pages_are_written(leave, tmp_path):
    draw(str(tmp_path / "o"))
    code, output, err = leave("trends", "--out", "o", "--nights", "2")
    assert (code, err) == (0, "")
    assert output == "trends: o/reports/trends.html\nindex: o/reports/index.html\n"
    assert "2 nights, 2026-11-21 to 2026-11-22" in Path("o/reports/trends.html").read_text()
    assert 'href="trends.html"' in Path("o/reports/index.html").read_text()
    code, _, err = leave("trends", "--nights", "0")
    assert (code, "nights 0 must lie between 1 and 1000" in err) == (2, True)


@pytest.mark.slow
def test_pages_lie_on_s3(leave, s3):
    draw(f"{s3}/out")
    code, _, err = leave("trends", "--out", f"{s3}/out")
    assert code == 0, err
    assert b"3 nights, 2026-11-20 to 2026-11-22" in files.read_bytes(
        f"{s3}/out/reports/trends.html"
    )
    assert b'href="trends.html"' in files.read_bytes(f"{s3}/out/reports/index.html")


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_pages_fit_and_ask_for_nothing(leave, tmp_path, scheme, width):
    if not chromium():
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    draw(str(tmp_path / "o"))
    assert leave("trends", "--out", "o")[0] == 0
    browser = Browser(tmp_path / "chromium")
    try:
        browser.prefer(scheme)
        browser.resize(width, 900)
        for page in ("trends", "index"):
            path = (tmp_path / f"o/reports/{page}.html").absolute()
            browser.open(path)
            assert browser.complaints() == []
            assert browser.requests() == [path.as_uri()]
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.value("window.ran") is None
        browser.open(tmp_path.absolute() / "o/reports/trends.html")
        browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
        roles = browser.roles()
        pictures = [name for role, name in roles if role in {"image", "img"}]
        assert len(pictures) == 3 + 3 * 3
        assert all("by night: " in name for name in pictures)
        assert [role for role, _ in roles].count("table") == 4
        assert browser.value("document.documentElement.scrollWidth") <= width
        there = browser.value("document.querySelector('header a').href")
        assert there == path.as_uri()
    finally:
        browser.close()
