from __future__ import annotations

import os
import signal
import threading

import pytest

from pipelines.tables.database import opened


def test_ctrl_c_in_a_statement_is_an_interrupt_and_no_bug():
    """DuckDB makes a RuntimeError of it."""
    long = "CREATE TABLE t AS SELECT sum(a.range * b.range) FROM range(10**6) a, range(10**7) b"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))

    def interrupted():
        with opened() as database:
            timer.start()
            database.execute(long)

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def test_another_error_of_a_block_passes_as_it_is():
    with pytest.raises(RuntimeError, match="mine"), opened():
        raise RuntimeError("mine")
