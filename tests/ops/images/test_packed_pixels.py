import numpy as np
import pyarrow as pa

from ops.images.packed_pixels import column, views


def test_views_are_the_rows_of_slices_and_chunks_without_a_copy():
    values = [b"ab", b"", None, b"cdef", b"g"]
    chunk = pa.array(values, pa.large_binary())
    column = pa.chunked_array([chunk.slice(1, 3), chunk, chunk.slice(5)])
    found = views(column)
    expected = [b"", b"", b"cdef", *(value or b"" for value in values)]
    assert [view.tobytes() for view in found] == expected
    memory = np.frombuffer(chunk.buffers()[2], np.uint8)
    assert all(np.shares_memory(view, memory) for view in found if len(view))
    assert not found[2].flags.writeable


def test_a_column_without_bytes_has_empty_views():
    column = pa.chunked_array([pa.nulls(2, pa.large_binary())])
    assert [len(view) for view in views(column)] == [0, 0]
    assert views(pa.chunked_array([], pa.large_binary())) == []


def test_a_column_of_arrays_shares_the_memory_of_large_ones():
    large = np.arange(2**20, dtype=np.uint32).view(np.uint8)
    rows = [np.arange(3, dtype=np.uint8), None, large, large[: 2**20], np.zeros(0, np.uint8)]
    packed = column(rows)
    assert packed.null_count == 1
    assert packed.type == pa.large_binary()
    found = views(packed)
    assert all(
        np.array_equal(view, [] if row is None else row)
        for view, row in zip(found, rows, strict=True)
    )
    assert [np.shares_memory(view, large) for view in found] == [False, False, True, True, False]
    assert (
        pa.concat_tables([pa.table({"p": packed}), pa.table({"p": column([None])})]).num_rows == 6
    )
    assert len(column([])) == 0
