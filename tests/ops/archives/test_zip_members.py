import io
import stat
import zipfile

import pytest

from ops.archives.fetch import FetchSettings, fetch
from ops.archives.listing import entries
from ops.archives.tally import Tally
from ops.archives.tar_members import LOST_LINKS
from ops.failure import Failure

HASTY = FetchSettings(attempts=1)


def zipped(files: dict[str, bytes], mode: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode if name.startswith("link") else 0) << 16
            archive.writestr(info, content)
    return out.getvalue()


def found(tmp_path, data: bytes) -> tuple[dict[str, object], Tally]:
    place, tally, out = tmp_path / "a.zip", Tally(), {}
    place.write_bytes(data)
    for entry in entries(str(place), tally=tally):
        if entry.problem:
            out["problem"] = entry.problem
        else:
            out[entry.name] = fetch(entry.uri, entry.member, entry.bytes, HASTY)
            assert fetch(entry.uri, None, None, HASTY) == out[entry.name]
    return out, tally


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("./a/x.png", "a/x.png"),
        ("a\\x.png", "a/x.png"),
        (".\\a\\x.png", "a/x.png"),
        ("/a/x.png", "a/x.png"),
        ("a//x.png", "a/x.png"),
        ("../../a/x.png", "a/x.png"),
        ("C:\\a\\x.png", "a/x.png"),
        ("..\\..\\x.png", "x.png"),
    ],
)
def test_a_member_is_named_as_in_a_tar_and_found_by_its_own_name(tmp_path, stored, name):
    assert found(tmp_path, zipped({stored: b"1", "dir\\": b"", "dir/": b""}))[0] == {name: b"1"}


def test_links_are_followed_within_the_zip_and_counted_otherwise(tmp_path):
    files = {"d/a.png": b"true", "link.png": b"d/a.png", "link2.png": b"../secret.png"}
    got, tally = found(tmp_path, zipped(files, stat.S_IFLNK | 0o777))
    assert got == {"d/a.png": b"true", "link.png": b"true"}
    assert tally.left_out == {LOST_LINKS: 1}


def test_a_zip_before_another_is_a_problem(tmp_path):
    got, _ = found(tmp_path, zipped({"a.png": b"1"}) + zipped({"b.png": b"2"}))
    assert "hold another zip" in got.pop("problem")
    assert got == {"b.png": b"2"}


def test_a_program_before_a_zip_is_no_problem(tmp_path):
    assert found(tmp_path, b"MZ program" * 9 + zipped({"a.png": b"1"}))[0] == {"a.png": b"1"}


def test_an_unknown_compression_is_unsupported(tmp_path):
    data = bytearray(zipped({"a.png": b"1"}))
    for at in (data.index(b"a.png") - 30 + 8, data.rindex(b"a.png") - 46 + 10):
        data[at] = 97
    with pytest.raises(Failure, match="unsupported"):
        found(tmp_path, bytes(data))
