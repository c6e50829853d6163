from __future__ import annotations

import pytest

from pipelines.tables.database import opened


def test_what_duckdb_makes_of_ctrl_c_is_an_interrupt_and_no_bug():
    """It raises this in place of KeyboardInterrupt, if it looks for signals in a statement."""
    with pytest.raises(KeyboardInterrupt), opened():
        raise RuntimeError("Query interrupted")


def test_another_error_of_a_block_passes_as_it_is():
    with pytest.raises(RuntimeError, match="mine"), opened():
        raise RuntimeError("mine")
