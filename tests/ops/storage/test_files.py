import itertools
import os
from pathlib import Path

import pytest

from ops.storage import files


def test_written_bytes_are_read_back_whole_and_in_slices(tmp_path):
    file = str(tmp_path / "new" / "folder" / "a.bin")
    files.write_bytes(file, bytes(range(100)))
    assert files.read_bytes(file) == bytes(range(100))
    assert files.read_bytes(file, 10, 13) == bytes([10, 11, 12])
    assert files.read_bytes(file, 97) == bytes([97, 98, 99])
    assert files.describe(file)[:2] == ("a.bin", 100)


def write_half(location: str) -> None:
    with files.staged(location) as path:
        Path(path).write_bytes(b"half")
        raise RuntimeError


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        write_half(str(tmp_path / "a.bin"))
    assert os.listdir(tmp_path) == []


def test_an_error_while_writing_keeps_the_earlier_file(tmp_path):
    file = tmp_path / "a.bin"
    files.write_bytes(str(file), b"old")
    with pytest.raises(RuntimeError):
        write_half(str(file))
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_file_appears_when_writing_has_ended(tmp_path):
    file = tmp_path / "a.bin"
    with files.staged(str(file)) as path:
        Path(path).write_bytes(b"all of it")
        assert not file.exists()
    assert os.listdir(tmp_path) == ["a.bin"]
    assert file.read_bytes() == b"all of it"


def test_writing_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.staged(str(tmp_path / "a.bin")):
        pass
    assert os.listdir(tmp_path) == []


def test_names_leaves_out_temporary_files_and_sorts(tmp_path):
    place = str(tmp_path / "folder")
    assert files.names(place) == []
    for name in ("b/2.json", "a.json", "b/1.json", ".hidden"):
        files.write_bytes(f"{place}/{name}", b"whole")
    with files.staged(f"{place}/b/3.json") as path:
        Path(path).write_bytes(b"half")
        assert files.names(place) == [".hidden", "a.json", "b/1.json", "b/2.json"]
    assert files.names(place)[-1] == "b/3.json"


def test_json_refuses_nan(tmp_path):
    file = str(tmp_path / "a.json")
    files.write_json(file, {"ü": [1, 2.5, None]})
    assert files.read_json(file) == {"ü": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(file, {"a": float("nan")})
    assert files.read_json(file) == {"ü": [1, 2.5, None]}


def test_listing_gives_names_below_the_folder_and_no_folders(tmp_path):
    names = {"a.png", "b c/d#.png", "b c/e/f.png", ".hidden"}
    for name in names:
        files.write_bytes(str(tmp_path / name), name.encode())
    (tmp_path / "empty").mkdir()
    found = list(files.listing(str(tmp_path)))
    assert {item.name for item in found} == names
    assert all(item.bytes == len(item.name.encode()) for item in found)


def test_listing_streams(tmp_path, monkeypatch):
    for number in range(50):
        files.write_bytes(str(tmp_path / str(number) / "a"), b"")
    scan, folders = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda path: folders.append(path) or scan(path))
    assert len(list(itertools.islice(files.listing(str(tmp_path)), 3))) == 3
    assert len(folders) <= 5


def test_a_file_removed_during_the_listing_is_left_out(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}").touch()
    stream = files.listing(str(tmp_path))
    gone = {"0", "1", "2", "3", "4"} - {next(stream).name}
    for name in gone:
        (tmp_path / name).unlink()
    assert list(stream) == []


def test_the_version_of_a_file_changes_with_its_content(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"1")
    os.utime(file, ns=(1, 1))
    before = files.describe(str(file))
    file.write_bytes(b"2")
    assert files.describe(str(file)).version != before.version
    assert next(files.listing(str(tmp_path))).version == files.describe(str(file)).version


def test_removing_an_absent_folder_does_nothing(tmp_path):
    files.write_bytes(str(tmp_path / "a" / "b" / "c"), b"")
    files.remove_folder(str(tmp_path / "a"))
    files.remove_folder(str(tmp_path / "a"))
    assert os.listdir(tmp_path) == []


def test_join_adds_one_slash():
    assert files.join("s3://b/x/", "y", "z") == "s3://b/x/y/z"
    assert files.join("/", "y") == "/y"
