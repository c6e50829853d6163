"""Lists of the images of a split, which some data sets have in place of folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import NamedTuple

from ops.archives.layouts import composed, split_named


class SplitLists(NamedTuple):
    """Names or paths of images."""

    train: frozenset[str] = frozenset()
    test: frozenset[str] | None = None
    """None where all images that are not for training are for testing."""


def read(text: str) -> SplitLists:
    """Read a list: a name in each line, a CSV with columns `split` and `image`, or Real-IAD's JSON.

    Raises ValueError or csv.Error if it is none of them.
    """
    text = composed(text)
    if text.lstrip().startswith("{"):
        return _of_json(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and {"split", "image"} <= set(lines[0].split(",")):
        rows = csv.DictReader(lines)
        named = (row["image"] for row in rows if split_named(row["split"] or "") == "train")
        return SplitLists(frozenset(name for name in named if name))
    return SplitLists(frozenset(lines))


def union(lists: Iterable[SplitLists]) -> SplitLists:
    """The images of several lists, such as one for each product."""
    train, test = set[str](), set[str]()
    is_open = True
    for each in lists:
        train |= each.train
        test |= each.test or set()
        is_open = is_open and each.test is None
    return SplitLists(frozenset(train), None if is_open else frozenset(test))


def _of_json(text: str) -> SplitLists:
    """Lists `train` and `test` of objects with an `image_path` below the folder of the product.

    File names alone are kept: they hold the product, and are unique.
    """
    content = json.loads(text)
    try:
        train, test = (
            frozenset(str(image["image_path"]).rpartition("/")[2] for image in content[split])
            for split in ("train", "test")
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks lists train and test of image_path ({error!r})") from None
    return SplitLists(train, test)
