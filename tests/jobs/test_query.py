"""Asking for current scores as people do, of a drawn history."""

from __future__ import annotations

import csv
import json
import unicodedata

import pyarrow.parquet as pq
import pytest

from jobs.cli.image_rows import ImageRows
from jobs.cli.part_rows import PartRows
from jobs.cli.region_rows import RegionRows
from ops.archives.inventory import image_id
from ops.results import part_table, score_table
from ops.results.part_calibration import PartCalibration
from ops.storage import files, uris
from ops.storage.paths import Out
from pipelines.tables import decisions, view_columns
from tests.pipelines.tables import test_gone
from tests.pipelines.tables.test_current_regions import region, write_regions
from tests.pipelines.tables.test_current_scores import MODELS, publish, row
from tests.pipelines.tables.test_decisions import NOON


@pytest.fixture
def nights(tmp_path):
    """Two nights of one model and a later one of another, whose run failed to end."""
    out = Out(str(tmp_path / "out"))

    def finish(number, model, rows, **more):
        run_id = publish(out, number, rows)
        record = {"run_id": run_id, "number": number + 1, "started": "2026-11-20T00"}
        record |= {"model_id": model, "method": "patchcore", "held_out": {"bolt": 9, "nut": 9}}
        files.write_json(out.run(run_id), record | more)

    done = {"totals": {"images": 1}}
    bolts = [row(f"u/{i}", score=float(i), p_value=(10 - i) / 10) for i in range(4)]
    finish(0, MODELS[0], bolts, **done)
    finish(1, MODELS[0], [row("u/9", product="nut", score=8.0, p_value=0.1)], **done)
    drawn = {"model_name": "tiles v2, challenger", "settings": {"overlays": True}}
    finish(2, MODELS[1], [row("u/1", model=MODELS[1], map_uri="file:///m.png")], **drawn)
    return out


def shown(text: str) -> list[tuple[str, str]]:
    """Address and verdict of each line."""
    return [(line.split()[-1], line.split()[1]) for line in text.splitlines()[2:]]


def test_the_screen_shows_what_is_new_first_then_by_p_value_of_the_latest_finished_runs_model(
    leave, nights
):
    code, said, _ = leave("query")
    assert code == 0
    model, header, first = said.splitlines()[:3]
    assert model == f"model: patchcore ({MODELS[0]})"
    assert header.split() == ImageRows.on_screen.split(",")
    assert (
        first
        == "yes     yes           -            0.1      8  ok      nut      1       2       u/9"
    )
    assert shown(said) == [
        ("u/9", "yes"), ("u/3", "no"), ("u/2", "no"), ("u/1", "no"), ("u/0", "no")
    ]  # fmt: skip
    assert shown(leave("query", "--limit", "2")[1]) == [("u/9", "yes"), ("u/3", "no")]
    assert shown(leave("query", "--product", "nut")[1]) == [("u/9", "yes")]
    code, said, _ = leave("query", "--model-id", "tiles v2")
    assert said.startswith(f"model: tiles v2, challenger ({MODELS[1]})\n")
    assert shown(said) == [("u/1", "no")]


def test_a_model_without_rows_says_so(leave, nights):
    code, _, err = leave("query", "--model-id", "c" * 32)
    assert (code, err) == (
        1,
        f"error: model {'c' * 32} has scored no image in out; models of its runs: "
        f"patchcore ({MODELS[0]}), tiles v2, challenger ({MODELS[1]})\n",
    )
    code, said, _ = leave("query", "--where", "score > 99")
    assert (code, said) == (0, f"model: patchcore ({MODELS[0]})\nno such image under this model\n")


def test_columns_are_chosen_and_overlays_and_the_model_are_named(leave, nights):
    words = ["--model-id", "challenger", "--columns", "uri,model,map_uri,overlay_uri"]
    _, said, _ = leave("query", *words)
    overlay = nights.overlay(MODELS[1], image_id("u/1", "1"))
    assert said.splitlines()[2].split("  ") == [
        "u/1", "tiles v2, challenger", "file:///m.png", uris.make(overlay)
    ]  # fmt: skip
    _, said, _ = leave("query", "--columns", "overlay_uri,reason, uri,uri", "--limit", "1")
    assert [line.split() for line in said.splitlines()[1:]] == [
        ["overlay_uri", "reason", "uri"],
        ["-", "u/9"],
    ]
    code, _, err = leave("query", "--columns", "uri,overlay")
    assert code == 2
    assert "columns: there is no 'overlay'; did you mean overlay_uri?" in err


