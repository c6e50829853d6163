"""Nights over a store that fails one request in ten: full tables, the same scores, retries told."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, field

import pyarrow as pa
import pytest
from PIL import Image

from jobs import check, inventory, query, score
from ops.detectors.model_folder import read_card, write_model
from ops.images import synthetic_parts
from ops.results import score_table
from ops.storage import files, parquet
from ops.storage.paths import Out
from pipelines.tables import current_scores, run_records
from tests.conftest import ROOT, SECRET, forget_s3, new_bucket, tiny_model
from tests.faults import radosgw
from tests.faults.proxy import ONE_IN_TEN, UNHEARD, Proxy, running

pytestmark = [pytest.mark.ray, pytest.mark.slow]

#: As files, then in a tar, then in a zip.
FILES, IMAGES = 40, 56
#: Which requests fail follows from a seed; with the first, several of those for images do.
SEEDS = (23, 1)
BEHIND = "washer/003.png"
#: What the table of a run must have in common with that of any other over the same images.
COLUMNS = [
    n for n in score_table.SCHEMA.names if n not in {"run_id", "run_number", "scored_at", "map_uri"}
]


def night(job: str, *words: str) -> str:
    """A job in a process of its own, whose workers see the store that the environment names."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{job}", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def drawn(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(synthetic_parts.draw("washer", number, 64).picture).save(out, "PNG")
    return out.getvalue()


def fill(bucket: str) -> list[str]:
    """Images as files, in a tar and in a zip, and one that is none; their places."""
    half = (FILES + IMAGES) // 2
    for number in range(FILES):
        files.write_bytes(f"{bucket}/parts/washer/{number:03d}.png", drawn(number))
    files.write_bytes(f"{bucket}/parts/washer/broken.png", b"no image")
    with files.staged(f"{bucket}/more.tar") as path, tarfile.open(path, "w") as tar:
        for number in range(FILES, half):
            member = tarfile.TarInfo(f"washer/{number:03d}.png")
            member.size = len(data := drawn(number))
            tar.addfile(member, io.BytesIO(data))
    with files.staged(f"{bucket}/rest.zip") as path, zipfile.ZipFile(path, "w") as zipped:
        for number in range(half, IMAGES):
            zipped.writestr(f"washer/{number:03d}.png", drawn(number))
    return [f"{bucket}/{name}" for name in ("parts", "more.tar", "rest.zip")]


@dataclass
class Warehouse:
    """What two nights left, and what was done to them."""

    bucket: str
    tracker: str
    words: list[str]
    faults: dict[int, Proxy] = field(default_factory=dict)
    said: dict[int, str] = field(default_factory=dict)
    current: dict[int, pa.Table] = field(default_factory=dict)
    undisturbed: pa.Table | None = None

    @property
    def out(self) -> Out:
        return Out(f"{self.bucket}/out")

    def totals(self, number: int) -> dict:
        place = self.out.nights()
        return files.read_json(files.join(place, files.names(place)[number]))["totals"]


def by_uri(table: pa.Table) -> list[dict]:
    return table.select(COLUMNS).sort_by("uri").to_pylist()


@pytest.fixture(scope="module")
def warehouse(cluster, s3_server, tmp_path_factory):
    """Two nights behind a proxy, then one run over the same images without."""
    folder = tmp_path_factory.mktemp("warehouse")
    bucket = new_bucket()
    places = fill(bucket)
    model = f"{bucket}/model"
    write_model(model, tiny_model("washer"))
    (folder / "night.toml").write_text(
        f'archive = {places}\npattern = "{{product}}/{{name}}"\nmodel = "{model}"\nmaps = "all"\n'
        "[resources]\nworkers = 1\nbatch = 4\n[fetch]\nbackoff = 0.05\n"
    )
    tracker = f"sqlite:///{folder}/mlflow.db"
    found = Warehouse(bucket, tracker, ["--config", str(folder / "night.toml")])
    with pytest.MonkeyPatch.context() as patch:
        for number in range(2):
            with running(Proxy(s3_server, SEEDS[number], ONE_IN_TEN)) as proxy:
                if number == 0:
                    proxy.gone = BEHIND
                else:
                    files.write_bytes(f"{bucket}/parts/washer/new.png", drawn(500))
                patch.setenv("AWS_ENDPOINT_URL", proxy.address)
                patch.setenv("MLFLOW_TRACKING_URI", tracker)
                found.said[number] = night("nightly", *found.words, "--out", f"{bucket}/out")
                patch.undo()
                found.faults[number] = proxy
            found.current[number] = current_scores.current(found.out, read_card(model).model_id)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert score.main([*found.words, "--out", f"{bucket}/undisturbed"]) == 0
    record = run_records.finished(Out(f"{bucket}/undisturbed"))
    found.undisturbed = parquet.read(record["totals"]["table"])
    assert record["totals"]["retries"] == 0
    return found


def test_faults_of_many_kinds_were_injected(warehouse):
    first, second = warehouse.faults.values()
    injected, requests = first.counts + second.counts, first.requests + second.requests
    assert 0.04 < injected.total() / requests.total() < 0.2
    assert len(injected) >= 5


def test_the_first_night_misses_only_what_was_gone(warehouse):
    assert warehouse.totals(0)["statuses"] == {"missing": 1, "ok": IMAGES - 1, "unreadable": 1}
    (missing,) = [row for row in by_uri(warehouse.current[0]) if row["status"] == "missing"]
    assert missing["uri"].endswith(BEHIND)
    expected = [row for row in by_uri(warehouse.undisturbed) if "new.png" not in row["uri"]]
    assert [row for row in by_uri(warehouse.current[0]) if row["status"] != "missing"] == [
        row for row in expected if not row["uri"].endswith(BEHIND)
    ]


def test_after_the_second_every_row_and_score_is_that_of_an_undisturbed_run(warehouse):
    assert warehouse.totals(1)["statuses"] == {"ok": 2}  # the new one, and the one that was gone
    assert "1 new, 0 changed, 1 to be tried again" in warehouse.said[1]
    assert by_uri(warehouse.current[1]) == by_uri(warehouse.undisturbed)
    assert len(warehouse.undisturbed) == IMAGES + 2


def test_the_retries_of_images_are_told(warehouse):
    """As many as the proxy made necessary; of lost connections aiohttp hides every first one."""
    images = r"^GET /[^/]*/(parts/|more\.tar|rest\.zip)"
    for number, proxy in warehouse.faults.items():
        retries = warehouse.totals(number)["retries"]
        # Opening archives to list them asks for the same, so theirs only bound it from above.
        heard = sum(
            entry.kind not in {*UNHEARD, "slow"}
            and bool(re.match(r"/[^/]*/parts/", entry.target))
            and entry.method == "GET"
            for entry in proxy.log
        )
        assert heard <= retries <= proxy.failures(images) + proxy.failures("^HEAD .*zip")
        told = f"{retries} reads were repeated before the store answered"
        assert (told in warehouse.said[number]) == (retries > 0)
    assert warehouse.totals(0)["retries"] >= 3


def test_the_tracker_heard_of_the_retries(warehouse):
    from mlflow import MlflowClient

    client = MlflowClient(warehouse.tracker)
    (experiment,) = client.search_experiments(filter_string="name = 'nightloupe'")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert [run.data.metrics["retries"] for run in runs] == [
        warehouse.totals(number)["retries"] for number in range(2)
    ]


def test_nothing_unfinished_is_left_and_the_lock_is_free(warehouse):
    left = [item.name for item in files.listing(warehouse.out.root)]
    assert not [name for name in left if "_work/" in name or "_spool/" in name]
    (key,) = [name for name in left if name.startswith("_lock/")]
    assert files.read_json(f"{warehouse.out.root}/{key}")["ended"]
    maps = [name for name in left if name.startswith("maps/")]
    assert len(maps) == IMAGES + 1


def test_no_key_of_the_store_is_said(warehouse):
    for secret in SECRET.values():
        assert secret not in "".join(warehouse.said.values())


def test_a_night_on_a_real_server(free_port, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with radosgw.running(free_port) as address:
        for name, value in {**radosgw.KEYS, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        forget_s3()
        bucket = new_bucket()
        places = fill(bucket)
        write_model(f"{bucket}/model", tiny_model("washer"))
        listed, out = f"{bucket}/parts.parquet", f"{bucket}/out"
        words = ["--archive", str(places).replace("'", '"'), "--pattern", "{product}/{name}"]
        assert inventory.main([*words, "--output", listed]) == 0
        night("score", "--inventory", listed, "--model", f"{bucket}/model", "--out", out)
        assert check.main(["--out", out, "--model", f"{bucket}/model"]) == 0
        assert query.main(["--out", out, "--output", str(tmp_path / "worst.csv")]) == 0
        totals = run_records.finished(Out(out))["totals"]
        assert totals["statuses"] == {"ok": IMAGES, "unreadable": 1}
        assert totals["retries"] == 0
        assert (tmp_path / "worst.csv").read_text().count("\n") == IMAGES + 2
        said = "".join(capsys.readouterr())
        assert not [value for value in radosgw.KEYS.values() if value in said]
    monkeypatch.undo()
    forget_s3()
