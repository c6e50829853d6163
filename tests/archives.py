"""Archives made in memory, and what listing and fetching make of them."""

import io
import random
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ops.archives.entry import Entry
from ops.archives.fetch import FetchSettings, fetch
from ops.archives.listing import entries
from ops.failure import Failure

HASTY = FetchSettings(attempts=2, backoff=0)


FILES = {
    "a.png": b"first" * 300,
    "dir/b #1?.png": b"second" * 500,
    "dir/ü%.png": b"third" * 10,
    "empty.png": b"",
}


TARS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def tar(files: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(files: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.mkdir("dir")
        for name, content in files:
            archive.writestr(name, content)
    return out.getvalue()


def parquet(table: pa.Table, rows: int = 2) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=rows)
    return out.getvalue()


def place(folder: Path, name: str, data: bytes) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return str(file)


def read(entry: Entry, by_member: bool = True) -> bytes:
    return fetch(entry.uri, entry.member if by_member else None, entry.bytes, HASTY)


def status_of(entry: Entry) -> str:
    if entry.problem:
        return "problem"
    try:
        read(entry)
    except Failure as failure:
        return failure.status
    return "ok"


def statuses(location: str) -> list[str]:
    return [status_of(entry) for entry in entries(location)]


THREE = [(f"{n}.png", random.Random(n).randbytes(20_000)) for n in range(3)]
