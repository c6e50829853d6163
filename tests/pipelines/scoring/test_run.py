"""A night is a date, written with ASCII digits."""

from __future__ import annotations

import pytest

from ops.errors import SettingError
from pipelines.scoring.run import check_night


@pytest.mark.parametrize("night", [None, "2026-11-20", "2024-02-29", "0001-01-01"])
def test_dates_are_nights(night):
    check_night(night)


@pytest.mark.parametrize(
    "night",
    [
        *("2026-13-45", "2026-02-29", "2026-00-10", "2026-11-00", "0000-01-01"),
        *("\u0662\u0660\u0662\u0666-\u0661\u0661-\u0662\u0660", "2026-11-2\uff10"),
        *("20261120", "2026-W47-5", "2026-11-20\n", " 2026-11-20", "2026-11-20T00", "../x", ""),
    ],
)
def test_anything_else_is_none(night):
    with pytest.raises(SettingError, match="must be a date such as 2026-11-20"):
        check_night(night)
