"""Published results of detectors on public data sets, to print beside ours."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from ops.errors import SettingError

FILE = Path(__file__).parents[2] / "deploy" / "published.toml"


@dataclass(frozen=True)
class Published:
    """Means over the products of a data set; None if not published."""

    name: str
    source: str
    products: int
    image_auroc: float | None = None
    pixel_auroc: float | None = None
    pro: float | None = None
    oracle_errors: int | None = None


def read() -> dict[str, Published]:
    """All published results, by `data set/preset`."""
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {
        (name := f"{data_set}/{preset}"): Published(name, products=rows["products"], **metrics)
        for data_set, rows in content.items()
        for preset, metrics in rows.items()
        if preset != "products"
    }


def published(name: str) -> Published:
    """The results of `data set/preset`, or of a preset that was published for one data set only.

    Raises SettingError with the known names.
    """
    known = read()
    matching = [row for key, row in known.items() if name in {key, key.partition("/")[2]}]
    if len(matching) != 1:
        names = [row.name for row in matching] or list(known)
        problem = "is published for several data sets" if matching else f"is not in {FILE.name}"
        raise SettingError(f"published {name!r} {problem}; choose one of: {', '.join(names)}")
    return matching[0]
