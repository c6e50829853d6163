"""Two models, compared by their current rows over drawn nights, without Ray."""

from __future__ import annotations

import pyarrow as pa
import pytest
from scipy import stats

from ops.archives.inventory import SCHEMA
from ops.errors import UserError
from ops.results import region_table
from ops.storage import files, parquet
from ops.storage.paths import CALIBRATED_BY, Out
from pipelines.reports import compare
from pipelines.reports.compare import CompareSettings
from pipelines.reports.labels import Joined
from pipelines.reports.part_changes import PartChanges
from pipelines.reports.region_changes import RegionChanges
from pipelines.reports.sides import Models
from pipelines.tables import gone, model_names
from tests.pipelines.tables.test_current_regions import region
from tests.pipelines.tables.test_current_scores import MODELS, publish, row

CHAMPION, CHALLENGER = MODELS
#: Scores by night, run and image. An image is anomalous above 5; `old` leaves the archive.
CHAMPION_NIGHTS = (
    {"1": 1.0, "2": 2.0, "3": 8.0, "old": 9.0},
    {"4": 4.0, "5": 7.0, "1": 9.0},  # image 1 was scored again
    {"6": 3.0},
)
CHALLENGER_RUNS = ({"1": 10.0, "2": 20.0, "5": 3.0, "old": 1.0}, {"3": 60.0, "4": 30.0, "7": 70.0})
#: What is current.
A = {"1": 9.0, "2": 2.0, "3": 8.0, "4": 4.0, "5": 7.0, "6": 3.0}
B = {"1": 10.0, "2": 20.0, "3": 60.0, "4": 30.0, "5": 3.0, "7": 70.0}
NO_PICTURES = CompareSettings(pictures=0)


def uri(name):
    return f"file:///parts/{name}"


def p_value(score):
    return 1 / (1 + score)


def scored(out, number, model, scores, **record):
    """A run of images, the parts of which are `x` (1 to 4) and `y`, and its record."""
    rows = [
        row(uri(name), model=model, score=score, p_value=p_value(score))
        | {"part": "x" if name in "1234" else "y", "view": name}
        for name, score in scores.items()
    ]
    run_id = publish(out, number, rows)
    content = {"run_id": run_id, "number": number + 1, "started": "2026", "model_id": model}
    content |= {"night": run_id[:10], "totals": {"images": len(rows)}, "method": "padim"}
    files.write_json(out.run(run_id), content | record)
    return run_id


def regions(out, run_id, model, places):
    """The regions of a run: of images, left sides of boxes that are 10 pixels wide."""
    rows = [
        region(uri(name), run_id, number) | {"model_id": model, "box_x": left, "box_width": 10}
        for number, (name, left) in enumerate(places, 1)
    ]
    table = pa.Table.from_pylist(rows, region_table.SCHEMA)
    parquet.write(out.region_table(run_id[:10], run_id), region_table.SCHEMA, [table])


def inventory(location, names, version="1", **columns):
    """An inventory of images; `columns` have a value for each."""
    listed = [
        {"image_id": row(uri(name), version)["image_id"], "uri": uri(name), "product": "bolt"}
        | {column: values[place] for column, values in columns.items()}
        for place, name in enumerate(names)
    ]
    parquet.write(location, SCHEMA, [pa.Table.from_pylist(listed, SCHEMA)])
    return location


@pytest.fixture
def out(tmp_path):
    """Three nights of the champion, two runs of the challenger, and the archive's last listing."""
    out = Out(str(tmp_path / "out"))
    champion = {"model_name": "tiles v1, champion"}
    challenger = {"model_name": "tiles v2, challenger", "grown_by": [row(uri("4"))["image_id"]]}
    first = scored(out, 0, CHAMPION, CHAMPION_NIGHTS[0], **champion)
    second = scored(out, 1, CHAMPION, CHAMPION_NIGHTS[1], **champion)
    third = scored(out, 2, CHALLENGER, CHALLENGER_RUNS[0], **challenger)
    fourth = scored(out, 3, CHALLENGER, CHALLENGER_RUNS[1], **challenger)
    scored(out, 4, CHAMPION, CHAMPION_NIGHTS[2], **champion)
    # Regions of an earlier row of an image, and of an image that is gone, do not count.
    regions(out, first, CHAMPION, [("1", 0), ("3", 0), ("3", 50), ("old", 0)])
    regions(out, second, CHAMPION, [("1", 20), ("5", 0)])
    regions(out, third, CHALLENGER, [("1", 0), ("1", 25), ("old", 0)])
    regions(out, fourth, CHALLENGER, [("3", 5), ("7", 0)])
    inventory(out.warehouse(), "1234567")
    files.write_json(out.night("00000001-a"), gone.before_listing(out, ["/parts"]))
    return out


