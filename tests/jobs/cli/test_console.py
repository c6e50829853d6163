import os
import pty
import re
import sys
import termios

import pytest

from jobs.cli import console
from jobs.cli.console import Progress, echo


def show(progress: Progress) -> None:
    progress("score", 0, 40, 0)
    progress("score", 10, 40, 0)
    progress("score", 40, 40, 3)
    progress("pixels", 5, 0, 0)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)


def test_a_log_gets_lines_with_done_total_rate_and_failures(capsys, impatient):
    with Progress() as progress:
        show(progress)
    lines = capsys.readouterr().err.splitlines()
    assert any(re.match(r"score: .*10/40 .*images/s", line) for line in lines)
    last = [line for line in lines if line.startswith("score")][-1]
    assert re.search(r"100%.*40/40 .*images/s.*3 failed", last)


def test_a_stage_of_unknown_length_shows_what_is_done(capsys, impatient):
    with Progress() as progress:
        show(progress)
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"pixels: 5 images", last)
    assert "failed" not in last


def test_a_log_gets_few_lines_and_no_control_characters(capsys):
    with Progress() as progress:
        for done in range(1000):
            progress("score", done, 1000, 0)
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "999/1000" in err
    assert not set(err) & {"\r", "\x1b"}


def test_what_an_earlier_attempt_left_is_no_speed(capsys, impatient):
    with Progress() as progress:
        progress("score", 900, 1000, 0)
    assert re.search(r"900/1000 .*\? images/s", capsys.readouterr().err)


def test_a_terminal_gets_a_bar_that_is_drawn_over(monkeypatch):
    terminal, side = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with os.fdopen(side, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with Progress() as progress:
            progress("score", 0, 40, 0)
            progress("score", 40, 40, 3)
        stderr.flush()
        shown = ""
        while "40/40" not in shown:  # a terminal hands over what it has, piece by piece
            shown += os.read(terminal, 2**16).decode()
    os.close(terminal)
    assert "\r" in shown
    assert "█" in shown or "#" in shown
    assert re.search(r"40/40 .*images/s.*3 failed", shown)


def test_errors_go_to_stderr_and_all_else_to_stdout(capsys):
    echo("error: no")
    echo("yes")
    assert capsys.readouterr() == ("yes\n", "error: no\n")
