"""Messages for people, and progress: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

from ops.plain_text import printable

_SECONDS_BETWEEN_LINES = 15.0
#: What a stage counts, if not images.
_UNITS = {"coreset": "centre", "factor": "position", "list": "file"}


def echo(text: str) -> None:
    """Print lines: errors to stderr, everything else to stdout.

    Invisible characters are escaped, except line breaks: escape names that may hold one.
    """
    lines = "\n".join(map(printable, text.split("\n")))
    tqdm.write(lines, file=sys.stderr if text.startswith("error:") else sys.stdout)


class Progress:
    """Shows how far each stage is: a bar on a terminal, else a line every 15 seconds.

    Call it with stage, done, total (0 if unknown) and failed.
    """

    def __init__(self) -> None:
        self._display = _Bar if sys.stderr.isatty() else _Lines
        self._stage, self._total, self._done = "", 0, 0
        self._current: _Bar | _Lines | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._close()

    def __call__(self, stage: str, done: int, total: int, failed: int = 0) -> None:
        """Show the state of a stage. One that starts, or starts again, ends the one before."""
        same = (stage, total) == (self._stage, self._total) and done >= self._done
        if self._current is None or not same:
            self._close()
            self._current = self._display(stage, done, total)
        self._stage, self._total, self._done = stage, total, done
        self._current.update(done, failed)

    def _close(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None


class _Bar:
    """A bar that is drawn over."""

    def __init__(self, stage: str, done: int, total: int) -> None:
        self._bar = tqdm(
            total=total or None,
            initial=done,  # images of an earlier attempt do not count as speed
            desc=stage,
            unit=f" {_unit(stage)}",
            file=sys.stderr,
            mininterval=0.2,
            dynamic_ncols=True,
        )

    def update(self, done: int, failed: int) -> None:
        self._bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
        self._bar.update(max(0, done - self._bar.n))

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """A line at most every 15 seconds and at the end, if something has changed since the last."""

    def __init__(self, stage: str, done: int, total: int) -> None:
        self._stage, self._total = stage, total
        self._before, self._started = done, time.monotonic()
        self._done, self._failed = done, 0
        self._printed = (0, 0)
        self._printed_at = self._started

    def update(self, done: int, failed: int) -> None:
        self._done, self._failed = done, failed
        if time.monotonic() - self._printed_at >= _SECONDS_BETWEEN_LINES:
            self.close()

    def close(self) -> None:
        """Print the last state, unless it stands there already."""
        if (self._done, self._failed) == self._printed:
            return
        self._printed = (self._done, self._failed)
        self._printed_at = time.monotonic()
        sys.stderr.write(f"{self._line()}\n")
        sys.stderr.flush()

    def _line(self) -> str:
        count = f"{self._done}/{self._total}" if self._total else f"{self._done}"
        parts = [f"{self._stage}: {count} {_unit(self._stage)}"]
        if self._done > self._before:  # images of an earlier attempt do not count as speed
            seconds = max(time.monotonic() - self._started, 1e-3)
            parts.append(f"{(self._done - self._before) / seconds:.3g}/s")
        if self._failed:
            parts.append(f"{self._failed} failed")
        return ", ".join(parts)


def _unit(stage: str) -> str:
    return f"{_UNITS.get(stage, 'image')}s"
