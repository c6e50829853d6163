import os
import pty
import re
import sys
import termios

import pytest

from jobs.cli import console
from jobs.cli.console import Progress, echo


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; it is set by its entry `now`, in seconds."""
    time = {"now": 100.0}
    monkeypatch.setattr(console.time, "monotonic", lambda: time["now"])
    return time


def test_a_log_gets_done_total_rate_and_failures(capsys, clock):
    with Progress() as progress:
        progress("score", 0, 3000)
        clock["now"] += 30
        progress("score", 1200, 3000, 3)
        assert capsys.readouterr().err == "score: 1200/3000 images, 40/s, 3 failed\n"
        clock["now"] += 70
        progress("score", 3000, 3000, 4)
    assert capsys.readouterr().err == "score: 3000/3000 images, 30/s, 4 failed\n"


def test_a_stage_of_unknown_length_shows_what_is_done(capsys, clock):
    with Progress() as progress:
        progress("list", 0, 0)
        clock["now"] += 10
        progress("list", 5, 0)
    assert capsys.readouterr().err == "list: 5 files, 0.5/s\n"


def test_a_log_gets_a_line_every_15_seconds_and_at_the_end_of_a_stage(capsys, clock):
    with Progress() as progress:
        for second in range(40):
            clock["now"] += 1
            progress("score", second, 40)
        progress("pixels", 7, 8)
    lines = capsys.readouterr().err.splitlines()
    counts = [line.split(" images")[0] for line in lines]
    assert counts == ["score: 15/40", "score: 30/40", "score: 39/40", "pixels: 7/8"]
    assert not set("".join(lines)) & {"\r", "\x1b"}


def test_no_line_before_work_starts_and_none_twice(capsys, clock):
    with Progress() as progress:
        for done in (0, 0, 0, 8, 8, 8):
            clock["now"] += 20
            progress("score", done, 8)
        clock["now"] += 20
    assert capsys.readouterr().err == "score: 8/8 images, 0.133/s\n"
    with Progress() as progress:
        progress("score", 0, 8)
    assert capsys.readouterr().err == ""


def test_images_of_an_earlier_attempt_do_not_count_as_speed(capsys, clock):
    with Progress() as progress:
        progress("score", 900, 1000)
    assert capsys.readouterr().err == "score: 900/1000 images\n"


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
        while "40/40" not in shown:  # a terminal hands over its output piece by piece
            shown += os.read(terminal, 2**16).decode()
    os.close(terminal)
    assert "\r" in shown
    assert "█" in shown or "#" in shown
    assert re.search(r"40/40 .*images/s.*3 failed", shown)


def test_errors_go_to_stderr_and_all_else_to_stdout(capsys):
    echo("error: no")
    echo("yes")
    assert capsys.readouterr() == ("yes\n", "error: no\n")


def test_what_a_terminal_would_obey_is_escaped(capsys):
    echo("a\x1b[2J\n\u202eb\r")
    echo("error: \x9b2J")
    assert tuple(capsys.readouterr()) == ("a\\x1b[2J\n\\u202eb\\r\n", "error: \\x9b2J\n")
