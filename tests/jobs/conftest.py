import importlib
import sys

import pytest

from jobs.cli import entry


@pytest.fixture
def leave(monkeypatch, capsys, tmp_path):
    """Runs a job as its command line does, in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(job, *words):
        monkeypatch.setattr(sys, "argv", [f"jobs.{job}", *words])
        with pytest.raises(SystemExit) as left:
            entry.start(importlib.import_module(f"jobs.{job}").main)
        return left.value.code, *capsys.readouterr()

    return run
