"""Against real trackers: SQLite files, and a port where nobody listens."""

import io
import json
import logging
import os
import shutil
import sqlite3
import time

import pytest
import torch

from jobs.tracking.record import Record
from jobs.tracking.tracker import EXPERIMENT, Tracker
from ops.detectors.model_folder import read_model
from ops.errors import UserError
from ops.storage import files
from tests.conftest import tiny_model
from tests.faults.servers import tracker_in

pytestmark = pytest.mark.slow
PASSWORD = "hunter2@home"


def client_class() -> type:
    """MlflowClient; its import takes seconds, which a run without slow tests need not spend."""
    from mlflow import MlflowClient

    return MlflowClient


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """An output folder whose tracker is set up once, as that takes seconds."""
    return str(tmp_path_factory.mktemp("out"))


@pytest.fixture(autouse=True)
def _no_tracker_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def runs(out: str, job: str) -> list:
    client = client_class()(Tracker(out).uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return client.search_runs([experiment.experiment_id], f"tags.job = '{job}'")


def spooled(out: str) -> list[dict]:
    spool = Tracker(out).out.spool()
    names = [item.name for item in files.listing(spool)] if files.is_folder(spool) else []
    return [files.read_json(files.join(spool, name)) for name in names]


def test_params_metrics_and_tags_of_a_job_arrive(out):
    settings = {"archive": "parts", "fetch": {"attempts": 5}}
    with Tracker(out).run("arrives", settings) as record:
        record.metrics |= {"images": 3, "rate": 0.25}
        record.tags["run_id"] = "2026-11-20-abc"
    (run,) = runs(out, "arrives")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"archive": "parts", "fetch.attempts": "5"}
    assert run.data.metrics == {"images": 3.0, "rate": 0.25}
    assert run.data.tags["run_id"] == "2026-11-20-abc"
    assert run.data.tags["torch"] == torch.__version__
    assert run.info.end_time >= run.info.start_time
    assert spooled(out) == []


def test_a_tracking_server_is_told_of_a_job_and_nothing_is_printed(tmp_path, monkeypatch, capfd):
    server = tracker_in(tmp_path / "tracker")
    try:
        address = server.address.replace("//", "//ann:secret@")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        capfd.readouterr()
        with Tracker("out").run("served", {}) as record:
            record.metrics["images"] = 1
        (run,) = runs("out", "served")
        assert run.data.metrics == {"images": 1.0}
        assert capfd.readouterr() == ("", "")
    finally:
        server.kill()


def test_curves_arrive_epoch_by_epoch_however_long_they_are(out):
    curve = [1 / epoch for epoch in range(1, 1203)]
    with Tracker(out).run("curves", {}) as record:
        record.curves["product_0.loss_by_epoch"] = curve
    (run,) = runs(out, "curves")
    client = client_class()(Tracker(out).uri)
    points = client.get_metric_history(run.info.run_id, "product_0.loss_by_epoch")
    assert [point.value for point in sorted(points, key=lambda point: point.step)] == curve
    assert {point.step for point in points} == set(range(1, 1203))


def test_a_model_of_hundreds_of_products_arrives_in_parts(out):
    tracker = Tracker(out)
    with tracker.run("many", {"fetch": {"attempts": 5}}) as record:
        record.metrics |= {f"product_{n}.images": n for n in range(2100)}
        record.tags |= {f"product_{n}": f"bolt {n}" for n in range(350)}
    (run,) = runs(out, "many")
    assert run.data.metrics == {f"product_{n}.images": n for n in range(2100)}
    assert [run.data.tags[f"product_{n}"] for n in range(350)] == [f"bolt {n}" for n in range(350)]
    assert run.data.params == {"fetch.attempts": "5"}


def test_files_of_a_job_arrive_as_artifacts_and_lost_ones_fail_nothing(out, tmp_path, heard):
    (tmp_path / "a.png").write_bytes(b"a picture")
    with Tracker(out).run("draws", {}) as record:
        record.files["curves/a.png"] = str(tmp_path / "a.png")
    with Tracker(out).run("loses", {}) as record:
        record.metrics["images"] = 1
        record.files["curves/b.png"] = str(tmp_path / "b.png")
    (drawn,), (lost,) = runs(out, "draws"), runs(out, "loses")
    client = client_class()(Tracker(out).uri)
    fetched = client.download_artifacts(drawn.info.run_id, "curves/a.png", str(tmp_path))
    with open(fetched, "rb") as file:
        assert file.read() == b"a picture"
    assert lost.data.metrics == {"images": 1.0}
    assert lost.info.status == "FINISHED"
    assert client.list_artifacts(lost.info.run_id) == []
    assert "files of loses were not delivered" in heard.getvalue()
    assert spooled(out) == []


