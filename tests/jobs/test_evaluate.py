import pyarrow as pa

from jobs.cli.published_results import published
from jobs.evaluate import print_summary
from pipelines.reports.evaluate import SCHEMA

BOLT = {
    "product": "a_product_of_a_long_name",
    "good": 12345,
    "defective": 1234,
    "image_auroc": 0.98765,
    "pixel_auroc": 0.5,
    "pixel_auroc_error": 1.2e-6,
    "pro": 0.93,
    "pro_error": 2e-6,
    "oracle_f1": 0.95,
    "oracle_false_alarms": 5,
    "oracle_misses": 7,
    "oracle_errors": 12,
    "false_alarms": 123,
    "misses": 10,
}
BARE = {"product": "nut", "good": 3, "defective": 0, "note": "no masks"}


def said(capsys, *rows: dict, theirs: str = "") -> list[str]:
    print_summary(pa.Table.from_pylist(list(rows), SCHEMA), published(theirs) if theirs else None)
    return capsys.readouterr().out.splitlines()


def test_the_table_ends_with_the_mean_and_fits_a_page(capsys):
    lines = said(capsys, BOLT, BARE, BOLT | {"product": "mean"}, theirs="mvtec/patchcore-1")
    assert [line.split()[0] for line in lines[:5]] == [
        *("product", "a_product_o", "nut", "mean", "published")
    ]
    assert max(map(len, lines)) <= 100
    assert len({len(line) for line in lines[:5]}) == 1


def test_a_row_holds_rates_and_both_kinds_of_errors_and_dashes_for_what_is_unknown(capsys):
    _, bolt, nut, *_ = said(capsys, BOLT, BARE, BOLT | {"product": "mean"})
    figures = "12,345 1,234 0.9877 0.5000 0.9300 0.9500 12 = 5 + 7 123 10"
    assert bolt.split()[1:] == figures.split()
    assert nut.split() == ["nut", "3", "0", "-", "-", "-", "-", "-", "-", "-"]


def test_what_the_model_catches_is_said_of_products_with_verdicts(capsys):
    lines = said(capsys, BOLT, BOLT, BARE, BOLT | {"product": "mean"})
    first = lines.index("at the threshold of the model, 2,448 of 2,468 defects are caught,")
    assert lines[first + 1] == "and 246 of 24,690 good images are false alarms"
    assert not [line for line in said(capsys, BARE, BARE) if line.startswith("at the threshold")]


def test_published_figures_stand_below_the_mean_with_dashes_where_there_are_none(capsys):
    lines = said(capsys, BOLT, BOLT | {"product": "mean"}, theirs="mtd/patchcore-10")
    assert lines[3].split() == ["published", "0.979", "-", "-", "-", "-", "-", "-"]
    assert lines[4] == "published: mtd/patchcore-10, Roth et al., CVPR 2022"
    lines = said(capsys, BOLT, BOLT | {"product": "mean"}, theirs="mvtec/patchcore-1")
    assert lines[3].split() == ["published", "0.990", "0.980", "0.931", "-", "49", "-", "-"]
    assert lines[4].endswith("a mean over 15 products; ours is over 1")


def test_what_the_table_has_no_room_for_stands_below_it(capsys):
    mean = BOLT | {"product": "mean", "image_ap": 0.98765, "pro_0_05": 0.5, "pixel_f1": 0.25}
    lines = said(capsys, BOLT, mean | {"oracle_pixel_f1": 0.75})
    assert (
        "mean image AP 0.9877, PRO up to 0.05 0.5000, best pixel F1 0.7500, "
        "pixel F1 at the model's threshold 0.2500"
    ) in lines
    assert not any(line.startswith("mean image AP") for line in said(capsys, BARE, BARE))


def test_parts_have_a_table_of_their_own_where_there_are_any(capsys):
    parts = {"good_parts": 1200, "defective_parts": 7, "part_auroc": 0.98765, "part_ap": None}
    lines = said(capsys, BOLT | parts, BARE, BOLT | parts | {"product": "mean"})
    assert lines[-4:] == [
        "parts, each by the highest score of its images",
        "product       good   bad   AUROC      AP",
        "a_product_o  1,200     7  0.9877       -",
        "mean         1,200     7  0.9877       -",
    ]
    assert not any("parts" in line for line in said(capsys, BOLT, BARE, BARE))


def test_the_error_of_grey_levels_and_notes_are_said(capsys):
    lines = said(capsys, BOLT, BARE, BOLT | {"product": "mean", "note": "of 2 only 1"})
    assert any("pixel AUROC by at most 1.2e-06, the mean PRO by 2.0e-06" in line for line in lines)
    assert lines[-2:] == ["nut: no masks", "mean: of 2 only 1"]
    assert not any("16 bits" in line for line in said(capsys, BARE, BARE))
