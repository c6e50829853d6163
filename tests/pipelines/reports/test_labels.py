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
        "labels: 1 labelled images are not in the run",
        "labels: 2 images of the run are not listed beside the labels",
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
