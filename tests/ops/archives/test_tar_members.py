"""Tars of all kinds, some made by GNU tar: the true bytes, or a row or count that says why not."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile

import pytest

from ops.archives.fetch import FetchSettings, fetch
from ops.archives.listing import entries
from ops.archives.tally import Tally
from ops.archives.tar_members import LOST_LINKS
from ops.failure import Failure

HASTY = FetchSettings(attempts=1)
PACK = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}
REG, SYM, HARD = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def tar(*members, form=tarfile.PAX_FORMAT) -> bytes:
    """A tar of (name, bytes), or (name, type, target) for links and others."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, *what in members:
            info = tarfile.TarInfo(name)
            if len(what) == 1:
                info.size = len(what[0])
            else:
                info.type, info.linkname = what
            archive.addfile(info, io.BytesIO(what[0]) if len(what) == 1 else None)
    return out.getvalue()


def found(tmp_path, data: bytes, suffix: str = ".tar") -> tuple[dict[str, object], Tally]:
    """Members as name -> bytes read by number, which must equal those read by name, or problem."""
    place, tally, out = tmp_path / f"a{suffix}", Tally(), {}
    place.write_bytes(data)
    for entry in entries(str(place), tally=tally):
        if entry.problem:
            out["problem"] = entry.problem
            continue
        out[entry.name] = fetch(entry.uri, entry.member, entry.bytes, HASTY)
        assert fetch(entry.uri, None, None, HASTY) == out[entry.name]
        assert entry.bytes == len(out[entry.name])
    return out, tally


A, B = (("a.png", b"first"), ("b.png", b"second" * 200))


@pytest.fixture(scope="module")
def holes(tmp_path_factory):
    """A folder of files with holes, and their bytes."""
    folder = tmp_path_factory.mktemp("holes")
    for number in range(3):
        with open(folder / f"{number}.bmp", "wb") as file:
            file.write(b"BM" + bytes([number]) * 5000)
            file.seek(200_000 * (1 + number))
            file.write(bytes([9 - number]) * 700)
            file.truncate(file.tell() + 70_000 * number)
    (folder / ("long" * 40 + ".bmp")).write_bytes(b"BMlong")
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


FORMATS = {
    "gnu": ["--format=gnu"],
    "pax0.0": ["--format=posix", "--sparse-version=0.0"],
    "pax0.1": ["--format=posix", "--sparse-version=0.1"],
    "pax1.0": ["--format=posix", "--sparse-version=1.0"],
}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("form", FORMATS)
def test_sparse_members_have_their_true_bytes(tmp_path, holes, form, suffix):
    folder, truth = holes
    command = ["tar", "-cS", *FORMATS[form], "-C", str(folder), *sorted(truth)]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(packed) < sum(map(len, truth.values())) / 2
    assert found(tmp_path, PACK[suffix](packed), suffix)[0] == truth


def sparse_map(tmp_path, pairs: str, size: int) -> str:
    info = tarfile.TarInfo("a.png")
    info.size = 512
    info.pax_headers = {"GNU.sparse.map": pairs, "GNU.sparse.size": str(size)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"x" * 512))
        other = tarfile.TarInfo("b.png")
        other.size = 512
        archive.addfile(other, io.BytesIO(b"y" * 512))
    (tmp_path / "a.tar").write_bytes(out.getvalue())
    first, second = entries(str(tmp_path / "a.tar"))
    assert fetch(second.uri, second.member, second.bytes, HASTY) == b"y" * 512
    with pytest.raises(Failure) as failure:
        fetch(first.uri, first.member, first.bytes, FetchSettings(max_bytes=2**20, attempts=1))
    return failure.value.status


@pytest.mark.parametrize("pairs", ["0,1536", "0,513", "600,512", "-5,5"])
def test_a_sparse_map_never_reaches_into_another_member(tmp_path, pairs):
    assert sparse_map(tmp_path, pairs, 1000) == "unreadable"


def test_a_sparse_member_of_a_huge_size_is_not_unpacked(tmp_path):
    assert sparse_map(tmp_path, "0,512", 2**40) == "too_large"


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("between", [0, 512, 10_240])
def test_tars_that_follow_each_other_are_listed_whole(tmp_path, suffix, between):
    joined = tar(A) + bytes(between) + tar(B)
    assert found(tmp_path, PACK[suffix](joined), suffix)[0] == dict([A, B])


@pytest.mark.parametrize("suffix", list(PACK)[1:])
@pytest.mark.parametrize("between", [0, 4, 512])
def test_compressed_streams_that_follow_each_other_are_listed_whole(tmp_path, suffix, between):
    pack = PACK[suffix]
    joined = pack(tar(A)) + bytes(between) + pack(tar(B))
    assert found(tmp_path, joined, suffix)[0] == dict([A, B])


