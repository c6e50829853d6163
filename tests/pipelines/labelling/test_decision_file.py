"""Files of decisions as they come, whole and broken: what is read, and what a refusal says."""

from __future__ import annotations

import datetime
import json

import pytest

from ops.errors import UserError
from pipelines.labelling import decision_file
from pipelines.labelling.statements import Statement


def refusal(tmp_path, name, text):
    """The sentence that refuses a file."""
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as refused:
        decision_file.read(str(tmp_path / name))
    return str(refused.value)


def read(tmp_path, content, name="decisions.json"):
    (tmp_path / name).write_text(json.dumps(content))
    return decision_file.read(str(tmp_path / name))


def nested(depth):
    """A decision that is a list of lists."""
    return '{"decisions": [{"decision": ' + "[" * depth + "]" * depth + "}]}"


def coco(annotation):
    """A COCO file of one annotation."""
    categories = [{"id": 1, "name": "defect"}, {"id": 2, "name": "rust"}]
    images = [{"id": 5, "file_name": "a.png"}]
    rest = json.dumps({"images": images, "categories": categories})
    return f'{{"annotations": [{{{annotation}}}], {rest[1:]}'


#: A COCO file whose ids are not unique; True is 1.
TWICE = {
    "annotations": [],
    "categories": [{"id": 1, "name": "defect"}, {"id": True, "name": "unsure"}],
    "images": [{"id": 5, "file_name": "a.png"}, {"id": 5, "file_name": "b.png"}],
}


def tasks(choices):
    """A file of Label Studio with one choice."""
    value = f'"type": "choices", "value": {{"choices": {choices}}}'
    return f'[{{"data": {{}}, "annotations": [{{"result": [{{{value}}}]}}]}}]'


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "decisions.csv is empty; nothing is stored"),
        ("uri,decision\n", "holds no decision; nothing is stored"),
        ("uri,decision\nbolt/0.png,\n", "holds no decision in 1 entries; nothing is stored"),
        ("uri,who\nbolt/0.png,ann\n", "has the columns 'uri, who'; a CSV file of decisions has"),
        ("uri,decision,uri\nu,defect,u\n", "has the column 'uri' twice"),
        ("uri,decision\nbolt/0.png,bad\n", "of an unknown word (1): line 2 ('bad'); a decision"),
        ("uri,decision\n,defect\n", "name no image (1): line 2; name it by image_id"),
        ("uri,decision\na,defect,x\n", "have more cells than the first line (1): line 2"),
        ('uri,decision\n"a,defect\n', "is not valid CSV in line 2: unexpected end of data"),
        ("uri,decision\nbolt/0.png,def\0ect\n", "holds a NUL character"),
        (b"uri,decision\nbolt/\xff.png,defect\n", "not UTF-8 at byte 18; save it as UTF-8, in Ex"),
        ("uri,decision\n".encode("utf-16"), "is not UTF-8 at byte 0"),
        (f"uri,decision\n{LONG},defect\n", "whose address is not taken (1): line 2 ('xxx"),
        (f"uri,decision,who\nbolt/0.png,defect,{LONG}\n", "it has at most 100 characters"),
        ("uri,decision,who\nbolt/0.png,defect,a\u202eb\n", "of a person is not taken (1): line 2"),
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
    ],
)
def test_what_is_wrong_with_a_csv_file_is_a_sentence(tmp_path, text, sentence):
    assert sentence in refusal(tmp_path, "decisions.csv", text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "is nested too deeply"),
        ('{"decisions": [], "decisions": []}', "an object has the key 'decisions' twice"),
        (nested(800), "of an unknown word (1): entry 1 ([[["),
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
        ('{"annotations": []}', "images is None, not a list"),
        (
            '{"annotations": [], "images": [{}], "categories": []}',
            "an entry of images has the id None",
        ),
        (coco('"category_id": 1, "attributes": []'), "name no image (1): annotation 1"),
        (coco('"category_id": 1, "attributes": 3'), "the attributes of annotation 1 are no object"),
        (coco('"category_id": 2, "image_id": 5'), "of an unknown word (1): annotation 1 ('rust')"),
        (
            coco('"category_id": 1, "image_id": 5, "bbox": [1, 2, "x", 4]'),
            "is not four numbers (1)",
        ),
        (coco('"category_id": 1, "image_id": 5, "bbox": [1, 2, 3, ' + "9" * 400 + "]"), "not four"),
        (
            coco('"category_id": [], "image_id": {}'),
            "holds no decision in 1 entries; nothing is stored",
        ),
        ('[{"data": {}}]', "entry 1 has no data or annotations; export JSON from Label Studio"),
        ('[{"id": 4, "image": "a", "choice": "defect"}]', "task 4 has no data or annotations"),
        ('[{"data": {}, "annotations": [{}]}]', "the result of entry 1 is None, not a list"),
        (
            tasks('["defect", "unsure"]'),
            "of several words at once (1): entry 1 (['defect', 'unsure'])",
        ),
        (TWICE | {"images": [{"id": 5}]}, "two entries of categories have the id True; export it"),
        (TWICE | {"categories": []}, "two entries of images have the id 5; export it again"),
        (tasks('["dust"]'), "of an unknown word (1): entry 1 ('dust')"),
        (tasks('"defect"'), "holds no decision in 1 entries; nothing is stored"),
        ("[]", "holds no decision; nothing is stored"),
        ('{"images": []}', "is no file of decisions; known are"),
        ("null", "is no file of decisions; known are"),
    ],
)
def test_what_is_wrong_with_a_json_file_is_a_sentence(tmp_path, text, sentence):
    text = text if isinstance(text, str) else json.dumps(text)
    assert sentence in refusal(tmp_path, "decisions.json", text)