@pytest.mark.parametrize("call", ["create_run", "log_batch", "set_terminated"])
def test_a_job_arrives_once_whichever_answer_is_lost(out, call, tmp_path):
    answered = getattr(client_class(), call)
    (tmp_path / "a.png").write_bytes(b"a picture")

    def lost(*given, **named):
        answered(*given, **named)
        raise ConnectionError("no answer")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_class(), call, lost)
        with Tracker(out).run(f"lost-{call}", {}) as record:
            record.metrics["images"] = 1
            record.files["a.png"] = str(tmp_path / "a.png")
    assert len(spooled(out)) == 1
    with Tracker(out).run("next", {}):
        pass
    (run,) = runs(out, f"lost-{call}")
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"images": 1.0}
    assert [f.path for f in client_class()(Tracker(out).uri).list_artifacts(run.info.run_id)] == [
        "a.png"
    ]
    assert spooled(out) == []


def test_a_run_that_was_begun_twice_is_there_once(out):
    begin = client_class().create_run

    def twice(*given, **named):
        begin(*given, **named)  # as if its answer had been lost, and MLflow had asked again
        return begin(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_class(), "create_run", twice)
        with Tracker(out).run("twice", {}):
            pass
    (run,) = runs(out, "twice")
    assert run.info.status == "FINISHED"


def test_a_job_that_fails_is_recorded_as_failed_and_still_fails(out):
    def job():
        with Tracker(out).run("fails", {}) as record:
            record.metrics["images"] = 1
            record.metrics["rate"] = 1 / 0

    with pytest.raises(ZeroDivisionError):
        job()
    (run,) = runs(out, "fails")
    assert run.info.status == "FAILED"
    assert run.data.metrics == {"images": 1.0}


def test_a_registered_model_comes_back_by_alias_and_by_version(out, tmp_path):
    model, tracker = tiny_model("bolt"), Tracker(out)
    with tracker.run("fit", {}) as record:
        uri = tracker.register(model, "bolts", "champion", record)
    assert uri == "models:/bolts@champion"
    for name, known_as in (("a", uri), ("b", "models:/bolts/1")):
        folder = tracker.fetch_model(known_as, str(tmp_path / name))
        assert read_model(folder).card.model_id == model.card.model_id
    version = client_class()(tracker.uri).get_model_version_by_alias("bolts", "champion")
    assert version.tags == {"model_id": model.card.model_id, "method": "patchcore"}
    (run,) = runs(out, "fit")
    assert run.info.run_id == version.run_id


def test_an_alias_moves_to_the_newest_version(out):
    model, tracker = tiny_model("bolt"), Tracker(out)
    for _ in range(2):
        with tracker.run("refit", {}) as record:
            tracker.register(model, "nuts", "champion", record)
    client = client_class()(tracker.uri)
    version = client.get_model_version_by_alias("nuts", "champion")
    assert version.version in {2, "2"}
    client.set_registered_model_alias("nuts", "best", version.version)
    assert tracker.name_of("models:/nuts@champion") == "nuts v2, champion, best"
    assert tracker.name_of("models:/nuts/2") == "nuts v2, best, champion"
    assert tracker.name_of("models:/nuts/1") == "nuts v1"
    assert tracker.name_of("models:/nuts/9") == tracker.name_of(str(out)) == ""


def test_a_registered_model_whose_files_are_gone_is_said_so(out, tmp_path):
    tracker = Tracker(out)
    tracker.register(tiny_model("bolt"), "rivets", "champion", Record("fit"))
    version = client_class()(tracker.uri, tracker.uri).get_model_version("rivets", "1")
    shutil.rmtree(version.source)
    with pytest.raises(
        FileNotFoundError, match=r"rivets/1 is registered at .* cannot be downloaded"
    ):
        tracker.fetch_model("models:/rivets/1", str(tmp_path))


@pytest.mark.parametrize(
    "uri", ["models:/bolts@nobody", "models:/nuts_@champion", "models:/bolts/99"]
)
def test_a_model_that_is_not_in_the_registry_is_said_so(out, tmp_path, uri):
    with pytest.raises(FileNotFoundError, match=f"{uri} is not in the registry at sqlite:///"):
        Tracker(out).fetch_model(uri, str(tmp_path))


