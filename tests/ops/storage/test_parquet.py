import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops.storage import parquet

SCHEMA = pa.schema(
    [pa.field("n", pa.int32(), metadata={"meaning": "a number"}), pa.field("s", pa.string())],
    metadata={"nightloupe": "test 1"},
)


def batch(start: int, count: int) -> pa.RecordBatch:
    numbers = list(range(start, start + count))
    columns = {"s": [str(n) for n in numbers], "n": pa.array(numbers, pa.int64())}
    return pa.RecordBatch.from_pydict(columns)


def test_batches_of_any_size_become_row_groups_of_one_size(tmp_path):
    file = str(tmp_path / "t.parquet")
    batches = [batch(0, 3), batch(3, 0), batch(3, 14), pa.table(batch(17, 2).to_pydict())]
    assert parquet.write(file, SCHEMA, batches, rows=5) == 19
    assert parquet.read(file)["n"].to_pylist() == list(range(19))
    metadata = pq.read_metadata(file)
    assert max(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) <= 5


def test_the_schema_keeps_its_types_and_metadata(tmp_path):
    file = str(tmp_path / "t.parquet")
    parquet.write(file, SCHEMA, [batch(0, 3)])
    assert parquet.read(file).schema.equals(SCHEMA, check_metadata=True)
    assert parquet.read(file, ["s"]).schema.names == ["s"]


def test_no_rows_make_a_table_with_its_columns(tmp_path):
    file = str(tmp_path / "t.parquet")
    assert parquet.write(file, SCHEMA, []) == 0
    assert parquet.read(file).schema.equals(SCHEMA, check_metadata=True)


def test_an_error_on_the_way_leaves_no_table(tmp_path):
    def batches():
        yield batch(0, 100)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        parquet.write(str(tmp_path / "t.parquet"), SCHEMA, batches(), rows=10)
    assert os.listdir(tmp_path) == []


def test_rows_that_do_not_fit_the_schema_leave_the_table_that_was_there(tmp_path):
    file = str(tmp_path / "t.parquet")
    parquet.write(file, SCHEMA, [batch(0, 3)])
    with pytest.raises(KeyError):
        parquet.write(file, SCHEMA, [pa.RecordBatch.from_pydict({"n": [1]})])
    with pytest.raises(pa.ArrowInvalid):
        parquet.write(file, SCHEMA, [batch(2**40, 1)])
    assert len(parquet.read(file)) == 3
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_row_groups_that_cannot_hold_a_text_are_told_by_their_statistics(tmp_path):
    file = str(tmp_path / "t.parquet")
    texts = ["b", "d", "f", None, None, None, "b", "\u6f22"]
    rows = pa.table({"n": pa.array(range(8), pa.int32()), "s": texts}, schema=SCHEMA)
    for statistics in (True, False):
        pq.write_table(rows, file, row_group_size=2, write_statistics=statistics)
        expected = {
            **{("b",): [0, 2, 3], ("a",): [2], ("c",): [0, 2, 3], ("e",): [2, 3]},
            **{("f", "g"): [1, 2, 3], ("\u6f22",): [2, 3], ("\U0001f600",): [2], (): [2]},
        }
        with parquet.opened(file) as table:
            for values, groups in expected.items():
                found = parquet.row_groups_with(table, "s", values)
                assert found == (groups if statistics else [0, 1, 2, 3]), values
            assert parquet.row_groups_with(table, "no such column", ["b"]) == [0, 1, 2, 3]
