"""Nothing is unpickled from model to score, and no secret is in anything that a job leaves."""

import ast
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from ops.archives.fetch import FetchSettings
from ops.detectors.model_folder import read_model, write_model
from ops.errors import UserError
from ops.features.backbone import Backbone, BackboneSettings
from ops.features.weights import load_weights
from ops.storage import files, uris
from ops.storage.paths import Out
from pipelines.cluster.resources import Resources
from pipelines.scoring.stream import ScoringStream, draw_step
from tests import pictures
from tests.conftest import LOOPBACK_ONLY, ROOT, forget_s3, new_bucket, tiny_model
from tests.faults.reading import Tensors
from tests.test_architecture import CODE, calls, name_of, nodes

PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIDPLANTED0123456789",
    "AWS_SECRET_ACCESS_KEY": "planted/Secret+Key==",
    "AWS_SESSION_TOKEN": "planted-session-token",
}
PASSWORD = "planted-Passw0rd"


@pytest.fixture
def no_pickle(monkeypatch):
    """Whatever unpickles, fails."""

    def refused(*_, **__):
        raise AssertionError("something was unpickled")

    real = torch.load

    def load(*given, **options):
        assert options.get("weights_only") is True
        return real(*given, **options)

    for name in ("load", "loads", "Unpickler", "_load", "_loads", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refused)
    monkeypatch.setattr(torch, "load", load)


def test_nothing_is_unpickled_from_weights_to_scores(tmp_path, no_pickle):
    state = load_weights("random", "squeezenet1_1", 0)
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        Backbone(BackboneSettings("squeezenet1_1", "features.3", str(tmp_path / name)))
    write_model(str(tmp_path / "model"), tiny_model("part"))  # fits it, too
    model = Tensors(read_model(str(tmp_path / "model")))
    (tmp_path / "a.png").write_bytes(pictures.encoded(pictures.texture(0)))
    row = {"image_id": "ab", "uri": uris.make(str(tmp_path / "a.png")), "product": "part"}
    row |= {"bytes": None, "member": None, "problem": None, "inventory_row": 0}
    draw = draw_step(model, Out(str(tmp_path / "out")), "all")
    scored = ScoringStream(model, draw, FetchSettings(), Resources()).run_locally(
        pa.Table.from_pylist([row])
    )
    assert scored["status"].to_pylist() == ["ok"]
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.loads(b"")


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (os.mkdir, (self.place,))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("form", ["zip", "old", "plain"])
def test_weights_that_would_run_code_are_refused_under_any_name(tmp_path, name, form):
    trap, file = Trap(str(tmp_path / "sprung")), tmp_path / name
    if form == "plain":
        file.write_bytes(pickle.dumps(trap, protocol=2))
    else:
        torch.save({"a": trap}, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match="cannot be read as tensors"):
        load_weights(str(file), "squeezenet1_1", 0)
    assert os.listdir(tmp_path) == [name]
    pickle.loads(pickle.dumps(trap))
    assert "sprung" in os.listdir(tmp_path)  # so it would have


def test_no_text_becomes_code():
    forbidden = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"}
    wrong = []
    for file in CODE:
        wrong += [f"{name_of(file)} calls {name}" for name, _ in calls(file) if name in forbidden]
        shells = [n for n in nodes(file) if isinstance(n, ast.keyword) and n.arg == "shell"]
        wrong += [name_of(file) for shell in shells if ast.unparse(shell.value) != "False"]
    assert wrong == []


def job(folder: Path, name: str, *words: str) -> subprocess.CompletedProcess:
    """A job in a process of its own, on a cluster of its own whose logs lie below `folder`."""
    environment = os.environ | LOOPBACK_ONLY | {"RAY_AUTH_MODE": "disabled"}
    environment |= {"RAY_TMPDIR": str(folder), "NIGHTLOUPE_LOG": "INFO", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_planted_secrets_are_found_in_nothing_that_a_night_leaves(
    s3_server, monkeypatch, free_port, request
):
    folder = Path(f"/tmp/nl-sec-{os.getpid()}")  # sockets need short paths
    folder.mkdir()
    request.addfinalizer(lambda: files.remove_folder(str(folder)))
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    forget_s3()
    request.addfinalizer(forget_s3)
    bucket = new_bucket()
    for number in range(6):
        data = pictures.encoded(pictures.texture(number))
        files.write_bytes(f"{bucket}/parts/{number}.png", data if number else b"broken")
    packed = bytearray(pictures.encoded(pictures.texture(0), "TIFF", compression="tiff_lzw"))
    packed[60:90] = b"\xff" * 30  # libtiff prints "Using code not yet in table"
    files.write_bytes(f"{bucket}/parts/packed.tif", bytes(packed))
    write_model(str(folder / "model"), tiny_model("parts"))
    # A tracker with a password in its address; nobody listens, so that it is spooled and told.
    tracker = f"http://ann:{PASSWORD}@127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker)
    out, listed = folder / "out", str(folder / "parts.parquet")
    said = [job(folder, "inventory", "--archive", f"{bucket}/parts", "--output", listed)]
    words = ["--inventory", listed, "--model", str(folder / "model"), "--maps", "all"]
    said.append(job(folder, "score", *words, "--out", str(out)))
    said.append(job(folder, "score", *words, "--out", f"{bucket}/out"))
    assert [one.returncode for one in said] == [0, 0, 0], said[-1].stderr
    assert "tracking failed" in said[1].stderr
    assert "Using code" not in said[1].stderr + said[1].stdout  # it stays with the workers
    # With the tracker up, what was spooled arrives in its database.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/tracker/mlflow.db")
    again = [*words[:-1], "none", "--out", str(out)]
    said.append(job(folder, "score", *again))
    # A store whose address holds a password is refused, and an error tells of it.
    port = s3_server.rpartition(":")[2]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://ann:{PASSWORD}@127.0.0.1:{port}")
    said.append(job(folder, "inventory", "--archive", f"{bucket}/parts", "--output", listed + "2"))
    assert [one.returncode for one in said[3:]] == [0, 1], said[-1].stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    forget_s3()

    written = {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for place in files.listing(bucket):
        name = files.join(bucket, place.name)
        written[name] = files.read_bytes(name)
    tables = [name for name in written if name.endswith(".parquet")]
    for name in tables:  # pages are compressed
        table = pq.read_table(pa.BufferReader(written[name]))
        written[name + " rows"] = f"{table.schema.metadata} {table.to_pylist()}".encode()
    for number, one in enumerate(said):
        written[f"output of job {number}"] = (one.stdout + one.stderr).encode()
    assert [name for name in written if "/session_" in name and "raylet.out" in name]
    assert [name for name in written if name.endswith("mlflow.db")]
    for table in ("scores", "regions"):
        assert len([name for name in tables if f"/out/{table}/" in name]) == 3
    secrets = [value.encode() for value in (*PLANTED.values(), PASSWORD)]
    found = {name for name, data in written.items() if any(s in data for s in secrets)}
    assert not found
