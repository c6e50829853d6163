"""Storing decisions from files as a person does, over published nights."""

from __future__ import annotations

import csv
import datetime
import json

import pytest

from jobs.tracking.tracker import Tracker
from ops.archives.inventory import image_id
from ops.storage import files
from ops.storage.paths import Out
from pipelines.tables import decisions
from tests.pipelines.tables.test_current_regions import region, write_regions
from tests.pipelines.tables.test_current_scores import MODELS, publish, row

FOLDER = "file:///parts"


@pytest.fixture(autouse=True)
def tracked(monkeypatch):
    """What would be sent to MLflow, which takes seconds to start."""
    records = []
    monkeypatch.setattr(Tracker, "deliver", lambda _, record: records.append(record))
    return records


@pytest.fixture
def out(tmp_path):
    """Two nights of bolts and nuts under one model; the second read a replaced file of bolt 1."""
    out = Out(str(tmp_path / "out"))
    bolts = [row(f"{FOLDER}/bolt/{n}.png", content_sha256=f"{n}" * 64) for n in range(4)]
    nuts = [row(f"{FOLDER}/nut/{n}.png", product="nut") for n in range(2)]
    changed = row(f"{FOLDER}/bolt/1.png", "2", content_sha256="e" * 64)
    for number, rows in enumerate(([*bolts, *nuts], [changed])):
        run_id = publish(out, number, rows)
        record = {"run_id": run_id, "number": number + 1, "started": "2026-11-20T00"}
        record |= {"model_id": MODELS[0], "method": "patchcore", "totals": {"images": len(rows)}}
        files.write_json(out.run(run_id), record)
    return out


def stored(out):
    """What stands: address, decision and who, by time."""
    rows = decisions.current(out).to_pylist()
    return [(r["uri"].removeprefix(f"{FOLDER}/"), r["decision"], r["who"]) for r in rows]


def saved(tmp_path, entries, name="decisions.json"):
    """A file as a report saves it."""
    (tmp_path / name).write_text(json.dumps({"decisions": entries}))
    return name


def of_report(name, decision, run=0, version="1", second=0, who="ann"):
    return {
        "image_id": image_id(f"{FOLDER}/{name}.png", version),
        "run_id": f"2026-11-20-{run:04d}",
        "decision": decision,
        "who": who,
        "decided_at": f"2026-11-20T06:12:{second:02d}.000Z",
    }


def refused(leave, out, *words):
    """The sentence of a refusal, after which nothing is stored."""
    code, _, err = leave("label", *words)
    assert (code, err.count("\n"), decisions.published(out)) == (1, 1, [])
    return err


def csv_of(tmp_path, text, name="decisions.csv"):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(data)
    return name


def test_a_file_of_the_report_is_stored_once(leave, out, tmp_path, tracked):
    entries = [of_report("bolt/0", "false_alarm"), of_report("bolt/2", "defect", second=1)]
    entries.append(of_report("nut/0", "false_alarm", second=2))
    name = saved(tmp_path, entries)
    code, said, _ = leave("label", name)
    assert code == 0
    assert said.splitlines()[:-1] == [
        "decisions.json: 3 decisions",
        "product  defect  false_alarm",
        "bolt     1       1",
        "nut      0       1",
    ]
    assert said.splitlines()[-1] == f"stored: {decisions.published(Out('out'))[0]}"
    assert stored(out) == [
        ("bolt/0.png", "false_alarm", "ann"),
        ("bolt/2.png", "defect", "ann"),
        ("nut/0.png", "false_alarm", "ann"),
    ]
    code, said, _ = leave("label", name)
    assert (code, said.splitlines()) == (
        0,
        ["decisions.json: 3 decisions, 3 were known", "nothing is new, so nothing is stored"],
    )
    assert len(decisions.published(out)) == 1
    assert tracked[0].metrics == {"defect": 1.0, "false_alarm": 2.0, "known": 0.0, "replaced": 0.0}
    assert tracked[0].title == "label, 3 decisions"
    assert tracked[1].metrics["known"] == 3.0


