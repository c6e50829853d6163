"""What a listing of a million images takes: `python -m tests.bench.listing 1000000 [TREE]`.

With TREE, another checkout of this project, both list the same archives in turn, each time in a
process of its own, and the ratio of their medians is printed. Keys on S3 are pages made in memory,
so that no server is timed.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import ROOT

REPEATS = 3
#: Lists an archive in a tree, whose modules may bear the names of an older one.
_LIST = """
import importlib, sys, time
def first(*names):
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            pass
listing = first("ops.archives.listing", "ops.images.archives", "ops.archives")
storage = first("ops.storage.s3", "ops.storage")
place, count = sys.argv[1], int(sys.argv[2])
def pages(location):
    for start in range(0, count, 1000):
        yield [
            {"Key": f"line-{i % 7}/part{i:08d}.png", "Size": 40, "ETag": f'"{i:032x}"'}
            for i in range(start, start + 1000)
        ]
if place.startswith("s3://"):
    storage.pages = pages
    listing.files.exists, listing.files.is_folder = (lambda _: False), (lambda _: True)
start = time.process_time()
found = sum(entry.problem is None for entry in listing.entries(place))
assert found == count, found
print(time.process_time() - start)
"""


def draw(folder: Path, count: int) -> None:
    """A tar, a tar with PAX headers, a zip and a Parquet file of as many images of 40 bytes."""
    names = [f"line-{i % 7}/part{i:08d}.png" for i in range(count)]
    content = b"\x89PNG\r\n\x1a\n" + bytes(32)
    for file, kind in (("a.tar", tarfile.USTAR_FORMAT), ("pax.tar", tarfile.PAX_FORMAT)):
        with open(folder / file, "wb") as out:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(content), 1.7e9 + (kind == tarfile.PAX_FORMAT) / 2
                out.write(info.tobuf(kind) + content.ljust(tarfile.BLOCKSIZE, b"\x00"))
            out.write(bytes(tarfile.RECORDSIZE))
    with zipfile.ZipFile(io.FileIO(folder / "a.zip", "w"), "w") as archive:
        for name in names:
            archive.writestr(name, content)
    table = pa.table({"name": names, "image": pa.array([content] * count, pa.binary())})
    pq.write_table(table, folder / "a.parquet", row_group_size=10_000)


def seconds(tree: Path, place: str, count: int) -> float:
    """CPU seconds in which the code of a tree lists an archive."""
    command = [sys.executable, "-c", _LIST, place, str(count)]
    done = subprocess.run(
        command,
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def main(words: list[str]) -> None:
    """List archives of so many (1,000,000) images by this tree and, if one is named, another."""
    count = int(words[0]) if words else 1_000_000
    trees = [ROOT, *(Path(word).resolve() for word in words[1:])]
    print("| archive | CPU s here | there | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as name:
        draw(Path(name), count)
        for file in ("a.tar", "pax.tar", "a.zip", "a.parquet", "s3://bucket/parts"):
            place = file if file.startswith("s3://") else f"{name}/{file}"
            taken = [[seconds(tree, place, count) for tree in trees] for _ in range(REPEATS)]
            here, *there = (statistics.median(column) for column in zip(*taken, strict=True))
            figures = f"{there[0]:.1f} | {here / there[0]:.2f}" if there else "- | -"
            print(f"| {file} | {here:.1f} | {figures} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
