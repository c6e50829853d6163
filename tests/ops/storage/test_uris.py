import os

import pytest

from ops.storage import uris

NAMES = [
    "plain.png",
    "with space.png",
    "a#b.png",
    "what?.png",
    "100%.png",
    "already%20quoted%23.png",
    "ünïcödé-部品-🔧.png",
    "tab\tnew\nline\x7f.png",
    os.fsdecode(b"latin-\xe9\xff.png"),
    "semi;colon&and=equals+plus.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_parse_returns_the_location(name):
    for location in (f"/data/{name}", f"s3://bucket/{name}"):
        assert uris.parse(uris.make(location)) == (location, None)


@pytest.mark.parametrize("name", NAMES)
def test_parse_returns_the_member_of_an_archive_of_any_name(name):
    for archive in ("/data/a.tar", "/data/a#1%.tar", f"s3://bucket/{name}.zip"):
        assert uris.parse(uris.make(archive, name)) == (archive, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_uri_is_one_line_of_utf8_with_a_scheme(name):
    uri = uris.make(f"/data/{name}")
    assert uri.startswith("file:///data/")
    assert uri.encode("utf-8").decode().isprintable()
    assert "#" not in uri
    assert "?" not in uri


def test_harmless_characters_stay_as_they_are():
    assert uris.make("s3://b/ü 1.png") == "s3://b/ü 1.png"
    assert uris.make("s3://b/a.tar", "dir/x.png") == "s3://b/a.tar#dir/x.png"


def test_a_relative_location_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert uris.parse(uris.make("a/b.png")).location == str(tmp_path / "a" / "b.png")


def test_the_member_with_the_empty_name_is_not_the_archive():
    assert uris.parse(uris.make("/a.tar", "")) == ("/a.tar", "")
    assert uris.parse(uris.make("/a.tar")) == ("/a.tar", None)


def test_different_names_have_different_uris():
    assert len({uris.make("/d", name) for name in [*NAMES, "a%23b.png", "a%2523b.png"]}) == (
        len(NAMES) + 2
    )
