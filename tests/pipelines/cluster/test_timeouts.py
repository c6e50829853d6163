"""Steps that hang are killed after their time limit."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ops.archives.fetch import FetchSettings
from ops.archives.inventory import Inventory
from ops.images.read_images import Read
from ops.storage.paths import Out
from pipelines.cluster.resources import Resources
from pipelines.cluster.shared_model import SharedModel
from pipelines.cluster.timeouts import time_limit
from pipelines.scoring import score
from pipelines.scoring.chunks import Chunks
from pipelines.scoring.resume import resume_or_start
from pipelines.scoring.run import ScoreSettings
from pipelines.scoring.stream import ScoringStream, draw_step
from tests.conftest import ROOT, tiny_model
from tests.faults.warehouse import BROKEN, build

HANGS = 5
HANGING = """
import re, sys
from pipelines.cluster.timeouts import time_limit
with time_limit(float(sys.argv[1])):
    print("begun", flush=True)
    re.match("(a+)+$", "a" * int(sys.argv[2]) + "b")  # holds the interpreter
print("ended")
"""


def hang(limit: float, letters: int) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", HANGING, str(limit), str(letters)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_a_step_that_holds_the_interpreter_ends_its_process_and_says_where_it_was():
    ended = hang(0.5, 60)
    assert (ended.returncode, ended.stdout) == (1, "begun\n")
    assert "Timeout (0:00:00.5" in ended.stderr
    assert "in match" in ended.stderr


@pytest.mark.parametrize("limit", [0.0, 30.0])
def test_a_step_in_time_and_one_without_a_limit_go_on(limit):
    ended = hang(limit, 3)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "begun\nended\n", "")


def test_a_step_that_fails_in_time_fails_as_it_would():
    with pytest.raises(ZeroDivisionError), time_limit(30.0):
        1 / 0  # noqa: B018
    assert hang(30.0, 3).returncode == 0


@pytest.fixture(scope="module")
def warehouse(cluster, tmp_path_factory):
    return build(str(tmp_path_factory.mktemp("warehouse")), 24)


class Hanging(Read):
    """A reader that hangs over one image, and lets nothing else run in its process."""

    def __call__(self, rows):
        if any(uri.endswith(f"{HANGS:05d}.bmp") for uri in rows["uri"].to_pylist()):
            re.match("(a+)+$", "a" * 60 + "b")
        return super().__call__(rows)


class HangingStream(ScoringStream):
    """A stream with that reader."""

    @property
    def read(self):
        card = self.model.card
        return Hanging(card.input, card.decode, self.fetch, frozenset(card.products))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.alone
def test_an_image_that_hangs_becomes_a_row_that_names_the_limit(warehouse, tmp_path):
    out, model = Out(str(tmp_path)), SharedModel.put(tiny_model("washer"))
    listed = Inventory(warehouse.listed)
    run = resume_or_start(listed, model, out, ScoreSettings("none", False, 10), None)
    resources = Resources(workers=1, batch=4, stall_timeout=96.0)
    draw = draw_step(model, out, "none")
    stream = HangingStream(model, draw, FetchSettings(), resources, listed)
    chunks = Chunks(out, run.run_id, listed, 10)
    score.score_missing(run, stream, chunks, 24, lambda *_: None)
    assert chunks.statuses == {"ok": 22, "unreadable": 1, "crashed_worker": 1}
    rows = [row for table in chunks.tables() for row in table.to_pylist()]
    (slow,) = [row for row in rows if row["status"] == "crashed_worker"]
    assert slow["uri"].endswith(f"{HANGS:05d}.bmp")
    assert "longer than 16 seconds" in slow["reason"]
    assert rows.index(slow) == HANGS
    assert rows[BROKEN]["status"] == "unreadable"