def test_a_decision_is_of_the_bytes_that_were_shown(leave, out, tmp_path):
    """The report of the first night is decided after the file was replaced."""
    assert leave("label", saved(tmp_path, [of_report("bolt/1", "false_alarm")]))[0] == 0
    (kept,) = decisions.current(out).to_pylist()
    assert (kept["content_sha256"], kept["run_id"]) == ("1" * 64, "2026-11-20-0000")
    name = saved(tmp_path, [of_report("bolt/1", "defect", 1, "2")])
    code, said, _ = leave("label", name)
    assert (code, "replaced" in said) == (0, False)
    both = [("bolt/1.png", "defect", "ann"), ("bolt/1.png", "false_alarm", "ann")]
    assert sorted(stored(out)) == both
    name = csv_of(tmp_path, f"image_id,decision\n{image_id(f'{FOLDER}/bolt/1.png', '1')},defect\n")
    code, _, err = leave("label", name)
    assert code == 1
    assert f"name no image which out has now under model patchcore ({MODELS[0]})" in err


def test_a_named_run_decides_which_model_and_version_is_meant(leave, out, tmp_path):
    """An address alone is the image as it is now, under the model of --model-id."""
    later = publish(out, 2, [row(f"{FOLDER}/bolt/3.png", model=MODELS[1])])
    record = {"run_id": later, "number": 3, "started": "2026-11-21T00", "model_id": MODELS[1]}
    files.write_json(out.run(later), record | {"totals": {"images": 1}})
    text = "uri,run_id,decision\n"
    text += "bolt/1.png,2026-11-20-0000,unsure\nbolt/2.png,2026-11-20-0000,defect\n"
    text += f"bolt/3.png,{later},false_alarm\nbolt/1.png,,defect\n"
    code, said, _ = leave("label", csv_of(tmp_path, text), "--model-id", MODELS[0])
    assert (code, said.splitlines()[0]) == (0, f"model: patchcore ({MODELS[0]})")
    rows = decisions.current(out).to_pylist()
    assert sorted(
        (r["uri"][-5], r["run_id"][-1], r["model_id"][0], r["decision"]) for r in rows
    ) == [
        ("1", "0", "a", "unsure"),
        ("1", "1", "a", "defect"),
        ("2", "0", "a", "defect"),
        ("3", "2", "b", "false_alarm"),
    ]
    code, _, err = leave("label", csv_of(tmp_path, text))
    assert code == 1
    assert f"has now under model {MODELS[1]} (1): line 5 ('bolt/1.png')" in err


def test_a_later_decision_replaces_and_an_older_one_does_not(leave, out, tmp_path):
    both = [of_report("bolt/0", "unsure", second=5), of_report("bolt/2", "unsure", second=5)]
    leave("label", saved(tmp_path, both))
    name = saved(
        tmp_path,
        [of_report("bolt/0", "defect", second=9), of_report("bolt/2", "defect", second=1)],
    )
    code, said, _ = leave("label", name)
    assert code == 0
    assert said.splitlines()[3:5] == [
        "earlier decisions that are replaced: 1",
        "decisions that are older than the one that stands: 1",
    ]
    assert stored(out) == [("bolt/2.png", "unsure", "ann"), ("bolt/0.png", "defect", "ann")]


def test_a_history_in_one_file_ends_with_its_last_decision(leave, out, tmp_path):
    words = ["defect", "undecided", "false_alarm"]
    entries = [of_report("bolt/0", word, second=n) for n, word in enumerate(words)]
    assert leave("label", saved(tmp_path, entries[::-1]))[0] == 0
    assert stored(out) == [("bolt/0.png", "false_alarm", "ann")]


@pytest.fixture
def with_regions(out):
    """Two regions on bolt 0 and one on nut 1, as the first night told them."""
    run_id = "2026-11-20-0000"
    bolt, nut = f"{FOLDER}/bolt/0.png", f"{FOLDER}/nut/1.png"
    moved = region(bolt, run_id, 2) | {"box_x": 30, "box_y": 40}
    write_regions(out, run_id, [region(bolt, run_id, 1), moved, region(nut, run_id, 1)])
    record = files.read_json(out.run(run_id))
    regions = {"regions": {"false_alarm_rate": 0.1, "min_area": 0.0}}
    files.write_json(out.run(run_id), record | regions)
    return out


