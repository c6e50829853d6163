"""What jobs show people: sentences, and progress as a bar on a terminal or a line in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 15.0
_UNITS = {"coreset": "centre", "list": "file"}  # all other stages count images


def echo(text: str) -> None:
    """One line for people."""
    tqdm.write(text, file=sys.stderr if text.startswith("error:") else sys.stdout)


def shown(text: str) -> str:
    """What files and tables say, without the control characters that would act on a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Progress:
    """Shows how far each stage has come: a bar on a terminal, else a line now and then.

    Call it with stage, done, total (0 if unknown) and failed.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._stage = ""
        self._terminal = sys.stderr.isatty()
        self._last_line = 0.0

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
        """Show it."""
        if stage != self._stage:
            self._close()
            self._stage = stage
            unit = _UNITS.get(stage, "image")
            self._bar = tqdm(
                total=total or None,
                initial=done,  # what an earlier attempt left does not count as speed
                desc=stage,
                unit=f" {unit}s",
                file=sys.stderr if self._terminal else _Nowhere(),
                mininterval=0.2,
                dynamic_ncols=True,
            )
            self._last_line = time.monotonic()
        bar = self._bar
        assert bar is not None
        bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
        bar.update(max(0, done - bar.n))
        if not self._terminal and (time.monotonic() - self._last_line) > _SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        if self._bar is not None:
            sys.stderr.write(f"{str(self._bar).strip()}\n")
            sys.stderr.flush()

    def _close(self) -> None:
        if self._bar is not None:
            if not self._terminal:
                self._line()
            self._bar.close()
            self._bar = None
            self._stage = ""


class _Nowhere:
    def write(self, _: str) -> None:
        """Drop it."""

    def flush(self) -> None:
        """Nothing to flush."""
