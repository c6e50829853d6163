"""A cluster without room: the job says so, keeps what it has, and goes on later."""

from __future__ import annotations

import pytest
import ray

from ops.storage import files
from ops.storage.paths import Out
from tests.faults.warehouse import build, published

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
