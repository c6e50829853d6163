"""How pipelines tell people how far they are, without knowing how it is shown."""

from __future__ import annotations

from collections.abc import Callable

#: Called with stage, done, of (0 if unknown) and failed.
ProgressCallback = Callable[[str, int, int, int], None]