def test_labels_follow_a_threshold_or_a_rate_without_scoring_again(leave, nights):
    asked = ["--where", "is_anomalous"]
    assert [uri for uri, _ in shown(leave("query", *asked, "--threshold", "1.5")[1])] == [
        "u/9", "u/3", "u/2"
    ]  # fmt: skip
    of_bolts = [*asked, "--threshold", '{"bolt": 2.5}']
    assert [uri for uri, _ in shown(leave("query", *of_bolts)[1])] == ["u/9", "u/3"]
    rate = [*asked, "--false-alarm-rate", "0.8"]
    assert [uri for uri, _ in shown(leave("query", *rate)[1])] == ["u/9", "u/3", "u/2"]


def test_a_rate_that_too_few_held_out_images_can_promise_is_warned_of(leave, nights):
    rare = ["--where", "is_anomalous", "--false-alarm-rate", "0.01"]
    warning, *told = leave("query", *rare)[1].splitlines()
    assert warning == (
        "warning: 2 of 2 products have too few held-out images, or parts, for a false-alarm "
        "rate of 0.01, such as bolt: its 9 promise 0.1, which is used"
    )
    assert [uri for uri, _ in shown("\n".join(told))] == ["u/9"]
    assert "warning" not in leave("query", "--false-alarm-rate", "0.1")[1]


def test_files_hold_all_columns_and_rows(leave, nights):
    code, said, _ = leave("query", "--output", "found.parquet")
    assert (code, said.splitlines()[1:]) == (0, ["5 images: found.parquet"])
    found = pq.read_table("found.parquet")
    assert found.schema.names == view_columns.SCHEMA.names
    assert score_table.violations(found.select(score_table.SCHEMA.names)) == []
    assert found["is_new"].to_pylist() == [True] * 5
    assert set(found["model"].to_pylist()) == {"patchcore aaaaaaaa"}
    assert leave("query", "--output", "found.csv")[0] == 0
    import pandas as pd

    read = pd.read_csv("found.csv")
    assert read["score"].tolist() == found["score"].to_pylist() == [8.0, 3.0, 2.0, 1.0, 0.0]
    assert list(read.columns) == [n for n in view_columns.SCHEMA.names if n != "fields"]


def test_false_alarms_are_left_out_on_the_screen_and_shown_on_request(leave, nights):
    flagged = row("u/9", product="nut", score=8.0, p_value=0.1) | {"run_id": "2026-11-20-0001"}
    decisions.append(
        nights, [decisions.decided(flagged, "false_alarm", who="ada", source="page", at=NOON)]
    )
    code, said, _ = leave("query")
    assert code == 0
    assert said.splitlines()[1] == (
        "1 images were called false alarms under this model and are left out; "
        "--false-alarms true shows them"
    )
    assert [line.split()[-1] for line in said.splitlines()[3:]] == ["u/3", "u/2", "u/1", "u/0"]
    _, everything, _ = leave("query", "--false-alarms", "true")
    assert everything.splitlines()[2].split()[:3] == ["yes", "yes", "false_alarm"]
    counts = leave("query", "--by", "product")[1].splitlines()
    assert counts[2].split() == ["nut", "1", "0", "1", "1"]  # counts hold them
    assert "nut" not in leave("query", "--by", "product", "--false-alarms", "false")[1]
    decided = leave("query", "--by", "product", "--where", "decided = 'false_alarm'")[1]
    assert decided.splitlines()[2:] == counts[2:3]
    _, asked, _ = leave("query", "--where", "decided = 'false_alarm' and decided_by = 'ada'")
    assert shown(asked) == [("u/9", "yes")]
    leave("query", "--output", "all.parquet")
    found = pq.read_table("all.parquet").to_pylist()
    told = {each["uri"]: each["decided"] for each in found}
    assert told == {"u/9": "false_alarm"} | dict.fromkeys(["u/0", "u/1", "u/2", "u/3"])
    assert (found[0]["decided_when"], found[0]["decided_model_id"]) == (NOON, MODELS[0])
    assert leave("query", "--false-alarms", "false", "--output", "less.csv")[0] == 0
    assert [line["uri"] for line in rows_of("less.csv")] == ["u/3", "u/2", "u/1", "u/0"]
    groups = ("--by", "product", "--columns", "product,images,anomalous")
    told = leave("query", *groups)[1].splitlines()
    assert [line.split() for line in told[2:]] == [["nut", "1", "1"], ["bolt", "4", "0"]]
    told = leave("query", *groups, "--where", "decided = 'false_alarm'")[1].splitlines()
    assert [line.split() for line in told[2:]] == [["nut", "1", "1"]]
    told = leave("query", *groups, "--false-alarms", "false")[1].splitlines()
    assert told[1].startswith("1 images were called false alarms")
    assert [line.split() for line in told[3:]] == [["bolt", "4", "0"]]