def of_regions(out):
    """What stands of regions: address, number and decision."""
    rows = decisions.current(out).to_pylist()
    told = [(r["uri"].removeprefix(f"{FOLDER}/"), r["region"], r["decision"]) for r in rows]
    return sorted(told, key=str)


@pytest.mark.parametrize("keeps_attributes", [True, False])
def test_regions_come_back_from_a_labelling_tool(leave, with_regions, tmp_path, keeps_attributes):
    """One that keeps attributes, such as CVAT, and one that keeps boxes and names of files."""
    assert leave("query", "--regions", "true", "--output", "regions.json")[0] == 0
    content = files.read_json("regions.json")
    named = {each["name"]: each["id"] for each in content["categories"]}
    for image in content["images"]:
        image["file_name"] = image["file_name"].removeprefix("file:///parts/")
    for annotation in content["annotations"]:
        attributes = annotation.pop("attributes")
        word = {1: "defect", 2: "false_alarm"}[attributes["region"]]
        if attributes["image_id"] == image_id(f"{FOLDER}/nut/1.png", "1"):
            word = "anomaly"  # as it was
        annotation["category_id"] = named[word]
        if keeps_attributes:
            annotation["attributes"] = attributes
            annotation["bbox"] = [0, 0, 64, 64]
        else:
            annotation["bbox"] = [side + 0.4 for side in annotation["bbox"]]
    files.write_json("regions.json", content)
    code, said, _ = leave("label", "regions.json", "--who", "ann")
    assert code == 0
    assert "entries without a decision, which are left out: 1" in said
    expected = [("bolt/0.png", 1, "defect"), ("bolt/0.png", 2, "false_alarm")]
    assert of_regions(with_regions) == expected
    assert decisions.current(with_regions)["source"].to_pylist() == ["coco"] * 2
    assert "2 decisions, 2 were known" in leave("label", "regions.json", "--who", "ann")[1]


def coco(tmp_path, *shapes):
    """A file of shapes that a person drew on bolt 0, and what they say."""
    annotations = [
        {"id": n, "image_id": 7, "category_id": 0, "bbox": box, "attributes": {"decision": word}}
        for n, (box, word) in enumerate(shapes)
    ]
    image = {"id": 7, "file_name": "../../bolt/0.png"}
    content = {"images": [image], "annotations": annotations, "categories": []}
    (tmp_path / "drawn.json").write_text(json.dumps(content))
    return "drawn.json"


def test_a_shape_of_no_region_makes_the_image_a_defect_and_nothing_else(
    leave, with_regions, tmp_path
):
    err = refused(leave, with_regions, coco(tmp_path, ([50, 0, 5, 5], "false alarm")))
    assert "of a shape that is no region of the image (1): annotation 1 ('false_alarm')" in err
    assert leave("label", coco(tmp_path, ([50, 0, 5, 5], "defect")))[0] == 0
    assert of_regions(with_regions) == [("bolt/0.png", None, "defect")]


