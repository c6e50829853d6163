import importlib
import os
from dataclasses import fields

import pytest

from jobs import fit
from jobs.cli import sources
from jobs.cli.locations import _ONE_PLACE, checked, with_checked_places
from ops.errors import SettingError

MEANT = {
    "gs://b/parts": "write s3://b/parts with AWS_ENDPOINT_URL=https://storage.googleapis.com",
    "s3a://b/parts": "write s3://b/parts",
    "s3n://b": "write s3://b",
    "S3://b/parts": "write s3://b/parts",
    "s3:/b/parts": "write s3://b/parts",
    "az://b/parts": "copy it to a folder or to S3",
    "hdfs://b/parts": "copy it to a folder or to S3",
    "https://b.s3.eu-west-1.amazonaws.com/a/x.tar": "write s3://b/a/x.tar",
    "https://s3.eu-west-1.amazonaws.com/b/x.tar": "write s3://b/x.tar",
    "https://storage.googleapis.com/b/x.tar": "write s3://b/x.tar with AWS_ENDPOINT_URL",
    "http://example.com/x.tar": "download it",
    "file:/data/parts": "write /data/parts",
    "~/parts": f"write {os.path.expanduser('~')}/parts: only a shell",
    "/data/*.tar": "name the folder, /data;",
    "*.png": "name the folder, .;",
    "/data/cam[12]/x": "name the folder, /data;",
    "/data/a?.png": "name the folder, /data;",
}


@pytest.mark.parametrize("place", MEANT)
def test_what_is_no_path_is_refused_with_the_form_that_is_meant(place):
    with pytest.raises(SettingError) as refused:
        checked("archive", place)
    assert f"--archive '{place}' is neither a path nor an s3:// URI; " in str(refused.value)
    assert MEANT[place] in str(refused.value)
    with pytest.raises(SettingError):
        sources.Listing(place).path_parser()


PLACES = {
    "score": ("out", "model", "inventory", "train_names"),
    "fit": ("out", "model_folder", "grow"),
    "ensemble": ("out", "model_folder", "inventory"),
    "plan": ("grow",),
    "nightly": ("out", "model"),
    "inventory": ("output",),
    "evaluate": ("out", "inventory"),
    "check": ("out", "inventory", "model"),
    "compare": ("out", "labels"),
    "query": ("out", "output", "inventory"),
    "report": ("out",),
    "trends": ("out",),
    "expire": ("out",),
    "demo": ("out",),
}


@pytest.mark.parametrize("job", PLACES)
def test_every_place_of_every_job_is_checked(job):
    main = importlib.import_module(f"jobs.{job}").main
    for setting in PLACES[job]:
        name = setting.replace("_", "-")
        for place in ("gs://b/x", "s3a://b/x", "az://b/x", "~/x", "file:/x"):
            with pytest.raises(SettingError) as refused:
                main([f"--{name}", place])
            assert f"--{name} '{place}' is neither a path nor an s3:// URI; " in str(refused.value)
            assert MEANT.get(place.replace("/x", "/parts"), "") in str(refused.value).replace(
                "/x", "/parts"
            )
            assert refused.value.exit_code == 2
        with pytest.raises(SettingError, match="name one place, without"):
            main([f"--{name}", "/data/x*"])


def test_every_setting_that_names_a_place_is_known():
    for job, places in PLACES.items():
        kind = importlib.import_module(f"jobs.{job}")
        settings = getattr(kind, "Settings", fit.Settings)
        named = {field.name for field in fields(settings)} & {*_ONE_PLACE}
        assert set(places) <= named


def test_models_of_the_registry_are_no_places():
    found = with_checked_places({"model": "models:/a@b", "grow": "models:/a/1", "out": "file:///o"})
    assert found == {"model": "models:/a@b", "grow": "models:/a/1", "out": "/o"}
    with pytest.raises(SettingError):
        with_checked_places({"out": "models:/a@b"})


@pytest.mark.parametrize("name", ["a*.png", "what?.png", "[1].png", "~x.png"])
def test_a_file_that_is_called_so_is_one(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    assert checked("archive", name) == name
    assert checked("archive", f"file://{tmp_path}/{name}") == f"{tmp_path}/{name}"


def test_a_key_that_is_called_so_is_one(s3):
    from ops.storage import files

    files.write_bytes(f"{s3}/cam[1]/*.png", b"1")
    for place in (f"{s3}/cam[1]/*.png", f"{s3}/cam[1]"):
        assert checked("archive", place) == place
    with pytest.raises(SettingError, match=f"name the folder, {s3};"):
        checked("archive", f"{s3}/*.png")


def test_an_archive_that_is_written_to_is_refused(tmp_path):
    class Job(sources.Listing):
        out = str(tmp_path / "." / "")

    with pytest.raises(SettingError, match="both read as --archive and written to"):
        Job(str(tmp_path)).search()
    assert sources.Listing(str(tmp_path), column="image").search().column == "image"
