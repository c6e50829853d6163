"""Layouts of data sets: product, split, label, defect and mask of an image, read from its path."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ops.errors import SettingError

#: Fields with a meaning of their own; all others are kept as they are, by name.
FIELDS = (
    *("product", "split", "label", "defect", "part", "view"),
    *("name", "stem", "clip", "frame"),
)
GOOD = frozenset({"good", "ok", "free", "normal", "0"})
_SPLITS = {"training": "train", "testing": "test", "val": "validation", "valid": "validation"}
#: Splits that models are made of: to fit on, and to hold out. All others are for evaluation.
OF_MODELS = ("train", "validation")
#: Why an image that a pattern matches is not listed.
FRAMES = "frames between those that the layout lists"
UNLISTED = "images that the lists of the splits do not name"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
#: From this likeness on, a field is taken for one of `FIELDS` that was misspelt.
_LIKENESS = 0.8
_TOKEN = re.compile(r"\{(\w+)\}|(\*\*/)|(\*)|([^{}*]+)|([{}])")


def composed(text: str) -> str:
    """Text in NFC: an umlaut is one character, not a letter and a mark as macOS writes it."""
    return unicodedata.normalize("NFC", text)


def forms(text: str) -> set[str]:
    """The ways in which files may be named after a text: as it is, in NFC and in NFD."""
    return {text, composed(text), unicodedata.normalize("NFD", text)}


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Turn `{product}/{split}/**/{name}` into a regular expression for a relative path.

    A field or `*` matches within one folder level, `**/` any number of levels. `{stem}` is a file
    name without its suffix, followed by `.*` or a fixed ending. `{frame}` matches only digits.
    The pattern and the paths that it is compared with are in Unicode's composed form, NFC.
    Raises SettingError for a repeated field, and one whose name is not allowed.
    """
    out, names = [], set[str]()
    for name, deep, star, literal, stray in _TOKEN.findall(composed(pattern)):
        if stray:
            known = ", ".join(f"{{{known}}}" for known in FIELDS)
            raise SettingError(
                f"pattern {pattern!r}: {stray!r} is not a field; fields with a meaning: {known}"
            )
        if name in names:
            raise SettingError(f"pattern {pattern!r}: {{{name}}} occurs twice")
        if name:
            _check_name(pattern, name)
            names.add(name)
            out.append(f"(?P<{name}>{'[0-9]' if name == 'frame' else '[^/]'}+)")
        else:
            out.append("(?:.*/)?" if deep else "[^/]*" if star else re.escape(literal))
    return re.compile("".join(out), re.DOTALL)


def _check_name(pattern: str, name: str) -> None:
    """Check the name of a field. Raises SettingError."""
    if not _NAME.fullmatch(name):
        raise SettingError(
            f"pattern {pattern!r}: names of fields have letters a to z, digits and _, and start "
            f"with a letter; {name!r} does not"
        )
    if name not in FIELDS and (meant := difflib.get_close_matches(name, FIELDS, 1, _LIKENESS)):
        raise SettingError(
            f"pattern {pattern!r}: did you mean {{{meant[0]}}}? If {{{name}}} is a field of your "
            "own, give it a name that is less alike"
        )


