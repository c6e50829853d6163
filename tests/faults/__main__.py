"""Faults on purpose: `python -m tests.faults kills --runs 20 --images 3000 --seed 1`."""

from __future__ import annotations

import importlib
import sys

#: A part -> its module, whose `main` takes the words behind the part's name.
PARTS = {
    "kills": "tests.faults.kills",
}


def main(argv: list[str]) -> int:
    """Run one part."""
    if not argv or argv[0] not in PARTS:
        sys.exit(f"name a part: {', '.join(PARTS)}")
    return importlib.import_module(PARTS[argv[0]]).main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