def test_tasks_of_label_studio_are_decided_by_its_people(leave, with_regions, tmp_path):
    """Tasks that were imported from a file of jobs.query, whose columns are their data."""
    assert leave("query", "--output", "tasks.csv")[0] == 0
    with open("tasks.csv", encoding="utf-8") as file:
        rows = {data["uri"].removeprefix(f"{FOLDER}/"): data for data in csv.DictReader(file)}
    told = {"bolt/0.png": "False alarm", "bolt/1.png": "defect", "nut/0.png": "unsure"}
    tasks = [
        {
            "id": number,
            "data": rows[name],
            "annotations": [
                {
                    "result": [{"from_name": "d", "type": "choices", "value": {"choices": [word]}}],
                    "completed_by": {"id": 3, "email": "ann@example.com"},
                    "was_cancelled": False,
                    "updated_at": f"2026-11-21T08:00:0{number}.5Z",
                }
            ],
        }
        for number, (name, word) in enumerate(told.items())
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    assert leave("label", "tasks.json")[0] == 0
    found = decisions.current(with_regions).to_pylist()
    assert [(r["uri"].removeprefix(f"{FOLDER}/"), r["decision"]) for r in found] == [
        ("bolt/0.png", "false_alarm"), ("bolt/1.png", "defect"), ("nut/0.png", "unsure")
    ]  # fmt: skip
    assert {(r["who"], r["source"]) for r in found} == {("ann@example.com", "label_studio")}
    assert [r["run_id"][-1] for r in found] == ["0", "1", "0"]


EXCEL = """\ufeffuri;Decision;region;who;decided_at;comment;shift
file:///parts/bolt/0.png;False Alarm;;;;=1+1;2
/parts/bolt/2.png;defect;;bob;2026-11-20T08:00:00+02:00;"a; b
c";2
nut/1.png;;;;;;
nut/0.png;UNSURE;;;;;2
"""


@pytest.mark.parametrize(("divider", "ending"), [(";", "\r\n"), (",", "\n"), ("\t", "\n")])
def test_a_csv_file_names_images_by_address_path_or_the_end_of_one(
    leave, out, tmp_path, divider, ending
):
    name = csv_of(tmp_path, EXCEL.replace(";", divider).replace("\n", ending))
    before = datetime.datetime.now(datetime.UTC)
    code, said, _ = leave("label", name, "--who", "cy")
    assert code == 0
    assert said.splitlines()[:4] == [
        f"model: patchcore ({MODELS[0]})",
        "columns that are not read: shift",
        "entries without a decision, which are left out: 1",
        "decisions.csv: 3 decisions",
    ]
    rows = {r["uri"].removeprefix(f"{FOLDER}/"): r for r in decisions.current(out).to_pylist()}
    told = [(r["decision"], r["who"], r["source"]) for r in map(rows.get, sorted(rows))]
    assert told == [
        ("false_alarm", "cy", "csv"), ("defect", "bob", "csv"), ("unsure", "cy", "csv")
    ]  # fmt: skip
    assert rows["bolt/2.png"]["decided_at"].isoformat() == "2026-11-20T06:00:00+00:00"
    assert rows["bolt/2.png"]["comment"] == f"a{divider} b{ending}c"
    assert rows["bolt/0.png"]["comment"] == "=1+1"
    assert rows["bolt/0.png"]["decided_at"] == rows["nut/0.png"]["decided_at"] >= before
    # Given again, also what has no time is known, until another decision stands.
    assert "3 decisions, 3 were known" in leave("label", name, "--who", "cy")[1]
    other = "image_id,decision\n" + rows["nut/0.png"]["image_id"] + ",defect\n"
    assert leave("label", csv_of(tmp_path, other, "other.csv"))[0] == 0
    assert "3 decisions, 2 were known" in leave("label", name, "--who", "cy")[1]
    assert ("nut/0.png", "unsure", "cy") in stored(out)


def test_the_user_is_who_decided_by_default(leave, out, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "dora")
    leave("label", csv_of(tmp_path, "uri,decision\nbolt/0.png,defect\n"))
    assert stored(out) == [("bolt/0.png", "defect", "dora")]


def test_a_name_that_turns_the_direction_of_writing_is_refused_wherever_it_stands(
    leave, out, tmp_path, monkeypatch
):
    hostile, row = "ann\u202egnp", "bolt/0.png,defect"
    by_setting = "who 'ann\\u202egnp' must have at most 100 characters that can be printed"
    name = csv_of(tmp_path, f"uri,decision\n{row}\n")
    code, _, err = leave("label", name, "--who", hostile)
    assert (code, by_setting in err) == (2, True)
    monkeypatch.setenv("LOGNAME", hostile)
    code, _, err = leave("label", name)
    assert (code, by_setting in err) == (2, True)
    err = refused(leave, out, csv_of(tmp_path, f"uri,decision,who\n{row},{hostile}\n"))
    assert "whose name of a person is not taken (1): line 2 ('ann\\u202egnp')" in err
    name = saved(tmp_path, [of_report("bolt/0", "defect", who=hostile)])
    assert "whose name of a person is not taken (1)" in refused(leave, out, name)
    assert stored(out) == []


def test_regions_are_decided_by_their_number(leave, with_regions, tmp_path):
    text = "uri,decision,number\nbolt/0.png,defect,1.0\nbolt/0.png,false alarm,2\n"
    assert leave("label", csv_of(tmp_path, text))[0] == 0
    told = [("bolt/0.png", 1, "defect"), ("bolt/0.png", 2, "false_alarm")]
    assert of_regions(with_regions) == told


def test_a_region_that_is_not_there_is_refused(leave, with_regions, tmp_path):
    name = csv_of(tmp_path, "uri,decision,region\nbolt/0.png,defect,3\nnut/0.png,defect,1\n")
    err = refused(leave, with_regions, name)
    assert "Decisions of a region that the image has not (2): line 2 (3), line 3 (1);" in err


FUTURE = "2999-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("uri,decision\nbolt/0.png,bad\n", "of an unknown word (1): line 2 ('bad'); a decision is"),
        ("uri,decision\nbolt/9.png,defect\n", "name no image which out has now under model patch"),
        ("uri,decision\n0.png,defect\n", "name several images (1): line 2 ('0.png'); name one by"),
        (
            f"uri,decision,decided_at\nbolt/0.png,defect,{FUTURE}\n",
            "lies in the future (1): line 2",
        ),
        (
            "uri,decision\nbolt/0.png,defect\nbolt/0.png,unsure\n/parts/bolt/0.png,unsure\n",
            "contradict another one of the same image or region and time (2): line 3 ('unsure'), l",
        ),
    ],
)
def test_decisions_that_cannot_be_taken_are_refused_together(leave, out, tmp_path, text, sentence):
    assert sentence in refused(leave, out, csv_of(tmp_path, text))


