"""Without room on the cluster, or for maps: the job says so, keeps what it has, goes on later."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from ops.storage import files, parquet
from ops.storage.paths import Out
from tests.faults.warehouse import build, drawn, published

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@ray.remote
class Squatter:
    """Holds CPUs and does nothing."""

    def there(self) -> bool:
        return True


def test_a_run_without_room_says_what_is_missing_and_goes_on_later(cluster, leave, tmp_path):
    warehouse, out = build(str(tmp_path), 24), str(tmp_path / "out")
    words = warehouse.words(
        out, "--maps", "none", "--resources.workers", "1", "--resources.wait_for_room", "5"
    )
    squatter = Squatter.options(num_cpus=3.9).remote()
    assert ray.get(squatter.there.remote())
    code, _, told = leave("score", *words)
    assert code == 1
    assert told.splitlines()[-1].startswith(
        "error: 1 workers and two readers found no room within 5 seconds; "
        "the cluster has 1 node alive, and 0.1 of 4 CPUs free. Start the same command again"
    )
    assert files.names(Out(out).scores()) == []
    ray.kill(squatter)
    code, _, _ = leave("score", *words[:-1], "300")
    assert code == 0
    assert published(out)["status"].to_pylist().count("ok") == 23
    assert files.names(Out(out).work()) == []


def test_maps_that_cannot_be_written_cost_no_score(cluster, leave, tmp_path):
    warehouse, out = build(str(tmp_path), 24), str(tmp_path / "out")
    words = warehouse.words(out, "--maps", "all", "--resources.workers", "1")
    Path(out).mkdir()
    place = Path(out) / "maps"
    place.write_text("in the way")  # root may write to any folder
    code, _, told = leave("score", *words)
    assert code == 1
    (sentence,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert sentence.startswith("error: 23 maps could not be written, the first because of: ")
    assert "crashed" not in told
    assert files.names(Out(out).scores()) == []
    (kept,) = Path(out).glob("_work/*/kept-*.parquet")
    rows = parquet.read(str(kept))
    assert rows["status"].to_pylist().count("ok") == 23
    scores = dict(zip(rows["uri"].to_pylist(), rows["score"].to_pylist(), strict=True))
    place.unlink()
    code, _, _ = leave("score", *words)
    assert code == 0
    table = published(out)
    assert dict(zip(table["uri"].to_pylist(), table["score"].to_pylist(), strict=True)) == scores
    assert table["map_uri"].null_count == 1  # that of the broken image
    assert len(drawn(out)) == 23
