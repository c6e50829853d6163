"""What the path of a file says: product, split, label, defect, and which mask belongs to it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

FIELDS = ("product", "split", "label", "defect", "name", "stem")
GOOD = frozenset({"good", "ok", "free", "normal", "0"})
_TOKEN = re.compile(r"\{(\w+)\}|(\*\*/)|(\*)|([^{}*]+)|([{}])")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Turn `{product}/{split}/**/{name}` into a regular expression for a relative path.

    A field or `*` matches within one folder level, `**/` any number of levels; `{stem}` is the
    name without its last suffix, matched as `{stem}.*` or with an ending of its own.
    Raises ValueError for an unknown or repeated field.
    """
    out, seen = [], set[str]()
    for name, deep, star, literal, stray in _TOKEN.findall(pattern):
        if stray or (name and name not in FIELDS):
            known = ", ".join(f"{{{known}}}" for known in FIELDS)
            raise ValueError(f"pattern {pattern!r}: {name or stray!r} is no field; known: {known}")
        if name in seen:
            raise ValueError(f"pattern {pattern!r}: {{{name}}} stands in it twice")
        if name:
            seen.add(name)
            out.append(f"(?P<{name}>[^/]+)")
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
    #: Names of the training images, where a list decides; all others are test images.
    train_names: frozenset[str] = field(default_factory=frozenset)
    product: str | None = None


#: The layouts known by name: MVTec AD (Bergmann et al. 2019), magnetic tiles (Huang et al. 2018).
LAYOUTS: dict[str, Layout] = {
    "mvtec": Layout(
        images="{product}/{split}/{defect}/{stem}.*",
        masks="{product}/ground_truth/{defect}/{stem}_mask.*",
    ),
    "mtd": Layout(
        images="MT_{defect}/Imgs/{stem}.jpg",
        masks="MT_{defect}/Imgs/{stem}.png",
        train_share=0.8,
        product="mtd",
    ),
}


class Named(NamedTuple):
    """What a path says. `mask_key` joins an image with its mask; None where it can have none."""

    product: str | None
    split: str | None
    label: int | None
    defect: str | None
    is_mask: bool
    mask_key: str | None
    matched: bool


class Namer:
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
        split = fields.get("split") or self._split(path.rsplit("/", 1)[-1], label)
        key = self._key(fields) if self._masks and match else None
        return Named(product, split if match else None, label, defect, False, key, bool(match))

    def _key(self, fields: Mapping[str, str]) -> str:
        assert self._masks is not None
        names = sorted(self._masks.groupindex)
        stem = fields.get("name", "").rpartition(".")[0]
        return "/".join(fields.get(name) or (stem if name == "stem" else "") for name in names)

    def _split(self, name: str, label: int | None) -> str | None:
        if self.layout.train_names:
            return "train" if name in self.layout.train_names else "test"
        if not self.layout.train_share:
            return None
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        chosen = int.from_bytes(digest, "big") < self.layout.train_share * 2**64
        return "train" if label == 0 and chosen else "test"