def test_a_file_of_another_kind_or_too_large_is_refused(tmp_path, monkeypatch):
    assert "a.txt must end in .csv or .json" in refusal(tmp_path, "a.txt", "uri,decision")
    monkeypatch.setattr(decision_file, "LARGEST", 10)
    sentence = "a.csv has 12 bytes, and a file of decisions at most 10; divide it"
    assert sentence in refusal(tmp_path, "a.csv", "uri,decision")


def test_more_than_a_few_examples_are_counted(tmp_path):
    text = "uri,decision\n" + "a,bad\n" * 8
    told = refusal(tmp_path, "a.csv", text)
    assert "of an unknown word (8): line 2 ('bad'), line 3 ('bad'), " in told
    assert "line 6 ('bad') and 3 more; a decision is one of defect, false_alarm" in told


@pytest.mark.parametrize(
    ("served", "address"),
    [
        ("http://[/data/local-files/?d=a%20b.png", "a b.png"),
        ("/data/local-files/?x=1&d=a.png#top", "a.png"),
        ("http://[/data/local-files/", "http://[/data/local-files/"),
    ],
)
def test_addresses_of_local_files_are_read_in_whatever_form(tmp_path, served, address):
    results = [{"type": "choices", "from_name": "decision", "value": {"choices": ["defect"]}}]
    task = {"id": 1, "data": {"image": served}, "annotations": [{"result": results}]}
    (statement,) = read(tmp_path, [task]).statements
    assert statement.address == address


def test_the_control_that_is_called_decision_decides_and_comments_are_kept(tmp_path):
    """Other choices of the project say nothing, nor does an annotation that was skipped."""

    def result(name, kind, **value):
        return {"from_name": name, "type": kind, "value": value}

    light = result("light", "choices", choices=["dark"])
    results = [light, result("decision", "choices", choices=["False-alarm"])]
    results.append(result("comment", "textarea", text=["a hair", "more"]))
    made = {"created_at": "2026-11-20T06:00:00Z"}
    annotations = [
        made | {"result": results, "completed_by": 4},
        made | {"result": results, "was_cancelled": True},
        made | {"result": [light]},
    ]
    data = {"image": "/data/local-files/?d=parts/a%20b.png", "region": "2"}
    file = read(tmp_path, [{"id": 9, "data": data, "annotations": annotations}])
    assert file.statements == [
        Statement(
            "task 9",
            "false_alarm",
            address="parts/a b.png",
            region=2,
            who="Label Studio user 4",
            at=datetime.datetime(2026, 11, 20, 6, tzinfo=datetime.UTC),
            comment="a hair",
        )
    ]
    assert (file.source, file.notes) == (
        "label_studio",
        ["entries without a decision, which are left out: 2"],
    )


def test_a_category_decides_before_an_attribute_and_anomaly_says_nothing(tmp_path):
    def shape(category, image, **attributes):
        box = {"bbox": [1, 2, 3.5, 4]}
        return {"category_id": category, "image_id": image, "attributes": attributes} | box

    names = ["anomaly", "unsure"]
    content = {
        "images": [{"id": "p", "file_name": "http://host/data/local-files/?d=a.png"}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
        "annotations": [
            shape(0, "p", decision="undecided"),
            shape(0, "p", decision="false alarm", region="2"),
            shape(1, "p", decision="defect"),
            shape(1, "none", decision="", image_id="abc", run_id="2026-11-20-0"),
        ],
    }
    file = read(tmp_path, content)
    box = (1.0, 2.0, 3.5, 4.0)
    assert file.statements == [
        Statement("annotation 2", "false_alarm", address="a.png", region=2, box=box),
        Statement("annotation 3", "unsure", address="a.png", box=box),
        Statement("annotation 4", "unsure", image_id="abc", run_id="2026-11-20-0", box=box),
    ]
    assert file.notes == ["entries without a decision, which are left out: 1"]