def test_what_is_no_models_uri_is_told_the_form(out, tmp_path):
    with pytest.raises(UserError, match="neither models:/name@alias nor models:/name/version"):
        Tracker(out).fetch_model("models:/bolts", str(tmp_path))


def test_artifacts_lie_beside_the_database_and_never_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/tracker/mlflow.db")
    tracker = Tracker("s3://bucket/out")
    uri = tracker.register(tiny_model("bolt"), "bolts", "champion", Record("fit"))
    assert uri
    assert read_model(tracker.fetch_model(uri, str(tmp_path / "fetched")))
    assert set(os.listdir(tmp_path)) == {"tracker", "fetched"}


@pytest.fixture
def heard():
    """What jobs.tracking logs; another of its handlers is broken."""
    stream, gone = io.StringIO(), io.StringIO()
    gone.close()
    handlers = [logging.StreamHandler(stream), logging.StreamHandler(gone)]
    logger = logging.getLogger("jobs.tracking.tracker")
    for handler in handlers:
        logger.addHandler(handler)
    yield stream
    for handler in handlers:
        logger.removeHandler(handler)


def test_a_tracker_that_is_down_is_told_later(tmp_path, monkeypatch, free_port, heard, capfd):
    out = str(tmp_path / "out")
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:{PASSWORD}@{address}")
    started = time.monotonic()
    settings = {"archive": f"https://ann:{PASSWORD}@store/parts", "resources": {"cpus": 1.0}}
    with Tracker(out).run("night", settings) as record:
        record.metrics["images"] = 7
        record.tags["source"] = f"ftp://ann:{PASSWORD}@store"
        (tmp_path / "a.png").write_bytes(b"a picture")
        record.files["curves/a.png"] = str(tmp_path / "a.png")
    assert time.monotonic() - started < 15
    with pytest.raises(FileNotFoundError) as unknown:
        Tracker(out).fetch_model("models:/bolts@champion", str(tmp_path))
    (kept,) = spooled(out)
    assert kept["job"] == "night"
    assert kept["metrics"] == {"images": 7}
    assert "kept in" in heard.getvalue()
    printed = "".join(capfd.readouterr())
    assert "--- Logging error ---" in printed  # it says what was logged, and what was raised
    said = heard.getvalue() + printed + str(unknown.value) + json.dumps(kept)
    assert address in said
    assert "hunter2" not in said
    assert "home" not in said

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with Tracker(out).run("next night", {}):
        pass
    assert spooled(out) == []
    (run,) = runs(out, "night")
    assert run.data.params == {"archive": "https://***@store/parts", "resources.cpus": "1.0"}
    assert run.data.metrics == {"images": 7.0}
    assert run.info.start_time == kept["started_ms"]
    (delivered,) = client_class()(Tracker(out).uri).list_artifacts(run.info.run_id, "curves")
    assert delivered.path == "curves/a.png"
    assert len(runs(out, "next night")) == 1


def test_a_model_is_unharmed_by_a_tracker_that_is_down(tmp_path, monkeypatch, free_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker(str(tmp_path))
    with tracker.run("fit", {}) as record:
        assert tracker.register(tiny_model("bolt"), "bolts", "champion", record) is None
    assert [kept["job"] for kept in spooled(str(tmp_path))] == ["fit"]


def test_what_cannot_be_delivered_does_not_make_the_next_record_arrive_twice(out):
    torn = files.join(Tracker(out).out.spool(), "torn.json")
    files.write_bytes(torn, b'{"job": "ni')
    for _ in range(2):
        with Tracker(out).run("beside torn", {}):
            pass
    files.remove_file(torn)
    assert len(runs(out, "beside torn")) == 2
    assert spooled(out) == []


def test_passwords_leave_no_trace_in_the_database(out):
    with Tracker(out).run("secretive", {"model": f"s3://ann:{PASSWORD}@bucket/m"}) as record:
        record.tags["model"] = f"see http://ann:{PASSWORD}@host/a and http://b:{PASSWORD}@host/b"
    (run,) = runs(out, "secretive")
    assert run.data.params == {"model": "s3://***@bucket/m"}
    assert run.data.tags["model"] == "see http://***@host/a and http://***@host/b"
    with sqlite3.connect(f"{out}/mlflow.db") as database:
        assert "hunter2" not in "\n".join(database.iterdump())


def test_without_a_tracker_for_s3_outputs_nothing_is_guessed():
    assert Tracker("s3://bucket/out").uri is None