def models(out, *names):
    return Models(out, *(model_names.find(out, name) for name in names))


def compared(out, labels="", settings=NO_PICTURES):
    sides = models(out, "champion", "challenger")
    return sides, compare.compare(sides, labels, settings, lambda *_: None)


def test_images_of_all_nights_are_paired_each_once_by_its_newest_row(out):
    sides, comparison = compared(out)
    (bolt,) = comparison.products.to_pylist()
    both = sorted(A.keys() & B.keys())
    assert (bolt["images_a"], bolt["images_b"], bolt["both"]) == (6, 6, len(both))
    assert (bolt["only_in_a"], bolt["only_in_b"]) == (1, 1)
    table = parquet.read(sides.out.comparison(sides.before.name, sides.after.name, "changes"))
    assert {each["uri"]: (each["change"], each["score_a"]) for each in table.to_pylist()} == {
        uri("6"): ("only_in_a", 3.0),
        uri("7"): ("only_in_b", None),
        uri("2"): ("became_anomalous", 2.0),
        uri("4"): ("became_anomalous", 4.0),
        uri("5"): ("became_normal", 7.0),
    }
    pairs = [[side[name] for name in both] for side in (A, B)]
    assert bolt["spearman"] == pytest.approx(stats.spearmanr(*pairs).statistic)
    assert bolt["measure"] == "p_value"
    values = [[p_value(score) for score in side.values()] for side in (A, B)]
    assert bolt["ks"] == pytest.approx(stats.ks_2samp(*values).statistic)


def test_images_that_are_gone_from_the_archive_are_left_out_and_counted(out):
    sides, _ = compared(out)
    assert sides.gone == (1, 1)
    inventory(out.warehouse(), [*"1234567", "old"])
    sides, comparison = compared(out)
    (bolt,) = comparison.products.to_pylist()
    assert (sides.gone, bolt["both"], bolt["became_normal"]) == ((0, 0), 6, 2)


def test_regions_and_parts_are_those_of_current_rows(out):
    _, comparison = compared(out)
    # Image 1 has them at 20 and at 0 and 25, image 3 at 0 and 50 and at 5, image 5 at 0 in A.
    assert comparison.regions == RegionChanges(4, 3, 2, 2)
    assert comparison.parts == PartChanges(2, 2, 0, 0)


def test_the_comparison_of_models_has_a_folder_that_no_run_has(out):
    sides, comparison = compared(out, settings=CompareSettings())
    folder = out.comparisons(sides.before.name, sides.after.name)
    assert folder == f"{out.root}/comparisons/model-{CHAMPION}--model-{CHALLENGER}"
    assert files.names(folder) == [
        *("changes.parquet", "movers.parquet", "pictures/bolt.png", "products.parquet")
    ]
    assert [side.short for side in sides] == ["tiles v1, champion", "tiles v2, challenger"]
    assert sides.before.title == f"model tiles v1, champion ({CHAMPION})"
    assert comparison.pictures == {"bolt": f"{folder}/pictures/bolt.png"}


def test_labels_are_those_of_images_that_neither_model_was_made_of(out, tmp_path):
    calibrated = f"{out.model(CHAMPION)}/_member-1/{CALIBRATED_BY}"
    parquet.write(calibrated, pa.schema([("uri", pa.string())]), [pa.table({"uri": [uri("3")]})])
    labels = inventory(
        str(tmp_path / "labels.parquet"),
        "123456",
        version="0",  # before the archive was written anew
        # Both models are wrong about 1, the champion about 2 and 5 too. Those of 3, 4 and 6 do not
        # count: the champion was calibrated with 3, and the challenger was grown by 4.
        label=[0, 1, 0, 0, 0, 0],
        split=["test", "test", None, None, None, "train"],
    )
    _, comparison = compared(out, labels)
    (bolt,) = comparison.products.to_pylist()
    assert (bolt["labelled"], bolt["errors_a"], bolt["errors_b"]) == (3, 3, 1)
    assert comparison.joined == Joined(3, 0, 0, 1, unsplit=1)


def test_tables_that_are_replaced_meanwhile_are_read_again(out):
    counts = []
    table = next(place for place in files.names(out.scores()) if "0004" in place)

    def read(database):
        counts.append(database.sql("SELECT count(*) FROM a").fetchall()[0][0])
        if len(counts) == 1:  # as jobs.expire does
            files.remove_file(f"{out.scores()}/{table}")
        return counts[-1]

    assert models(out, "champion", "challenger").read(read) == 5
    assert counts == [6, 5]


def test_a_model_without_rows_says_so(out):
    unknown = model_names.NamedModel("c" * 32, "", "")
    sides = Models(out, model_names.find(out, "champion"), unknown)
    with pytest.raises(UserError, match=f"model {'c' * 32} has scored no image in .*; models of"):
        sides.read(lambda _: None)
