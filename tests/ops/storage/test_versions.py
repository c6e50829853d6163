"""Versions of local files and of objects, and when two of them are of different bytes."""

import os

import pytest

from ops.storage import files, versions
from ops.storage.storage_errors import Changed

ETAG = "d41d8cd98f00b204e9800998ecf8427e"


def test_a_local_version_has_size_and_both_times_in_nanoseconds(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"123")
    os.utime(file, ns=(5, 1_700_000_000_123_456_789))
    changed = os.stat(file).st_ctime_ns
    version = f"3:1700000000123456789:{changed}"
    assert versions.of_file(os.stat(file)) == version
    assert files.describe(str(file)) == ("a.bin", 3, version)
    assert list(files.listing(str(tmp_path))) == [("a.bin", 3, version)]


@pytest.mark.parametrize(
    ("listed", "read", "differ"),
    [
        ("3:17:20", "3:17:20", False),
        ("3:17:20", "3:17:99", False),  # chmod, or a node with a copy of its own
        ("3:17:20", "4:17:20", True),
        ("3:17:20", "3:18:20", True),
        ("3:-17:20", "3:17:20", True),  # before 1970
        (ETAG, ETAG, False),
        (ETAG, ETAG[::-1], True),
        (f"{ETAG}-2", f"{ETAG}-3", True),  # multipart uploads
        ("1763600000123456789", "3:17:20", False),  # a time alone, as older inventories have
        ("1763600000-3000", ETAG, False),
        ("v1", "3:17:20", False),
        ("", ETAG, False),
    ],
)
def test_versions_of_different_bytes(listed, read, differ):
    assert versions.differ(listed, read) is differ
    assert versions.is_known(listed) is (listed.count(":") == 2 or listed.startswith(ETAG))


def test_a_read_names_both_versions_where_they_differ():
    with pytest.raises(Changed) as error:
        versions.check("/a.bin", "3:17:20", "4:18:21")
    assert str(error.value) == "/a.bin: version 3:17:20 was listed, but it is version 4:18:21 now"
