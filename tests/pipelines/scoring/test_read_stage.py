import pyarrow as pa
import pytest

from ops.images.resize import InputSettings
from pipelines.scoring.read_stage import ReadStage


def read(rows: pa.Table) -> pa.Table:
    """Adds how many rows were read at once, and pixels."""
    return rows.append_column("at_once", pa.array([len(rows)] * len(rows))).append_column(
        "pixels", pa.array([bytes(row["size"]) for row in rows.to_pylist()], pa.large_binary())
    )


read.input = InputSettings()


class ReadPieces:
    """Yields rows one by one."""

    input = InputSettings(fit="tile")

    def pieces(self, rows: pa.Table):
        yield from (rows.slice(n, 1) for n in range(len(rows)))


def rows(count: int, size: int = 1) -> pa.Table:
    return pa.table({"number": range(count), "size": [size] * count})


@pytest.mark.parametrize(
    ("count", "lengths"), [(7, [7]), (32, [16, 16]), (40, [16, 16, 8]), (128, [64, 64]), (0, [])]
)
def test_a_block_is_handed_on_batch_by_batch_and_a_large_one_in_two_parts(count, lengths):
    tables = list(ReadStage(read, 16)(rows(count)))
    assert [len(table) for table in tables] == lengths
    if tables:
        whole = pa.concat_tables(tables)
        assert whole["number"].to_pylist() == list(range(count))
        assert max(whole["at_once"].to_pylist()) == min(16, count)


def test_large_pixels_are_handed_on_earlier():
    tables = list(ReadStage(read, 2)(rows(8, 2**24 + 1)))
    assert [len(table) for table in tables] == [2, 2, 2, 2]


def test_whole_pictures_are_handed_on_in_the_pieces_that_they_are_read_in():
    tables = list(ReadStage(ReadPieces(), 16)(rows(40)))
    assert [len(table) for table in tables] == [1] * 40
    assert pa.concat_tables(tables).equals(rows(40))
