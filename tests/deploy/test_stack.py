"""One night on everything that a cluster has: tracker on PostgreSQL, S3, Ray with a token."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from ops.errors import UserError
from tests.conftest import ROOT, draw_archive, forget_s3, tiny_fit

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.alone]
OUT = "s3://warehouse/out"
MODEL = "models:/nightloupe@champion"


def processes(folder: str) -> list[int]:
    """The processes whose command lines name a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes()
        except OSError:  # gone meanwhile
            continue
        if folder.encode() in words and int(place.name) != os.getpid():
            found.append(int(place.name))
    return found


@dataclass
class Stack:
    """The running script, and what a user finds in its environment."""

    script: subprocess.Popen
    folder: str
    environment: dict[str, str]

    def job(self, name: str, *words: str) -> str:
        """Run a job as a user does; what it said."""
        done = subprocess.run(
            [sys.executable, "-m", f"jobs.{name}", *words],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def sql(self, query: str) -> list[str]:
        """Ask the tracker's database itself."""
        words = ["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", query]
        asked = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, check=True
        )
        return asked.stdout.split()

    def keys(self, bucket: str) -> list[str]:
        """What lies in a bucket."""
        names = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
        endpoint, region = (self.environment[name] for name in names)
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )
        return [item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]]


@pytest.fixture(scope="module")
def stack():
    if shutil.which("psql") is None or not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("PostgreSQL's programs are not there: apt-get install postgresql")
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("MLflow's way to PostgreSQL is not there: pip install '.[server]'")
    kept = ("PATH", "HOME", "PYTHONPATH", "OMP_NUM_THREADS", "LANG")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    script = subprocess.Popen(
        [ROOT / "deploy" / "local-stack"],
        env=environment | {"CPUS": "4"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert script.stderr is not None
        said = script.stderr.readline()
        assert "; environment: " in said, said + script.stderr.read()
        file = said.rsplit("environment: ", 1)[1].strip()
        printed = subprocess.run(
            ["bash", "-c", 'source "$1" && env -0', "bash", file],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        pairs = (pair.split("=", 1) for pair in printed.stdout.split("\0") if pair)
        yield Stack(script, str(Path(file).parent), dict(pairs))
    finally:
        script.send_signal(signal.SIGTERM)
        script.wait(60)


@pytest.fixture(scope="module")
def night(stack, tmp_path_factory):
    """The first night, from an empty bucket to the worst images."""
    from ops.storage import files

    parts = tmp_path_factory.mktemp("parts")
    draw_archive(parts, train=9, test=2)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment.items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        forget_s3()
        for file in sorted(parts.rglob("*.png")):
            place = f"s3://warehouse/parts/{file.relative_to(parts)}"
            files.write_bytes(place, file.read_bytes())
    forget_s3()
    listed = "s3://warehouse/parts.parquet"
    given = ["--archive", "s3://warehouse/parts", "--layout", "mvtec"]
    said = {"inventory": stack.job("inventory", *given, "--output", listed)}
    said["fit"] = stack.job("fit", "--inventory", listed, "--out", OUT, *tiny_fit())
    said["nightly"] = stack.job("nightly", *given, "--model", MODEL, "--out", OUT)
    said["query"] = stack.job("query", "--out", OUT, "--limit", "5")
    return said


def test_the_first_night_ends_with_the_worst_images(night):
    assert "26 images and 4 masks listed" in night["inventory"]
    assert f"registered: {MODEL}" in night["fit"]
    assert "26 images: 26 new, 0 changed" in night["nightly"]
    assert "26 images: 26 ok" in night["nightly"]
    assert night["query"].count("s3://warehouse/parts/") == 5
    assert [name for name, text in night.items() if "View run" in text or "Warning" in text] == []


def test_the_tracker_keeps_its_runs_in_postgresql(night, stack):
    # Names tell the job, then night, products and images.
    jobs = stack.sql("SELECT regexp_replace(name, '[ ,].*', '') FROM runs ORDER BY 1")
    assert jobs == ["fit", "nightly"]
    assert set(stack.sql("SELECT status FROM runs")) == {"FINISHED"}
    assert stack.sql("SELECT alias FROM registered_model_aliases") == ["champion"]


def test_the_model_lies_in_the_trackers_bucket_and_the_table_in_ours(night, stack):
    tracked = stack.keys("mlflow")
    assert [key for key in tracked if key.endswith("/artifacts/model/model.json")]
    assert [key for key in tracked if key.endswith(".safetensors")]
    ours = stack.keys("warehouse")
    assert len([key for key in ours if key.startswith("out/scores/night=")]) == 1
    assert len([key for key in ours if key.startswith("out/nights/")]) == 1


def test_without_the_token_nobody_works_there(night, stack):
    strange = {**stack.environment, "RAY_AUTH_TOKEN": "0" * 64}
    asked = subprocess.run(
        [sys.executable, "-c", "import ray; ray.init(log_to_driver=False)"],
        env=strange,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert asked.returncode != 0
    assert "oken" in asked.stderr


def is_loopback(host: str) -> bool:
    """Of an address as `ss` prints it, such as 127.0.0.1, * or [::ffff:127.0.0.1]."""
    try:
        found = ipaddress.ip_address(host.strip("[]"))
    except UserError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def test_it_listens_on_loopback_alone_and_leaves_nothing(night, stack):
    """The last one: it ends the stack."""
    mine = processes(stack.folder)
    assert len(mine) >= 5
    sockets = subprocess.run(
        ["ss", "-ltnpH"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    held = [line for line in sockets if any(f"pid={pid}," in line for pid in mine)]
    assert held
    assert [line for line in held if not is_loopback(line.split()[3].rpartition(":")[0])] == []
    stack.script.send_signal(signal.SIGTERM)
    assert stack.script.wait(60) == 143
    assert processes(stack.folder) == []
    assert not Path(stack.folder).exists()