def test_a_file_with_decisions_can_be_given_to_label_and_stores_none_of_them_again(leave, nights):
    flagged = row("u/9", product="nut", score=8.0, p_value=0.1) | {"run_id": "2026-11-20-0001"}
    decisions.append(
        nights, [decisions.decided(flagged, "false_alarm", who="ada", source="page", at=NOON)]
    )
    leave("query", "--output", "parts.csv")
    lines = rows_of("parts.csv")
    with open("parts.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*lines[0], "decision"])
        writer.writeheader()
        writer.writerows(each | {"decision": "defect" * (each["uri"] == "u/3")} for each in lines)
    code, _, err = leave("label", "parts.csv", "--who", "bob")
    assert (code, err) == (0, "")
    stored = decisions.current(nights).to_pylist()
    assert [(each["uri"], each["decision"], each["who"]) for each in stored] == [
        ("u/9", "false_alarm", "ada"),
        ("u/3", "defect", "bob"),
    ]


def test_a_damaged_table_of_decisions_is_named(leave, nights):
    files.write_bytes(nights.label_table("x"), b"PAR1 and no more")
    code, _, err = leave("query")
    assert code == 1
    assert err.startswith("error: out/labels/part-x.parquet is no valid table of decisions (")
    assert leave("query", "--regions", "true")[0] == 0


@pytest.mark.parametrize(
    ("words", "sentence", "exit_code"),
    [
        (["--output", "found.xls"], "--output found.xls must end in one of .parquet .csv", 2),
        (["--limit", "0"], "limit 0 must be at least 1", 2),
        (["--threshold", "1", "--false-alarm-rate", "0.1"], "exclude each other", 2),
        (["--false-alarm-rate", "1.5"], "false_alarm_rate 1.5 must lie between 0 and 1", 2),
        (["--where", "scre > 1"], "where 'scre > 1' is not a condition", 2),
        (["--where", "true) or (true", "--product", "nut"], "is not a condition", 2),
        (["--where", "exists(from read_text('/etc/passwd'))"], "subquery is not allowed", 2),
        (["--where", "product::int > 1"], "Could not convert string", 2),
        (["--model-id", "c" * 32, "--threshold", "1"], "held-out images of model cccc", 1),
        (["--model-id", "nobody"], "used a model 'nobody'; models: patchcore (aaaa", 1),
        (["--out", "empty"], "empty holds no finished run", 1),
        (["--by", "line"], "has a field 'line'; fields: none.", 2),
        (["--columns", "field_line"], "has a field 'line'; fields: none.", 2),
        (["--columns", "uri,field_line", "--parts", "true"], "there is no 'field_line'", 2),
        (["--by", "line,share"], "share is the name of a count", 2),
        (["--by", " , "], "--by  ,  names no column", 2),
        (["--columns", ","], "--columns , names no column; known: image_id, uri", 2),
        (["--by", "view", "--parts", "true"], "--parts and --by exclude each other", 2),
    ],
)
def test_what_cannot_be_asked_is_told(leave, nights, words, sentence, exit_code):
    code, _, err = leave("query", *words)
    assert code == exit_code
    assert sentence in err
    assert err.startswith("error: ")


def test_images_that_are_gone_from_the_archive_are_left_out_and_counted(leave, tmp_path):
    test_gone.drawn(Out(str(tmp_path / "gone")))
    words = ["--out", "gone", "--columns", "uri"]
    code, said, _ = leave("query", *words)
    lines = said.splitlines()
    assert code == 0
    assert lines[1] == "3 images are gone from the archive and left out; --gone true shows them"
    assert sorted(lines[3:]) == test_gone.KEPT
    everything = leave("query", *words, "--gone", "true")[1].splitlines()[2:]
    assert sorted(everything) == sorted(test_gone.KEPT + test_gone.GONE)


@pytest.fixture
def lines(nights):
    """Images of lines A and B, in two shifts, beside those whose paths name neither."""

    def image(number, line, shift, **more):
        fields = {"line": line, "shift": shift}
        return row(f"l/{number}", product="nut", fields=fields, p_value=0.5, **more)

    publish(
        nights,
        3,
        [
            *(image(n, "A", "late" if n % 2 else "early", score=n) for n in range(8)),
            image(8, "B", "late", score=9.0),
            image(9, "B", "late", status="unreadable") | {"p_value": None},
            image(10, HOSTILE, "early", score=1.0),
        ],
    )


def test_images_are_counted_by_fields_of_their_paths(leave, lines):
    code, said, _ = leave("query", "--by", "line", "--columns", "images,failed,anomalous,share")
    assert code == 0
    assert [line.split() for line in said.splitlines()[1:]] == [
        ["images", "failed", "anomalous", "share"],
        ["2", "1", "1", "1"],  # of line B
        ["8", "0", "2", "0.25"],
        ["5", "0", "1", "0.2"],  # of no line
        ["1", "0", "0", "0"],
    ]
    words = ["--by", "product,line,shift", "--output", "groups.parquet"]
    code, said, _ = leave("query", *words, "--where", "fields['line'] IN ('A', 'B')")
    assert said.splitlines()[1:] == ["3 groups: groups.parquet"]
    assert [list(group.values()) for group in pq.read_table("groups.parquet").to_pylist()] == [
        ["nut", "B", "late", 2, 1, 1, 1.0],
        ["nut", "A", "early", 4, 0, 1, 0.25],
        ["nut", "A", "late", 4, 0, 1, 0.25],
    ]
    only_b = ["--where", "fields['line'] = 'B'", "--output", "g.csv"]
    assert leave("query", "--by", "line", "--threshold", "10", *only_b)[0] == 0
    assert rows_of("g.csv") == [
        {"line": "B", "images": "2", "failed": "1", "anomalous": "0", "share": "0"}
    ]


def test_fields_are_columns_of_their_own_where_they_are_asked_for_and_in_csv(leave, lines):
    late = ["--where", "fields['shift'] = 'late' AND fields['line'] = 'B' AND score > 0"]
    code, said, _ = leave("query", *late, "--columns", "field_line,fields,uri")
    assert [line.split() for line in said.splitlines()[1:]] == [
        ["field_line", "fields", "uri"],
        ["B", "line=B", "shift=late", "l/8"],
    ]
    assert leave("query", *late, "--output", "b.csv")[0] == 0
    (read,) = rows_of("b.csv")
    assert [name for name in read if "field" in name] == ["field_line", "field_shift"]
    assert (read["field_line"], read["field_shift"], read["uri"]) == ("B", "late", "l/8")
    assert leave("query", *late, "--output", "b.parquet")[0] == 0
    found = pq.read_table("b.parquet")
    assert found.schema.names == view_columns.SCHEMA.names
    assert found["fields"].to_pylist() == [[("line", "B"), ("shift", "late")]]
    (code, _, err) = leave("query", "--columns", "field_lane")
    assert (code, "has a field 'lane'; fields: line, shift." in err) == (2, True)


def test_hostile_values_of_fields_are_escaped(leave, lines):
    condition = ["--where", "contains(fields['line'], '1+1')"]
    shown_name = "=1+1\\x1b[2J\\u202e\\nx"
    said = leave("query", *condition, "--columns", "fields")[1]
    assert said.splitlines()[2:] == [f"line={shown_name} shift=early"]
    assert leave("query", *condition, "--output", "h.csv")[0] == 0
    (read,) = rows_of("h.csv")
    assert read["field_line"] == f"'{shown_name}"
    assert leave("query", *condition, "--by", "line")[1].splitlines()[2].split()[0] == shown_name


HOSTILE = "=1+1\x1b[2J\u202e\nx"


def test_hostile_names_are_escaped_on_the_screen_and_in_csv(leave, nights):
    hostile = [row(f"u/{HOSTILE}", product=HOSTILE, score=99.0, p_value=0.01)]
    publish(nights, 0, hostile)
    code, said, _ = leave("query", "--where", "score > 50")
    assert code == 0
    shown_name = "=1+1\\x1b[2J\\u202e\\nx"
    assert said.splitlines()[2].split()[6::3] == [shown_name, f"u/{shown_name}"]
    assert leave("query", "--where", "score > 50", "--output", "a.csv")[0] == 0
    (read,) = rows_of("a.csv")
    assert (read["product"], read["uri"]) == (f"'{shown_name}", f"u/{shown_name}")
    assert leave("query", "--where", "score > 50", "--output", "a.csv", "--raw", "true")[0] == 0
    (read,) = rows_of("a.csv")
    assert (read["product"], read["uri"]) == (HOSTILE, f"u/{HOSTILE}")


def rows_of(name):
    with open(name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_a_product_is_found_whatever_form_its_name_has(leave, tmp_path, stored, asked):
    stored, asked = (unicodedata.normalize(form, "T\u00fcr") for form in (stored, asked))
    out = Out(str(tmp_path / "out"))
    run_id = publish(out, 0, [row("u/1", product=stored, score=3.0), row("u/2", score=4.0)])
    record = {"run_id": run_id, "number": 1, "started": "2026-11-20T00", "model_id": MODELS[0]}
    held_out = {"held_out": {stored: 9}, "totals": {"images": 2}}
    files.write_json(out.run(run_id), record | held_out)
    rule = json.dumps({asked: 2.5})
    code, said, _ = leave("query", "--product", asked, "--threshold", rule)
    assert code == 0
    assert shown(said) == [("u/1", "yes")]
    assert stored in said
    _, said, _ = leave("query", "--product", asked, "--threshold", "3.5")
    assert shown(said) == [("u/1", "no")]


@pytest.fixture
def parts(tmp_path):
    """A night of three parts of two views, and the calibration of its model."""
    out = Out(str(tmp_path / "parts"))
    rows = [
        row(f"u/{part}/{view}", part=part, view=view, score=score, p_value=0.5)
        for part, scores in {"a": (1.0, 8.0), "=b": (2.0, 3.0)}.items()
        for view, score in zip(("side", "top"), scores, strict=True)
    ]
    rows.append(row("u/c/side", part="c", view="side", score=0.5, p_value=0.9))
    run_id = publish(out, 0, rows)
    record = {"run_id": run_id, "number": 1, "started": "2026-11-20T00", "model_id": MODELS[0]}
    record |= {
        "false_alarm_rate": 0.01,
        "false_alarm_rates": {"bolt": 0.25},
        "held_out": {"bolt": 8},
        "totals": {"images": 5},
    }
    files.write_json(out.run(run_id), record)
    known = PartCalibration(("side", "top"), tuple((float(n), 1.0) for n in range(4)))
    files.write_json(out.part_calibrations(MODELS[0]), {"bolt": known.to_json()})
    return out


def test_parts_are_shown_by_their_worst_view_with_what_they_lack(leave, parts):
    code, text, _ = leave("query", "--out", parts.root, "--parts", "true")
    assert code == 0
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][0] == "model:"
    assert lines[1:] == [
        PartRows.on_screen.split(","),
        ["yes", "0.2", "bolt", "a", "top", "2", "-", "-", "u/a/top"],
        ["no", "0.4", "bolt", "=b", "top", "2", "-", "-", "u/=b/top"],
        ["no", "0.8", "bolt", "c", "side", "1", "-", "top", "u/c/side"],
    ]


def test_parts_are_written_as_files_with_all_columns(leave, parts, tmp_path):
    for name in ("parts.csv", "parts.parquet"):
        file = str(tmp_path / name)
        code, text, _ = leave("query", "--out", parts.root, "--parts", "true", "--output", file)
        assert (code, text.splitlines()[-1]) == (0, f"3 parts: {file}")
    with open(tmp_path / "parts.csv", newline="") as opened:
        read = list(csv.DictReader(opened))
    assert list(read[0]) == part_table.SCHEMA.names
    assert [line["part"] for line in read] == ["a", "'=b", "c"]
    assert pq.read_table(tmp_path / "parts.parquet")["part"].to_pylist() == ["a", "=b", "c"]


def test_parts_have_no_thresholds_and_a_model_without_parts_is_told(leave, parts):
    words = ("query", "--out", parts.root, "--parts", "true")
    code, _, errors = leave(*words, "--threshold", "1")
    assert code == 2
    assert "judge parts by --false-alarm-rate" in errors
    files.remove_folder(f"{parts.root}/parts")
    code, text, _ = leave(*words, "--where", "views_missing > 0")
    assert code == 0
    assert "fitted without held-out parts" in text
    assert text.splitlines()[-1].split() == [
        "-",
        "-",
        "bolt",
        "c",
        "side",
        "1",
        "-",
        "top",
        "u/c/side",
    ]


@pytest.fixture
def with_regions(nights):
    run_id = "2026-11-20-0000"
    write_regions(nights, run_id, [region(f"u/{i}", run_id, 1, i + 1.0, 0.1) for i in (1, 3)])
    record = files.read_json(nights.run(run_id))
    record["regions"] = {"false_alarm_rate": 0.1, "min_area": 0.0}
    files.write_json(nights.run(run_id), record)
    return nights


def test_regions_are_shown_with_their_boxes(leave, with_regions):
    code, said, _ = leave("query", "--regions", "true")
    assert code == 0
    assert [line.split() for line in said.splitlines()[1:]] == [
        RegionRows.on_screen.split(","),
        ["0.1", "4", "40", "bolt", "1", "3", "4", "10", "5", "no", "u/3"],
        ["0.1", "2", "40", "bolt", "1", "3", "4", "10", "5", "no", "u/1"],
    ]
    _, said, _ = leave("query", "--regions", "true", "--threshold", "2.5")
    assert [line.split()[-1] for line in said.splitlines()[2:]] == ["u/3"]
    _, said, _ = leave("query", "--regions", "true", "--false-alarm-rate", "0.2")
    assert "regions were recorded at a false-alarm rate of 0.1, so 0.2 shows no more" in said


def test_regions_are_written_for_labelling_tools(leave, with_regions):
    code, said, _ = leave("query", "--regions", "true", "--output", "found.json")
    assert (code, said.splitlines()[1:]) == (0, ["2 regions: found.json"])
    content = files.read_json("found.json")
    assert content["images"][0] == {"id": 1, "file_name": "u/3", "width": 64, "height": 64}
    assert content["annotations"][1] == {
        "id": 2,
        "image_id": 2,
        "category_id": 1,
        "bbox": [3, 4, 10, 5],
        "area": 40.0,
        "iscrowd": 0,
        "segmentation": [],
        "attributes": {
            "region": 1,
            "image_id": image_id("u/1", "1"),
            "run_id": "2026-11-20-0000",
            "largest": 2.0,
            "p_value": 0.1,
            "touches_border": False,
        },
    }
    names = ["anomaly", "defect", "false_alarm", "unsure"]
    assert [each["name"] for each in content["categories"]] == names
    code, _, _ = leave("query", "--regions", "true", "--output", "found.csv")
    with open("found.csv", encoding="utf-8") as file:
        assert [row_["box_width"] for row_ in csv.DictReader(file)] == ["10", "10"]
    assert leave("query", "--output", "found.json")[0] == 2
    assert leave("query", "--regions", "true", "--parts", "true")[0] == 2
