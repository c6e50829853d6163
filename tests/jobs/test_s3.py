"""A whole night on S3: archives of every kind, weights, inventory, model and outputs."""

import contextlib
import io
import os
import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image
from safetensors.torch import save

from jobs import check, evaluate, fit, inventory, score
from ops.archives.inventory import Inventory
from ops.detectors.model_folder import read_model
from ops.results import map_png, score_table
from ops.storage import files, parquet, uris
from ops.storage.paths import Out
from ops.storage.s3 import file_system
from pipelines.tables import run_records
from tests.conftest import SECRET, draw_archive, new_bucket, tiny_fit

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STRANGE = "washer/test/good/a #1?%ü.png"
CUT = "washer/test/good/009.png"
GONE = "washer/test/good/010.png"


@dataclass
class Night:
    """One night, run once; the tests below look at what it left."""

    bucket: str
    drawn: Path
    tracker: Path
    said: str
    before: dict[str, tuple[str, str]]
    after: dict[str, tuple[str, str]]

    @property
    def out(self) -> Out:
        return Out(f"{self.bucket}/out")

    @property
    def record(self) -> dict:
        return run_records.finished(self.out)

    @property
    def table(self) -> pa.Table:
        return parquet.read(self.record["totals"]["table"])


def upload(drawn: Path, bucket: str) -> list[str]:
    """One product as files below a prefix, the other in a tar, a zip and a Parquet file."""
    shutil.copy(drawn / "washer/test/good/012.png", drawn / STRANGE)
    whole = (drawn / CUT).read_bytes()
    (drawn / CUT).write_bytes(whole[: len(whole) // 2])
    for file in (drawn / "washer").rglob("*.png"):
        files.write_bytes(f"{bucket}/parts/{file.relative_to(drawn)}", file.read_bytes())
    packed = {name: f"{bucket}/fabric.{name}" for name in ("tar", "zip", "parquet")}
    with files.staged(packed["tar"]) as path, tarfile.open(path, "w") as tar:
        tar.add(drawn / "fabric/train", "fabric/train")
    with files.staged(packed["zip"]) as path, zipfile.ZipFile(path, "w") as zipped:
        for folder in ("test/good", "ground_truth"):
            for file in (drawn / "fabric" / folder).rglob("*.png"):
                zipped.write(file, str(file.relative_to(drawn)))
    blobs = sorted((drawn / "fabric/test/blob").iterdir())
    rows = {
        "path": [str(file.relative_to(drawn)) for file in blobs],
        "image": [file.read_bytes() for file in blobs],
    }
    with files.staged(packed["parquet"]) as path:
        pq.write_table(pa.table(rows), path, row_group_size=3)
    return [f"{bucket}/parts", *packed.values()]


def objects(bucket: str) -> dict[str, tuple[str, str]]:
    """Version and time of every object but the lock's, which each job takes."""
    page = file_system().call_s3("list_objects_v2", Bucket=bucket.removeprefix("s3://"))
    assert not page["IsTruncated"]
    return {
        item["Key"]: (item["ETag"], str(item["LastModified"]))
        for item in page["Contents"]
        if not item["Key"].startswith("out/_lock/")
    }


@pytest.fixture(scope="module")
def night(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("night")
    bucket = new_bucket()
    drawn = draw_archive(folder / "drawn")
    archives = upload(drawn, bucket)
    weights = f"{bucket}/weights/squeezenet.safetensors"
    network = torchvision.models.squeezenet1_1(weights=None)
    files.write_bytes(weights, save(network.state_dict()))
    (folder / "listing.toml").write_text(f'archive = {archives}\nlayout = "mvtec"\n')

    listed, model, out = (f"{bucket}/{name}" for name in ("parts.parquet", "model", "out"))
    to_score = ["--inventory", listed, "--model", model, "--out", out, "--maps", "all"]
    to_score += ["--overlays", "true", "--night", "2026-11-20"]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/tracker/mlflow.db")
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        assert inventory.main(["--config", str(folder / "listing.toml"), "--output", listed]) == 0
        to_fit = ["--inventory", listed, "--out", out, "--model-folder", model]
        to_fit += ["--holdout", "0.2"]
        assert fit.main([*to_fit, *tiny_fit(), "--backbone.weights", weights]) == 0
        files.remove_file(f"{bucket}/parts/{GONE}")
        assert score.main(to_score) == 0
        assert evaluate.main(["--out", out, "--published", "mvtec/patchcore-1"]) == 0
        before = objects(bucket)
        assert score.main(to_score) == 0
        after = objects(bucket)
    return Night(bucket, drawn, folder / "tracker", said.getvalue(), before, after)


def test_the_inventory_lists_all_archives_as_one(night):
    rows = Inventory(f"{night.bucket}/parts.parquet").read().to_pylist()
    assert len(rows) == 2 * (9 + 4 + 4) + 1
    kinds = {uri.removeprefix(night.bucket)[:8] for uri in (row["uri"] for row in rows)}
    assert kinds == {"/parts/w", "/fabric."}
    assert {row["product"] for row in rows} == {"washer", "fabric"}
    assert f"{night.bucket}/parts/washer/test/good/a %231%3F%25ü.png" in {r["uri"] for r in rows}
    blobs = [row for row in rows if row["label"] == 1]
    assert len(blobs) == 8
    assert all(row["mask_uri"] for row in blobs)


def test_every_image_has_one_row(night):
    table = night.table
    assert score_table.violations(table) == []
    listed = Inventory(f"{night.bucket}/parts.parquet").read(["image_id"])
    assert table["image_id"].to_pylist() == listed["image_id"].to_pylist()
    assert night.record["totals"]["statuses"] == {"missing": 1, "ok": 33, "unreadable": 1}


def test_a_check_of_the_run_finds_its_promise_kept(night, capsys):
    model = f"{night.bucket}/model"
    assert check.main(["--out", f"{night.bucket}/out", "--model", model]) == 0
    assert "35 images with one valid row each; all 33 maps were read" in capsys.readouterr().out


def test_a_deleted_and_a_cut_object_are_rows_with_reasons(night):
    failed = {row["uri"]: row for row in night.table.to_pylist() if row["status"] != "ok"}
    gone, cut = (failed[f"{night.bucket}/parts/{name}"] for name in (GONE, CUT))
    assert (gone["status"], gone["reason"]) == ("missing", "it was listed, but no longer exists")
    assert gone["score"] is None
    assert cut["status"] == "unreadable"


def test_every_scored_image_has_its_map_and_overlay(night):
    out, record = night.out, night.record
    ok = [row for row in night.table.to_pylist() if row["status"] == "ok"]
    for row in ok:
        assert row["map_uri"] == out.map(record["model_id"], row["image_id"])
        assert files.exists(out.overlay(record["model_id"], row["image_id"]))
    drawn = map_png.decode(files.read_bytes(ok[0]["map_uri"]))
    assert drawn.levels.shape == (64, 64)
    kept = {item.name for item in files.listing(out.maps(record["model_id"]))}
    assert len(kept) == len(ok)


def test_the_same_files_on_disk_get_the_same_scores(night, tmp_path, cluster):
    listed, out = str(tmp_path / "parts.parquet"), str(tmp_path / "out")
    inventory.main(["--archive", str(night.drawn), "--layout", "mvtec", "--output", listed])
    words = ["--inventory", listed, "--model", f"{night.bucket}/model", "--out", out]
    assert score.main([*words, "--maps", "none"]) == 0
    record = run_records.finished(Out(out))

    def by_content(table: pa.Table) -> dict[str, float]:
        rows = table.filter(pa.compute.is_valid(table["score"]))
        return dict(zip(rows["content_sha256"].to_pylist(), rows["score"].to_pylist(), strict=True))

    on_disk = by_content(parquet.read(record["totals"]["table"]))
    on_s3 = by_content(night.table)
    assert len(on_s3) == 32  # one picture lies there under two names
    assert on_s3.items() <= on_disk.items()


def test_the_model_holds_the_weights_it_was_given(night):
    model = read_model(f"{night.bucket}/model")
    assert model.card.backbone.weights == f"{night.bucket}/weights/squeezenet.safetensors"
    assert set(model.products) == {"washer", "fabric"}
    given = files.read_bytes(model.card.backbone.weights)
    assert model.backbone["features.0.weight"].numpy().tobytes() in given


def test_curves_are_drawn_and_lie_in_the_tracker_too(night):
    places = [night.out.picture(night.record["run_id"], name) for name in ("fabric", "washer")]
    drawn = [files.read_bytes(place) for place in places]
    assert all(png.startswith(b"\x89PNG") for png in drawn)
    kept = sorted(night.tracker.rglob("artifacts/curves/*.png"))
    assert [png.read_bytes() for png in kept] == drawn
    assert "published: mvtec/patchcore-1, Roth et al., CVPR 2022" in night.said


def test_both_products_are_evaluated_with_pixels(night):
    found = parquet.read(night.out.evaluation(night.record["run_id"])).to_pylist()
    assert [row["product"] for row in found] == ["fabric", "washer", "mean"]
    assert [(row["good"], row["defective"], row["not_scored"]) for row in found[:2]] == [
        (4, 4, 0),
        (3, 4, 2),
    ]
    assert all(0 <= row["pro"] <= 1 and 0 <= row["pixel_auroc"] <= 1 for row in found)
    assert not any(row["no_usable_mask"] for row in found)


def test_a_repeated_run_touches_nothing(night):
    assert "is finished; nothing to do" in night.said
    assert night.after == night.before


def test_nothing_unfinished_is_left(night):
    assert not [key for key in night.after if "_work" in key or "_spool" in key]
    found = [key for key in night.after if key.startswith("out/scores/")]
    run_id = night.record["run_id"]
    assert found == [f"out/scores/night=2026-11-20/run={run_id}/part-00000.parquet"]


def test_the_keys_of_the_store_appear_nowhere(night):
    written = [files.read_bytes(f"{night.bucket}/{key}") for key in night.after]
    for key in night.after:
        place = f"{night.bucket}/{key}"
        if key.endswith(".parquet") and not key.startswith("fabric"):
            table = parquet.read(place)
            written.append(f"{table.schema.metadata} {table.to_pylist()}".encode())
        if key.startswith("out/maps/"):
            with Image.open(io.BytesIO(files.read_bytes(place))) as picture:
                written.append(str(picture.info).encode())
    tracked = [file for file in night.tracker.rglob("*") if file.is_file()]
    assert "mlflow.db" in {file.name for file in tracked}
    written += [file.read_bytes() for file in tracked]
    logs = Path(f"/tmp/nl-{os.getpid()}/session_latest/logs")
    of_ray = [file.read_bytes() for file in logs.rglob("*") if file.is_file()]
    assert any(of_ray)
    written += of_ray
    written.append(night.said.encode())
    assert sum(map(len, written)) > 10**6
    for secret in SECRET.values():
        assert not [found for found in written if secret.encode() in found]


def test_the_tracker_heard_of_every_job(night):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{night.tracker}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'nightloupe'")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["job"] for run in runs) == ["evaluate", "fit", "score"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    (of_score,) = [run for run in runs if run.data.tags["job"] == "score"]
    assert of_score.data.metrics["status.missing"] == 1
    assert of_score.data.tags["run_id"] == night.record["run_id"]


def test_uris_lead_to_the_pictures_they_name(night):
    rows = Inventory(f"{night.bucket}/parts.parquet").read().to_pylist()
    (strange,) = [row for row in rows if "%231%3F%25" in row["uri"]]
    location = uris.parse(strange["uri"]).location
    assert files.read_bytes(location) == (night.drawn / STRANGE).read_bytes()
