"""On a server that speaks S3, without a cluster: storage, and the words of jobs when it fails."""

import pytest

from ops.storage import files
from ops.storage.s3 import file_system
from tests.conftest import forget_s3

pytestmark = pytest.mark.slow


def names(location: str) -> list[str]:
    return [item.name for item in files.listing(location)]


def test_what_was_written_is_read_back_whole_and_in_slices(s3):
    place = f"{s3}/new/a #1?%ü.bin"
    files.write_bytes(place, bytes(range(100)))
    assert files.read_bytes(place) == bytes(range(100))
    assert files.read_bytes(place, 10, 13) == bytes([10, 11, 12])
    assert files.read_bytes(place, 97) == bytes([97, 98, 99])
    with files.open_read(place) as file:
        file.seek(50)
        assert file.read(2) == bytes([50, 51])
    assert files.describe(place)[:2] == ("a #1?%ü.bin", 100)
    assert names(s3) == ["new/a #1?%ü.bin"]


def test_nothing_appears_before_writing_is_over(s3):
    with files.staged(f"{s3}/a.bin") as path:
        with open(path, "wb") as file:
            file.write(b"all of it")
        assert names(s3) == []
    assert files.read_bytes(f"{s3}/a.bin") == b"all of it"


def test_an_error_while_writing_leaves_what_was_there_before(s3):
    files.write_bytes(f"{s3}/a.bin", b"old")

    def fail():
        with files.staged(f"{s3}/a.bin") as path:
            with open(path, "wb") as file:
                file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(s3) == ["a.bin"]
    assert files.read_bytes(f"{s3}/a.bin") == b"old"


def test_a_prefix_is_no_file_and_a_file_is_no_prefix(s3):
    files.write_bytes(f"{s3}/parts/a.png", b"1")
    files.write_bytes(f"{s3}/parts2/b.png", b"1")
    assert files.exists(f"{s3}/parts/a.png")
    assert not files.exists(f"{s3}/parts")
    assert not files.exists(f"{s3}/parts/b.png")
    assert files.is_folder(f"{s3}/parts")
    assert not files.is_folder(f"{s3}/part")
    assert names(f"{s3}/parts/") == ["a.png"]


def test_listings_come_in_pages(s3, monkeypatch):
    expected = [f"{number:02d}.png" for number in range(25)]
    for name in expected:
        files.write_bytes(f"{s3}/parts/{name}", name.encode())
    asked, call = [], file_system().call_s3

    def small_pages(method, **request):
        asked.append(request.get("ContinuationToken"))
        return call(method, **request, MaxKeys=10)

    monkeypatch.setattr(file_system(), "call_s3", small_pages)
    stream = files.listing(f"{s3}/parts")
    assert next(stream).name == "00.png"
    assert len(asked) == 1
    assert [item.name for item in stream] == expected[1:]
    assert len(asked) == len(set(asked)) == 3


@pytest.mark.slow
def test_more_than_a_thousand_objects_are_listed_and_removed(s3):
    file_system().pipe({f"{s3}/many/{number:04d}": b"x" for number in range(1005)})
    assert names(f"{s3}/many") == [f"{number:04d}" for number in range(1005)]
    files.remove_folder(f"{s3}/many")
    assert names(s3) == []


def test_removing_takes_only_what_lies_below(s3):
    for place in ("a/1", "a/b/2", "ab/3"):
        files.write_bytes(f"{s3}/{place}", b"x")
    files.remove_folder(f"{s3}/a")
    assert names(s3) == ["ab/3"]
    files.remove_folder(f"{s3}/a")
    files.remove_file(f"{s3}/gone")
    files.remove_file(f"{s3}/ab/3")
    assert names(s3) == []


def test_a_version_changes_with_the_content(s3):
    files.write_bytes(f"{s3}/a", b"1")
    before = files.describe(f"{s3}/a").version
    files.write_bytes(f"{s3}/a", b"2")
    assert files.describe(f"{s3}/a").version != before
    assert next(files.listing(s3)).version == files.describe(f"{s3}/a").version


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--archive", "s3://no-bucket/parts"],
            "s3://no-bucket/parts: The specified bucket",
        ),
        (
            ["--archive", "s3://no-bucket/a.tar"],
            "s3://no-bucket/a.tar: The specified bucket",
        ),
        (["--archive", "{s3}/prts"], "there is no file, folder or prefix '{s3}/prts'"),
        (["--archive", "{s3}/parts"], "1 files end in .txt"),
        (
            ["--archive", "{s3}/images", "--output", "s3://no-bucket/i.parquet"],
            "s3://no-bucket/i",
        ),
    ],
)
def test_a_place_that_is_not_there_is_named(s3, leave, words, sentence):
    files.write_bytes(f"{s3}/parts/notes.txt", b"no image")
    files.write_bytes(f"{s3}/images/a.png", b"an image")
    code, out, err = leave("inventory", *(word.format(s3=s3) for word in words))
    assert code == 1
    assert sentence.format(s3=s3) in err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err + out


def test_the_latest_run_of_an_empty_bucket_is_missing(s3, leave):
    code, _, err = leave("evaluate", "--out", f"{s3}/out")
    assert code == 1
    assert err == f"error: {s3}/out holds no finished run; python -m jobs.score makes one\n"


def test_missing_credentials_are_told_in_one_sentence(s3, leave, request, monkeypatch):
    request.addfinalizer(forget_s3)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    forget_s3()
    code, _, err = leave("inventory", "--archive", f"{s3}/parts")
    assert code == 1
    assert err == (
        f"error: {s3}/parts: no credentials were found; AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, must name keys that may list, read and write "
        "there\n"
    )