@dataclass(frozen=True)
class Layout:
    """How a data set names its files: patterns of paths relative to the archive."""

    images: str
    masks: str = ""
    """Empty for a data set without masks."""
    good: frozenset[str] = GOOD
    """Values of `{label}` or `{defect}`, in lower case, that mean a good image."""
    train_share: float = 0.0
    """Share of the parts, or of images of no part, whose good images become training images where
    paths have no split; 0 = none. It is applied to a whole listing, not to a single path."""
    part_gap: int = 0
    """Images that follow each other by `{number}` are of one part if their numbers differ by at
    most this; 0 = parts are `{part}`."""
    train_names: frozenset[str] = field(default_factory=frozenset)
    """Names or paths of the training images; if given, all other images are test images."""
    test_names: frozenset[str] | None = None
    """Names or paths of the test images; if given, images in neither list are left out."""
    lists: tuple[str, ...] = ()
    """Where the archive lists the images of its splits, for data sets that need it: a file, or a
    folder of JSON files. The first that exists is read."""
    product: str | None = None
    """Product of all images, where paths do not name it."""
    label_by_mask: bool = False
    """Whether an image is defective if and only if it has a mask."""
    every: int = 1
    """Of videos, list only frames whose number is a multiple of this."""
    more_images: tuple[str, ...] = ()
    """Further patterns of images, for paths that the patterns before do not match."""


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
    # Huang et al. 2018; six exposures of a tile have numbers that are close, other tiles' are not
    "mtd": Layout(
        images="MT_{defect}/Imgs/exp{exposure}_num_{number}.jpg",
        masks="MT_{defect}/Imgs/exp{exposure}_num_{number}.png",
        train_share=0.8,
        part_gap=160,
        product="mtd",
    ),
    # Liu et al. 2018; every fifth frame: Cohen and Hoshen 2020
    "mstc": Layout(
        images="{split}/frames/{product}_{clip}/{frame}.*",
        masks="{split}/masks/{product}_{clip}/{frame}.*",
        label_by_mask=True,
        every=5,
    ),
    # Zou et al. 2022, as rearranged by their script, and as published
    "visa": Layout(
        images="{product}/{split}/{defect}/{stem}.*",
        masks="{product}/ground_truth/{defect}/{stem}.*",
    ),
    "visa-raw": Layout(
        images="{product}/Data/Images/{defect}/{stem}.*",
        masks="{product}/Data/Masks/{defect}/{stem}.*",
        lists=("split_csv/1cls.csv",),
    ),
    # Heckler-Kram et al. 2025; images of the private splits lie in the folder of the split
    "mvtec-ad-2": Layout(
        images="{product}/{split}/{defect}/{stem}.*",
        masks="{product}/{split}/ground_truth/{defect}/{stem}_mask.*",
        more_images=("{product}/{split}/{stem}.*",),
    ),
    # Wang et al. 2024; a view of a defective part that does not show the defect has no mask
    "real-iad": Layout(
        images="**/{product}/OK/*/{part}_{view}_*.jpg",
        masks="**/{product}/NG/{defect}/*/{part}_{view}_*.png",
        more_images=("**/{product}/NG/{defect}/*/{part}_{view}_*.jpg",),
        label_by_mask=True,
        lists=("realiad_jsons/realiad_jsons", "realiad_jsons"),
    ),
}


def split_named(word: str) -> str:
    """A split as in the inventory: in lower case, with one name for `training` and `train`."""
    return _SPLITS.get(word.lower(), word.lower())


class ParsedPath(NamedTuple):
    """The fields of a path. `mask_key` joins an image to its mask; None if it cannot have one."""

    product: str | None
    split: str | None
    label: int | None
    defect: str | None
    is_mask: bool
    mask_key: str | None
    matched: bool
    left_out: str = ""
    """Why the image is not listed; empty for one that is."""
    part: str | None = None
    view: str | None = None
    fields: dict[str, str] | None = None
    """All other fields of the pattern, by name; None if it has none."""


class PathParser:
    """Parses paths by a layout. Paths are in NFC, see `composed`."""

    def __init__(self, layout: Layout, product: str) -> None:
        self.layout = layout
        self.product = composed(layout.product or product)
        self._images = [compile_pattern(p) for p in (layout.images, *layout.more_images)]
        self._masks = compile_pattern(layout.masks) if layout.masks else None

    def __call__(self, path: str) -> ParsedPath:
        """Parse one relative path."""
        if self._masks and (mask := self._masks.fullmatch(path)):
            return ParsedPath(None, None, None, None, True, self._mask_key(mask.groupdict()), True)
        match = next((m for p in self._images if (m := p.fullmatch(path))), None)
        fields = match.groupdict() if match else {}
        defect = fields.get("defect")
        word = fields.get("label", defect)
        label = None if word is None else int(word.lower() not in self.layout.good)
        product = fields.get("product")
        if match is None:
            return ParsedPath(None, None, None, None, False, None, False)
        if "product" not in match.re.groupindex:
            product = self.product
        split = split_named(fields["split"]) if "split" in fields else self._split(path)
        key = self._mask_key(fields) if self._masks else None
        left_out = UNLISTED if split == "" else ""
        if int(fields.get("frame", 0)) % self.layout.every:
            left_out = FRAMES
        part, view = fields.get("part"), fields.get("view")
        others = {name: fields[name] for name in sorted(fields) if name not in FIELDS} or None
        return ParsedPath(
            product, split or None, label, defect, False, key, True, left_out, part, view, others
        )

    def _mask_key(self, fields: Mapping[str, str]) -> str:
        assert self._masks is not None
        names = sorted(self._masks.groupindex)
        stem = fields.get("name", "").rpartition(".")[0]
        return "/".join(fields.get(name) or (stem if name == "stem" else "") for name in names)

    def _split(self, path: str) -> str | None:
        """The split that lists give a path; empty if they leave it out, None without lists."""
        own = {path, path.rsplit("/", 1)[-1]}
        if self.layout.train_names & own:
            return "train"
        if self.layout.test_names is not None:
            return "test" if self.layout.test_names & own else ""
        return "test" if self.layout.train_names else None
