"""The pages over all nights at the end of a night, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ops.errors import UserError
from ops.storage import files
from ops.storage.paths import Out
from pipelines.nights.pages import NightPages
from pipelines.nights.settings import NightSettings
from pipelines.nights.warnings import NightWarnings
from pipelines.reports import report_index, trends
from tests.pipelines.nights.test_night import night, world
from tests.pipelines.reports.test_trends import NONE, parts_of
from tests.runs import finish, model_of

__all__ = ["world"]


@pytest.fixture
def ending(tmp_path):
    """The pages of a night after two runs, its warnings, and what it said."""
    out, said = Out(str(tmp_path)), []
    for n in range(2):
        finish(out.root, parts_of(n, ["bolt"]), model_of(["bolt"]), f"2026-11-2{n}", NONE)
    hooks = SimpleNamespace(echo=said.append)
    warnings = NightWarnings(hooks)
    pages = NightPages(out, NightSettings(trend_nights=1), hooks, warnings)
    return SimpleNamespace(out=out, said=said, warnings=warnings, pages=pages)


def test_a_night_that_is_done_writes_both_pages(ending):
    ending.pages.write_overviews({})
    page = " ".join(files.read_bytes(ending.out.trends()).decode().split())
    assert "1 night, 2026-11-21 to 2026-11-21; 1 earlier ones are not shown" in page
    assert b'href="trends.html"' in files.read_bytes(ending.out.index())
    assert ending.warnings.sentences == []


@pytest.mark.parametrize("module", [trends, report_index])
def test_a_page_that_cannot_be_written_is_a_warning(ending, monkeypatch, module):
    def fail(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(module, "write", fail)
    ending.pages.write_overviews({})
    (sentence,) = ending.warnings.sentences
    assert sentence == (
        "the pages over all nights were not written (UserError: the disk is full); write them with "
        f"python -m jobs.trends --out {ending.out.root}"
    )
    assert ending.said == [f"warning: {sentence}"]


def test_a_failed_night_is_in_the_list(world):
    record, _ = night(world, UserError("no bucket"))
    assert record["warnings"] == []
    assert b"failed: no bucket" in files.read_bytes(world.out.index())
    assert not files.exists(world.out.trends())


def test_a_page_that_a_failed_night_cannot_write_is_on_its_record(world, monkeypatch):
    monkeypatch.setattr(report_index, "write", lambda _: 1 / 0)
    record, tracked = night(world, UserError("no bucket"))
    (sentence,) = record["warnings"]
    assert sentence.startswith("the pages over all nights were not written (ZeroDivisionError")
    assert tracked.metrics["warnings"] == 1.0