def test_a_run_that_is_not_there_or_lost_the_row_is_refused(leave, out, tmp_path):
    entries = [of_report("bolt/0", "defect", 7), of_report("bolt/0", "defect", 1)]
    err = refused(leave, out, saved(tmp_path, entries))
    assert "Decisions of an image of which the named run has no row (2): entry 1 ('" in err
    assert "in 2026-11-20-0007'), entry 2" in err


def test_a_file_that_is_not_there_or_not_named_is_refused(leave, out):
    assert "No such file" in refused(leave, out, "none.csv")
    code, _, err = leave("label")
    assert (code, "name the file" in err) == (2, True)


def test_a_table_that_cannot_be_written_leaves_nothing(leave, out, tmp_path):
    (tmp_path / "out" / "labels").write_text("a file in the way")
    code, _, err = leave("label", saved(tmp_path, [of_report("bolt/0", "defect")]))
    assert (code, err.count("\n")) == (1, 1)


@pytest.mark.slow
def test_file_and_folder_lie_on_s3(leave, s3, tmp_path):
    out = Out(f"{s3}/out")
    run_id = publish(out, 0, [row(f"{s3}/parts/0.png", content_sha256="0" * 64)])
    record = {"run_id": run_id, "number": 1, "started": "2026-11-20T00", "model_id": MODELS[0]}
    files.write_json(out.run(run_id), record | {"totals": {"images": 1}})
    files.write_bytes(f"{s3}/told.csv", b"uri,decision\nparts/0.png,defect\n")
    code, said, _ = leave("label", f"{s3}/told.csv", "--out", out.root)
    assert (code, said.splitlines()[-1]) == (0, f"stored: {decisions.published(out)[0]}")
    assert [r["uri"] for r in decisions.current(out).to_pylist()] == [f"{s3}/parts/0.png"]
    assert "1 decisions, 1 were known" in leave("label", f"{s3}/told.csv", "--out", out.root)[1]
