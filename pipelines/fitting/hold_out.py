"""Which good images of a product are held out, and which are shots: parts stay whole.

Images of one part are taken under the same conditions and look alike. If some of them were fitted
on, or if a part were counted once for each of its images, the scores of held-out images would be
lower than those of parts that the detector has never seen, and p-values too small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ops.archives.inventory import image_id

Rows = npt.NDArray[np.int64]


def unit_of(row: Mapping[str, Any]) -> Hashable:
    """What an image is one observation of: its part, or itself."""
    return row["image_id"] if row["part"] is None else (row["product"], row["part"])


def choose(
    rows: pa.Table,
    strata: Sequence[str],
    holdout: float,
    shots: int,
    seed: int,
    reserved: Sequence[bool] = (),
) -> tuple[Rows, Rows]:
    """Numbers of the rows that are held out, and of the shots among the others.

    `rows` have columns `product`, `part` and `uri`. Images of one product and part are one unit,
    all others are units of their own. `strata` has a string for each row, the same one for all rows
    of a part. Of each stratum the share `holdout` of the units with the lowest hashes is held out:
    at least one, never all. Where `reserved` names rows of a stratum, their units are held out in
    place of that share; without a share, and where there is no other unit, they are left out.
    """
    units = _Units(rows)
    set_aside = units.with_any(reserved)
    held_out, chosen = list[int](), list[int]()
    for mine in _by_stratum(strata, units.first):
        ordered = sorted(mine, key=lambda unit: units.ids[unit])
        held, others = _divided(ordered, holdout, set_aside)
        for unit in held:
            held_out += units.rows[unit]
        for unit in units.shots(others, shots, seed):
            chosen += units.rows[unit]
    return np.array(held_out, np.int64), np.array(chosen, np.int64)


def _divided(
    ordered: list[int], holdout: float, reserved: set[int]
) -> tuple[Sequence[int], Sequence[int]]:
    """The units of a stratum that are held out, and the others."""
    if mine := [unit for unit in ordered if unit in reserved]:
        others = [unit for unit in ordered if unit not in reserved]
        return mine if holdout and others else [], others
    least = 1 if holdout else 0
    count = min(max(least, round(len(ordered) * holdout)), len(ordered) - 1)
    return ordered[:count], ordered[count:]


class _Units:
    """What is never split: parts, and images that belong to none."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows: list[list[int]] = []
        self.ids: list[str] = []
        parts: dict[tuple[str, str], int] = {}
        names = (rows[name].to_pylist() for name in ("product", "part", "uri"))
        for row, (product, part, uri) in enumerate(zip(*names, strict=True)):
            if part is not None:
                unit = parts.setdefault((product, part), len(self.rows))
                if unit < len(self.rows):
                    self.rows[unit].append(row)
                    continue
            self.rows.append([row])
            # Addresses play no part where parts have names: copies of them give the same choice.
            self.ids.append(image_id(uri, "") if part is None else image_id(product, part))

    @property
    def first(self) -> list[int]:
        """The first row of each unit."""
        return [rows[0] for rows in self.rows]

    def with_any(self, marked: Sequence[bool]) -> set[int]:
        """The units of which a row is marked."""
        if not marked:
            return set()
        return {unit for unit, rows in enumerate(self.rows) if any(marked[row] for row in rows)}

    def shots(self, units: Sequence[int], most: int, seed: int) -> Sequence[int]:
        """At most so many units (0 = all): those with the lowest hashes of id and seed."""
        if not most:
            return units
        salt = seed.to_bytes(8, "big", signed=True)

        def order(unit: int) -> bytes:
            return hashlib.blake2b(self.ids[unit].encode(), digest_size=16, key=salt).digest()

        return sorted(units, key=order)[:most]


def _by_stratum(strata: Sequence[str], first: Sequence[int]) -> list[list[int]]:
    """Units by the stratum of their first row."""
    found: dict[str, list[int]] = {}
    for unit, row in enumerate(first):
        found.setdefault(strata[row], []).append(unit)
    return list(found.values())