@pytest.mark.parametrize("suffix", list(PACK)[1:])
def test_one_tar_in_several_compressed_streams(tmp_path, suffix):
    data = tar(A, B)
    parts = (data[start : start + 700] for start in range(0, len(data), 700))
    assert found(tmp_path, b"".join(map(PACK[suffix], parts)), suffix)[0] == dict([A, B])


@pytest.mark.parametrize("suffix", PACK)
def test_bytes_behind_the_end_mark_that_are_no_tar_are_a_problem(tmp_path, suffix):
    got, _ = found(tmp_path, PACK[suffix](tar(A) + b"garbage " * 100), suffix)
    assert got.pop("problem").startswith("the archive is damaged (what follows its end mark")
    assert got == dict([A])


def test_a_damaged_header_is_a_problem_and_not_the_end(tmp_path):
    data = bytearray(tar(A, B))
    data[data.index(b"b.png") + 3] ^= 1
    got, _ = found(tmp_path, bytes(data))
    assert "the header at byte 1024 is damaged" in got.pop("problem")
    assert got == dict([A])


def test_a_header_with_a_negative_size_ends_the_list(tmp_path):
    data = bytearray(tar(A, B, form=tarfile.GNU_FORMAT))
    at = data.index(b"b.png")
    data[at + 124 : at + 136] = b"\xff" * 8 + (-4096).to_bytes(4, "big", signed=True)
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    got, _ = found(tmp_path, bytes(data))
    assert "declares a negative size" in got["problem"]


@pytest.mark.parametrize("suffix", PACK)
def test_links_to_members_have_the_bytes_of_these(tmp_path, suffix):
    data = tar(
        ("d/a.png", b"true"),
        ("d/b.png", HARD, "d/a.png"),
        ("d/c.png", SYM, "a.png"),
        ("e/d.png", SYM, "../d/later.png"),
        ("e/e.png", SYM, "d.png"),
        ("d/later.png", b"later"),
        ("d/._x.png", HARD, "./d/a.png"),
    )
    got, tally = found(tmp_path, PACK[suffix](data), suffix)
    assert got == {
        **dict.fromkeys(("d/a.png", "d/b.png", "d/c.png", "d/._x.png"), b"true"),
        **dict.fromkeys(("d/later.png", "e/d.png", "e/e.png"), b"later"),
    }
    assert tally.left_out == {}


def test_a_hard_link_to_a_name_that_comes_twice_has_the_bytes_of_the_one_before_it(tmp_path):
    data = tar(("a.png", b"old"), ("b.png", HARD, "a.png"), ("a.png", b"newer"))
    (tmp_path / "a.tar").write_bytes(data)
    got = [fetch(e.uri, e.member, e.bytes, HASTY) for e in entries(str(tmp_path / "a.tar"))]
    assert got == [b"old", b"newer", b"old"]


def test_what_is_no_file_is_counted_by_kind(tmp_path):
    data = tar(
        A,
        ("up.png", SYM, "../a.png"),
        ("far.png", SYM, "/etc/passwd"),
        ("loop.png", SYM, "loop.png"),
        ("early.png", HARD, "b.png"),
        ("null", tarfile.CHRTYPE, ""),
        ("pipe", tarfile.FIFOTYPE, ""),
        ("dir", tarfile.DIRTYPE, ""),
        B,
    )
    got, tally = found(tmp_path, data)
    assert got == dict([A, B])
    assert tally.left_out == {LOST_LINKS: 4, "devices and pipes in tar files": 2}


def test_hard_links_that_tar_makes(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"true")
    os.link(folder / "a.png", folder / "b.png")
    (folder / "c.png").symlink_to("a.png")
    command = ["tar", "-c", "-C", str(tmp_path), "in"]
    packed = subprocess.run(command, capture_output=True, check=True).stdout
    got, _ = found(tmp_path, packed)
    assert got == {f"in/{name}.png": b"true" for name in "abc"}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_other_alphabets(tmp_path, form):
    files = {"d/" * 80 + "x" * 120 + ".png": b"1", "Türgriff/ü.png": b"2", "部品.png": b"3"}
    assert found(tmp_path, tar(*files.items(), form=form))[0] == files


def test_pax_headers_override_name_and_size(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("short.png")
        info.size, info.pax_headers = 700, {"path": "own/name.png", "size": "700"}
        archive.addfile(info, io.BytesIO(b"x" * 700))
        other = tarfile.TarInfo("b.png")
        other.size = 1
        archive.addfile(other, io.BytesIO(b"y"))
    assert found(tmp_path, out.getvalue())[0] == {"own/name.png": b"x" * 700, "b.png": b"y"}


def test_names_stay_below_the_archive(tmp_path):
    files = {"./a.png": b"1", "/b.png": b"2", "../../c.png": b"3", "d/../../e.png": b"4"}
    got, _ = found(tmp_path, tar(*files.items()))
    assert got == {"a.png": b"1", "b.png": b"2", "c.png": b"3", "e.png": b"4"}
