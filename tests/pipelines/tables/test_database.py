from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pipelines.tables.database import opened

#: Prints a line before a statement that takes hours.
LONG = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
from pipelines.tables.database import opened
try:
    with opened() as database:
        print("started", flush=True)
        database.execute("SELECT sum(a.range * b.range) FROM range(100000) a, range(300000) b")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_in_a_statement_is_an_interrupt_and_no_bug():
    """DuckDB makes a RuntimeError of it."""
    with subprocess.Popen([sys.executable, "-c", LONG], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "started\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.5)
            child.send_signal(signal.SIGINT)
            assert child.communicate(timeout=60)[0] == "interrupted\n"
        finally:
            child.kill()


def test_another_error_of_a_block_passes_as_it_is():
    with pytest.raises(RuntimeError, match="mine"), opened():
        raise RuntimeError("mine")
