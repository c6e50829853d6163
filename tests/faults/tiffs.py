"""TIFF files of every kind, by colours and by compression: `python -m tests.faults tiffs 1000`."""

from __future__ import annotations

import warnings
from collections import Counter

from tests.ops.images.formats import tiff_files


def main(words: list[str]) -> None:
    """Print outcomes of so many files (1,000)."""
    warnings.simplefilter("ignore")
    colours, compressions, faults = Counter(), Counter(), []
    alike = Counter()
    for number in range(int(words[0]) if words else 1000):
        one = tiff_files.made(number)
        fault = tiff_files.wrong(one)
        outcome = "wrong" if fault else "refused" if one.pixels is None else "right"
        colours[one.colours, outcome] += 1
        compressions[one.compression, outcome] += 1
        alike[str(tiff_files.by_tifffile(one))] += 1
        faults += [fault] if fault else []
    for counts in (colours, compressions):
        for name in dict.fromkeys(name for name, _ in sorted(counts)):
            print(name, *(f"{counts[name, end]} {end}" for end in ("right", "refused", "wrong")))
        print()
    print("as tifffile reads it:", dict(alike))
    print(*faults[:20], sep="\n")
