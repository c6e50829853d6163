from __future__ import annotations

import logging

import pytest

from ops.detectors.model_folder import write_model
from tests.conftest import SECRET, forget_s3, new_bucket, tiny_model
from tests.faults.proxy import Proxy, running
from tests.jobs.conftest import leave

__all__ = ["leave"]

#: What each job is asked for in a bucket.
JOBS = {
    "inventory": ["--archive", "{}/parts"],
    "plan": ["--archive", "{}/parts"],
    "fit": ["--archive", "{}/parts", "--out", "{}/out"],
    "ensemble": ["--archive", "{}/parts", "--models", '["{model}", "{model}"]', "--out", "{}/out"],
    "score": ["--archive", "{}/parts", "--model", "{model}", "--out", "{}/out"],
    "nightly": ["--archive", "{}/parts", "--model", "{model}", "--out", "{}/out"],
    "evaluate": ["--out", "{}/out"],
    "check": ["--out", "{}/out"],
    "compare": ["--out", "{}/out"],
    "query": ["--out", "{}/out"],
    "report": ["--out", "{}/out"],
    "trends": ["--out", "{}/out"],
    "expire": ["--out", "{}/out", "--keep-nights", "3"],
}
REMEDY = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, must name keys"


@pytest.fixture(scope="module")
def faulty_server(s3_server):
    """A proxy before the S3 server, which this process now takes for the server."""
    with running(Proxy(s3_server)) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.address)
        forget_s3()
        yield proxy
    forget_s3()


@pytest.fixture
def proxy(faulty_server):
    """The proxy, as yet without a fault."""
    faulty_server.forget()
    yield faulty_server
    faulty_server.forget()


@pytest.fixture
def bucket(proxy):
    """The URI of an empty bucket behind the proxy."""
    return new_bucket()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A small model on disk."""
    folder = str(tmp_path_factory.mktemp("model") / "model")
    write_model(folder, tiny_model("washer"))
    return folder


@pytest.fixture
def told(leave, model, monkeypatch, request):
    """Runs a job over a bucket where no cluster can start; what it says before it leaves with 1."""

    def run(job: str, bucket: str) -> str:
        request.addfinalizer(forget_s3)
        forget_s3()
        # Connections of a store that was forgotten complain when they are collected.
        monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", True)
        monkeypatch.setattr("ray.init", None)
        monkeypatch.setattr("pipelines.tables.take_inventory.take", None)
        code, out, err = leave(job, *(word.format(bucket, model=model) for word in JOBS[job]))
        assert code == 1
        assert err.startswith("error: "), err
        assert err.count("\n") == 1
        assert not [value for value in SECRET.values() if value in out + err]
        return err

    return run
