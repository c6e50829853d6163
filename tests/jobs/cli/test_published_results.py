import re
from dataclasses import asdict

import pytest

from jobs.cli import published_results
from ops.errors import UserError
from pipelines.reports.evaluate import SCHEMA
from tests.conftest import ROOT

FIGURES = ("image_auroc", "pixel_auroc", "pro", "oracle_errors")


def test_published_figures_are_figures_of_our_table():
    known = published_results.read()
    assert known
    for row in known.values():
        values = {k: v for k, v in asdict(row).items() if k in FIGURES and v is not None}
        assert set(values) <= set(SCHEMA.names)
        assert values
        assert all(0.5 < v <= 1 for k, v in values.items() if k != "oracle_errors")
        assert row.source


def test_a_preset_is_found_with_its_data_set_and_alone_where_that_is_clear():
    whole = published_results.published("mvtec/patchcore-1")
    assert (whole.image_auroc, whole.products, whole.oracle_errors) == (0.990, 15, 49)
    assert published_results.published("patchcore-1") == whole
    assert published_results.published("mtd/patchcore-10").pixel_auroc is None


def test_an_unknown_name_lists_the_known_and_an_unclear_one_its_data_sets():
    with pytest.raises(
        UserError, match=r"'patchcore-2' is not in published\.toml; choose.* mvtec/"
    ):
        published_results.published("patchcore-2")
    with pytest.raises(UserError, match=r"several data sets; choose one of: mvtec/diff.*, mtd/"):
        published_results.published("differnet")


def test_presets_name_what_is_on_file():
    text = "".join(file.read_text() for file in (ROOT / "deploy" / "methods").glob("*.toml"))
    names = re.findall(r"--published (\S+)", text)
    assert names
    assert set(names) <= set(published_results.read())
