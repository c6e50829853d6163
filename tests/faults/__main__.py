"""What must not break a night, broken on purpose: `python -m tests.faults kills --runs 20`."""

from __future__ import annotations

import importlib
import sys

#: What is asked for -> the module whose `main` takes the words behind it.
PARTS = {
    "kills": "tests.faults.kills",
    "mutations": "tests.faults.reading",
    "tiffs": "tests.faults.tiffs",
    "memory": "tests.faults.memory",
    "huge": "tests.faults.huge",
    "due": "tests.faults.due",
    "rewritten": "tests.faults.rewritten",
    "world": "tests.faults.world",
    "fits": "tests.faults.fits",
    "nights": "tests.faults.nights",
    "products": "tests.faults.products",
}


def main(words: list[str]) -> int:
    """Run the part that the first word names."""
    if not words or words[0] not in PARTS:
        print(f"name one of: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    return int(importlib.import_module(PARTS[words[0]]).main(words[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
