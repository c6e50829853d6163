"""What the path of a file says: product, split, label, defect, and which mask belongs to it."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ops.errors import SettingError

FIELDS = ("product", "split", "label", "defect", "name", "stem", "clip", "frame")
GOOD = frozenset({"good", "ok", "free", "normal", "0"})
_SPLITS = {"training": "train", "testing": "test"}
_TOKEN = re.compile(r"\{(\w+)\}|(\*\*/)|(\*)|([^{}*]+)|([{}])")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Turn `{product}/{split}/**/{name}` into a regular expression for a relative path.

    A field or `*` matches within one folder level, `**/` any number of levels; `{stem}` is the
    name without its last suffix, matched as `{stem}.*` or with an ending of its own; `{frame}` is
    digits alone.
    Raises SettingError for an unknown or repeated field.
    """
    out, seen = [], set[str]()
    for name, deep, star, literal, stray in _TOKEN.findall(pattern):
        if stray or (name and name not in FIELDS):
            known = ", ".join(f"{{{known}}}" for known in FIELDS)
            raise SettingError(
                f"pattern {pattern!r}: {name or stray!r} is no field; known: {known}"
            )
        if name in seen:
            raise SettingError(f"pattern {pattern!r}: {{{name}}} stands in it twice")
        if name:
            seen.add(name)
            out.append(f"(?P<{name}>{'[0-9]' if name == 'frame' else '[^/]'}+)")
        else:
            out.append("(?:.*/)?" if deep else "[^/]*" if star else re.escape(literal))
    return re.compile("".join(out), re.DOTALL)


@dataclass(frozen=True)
class Layout:
    """How a data set names its files. `masks` may be empty; `good` holds names of no defect."""

    images: str
    masks: str = ""
    good: frozenset[str] = GOOD
    #: Share of the good images that go to the training split where paths name none; 0 = no split.
    train_share: float = 0.0
    #: Names or paths of the training images, where a list decides; all others are test images.
    train_names: frozenset[str] = field(default_factory=frozenset)
    #: Where in the folder that list lies, for a data set that cannot be split without it.
    train_list: str = ""
    product: str | None = None
    #: Paths do not say what is good: an image is defective if and only if it has a mask.
    label_by_mask: bool = False
    #: Of films only the frames whose number is a multiple of this are listed.
    every: int = 1


#: The layouts known by name; docs/data.md shows each as a tree.
LAYOUTS: dict[str, Layout] = {
    # Bergmann et al. 2019
    "mvtec": Layout(
        images="{product}/{split}/{defect}/{stem}.*",
        masks="{product}/ground_truth/{defect}/{stem}_mask.*",
    ),
    # Mishra et al. 2021
    "btad": Layout(
        images="{product}/{split}/{defect}/{stem}.*",
        masks="{product}/ground_truth/{defect}/{stem}.*",
    ),
    # Wieler and Hahn 2007
    "dagm": Layout(
        images="{product}/{split}/{stem}.*",
        masks="{product}/{split}/Label/{stem}_label.*",
        label_by_mask=True,
    ),
    # Huang et al. 2018
    "mtd": Layout(
        images="MT_{defect}/Imgs/{stem}.jpg",
        masks="MT_{defect}/Imgs/{stem}.png",
        train_share=0.8,
        product="mtd",
    ),
    # Liu et al. 2018; every fifth frame: Cohen and Hoshen 2020
    "mstc": Layout(
        images="{split}/frames/{product}_{clip}/{frame}.*",
        masks="{split}/masks/{product}_{clip}/{frame}.*",
        label_by_mask=True,
        every=5,
    ),
    # Zou et al. 2022, as their script rearranges it, and as it is published
    "visa": Layout(
        images="{product}/{split}/{defect}/{stem}.*",
        masks="{product}/ground_truth/{defect}/{stem}.*",
    ),
    "visa-raw": Layout(
        images="{product}/Data/Images/{defect}/{stem}.*",
        masks="{product}/Data/Masks/{defect}/{stem}.*",
        train_list="split_csv/1cls.csv",
    ),
}


def split_named(word: str) -> str:
    """A split as the inventory spells it: lower case, `train` for training, `test` for testing."""
    return _SPLITS.get(word.lower(), word.lower())


def train_names(text: str) -> frozenset[str]:
    """The training images that a list names, one a line or in a CSV with `split` and `image`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and {"split", "image"} <= set(lines[0].split(",")):
        rows = csv.DictReader(lines)
        return frozenset(row["image"] for row in rows if split_named(row["split"]) == "train")
    return frozenset(lines)


class Named(NamedTuple):
    """What a path says. `mask_key` joins an image with its mask; None where it can have none.

    `is_skipped`: a frame between those that count.
    """

    product: str | None
    split: str | None
    label: int | None
    defect: str | None
    is_mask: bool
    mask_key: str | None
    matched: bool
    is_skipped: bool = False


class PathParser:
    """Reads paths by a layout."""

    def __init__(self, layout: Layout, product: str) -> None:
        self.layout = layout
        self.product = layout.product or product
        self._images = compile_pattern(layout.images)
        self._masks = compile_pattern(layout.masks) if layout.masks else None

    def __call__(self, path: str) -> Named:
        """Read one relative path."""
        if self._masks and (found := self._masks.fullmatch(path)):
            return Named(None, None, None, None, True, self._key(found.groupdict()), True)
        match = self._images.fullmatch(path)
        fields = match.groupdict() if match else {}
        defect = fields.get("defect")
        word = fields.get("label", defect)
        label = None if word is None else int(word.lower() not in self.layout.good)
        product = fields.get("product")
        if product is None and "product" not in self._images.groupindex and match:
            product = self.product
        split = split_named(fields["split"]) if "split" in fields else self._split(path, label)
        key = self._key(fields) if self._masks and match else None
        skipped = int(fields.get("frame", 0)) % self.layout.every != 0
        split = split if match else None
        return Named(product, split, label, defect, False, key, bool(match), skipped)

    def _key(self, fields: Mapping[str, str]) -> str:
        assert self._masks is not None
        names = sorted(self._masks.groupindex)
        stem = fields.get("name", "").rpartition(".")[0]
        return "/".join(fields.get(name) or (stem if name == "stem" else "") for name in names)

    def _split(self, path: str, label: int | None) -> str | None:
        name = path.rsplit("/", 1)[-1]
        if self.layout.train_names:
            return "train" if {path, name} & self.layout.train_names else "test"
        if not self.layout.train_share:
            return None
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        chosen = int.from_bytes(digest, "big") < self.layout.train_share * 2**64
        return "train" if label == 0 and chosen else "test"
