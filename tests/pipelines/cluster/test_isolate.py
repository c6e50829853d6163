"""Streams that break off, and rows that a stream loses; in place of Ray's."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray

from pipelines.cluster import isolate
from pipelines.cluster.isolate import process_rows
from pipelines.cluster.resources import Resources

URIS = [f"file:///{number}" for number in range(10)]
ROWS = pa.table({"uri": URIS, "image_id": URIS})
CRASHES = "file:///7"


class FakeSteps:
    """Steps whose streams lose one image; those before `whole_from` break after two batches."""

    resources = SimpleNamespace(images_per_batch=1)

    def __init__(self, whole_from: int) -> None:
        self.streams: list[int] = []
        self.whole_from = whole_from

    def apply(self, blocks):
        self.streams.append(len(blocks))
        return SimpleNamespace(context=SimpleNamespace(), blocks=blocks)

    def load(self, block):
        return block

    def batches(self, stream):
        assert stream.context.max_errored_blocks == -1
        whole = len(self.streams) >= self.whole_from
        uris = [block["uri"][0].as_py() for block in stream.blocks]
        for uri in uris if whole else uris[:2]:
            if uri != CRASHES:
                yield pa.table({"uri": [uri], "image_id": [uri], "status": ["ok"]})
        if not whole:
            raise ray.exceptions.ObjectLostError("a block", None, "")


def process(monkeypatch, steps: FakeSteps) -> tuple[list[str], list[str]]:
    """The URIs that came out of streams, and of isolated processes."""
    isolated = []

    def process_isolated(_, rows):
        isolated.extend(rows["uri"].to_pylist())
        yield rows.append_column("status", pa.array(["crashed_worker"] * len(rows)))

    monkeypatch.setattr(ray.data, "from_blocks", lambda blocks: blocks)
    monkeypatch.setattr(isolate, "_batches", steps.batches)
    monkeypatch.setattr(isolate, "process_isolated", process_isolated)
    results = pa.concat_tables(process_rows(steps, ROWS)).to_pylist()
    return [row["uri"] for row in results if row["status"] == "ok"], isolated


@pytest.mark.parametrize("whole_from", [1, 2, 3])
def test_a_broken_stream_starts_again_with_the_missing_rows(monkeypatch, whole_from):
    steps = FakeSteps(whole_from)
    streamed, isolated = process(monkeypatch, steps)
    assert streamed == [uri for uri in ROWS["uri"].to_pylist() if uri != CRASHES]
    assert isolated == [CRASHES]
    assert steps.streams == [10, 8, 6][:whole_from]


def test_a_stream_that_breaks_again_and_again_leaves_its_rows_to_isolated_processes(monkeypatch):
    steps = FakeSteps(9)
    streamed, isolated = process(monkeypatch, steps)
    assert steps.streams == [10, 8, 6]
    assert streamed + isolated == ROWS["uri"].to_pylist()
    assert len(streamed) == 6


def test_no_stream_starts_for_no_rows():
    steps = FakeSteps(1)
    assert list(process_rows(steps, ROWS.slice(0, 0))) == []
    assert steps.streams == []


@pytest.mark.parametrize(
    "cause",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EROFS, "Read-only file system"),
        ray.exceptions.OutOfDiskError("No space left for spilling"),
    ],
)
def test_a_full_disk_of_a_node_ends_the_run_and_blames_no_image(monkeypatch, cause):
    error = ray.exceptions.RayTaskError("run", "trace", cause)

    def get(*_, **__):
        raise error

    remote = SimpleNamespace(remote=lambda *_: None)
    monkeypatch.setattr(isolate, "_run_isolated", SimpleNamespace(options=lambda **_: remote))
    monkeypatch.setattr(ray, "get", get)
    resources = Resources(stall_timeout=5)
    with pytest.raises(isolate.FullDisk, match=r"make room on its disk"):
        list(isolate.process_isolated(SimpleNamespace(resources=resources), ROWS))
