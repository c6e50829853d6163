"""Archives and folders that try to lead out of themselves: nothing outside is touched or read."""

import builtins
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from ops.archives.fetch import FetchSettings
from ops.archives.listing import entries
from ops.images.decode import DecodeSettings
from ops.images.read_images import Read
from ops.images.resize import InputSettings
from ops.storage import uris
from pipelines.scoring.read_stage import read_rows
from pipelines.tables.take_inventory import EmptyArchive
from tests import pictures
from tests.faults.reading import listed

PICTURE = pictures.encoded(pictures.texture(0, 32))
SECRET = pictures.encoded(pictures.texture(9, 32))
STRANGE = [
    "../x.png",
    "../../../../../../tmp/nightloupe-escaped.png",
    "/etc/nightloupe.png",
    "a/../../b.png",
    "a#b?c%d.png",
    "%2e%2e%2fx.png",
    "tab\tline\nreturn\r.png",
    "bell\x07 escape\x1b[2J.png",
    "<script>alert(1)</script>.png",
    "=HYPERLINK(1).png",
    "; rm -rf $HOME; `id`.png",
    "..png",
    " .png",
    "C:\\windows\\x.png",
    "é\u202egnp.png",
]
READ = Read(InputSettings(size=32), DecodeSettings(), FetchSettings(attempts=1, backoff=0))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(PICTURE) if kind == tarfile.REGTYPE else 0
    return info


def tar(place: Path, members: list[tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(place, mode) as archive:
        for one in members:
            archive.addfile(one, io.BytesIO(PICTURE) if one.isreg() else None)
    return place


def zipped(place: Path, names: list[str], mode: int = stat.S_IFREG | 0o644) -> Path:
    with zipfile.ZipFile(place, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, b"/etc/passwd" if stat.S_ISLNK(mode) else PICTURE)
    return place


class Witness:
    """Which files were opened by name, and what lies below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.opened: set[str] = set()

    def there(self) -> set[str]:
        return {str(file) for file in self.root.rglob("*")}

    def open(self, file, mode="r", *more, **options):
        if isinstance(file, (str, os.PathLike)):
            self.opened.add(os.path.abspath(file))
        return _open(file, mode, *more, **options)


_open = builtins.open


@pytest.fixture
def witness(tmp_path, monkeypatch):
    """Watches everything that is opened by name."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "secret.png").write_bytes(SECRET)
    watch = Witness(tmp_path)
    monkeypatch.setattr(builtins, "open", watch.open)
    return watch


def rows(witness: Witness) -> list[dict]:
    """List and read the folder `parts`; nothing may be opened or written elsewhere."""
    parts, before = witness.root / "parts", witness.there()
    found = listed(parts, witness.root / "inventory.parquet")
    got = READ(read_rows(found, 0, len(found))).to_pylist()
    assert witness.there() == before | {str(witness.root / "inventory.parquet")}
    inside = {path for path in witness.opened if path.startswith(str(witness.root))}
    beside = {path for path in inside - before if "inventory" in path or path.endswith(".tmp")}
    assert all(path.startswith(str(parts)) for path in inside - beside), inside - beside
    images = {path for path in witness.opened if path.endswith((".png", ".jpg"))}
    assert all(path.startswith(str(parts)) for path in images), images
    return got


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_members_are_read_from_within_whatever_they_are_called(witness, suffix):
    place = witness.root / "parts" / f"a.{suffix}"
    if suffix == "zip":
        zipped(place, STRANGE)
    else:
        tar(place, [member(name) for name in STRANGE], "w:gz" if "gz" in suffix else "w")
    got = rows(witness)
    assert [row["status"] for row in got] == ["ok"] * len(STRANGE)
    names = {uris.parse(row["uri"]).member for row in got}
    assert names == set(STRANGE)
    for row in got:
        assert row["uri"].startswith(f"file://{place}#")
        assert row["uri"].isascii() is all(ord(c) < 128 for c in uris.parse(row["uri"]).member)
        assert not set(row["uri"]) & {chr(c) for c in range(32)}
    assert not Path("/tmp/nightloupe-escaped.png").exists()
    assert not Path("/etc/nightloupe.png").exists()


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("by_member", [True, False])
def test_links_and_devices_in_a_tar_are_no_images(witness, suffix, by_member):
    outside = str(witness.root / "secret.png")
    links = [
        member("link.png", tarfile.SYMTYPE, outside),
        member("hard.png", tarfile.LNKTYPE, outside),
        member("hard2.png", tarfile.LNKTYPE, "good.png"),
        member("up.png", tarfile.SYMTYPE, "../secret.png"),
        member("zero.png", tarfile.CHRTYPE),
        member("disk.png", tarfile.BLKTYPE),
        member("pipe.png", tarfile.FIFOTYPE),
        member("dir.png", tarfile.DIRTYPE),
    ]
    place = tar(
        witness.root / "parts" / f"a.{suffix}",
        [*links, member("good.png")],
        "w:gz" if "gz" in suffix else "w",
    )
    (row,) = rows(witness)
    assert (row["status"], uris.parse(row["uri"]).member) == ("ok", "good.png")
    # An inventory written by others may name what listing leaves out.
    for link in links:
        told = {
            "uri": uris.make(str(place), link.name),
            "member": None,
            "bytes": None,
            "product": "p",
            "problem": None,
        }

        (got,) = READ(pa.Table.from_pylist([told])).to_pylist()
        assert (got["status"], got["content_sha256"]) == ("missing", None)


def test_a_link_in_a_zip_that_leads_out_of_it_is_left_out_and_counted(witness):
    zipped(witness.root / "parts" / "a.zip", ["link.png"], stat.S_IFLNK | 0o777)
    with pytest.raises(EmptyArchive, match="1 links in archives that lead to no file in them"):
        rows(witness)


def test_linked_folders_are_not_followed_and_linked_files_are(tmp_path):
    """A folder is what people put together, links to single files included; loops end nothing."""
    parts = tmp_path / "parts"
    parts.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "far.png").write_bytes(SECRET)
    (parts / "good.png").write_bytes(PICTURE)
    (parts / "folder").symlink_to(tmp_path / "outside")
    (parts / "loop").symlink_to(parts)
    (parts / "self.png").symlink_to(parts / "self.png")
    (parts / "gone.png").symlink_to(tmp_path / "nothing.png")
    (parts / "file.png").symlink_to(tmp_path / "outside" / "far.png")
    os.mkfifo(parts / "pipe.png")
    found = {entry.name: entry for entry in entries(str(parts))}
    assert set(found) == {"good.png", "file.png"}
    assert found["file.png"].uri == f"file://{parts}/file.png"
    assert found["file.png"].bytes == len(SECRET)


def test_what_is_not_utf8_is_listed_and_read(witness):
    name = os.fsencode(witness.root / "parts") + b"/\xff\xfe.png"
    with _open(name, "wb") as file:
        file.write(PICTURE)
    (row,) = rows(witness)
    assert row["status"] == "ok"
    assert row["uri"].endswith("/%FF%FE.png")
