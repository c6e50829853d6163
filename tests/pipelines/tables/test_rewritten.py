"""Nights over files and archives that are rewritten: each verdict is about the bytes of today.

A night is a listing, reads of what is due, and a table; Ray is left out. What the current view says
is compared with bytes that other readers find.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.archives.fetch import FetchSettings
from ops.archives.hash_images import HashImages
from ops.archives.inventory import Inventory
from ops.archives.layouts import Layout, PathParser
from ops.failure import TRANSIENT
from ops.storage import uris
from ops.storage.paths import Out
from pipelines.tables import current_scores, pending, take_inventory
from tests.archives import TARS, parquet, tar, zipped
from tests.ops.archives.test_identity import keep_times
from tests.pipelines.tables.test_current_scores import MODELS, publish, row

#: Three pictures of one size; then the second is another.
GOOD = [(f"cam{i}.bmp", random.Random(i).randbytes(700)) for i in range(3)]
FLAW = [GOOD[0], ("cam1.bmp", random.Random(9).randbytes(700)), GOOD[2]]


def table(images):
    names, data = zip(*images, strict=True)
    return parquet(pa.table({"name": names, "data": data}), 2)


MAKE = {
    ".tar": tar,
    **{suffix: lambda images, mode=mode: tar(images, mode) for suffix, mode in TARS.items()},
    ".zip": lambda images: zipped(images, 0),
    ".parquet": table,
}


def overwrite(file: Path, data: bytes) -> None:
    """Write in place, and set the old modification time."""
    times = file.stat()
    with open(file, "r+b") as out:
        out.write(data)
        out.truncate()
    keep_times(file, times)


def replace(file: Path, data: bytes) -> None:
    """Write beside it and rename, as rsync --times does."""
    new = file.with_name("new")
    new.write_bytes(data)
    keep_times(new, file.stat())
    new.rename(file)


def swap(one: Path, two: Path) -> None:
    """Exchange the names of two files or folders."""
    one.rename(one.with_name("other"))
    two.rename(one)
    one.with_name("other").rename(two)


def write(folder: Path, images=GOOD) -> None:
    """Each container, plain files in two folders of one tree, and backups beside them."""
    for suffix, make in MAKE.items():
        for prefix in ("overwritten", "replaced", "reordered", "renamed", "touched", "swapped"):
            (folder / f"{prefix}{suffix}").write_bytes(make(images))
        (folder / f"swapped2{suffix}").write_bytes(make(FLAW))
    (folder / "twice.tar").write_bytes(tar([*images, ("cam1.bmp", b"second")]))
    for number, name in enumerate(("overwritten", "replaced", "link", "hard", "older", "grown")):
        (folder / f"{name}.bmp").write_bytes(images[number % 3][1])
    for number, name in enumerate(("x", "y")):
        (folder / name).mkdir()
        (folder / name / "a.bmp").write_bytes(FLAW[number][1])
        os.utime(folder / name / "a.bmp", ns=(number, number))


def rewrite(folder: Path) -> None:
    """Change everything, where possible with its size and modification time kept."""
    for suffix, make in MAKE.items():
        overwrite(folder / f"overwritten{suffix}", make(FLAW))
        replace(folder / f"replaced{suffix}", make(FLAW))
        overwrite(folder / f"reordered{suffix}", make(GOOD[::-1]))
        overwrite(folder / f"renamed{suffix}", make([*GOOD[:2], ("cam3.bmp", GOOD[2][1])]))
        os.utime(folder / f"touched{suffix}")
        swap(folder / f"swapped{suffix}", folder / f"swapped2{suffix}")
    overwrite(folder / "twice.tar", tar([*GOOD, ("cam1.bmp", b"SECOND")]))
    overwrite(folder / "overwritten.bmp", FLAW[1][1])
    replace(folder / "replaced.bmp", FLAW[2][1][::-1])
    for name, make_link in (("link", os.symlink), ("hard", os.link)):
        (folder / f"{name}.bmp").unlink()
        make_link(folder / "overwritten.bmp", folder / f"{name}.bmp")
    (folder / "older.bmp").write_bytes(b"an older backup")
    os.utime(folder / "older.bmp", ns=(0, 0))
    (folder / "grown.bmp").write_bytes(b"grown" * 200)
    swap(folder / "x", folder / "y")


def truth(folder: Path) -> dict[str, list[str]]:
    """Hashes of the bytes at each address, by other readers."""
    found: dict[str, list[str]] = {}

    def add(file: Path, data: bytes, member: str | None = None) -> None:
        digests = found.setdefault(uris.make(str(file), member), [])
        digests.append(hashlib.sha256(data).hexdigest())

    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.suffix == ".bmp":
            add(file, file.read_bytes())
        elif file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                for name in (n for n in archive.namelist() if not n.endswith("/")):
                    add(file, archive.read(name), name)
        elif file.suffix == ".parquet":
            for number, image in enumerate(pq.read_table(file).to_pylist()):
                add(file, image["data"], f"{number}/{image['name']}")
        else:
            with tarfile.open(fileobj=io.BytesIO(file.read_bytes())) as archive:
                for info in filter(tarfile.TarInfo.isreg, archive.getmembers()):
                    add(file, archive.extractfile(info).read(), info.name)
    return {uri: sorted(digests) for uri, digests in found.items()}


class Nights:
    """Nights that read and hash what is due."""

    def __init__(self, out: Out, place: str) -> None:
        self.out, self.place, self.nights = out, place, 0

    def take(self, meanwhile=lambda: None) -> list[dict]:
        """The rows of one night; `meanwhile` runs between the listing and the reads."""
        path, to = self.out.warehouse(), f"{self.out.root}/pending.parquet"
        parser = PathParser(Layout("**/{name}"), "bolt")
        take_inventory.take([self.place], path, parser, [".bmp"], lambda *_: None)
        if not pending.find_pending(self.out, path, MODELS[0], TRANSIENT, to).images:
            return []
        meanwhile()
        read = HashImages(FetchSettings(attempts=1), threads=2)(Inventory(to).read()).to_pylist()
        rows = [
            row(one["uri"], one["version"], one["status"])
            | {name: one[name] for name in ("content_sha256", "reason")}
            for one in read
        ]
        publish(self.out, self.nights, rows)
        self.nights += 1
        return rows

    def view(self) -> dict[str, list[str]]:
        """Hashes of the current rows of the images that were listed last."""
        found: dict[str, list[str]] = {}
        with current_scores.opened(self.out, "1GB", self.out.warehouse()) as database:
            for batch in current_scores.query(database, MODELS[0], only=self.out.warehouse()):
                for one in batch.to_pylist():
                    digest = one["content_sha256"] or one["status"]
                    found.setdefault(one["uri"], []).append(digest)
        return {uri: sorted(digests) for uri, digests in found.items()}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts")
    return tmp_path / "parts"


@pytest.fixture
def nights(folder):
    return Nights(Out(str(folder.with_name("out"))), str(folder))


def test_every_verdict_is_about_the_bytes_of_today(folder, nights):
    before = truth(folder)
    assert len(nights.take()) == sum(map(len, before.values()))
    assert nights.view() == before
    assert nights.take() == []
    rewrite(folder)
    after = truth(folder)
    different = {uri for uri in after if after[uri] != before.get(uri)}
    assert len(different) > 40
    assert different <= {image["uri"] for image in nights.take()}
    assert nights.view() == after
    assert nights.take() == []


def test_bytes_that_changed_after_the_listing_are_right_the_next_night(folder, nights):
    """Nor is anything read of which the address never held the bytes."""
    before = truth(folder)
    rows = nights.take(lambda: rewrite(folder))
    after = truth(folder)
    assert {row["status"] for row in rows} <= {"ok", *TRANSIENT}
    for image in rows:
        if ".parquet#" in image["uri"]:  # rows are read by number; `fetch.change_time_note` says so
            continue
        known = before[image["uri"]] + after.get(image["uri"], [])
        assert image["status"] != "ok" or image["content_sha256"] in known
    nights.take()
    assert nights.view() == after
    assert nights.take() == []
