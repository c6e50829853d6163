"""Labels of an inventory that is older than the run."""

from __future__ import annotations

import pyarrow as pa

from ops.archives.inventory import SCHEMA, image_id
from pipelines.reports.labels import Joined, join_labels


def listed(*images):
    """An inventory of (uri, version, label[, split[, mask]])."""
    rows = []
    for number, (uri, version, label, *more) in enumerate(images):
        split, mask = [*more, *("test", None)[len(more) :]]
        rows.append({"image_id": image_id(uri, version), "uri": uri, "version": version})
        rows[-1] |= {"label": label, "split": split, "mask_uri": mask, "member": number}
    return pa.Table.from_pylist(rows, SCHEMA)


def scored(*images):
    rows = [{"image_id": image_id(uri, version), "uri": uri} for uri, version in images]
    return pa.Table.from_pylist(rows)


def joined(run, labels):
    rows, counts = join_labels(run, labels)
    columns = ("uri", "label", "mask_uri", "member")
    found = [tuple(row[name] for name in columns) for row in rows.to_pylist()]
    return sorted(found, key=str), counts


LABELS = listed(
    ("t#a", "1", 0), ("t#b", "1", 1, "test", "mask"), ("t#c", "1", 0, "train"), ("t#d", "1", None)
)


def test_images_of_the_listed_versions_keep_their_own_labels():
    rows, counts = joined(scored(*((f"t#{name}", "1") for name in "abcd")), LABELS)
    assert rows == [("t#a", 0, None, 0), ("t#b", 1, "mask", 1)]
    assert counts == Joined(0, 0, 0, 0)
    assert counts.sentences() == []


def test_after_a_rewritten_archive_labels_are_joined_by_address_and_counted():
    rows, counts = joined(scored(*((f"t#{name}", "2") for name in "abcd")), LABELS)
    assert rows == [("t#a", 0, None, None), ("t#b", 1, "mask", None)]
    assert counts == Joined(by_address=2, ambiguous=0, unmatched=0, unlisted=0)
    assert counts.sentences() == [
        "labels: 2 images have another version than the one that was labelled; they are taken with "
        "the label of their address"
    ]


def test_what_joins_nothing_is_counted_on_both_sides():
    rows, counts = joined(scored(("t#a", "1"), ("t#x", "1"), ("t#y", "1")), LABELS)
    assert rows == [("t#a", 0, None, 0)]
    assert counts == Joined(by_address=0, ambiguous=0, unmatched=1, unlisted=2)
    assert counts.sentences() == [
        "labels: 1 labelled images have no row of scores",
        "labels: 2 scored images are not listed beside the labels",
    ]


def test_members_of_one_name_lend_their_label_only_if_they_agree():
    labels = listed(
        ("t#a", "@1", 1, "test", "m1"), ("t#a", "@2", 1, "test", "m2"), ("t#b", "@3", 0),
        ("t#b", "@4", 1),
    )  # fmt: skip
    run = scored(("t#a", "@2"), ("t#a", "@9"), ("t#b", "@8"))
    rows, counts = joined(run, labels)
    assert rows == [("t#a", 1, "m2", 1), ("t#a", 1, None, None)]
    assert counts == Joined(by_address=1, ambiguous=1, unmatched=0, unlisted=0)


def test_a_listed_version_without_a_label_gets_none_from_another_version():
    labels = listed(("t#a", "1", None), ("t#a", "2", 1))
    assert joined(scored(("t#a", "1")), labels) == ([], Joined(0, 0, 0, 0))


def decided(*decisions):
    """One decision for each image, of (uri, content, decision)."""
    rows = [
        {"uri": uri, "image_id": "shown", "content_sha256": content, "decision": decision}
        for uri, content, decision in decisions
    ]
    return pa.Table.from_pylist(rows, DECISIONS)


DECISIONS = pa.schema(
    [(name, pa.string()) for name in ("uri", "image_id", "content_sha256", "decision")]
)


def test_decisions_replace_and_add_labels_of_the_bytes_that_were_shown():
    labels = listed(
        ("a", "1", 0), ("b", "1", 1, "test", "mb"), ("c", "1", 1, "test", "mc"), ("d", "1", 0),
        ("e", "1", None), ("f", "1", 0, "train"), ("g", "1", 1, "test", "mg"),
    )  # fmt: skip
    run = scored(*((name, "1") for name in "abcdefg"))
    run = run.append_column("content_sha256", pa.array([f"bytes {n}" for n in "abcdefg"]))
    called = [False, True, True, True, True, False, True]
    run = run.append_column("is_anomalous", pa.array(called))
    words = [("a", "defect"), ("b", "defect"), ("c", "false_alarm"), ("d", "unsure")]
    words += [("e", "false_alarm"), ("f", "defect")]
    said = [(name, f"bytes {name}", word) for name, word in words]
    table = decided(*said, ("g", "other bytes", "false_alarm"), ("elsewhere", "x", "defect"))
    rows, counts = join_labels(run, labels, table)
    found = {row["uri"]: (row["label"], row["mask_uri"]) for row in rows.to_pylist()}
    assert found == {
        "a": (1, None), "b": (1, "mb"), "c": (0, None), "e": (0, None), "g": (1, "mg"),
    }  # fmt: skip
    assert len(rows) == 5
    assert counts == Joined(0, 0, 0, 0, decided=4, contradicted=2, called_good=1, unsure=1)
    assert counts.sentences() == [
        "labels: 4 images have the label of a person, of which 2 contradict the inventory; the "
        "model calls 1 of them good. Of the defects that it calls good, only those are counted as "
        "missed that the inventory labels or a person found",
        "labels: 1 images are left out, as a person could not tell what they are",
    ]
    # Without decisions, or with none of these images, labels are those of the inventory.
    assert join_labels(run, labels, table.slice(7)).joined == Joined(0, 0, 0, 0)
    assert len(join_labels(run, labels, table.slice(7)).rows) == 5


def test_a_decision_of_an_image_that_was_not_read_is_of_its_version():
    run = scored(("a", "1")).append_column("content_sha256", pa.nulls(1, pa.string()))
    run = run.append_column("is_anomalous", pa.nulls(1, pa.bool_()))
    said = {"uri": "a", "image_id": image_id("a", "1"), "decision": "defect"}
    own = pa.Table.from_pylist([said], DECISIONS)
    assert join_labels(run, listed(("a", "1", 0)), own).rows["label"].to_pylist() == [1]


def test_images_that_a_model_was_grown_by_have_no_label():
    labels = listed(("a", "1", 0), ("b", "1", 1))
    run = scored(("a", "1"), ("b", "1"), ("c", "1"))
    run = run.append_column("content_sha256", pa.array(["A", "B", "C"]))
    run = run.append_column("is_anomalous", pa.array([True, True, True]))
    table = decided(("a", "A", "false_alarm"), ("c", "C", "false_alarm"))
    grown_by = [image_id("a", "1"), image_id("c", "1")]
    rows, counts = join_labels(run, labels, table, grown_by)
    assert rows["uri"].to_pylist() == ["b"]
    assert (counts.decided, counts.unmatched) == (0, 0)
    assert sorted(join_labels(run, labels, table).rows["uri"].to_pylist()) == ["a", "b", "c"]
