"""Several nights over one small archive; no image is scored twice without a reason."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from PIL import Image

from jobs import check, fit, nightly, query
from jobs.cli import entry, sources
from ops.detectors.model_folder import read_card, write_model
from ops.failure import TooManyFailures
from ops.images import synthetic_parts
from ops.results import score_table
from ops.storage import files, parquet, uris, versions
from ops.storage.paths import Out
from pipelines.scoring import score as scoring
from pipelines.tables import current_scores, lock
from tests.conftest import tiny_model

PATTERN = "{product}/{name}"


def test_a_second_night_exits_with_75(leave, tmp_path):
    with lock.locked(Out("out")):
        code, output, err = leave("nightly", "--archive", ".", "--model", "m", "--out", "out")
    assert (code, err) == (entry.BUSY, "")
    assert f"process {os.getpid()} on " in output
    assert output.endswith("nothing to do here\n")
    assert sorted(os.listdir("out")) == ["_lock"]


def test_a_second_night_exits_with_the_code_that_a_scheduler_wants(leave, tmp_path):
    words = ["--archive", ".", "--model", "m", "--out", "out", "--busy-code", "0"]
    with lock.locked(Out("out")):
        code, output, err = leave("nightly", *words)
    assert (code, err) == (0, "")
    assert output.endswith("nothing to do here\n")


@pytest.mark.parametrize(
    ("words", "sentence", "exit_code"),
    [
        (["--archive", "."], "name the model: --model", 2),
        (
            ["--archive", ".", "--model", "m", "--retry", "missing, lost"],
            "retry: lost is not the status of a failed image",
            2,
        ),
        (["--archive", ".", "--model", "m"], "no complete model at m", 1),
        (["--archive", ".", "--model", "m", "--maps", "some"], "maps 'some' is none of", 2),
        (["--archive", ".", "--model", "m", "--night", "x"], "must be a date", 2),
        (["--archive", ".", "--model", "m", "--warn-failed", "x"], "neither a count", 2),
        (
            ["--archive", ".", "--model", "m", "--verify-content", "2"],
            "verify_content 2.0 must be a share from 0% to 100%, such as 1% or 0.01",
            2,
        ),
        (["--model", "m"], "name the images: --archive", 2),
    ],
)
def test_wrong_settings_are_refused(leave, words, sentence, exit_code):
    code, _, err = leave("nightly", *words)
    assert code == exit_code
    assert sentence in err
    assert exit_code == 1 or not os.path.exists("out")


@dataclass
class Warehouse:
    """An archive, two models, and the nights over it."""

    root: object
    words: list[str]
    models: list[str]
    ids: list[str]
    records: list[dict] = field(default_factory=list)

    @property
    def out(self):
        return Out(str(self.root / "out"))

    def draw(self, name, number):
        path = self.root / "parts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(synthetic_parts.draw("washer", number, 64).picture).save(path)

    def work(self, model=0, *more):
        code = nightly.main([*self.words, "--model", self.models[model], *more])
        place = self.out.nights()
        last = max(item.name for item in files.listing(place))
        self.records.append(files.read_json(files.join(place, last)))
        return code

    def work_and_die(self, monkeypatch):
        """It is killed before it publishes."""

        def die(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(scoring, "publish", die)
            with pytest.raises(KeyboardInterrupt):
                self.work()

    def current(self, model=0):
        rows = current_scores.current(self.out, self.ids[model]).to_pylist()
        return {row["uri"].rsplit("/", 1)[-1]: row for row in rows}

    def counts(self):
        return tuple(self.records[-1][name] for name in ("new", "changed", "retried"))


@pytest.fixture(scope="module")
def warehouse(cluster, tmp_path_factory):
    root = tmp_path_factory.mktemp("warehouse")
    models = [str(root / f"model-{seed}") for seed in range(2)]
    for seed, place in enumerate(models):
        write_model(place, tiny_model("washer", seed))
    words = ["--archive", str(root / "parts"), "--pattern", PATTERN, "--out", str(root / "out")]
    words += ["--maps", "all", "--fetch.backoff", "0.01", "--resources.workers", "1"]
    return Warehouse(root, words, models, [read_card(place).model_id for place in models])


@pytest.mark.ray
def test_nights_score_the_pending_images_only(warehouse, monkeypatch, capsys):
    """Each night continues from the one before."""
    night, gone = warehouse, warehouse.root / "parts" / "washer" / "gone.png"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for number in range(5):
        night.draw(f"washer/{number}.png", number)
    night.draw("washer/gone.png", 5)
    night.draw("nut/6.png", 6)
    (night.root / "parts" / "washer" / "broken.png").write_bytes(b"no image")
    content, times = gone.read_bytes(), os.stat(gone)

    # The first night: everything, and one image vanishes behind the listing.
    take = sources.take

    def take_and_lose_one(*arguments):
        tally = take(*arguments)
        gone.unlink()
        return tally

    with monkeypatch.context() as patch:
        patch.setattr(sources, "take", take_and_lose_one)
        assert night.work() == 0
    assert night.counts() == (8, 0, 0)
    first = night.current()
    statuses = {"broken.png": "unreadable", "gone.png": "missing", "6.png": "unknown_product"}
    assert {n: r["status"] for n, r in first.items() if r["status"] != "ok"} == statuses

    # The second: the lost image is back, with its old time; nothing else is touched.
    gone.write_bytes(content)
    os.utime(gone, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert night.work() == 0
    assert night.counts() == (0, 1, 0)
    second = night.current()
    assert second["gone.png"]["status"] == "ok"
    assert second | {"gone.png": None} == first | {"gone.png": None}

    # The third: nothing to do, so no table, no run, and no cluster.
    before = current_scores.published(night.out)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.nights.night.connected", None)
        assert night.work() == 0
    assert "nothing to do: every image has its row under this model" in capsys.readouterr().out
    assert current_scores.published(night.out) == before
    assert "run_id" not in night.records[-1]
    assert night.records[-1]["ended"]

    # The fourth: a new image and a changed one; it is killed before it publishes.
    night.draw("washer/7.png", 7)
    night.draw("washer/0.png", 17)

    night.work_and_die(monkeypatch)
    assert current_scores.published(night.out) == before
    assert night.current() == second

    # The fifth finishes it, without scoring again, and then finds one more.
    night.draw("washer/8.png", 8)
    capsys.readouterr()
    assert night.work() == 0
    output = capsys.readouterr().out
    assert "was left unfinished; finishing it first" in output
    assert night.counts() == (1, 0, 0)
    added = [place for place in current_scores.published(night.out) if place not in before]
    assert sorted(len(parquet.read(place)) for place in added) == [1, 2]
    runs = [parquet.read(place)["run_id"][0].as_py() for place in added]
    totals = [files.read_json(night.out.run(run_id))["totals"] for run_id in runs]
    assert {t["images"]: t["resumed"] for t in totals} == {2: 2, 1: 0}
    fifth = night.current()
    assert len(fifth) == 10
    assert fifth["0.png"]["image_id"] != second["0.png"]["image_id"]
    assert not os.listdir(night.out.work())

    # The sixth has another model: everything again; the old model's rows stay as they are.
    assert night.work(1) == 0
    assert night.counts() == (10, 0, 0)
    assert night.current() == fifth
    assert set(night.current(1)) == set(fifth)
    for place in current_scores.published(night.out):
        assert score_table.violations(parquet.read(place)) == []
    assert night.work(1) == 0
    assert night.counts() == (0, 0, 0)

    # The seventh may fail on no image at all, and one is broken; the rows are kept.
    (night.root / "parts" / "washer" / "1.png").write_bytes(b"no image any more")
    with pytest.raises(TooManyFailures):
        night.work(1, "--max-failed", "0")
    night.draw("washer/1.png", 1)
    assert night.work(1, "--max-failed", "0") == 0
    assert night.counts() == (0, 1, 0)
    assert night.current(1)["1.png"]["status"] == "ok"
    assert not os.listdir(night.out.work())

    # The eighth finds a copy of an image, of another day, beside a new image.
    place = night.root / "parts" / "washer"
    (place / "copy.png").write_bytes((place / "2.png").read_bytes())
    night.draw("washer/9.png", 9)
    assert night.work(1) == 0
    assert night.counts() == (2, 0, 0)
    assert night.records[-1]["totals"]["copied"] == 1
    copied, first = (night.current(1)[name] for name in ("copy.png", "2.png"))
    own = ("image_id", "uri", "map_uri", "run_id", "run_number", "scored_at")
    assert {k for k in copied if copied[k] != first[k]} == set(own)
    maps = [uris.parse(each["map_uri"]).location for each in (copied, first)]
    assert files.read_bytes(maps[0]) == files.read_bytes(maps[1])
    assert check.main([copied["run_id"], "--out", night.out.root]) == 0

    # The ninth: two of two images are broken, which is worth a warning, and no reason to fail.
    assert night.records[-1]["warnings"] == []
    for name in ("10.png", "11.png"):
        (place / name).write_bytes(b"no image")
    capsys.readouterr()
    assert night.work(1, "--warn-failed", "50%") == 0
    warning = "2 of 2 images failed (2 unreadable), more than --warn-failed 50% allows"
    assert f"warning: {warning}\n" in capsys.readouterr().out
    assert night.records[-1]["warnings"] == [warning]
    drift_rows = parquet.read(night.out.drift(night.records[-1]["run_id"]))
    page = files.read_bytes(night.out.report(night.records[-1]["run_id"])).decode()
    assert "10.png" in page
    failed = zip(*(drift_rows[name].to_pylist() for name in ("product", "failed_b")), strict=True)
    assert dict(failed) == {"nut": 0, "washer": 2}

    # The tenth: every file has another mode, so another version; none is scored again.
    before = night.current(1)
    pictures = sorted((night.root / "parts").rglob("*.png"))
    for file in pictures:
        file.chmod(0o600)
    assert night.work(1) == 0
    assert night.counts() == (0, len(pictures), 0)
    totals = night.records[-1]["totals"]
    assert totals["copied"] == totals["statuses"]["ok"] == len(pictures) - 4
    after = night.current(1)
    assert {name: r["score"] for name, r in after.items()} == {
        name: r["score"] for name, r in before.items()
    }
    assert not {r["image_id"] for r in after.values()} & {r["image_id"] for r in before.values()}
    assert check.main([night.records[-1]["run_id"], "--out", night.out.root]) == 0

    # The eleventh: bytes rot behind a version that stays the same.
    kept = {file.stat().st_ino: versions.of_file(file.stat()) for file in pictures}
    of_file = versions.of_file
    monkeypatch.setattr(versions, "of_file", lambda s: kept.get(s.st_ino, of_file(s)))
    rotten, times = place / "3.png", os.stat(place / "3.png")
    rotten.write_bytes(bytes(times.st_size))
    os.utime(rotten, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert night.work(1) == 0
    assert night.counts() == (0, 0, 0)
    assert night.current(1)["3.png"]["status"] == "ok"
    capsys.readouterr()
    assert night.work(1, "--verify-content", "100%", "--warn-failed", "1") == 0
    assert night.counts() == (0, 0, 0)
    assert night.records[-1]["differing"] == 1
    assert night.current(1)["3.png"]["status"] == "unreadable"
    [warning] = night.records[-1]["warnings"]
    address = uris.make(str(rotten))
    assert warning.endswith(f"the same; they are scored again: {address}")
    assert f"warning: {warning}\n" in capsys.readouterr().out
    page = files.read_bytes(night.out.report(night.records[-1]["run_id"])).decode()
    assert f"<li>{warning}</li>" in page

    # The twelfth reads once more what the eleventh found.
    assert night.work(1) == 0
    assert night.records[-1]["verified"] == {"read": 1, "unread": 0, "differing": []}
    assert night.counts() == (0, 0, 0)


@pytest.mark.ray
def test_a_killed_night_whose_maps_are_missing_is_scored_again(warehouse, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = [*warehouse.words, "--archive", str(tmp_path / "parts"), "--out", str(tmp_path / "out")]
    night = Warehouse(tmp_path, words, warehouse.models, warehouse.ids)
    for number in range(3):
        night.draw(f"washer/{number}.png", number)

    night.work_and_die(monkeypatch)
    gone = next(tmp_path.glob("out/maps/*/*/*.png"))
    gone.unlink()
    assert night.work() == 0
    assert night.counts() == (3, 0, 0)
    assert {row["status"] for row in night.current().values()} == {"ok"}
    assert len(night.current()) == 3
    assert gone.exists()
    assert not os.listdir(night.out.work())

    # Its table is lost: its images are new, and the same run scores them again.
    (table,) = current_scores.published(night.out)
    files.remove_file(table)
    assert night.work() == 0
    assert night.counts() == (3, 0, 0)
    assert current_scores.published(night.out) == [table]
    assert night.records[-1]["totals"]["table"] == table
    assert {row["status"] for row in night.current().values()} == {"ok"}


@pytest.mark.ray
def test_parts_are_fitted_scored_by_a_killed_night_checked_and_queried(
    warehouse, tmp_path, monkeypatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    model, out = str(tmp_path / "model"), str(tmp_path / "out")
    words = ["--archive", str(tmp_path / "parts"), "--out", out]
    words += ["--pattern", "{product}/{part}/{view}.png", "--resources.workers", "1"]
    night = Warehouse(tmp_path, words, [model], [])
    for number in range(12):
        night.draw(f"washer/{number // 2}/{('side', 'top')[number % 2]}.png", number)
    backbone = ["--backbone.name", "squeezenet1_1", "--backbone.layers", "features.3"]
    backbone += ["--backbone.weights", "random", "--input.size", "64"]
    chosen = ["--views", "separate", "--holdout", "0.4", "--patchcore.coreset_ratio", "0.1"]
    assert fit.main([*words, *backbone, *chosen, "--model-folder", model, "--name", ""]) == 0
    card = read_card(model)
    assert sorted(card.products) == ["washer/side", "washer/top"]
    assert card.parts["washer"].views == ("side", "top")
    assert len(card.parts["washer"].scores) == 2

    (tmp_path / "parts" / "washer" / "0" / "side.png").unlink()
    night.work_and_die(monkeypatch)
    assert night.work() == 0
    assert check.main(["--out", out, "--model", model]) == 0
    (warning,) = (w for w in night.records[-1]["warnings"] if "parts" in w)
    assert warning.startswith("1 of 6 parts lack the image of a view")
    # The run of the killed night has its report, too.
    (page,) = tmp_path.glob("out/reports/2*.html")
    assert "1 of 6 parts lack" in page.read_text()
    table = str(tmp_path / "parts.parquet")
    assert query.main(["--out", out, "--parts", "true", "--output", table]) == 0
    rows = {row["part"]: row for row in parquet.read(table).to_pylist()}
    assert sorted(rows) == list("012345")
    assert rows["0"]["missing_views"] == "side"
    assert {row["p_value"] for row in rows.values()} <= {1 / 3, 2 / 3, 1.0}
