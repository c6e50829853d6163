"""Storing decisions from files as a person does, over published nights."""

from __future__ import annotations

import datetime
import json

import pytest

from jobs.tracking.tracker import Tracker
from ops.archives.inventory import image_id
from ops.storage import files
from ops.storage.paths import Out
from pipelines.labelling import decision_file
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
    assert (code, "replace" in said) == (0, False)
    both = [("bolt/1.png", "defect", "ann"), ("bolt/1.png", "false_alarm", "ann")]
    assert sorted(stored(out)) == both
    name = csv_of(tmp_path, f"image_id,decision\n{image_id(f'{FOLDER}/bolt/1.png', '1')},defect\n")
    code, _, err = leave("label", name)
    assert code == 1
    assert f"name no image which out has now under model patchcore ({MODELS[0]})" in err


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
        "1 replace an earlier decision",
        "1 are older than the decision that stands, which stays",
    ]
    assert stored(out) == [("bolt/2.png", "unsure", "ann"), ("bolt/0.png", "defect", "ann")]


def test_a_history_in_one_file_ends_with_its_last_decision(leave, out, tmp_path):
    words = ["defect", "undecided", "false_alarm"]
    entries = [of_report("bolt/0", word, second=n) for n, word in enumerate(words)]
    assert leave("label", saved(tmp_path, entries[::-1]))[0] == 0
    assert stored(out) == [("bolt/0.png", "false_alarm", "ann")]


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
    assert said.splitlines()[:3] == [
        "columns that are not read: shift",
        "1 entries have no decision and are left out",
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


def test_regions_are_decided_by_their_number(leave, out, tmp_path):
    run_id = "2026-11-20-0000"
    uri = f"{FOLDER}/bolt/0.png"
    write_regions(out, run_id, [region(uri, run_id, number) for number in (1, 2)])
    text = "uri,decision,number\nbolt/0.png,defect,1\nbolt/0.png,false alarm,2\n"
    assert leave("label", csv_of(tmp_path, text))[0] == 0
    rows = decisions.current(out).to_pylist()
    assert [(r["region"], r["decision"]) for r in rows] == [(1, "defect"), (2, "false_alarm")]


def test_a_region_that_is_not_there_is_refused(leave, out, tmp_path):
    err = refused(leave, out, csv_of(tmp_path, "uri,decision,region\nbolt/0.png,defect,3\n"))
    assert "Decisions of a region that the image has not (1): line 2 (3);" in err


LONG = "x" * 5000
FUTURE = "2999-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "decisions.csv is empty; nothing is stored"),
        ("uri,decision\n", "holds no decision; nothing is stored"),
        ("uri,decision\nbolt/0.png,\n", "holds no decision; 1 of its entries have none"),
        ("uri,who\nbolt/0.png,ann\n", "has the columns 'uri, who'; a CSV file of decisions has"),
        ("uri,decision,uri\nu,defect,u\n", "has the column 'uri' twice"),
        ("uri,decision\nbolt/0.png,bad\n", "of an unknown word (1): line 2 ('bad'); a decision"),
        ("uri,decision\nbolt/9.png,defect\n", "name no image which out has now under model patch"),
        ("uri,decision\n0.png,defect\n", "name several images (1): line 2 ('0.png'); name one by"),
        ("uri,decision\n,defect\n", "name no image (1): line 2; name it by image_id"),
        ("uri,decision\na,defect,x\n", "have more cells than the first line (1): line 2"),
        ('uri,decision\n"a,defect\n', "is not valid CSV in line 2: unexpected end of data"),
        ("uri,decision\nbolt/0.png,def\0ect\n", "holds a NUL character"),
        (b"uri,decision\nbolt/\xff.png,defect\n", "not UTF-8 at byte 18; save it as UTF-8, in Ex"),
        ("uri,decision\n".encode("utf-16"), "is not UTF-8 at byte 0"),
        (f"uri,decision\n{LONG},defect\n", "whose address is not taken (1): line 2 ('xxx"),
        (f"uri,decision,who\nbolt/0.png,defect,{LONG}\n", "it is a text of at most 100 characters"),
        ("uri,decision,who\nbolt/0.png,defect,a\x1b[2J\n", "line 2 ('a\\x1b[2J')"),
        (
            "uri,decision,region\nbolt/0.png,defect,x\n",
            "whose region is no number (1): line 2 ('x')",
        ),
        (
            "uri,decision,region\nbolt/0.png,defect,0\n",
            "whose region is no number (1): line 2 ('0')",
        ),
        ("uri,decision,decided_at\nbolt/0.png,defect,20.11.26\n", "write it as 2026-11-20T06:12"),
        ("uri,decision,decided_at\nbolt/0.png,defect,0001-01-01T00:00+09:00\n", "write it as"),
        (
            f"uri,decision,decided_at\nbolt/0.png,defect,{FUTURE}\n",
            "whose time lies in the future (1)",
        ),
        (
            "uri,decision\nbolt/0.png,defect\nbolt/0.png,unsure\n/parts/bolt/0.png,unsure\n",
            "contradict another one of the same image or region and time (2): line 3 ('unsure'), l",
        ),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_a_sentence(leave, out, tmp_path, text, sentence):
    assert sentence in refused(leave, out, csv_of(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "is nested too deeply"),
        ('{"decisions": [], "decisions": []}', "an object has the key 'decisions' twice"),
        ('{"decisions": [NaN]}', "NaN is no number of JSON"),
        ('{"decisions": [' + "9" * 5000 + "]}", "is not valid JSON: Exceeds the limit"),
        ('{"decisions": ', "is not valid JSON"),
        ('{"decisions": 3}', "decisions is 3, not a list"),
        ('{"decisions": [3]}', "entry 1 of decisions is 3, not an object"),
        (
            '{"decisions": [{"decision": ["defect"]}]}',
            "of an unknown word (1): entry 1 (['defect",
        ),
        ('{"decisions": [{"decision": "defect"}]}', "name no image (1): entry 1"),
        (
            '{"decisions": [{"decision": "defect", "image_id": 3}]}',
            "whose image_id is not taken (1)",
        ),
        ('{"decisions": [{"decision": "defect", "image_id": "\\ud800"}]}', "('\\ud800')"),
        ('{"decisions": [{"decision": "defect", "image_id": "\\u0000"}]}', "('\\x00')"),
        ('{"decisions": [{"decision": "defect", "image_id": "a", "decided_at": 3}]}', "(3); write"),
        ('{"images": []}', "is no file of decisions; known are"),
        ("null", "is no file of decisions; known are"),
    ],
)
def test_what_is_wrong_with_a_json_file_is_a_sentence(leave, out, tmp_path, text, sentence):
    (tmp_path / "decisions.json").write_text(text)
    assert sentence in refused(leave, out, "decisions.json")


def test_a_run_that_is_not_there_or_lost_the_row_is_refused(leave, out, tmp_path):
    entries = [of_report("bolt/0", "defect", 7), of_report("bolt/0", "defect", 1)]
    err = refused(leave, out, saved(tmp_path, entries))
    assert "Decisions of an image of which the named run has no row (2): entry 1 ('" in err
    assert "in 2026-11-20-0007'), entry 2" in err


def test_a_file_of_another_kind_or_too_large_is_refused(leave, out, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("uri,decision")
    assert "a.txt must end in .csv or .json" in refused(leave, out, "a.txt")
    assert "No such file" in refused(leave, out, "none.csv")
    monkeypatch.setattr(decision_file, "LARGEST", 10)
    assert "a.txt has 12 bytes, and a file of decisions at most 10" in refused(leave, out, "a.txt")
    code, _, err = leave("label")
    assert (code, "name the file" in err) == (2, True)


def test_a_table_that_cannot_be_written_leaves_nothing(leave, out, tmp_path):
    (tmp_path / "out" / "labels").write_text("a file in the way")
    code, _, err = leave("label", saved(tmp_path, [of_report("bolt/0", "defect")]))
    assert (code, err.count("\n")) == (1, 1)
