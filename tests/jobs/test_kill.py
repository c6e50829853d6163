"""The driver dies by SIGKILL at three moments; the same command finishes the run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.warehouse import Witness, build, published, regions, start

pytestmark = [pytest.mark.ray, pytest.mark.slow]
IMAGES = 2000


def score(warehouse, out, log):
    """A job with a small cluster of its own."""
    words = warehouse.words(str(out), "--maps", "none", "--resources.batch", "100")
    return start("score", words, str(log), {"RAY_ADDRESS": ""})


def done(process, log) -> str:
    assert process.wait(600) == 0, Path(log).read_text()
    return Path(log).read_text()


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    """A thousand small drawn parts of two views, an inventory of them, and a model of tiles."""
    return build(str(tmp_path_factory.mktemp("warehouse")), IMAGES, tiled=True)


@pytest.fixture(scope="module")
def undisturbed(warehouse, tmp_path_factory):
    """The tables of scores and of regions of a run that nothing happened to."""
    out, log = tmp_path_factory.mktemp("undisturbed"), tmp_path_factory.mktemp("log") / "log"
    done(score(warehouse, out, log), log)
    found = published(str(out))
    assert len(found) == IMAGES
    assert found["status"].to_pylist().count("ok") == IMAGES - 1
    assert len(regions(str(out))) > IMAGES / 2
    return found, regions(str(out))


@pytest.mark.parametrize(
    "parts", [4, *(pytest.param(n, marks=pytest.mark.campaign) for n in (0, 15))]
)
def test_a_killed_run_is_finished_by_the_same_command(warehouse, undisturbed, tmp_path, parts):
    out, log = tmp_path / "out", tmp_path / "log"
    witness = Witness(str(out), IMAGES)
    witness.start()
    first = score(warehouse, out, log)
    deadline = time.monotonic() + 300
    while len(list(out.glob("_work/*/part-*.parquet"))) < parts or not list(
        out.glob("_work/*/started")
    ):
        assert first.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert not list(out.glob("scores/**/*.parquet"))
    output = done(score(warehouse, out, log), log)
    witness.end()
    assert published(str(out)).equals(undisturbed[0])
    assert regions(str(out)).equals(undisturbed[1])
    assert f"{IMAGES} images" in output
    assert witness.torn == []
    assert witness.looks > 10
    assert not list(out.glob("_work/*"))
    (record,) = out.glob("runs/*.json")
    assert f'"images": {IMAGES}' in record.read_text()
