"""Errors that the user of a command can mend. Every other exception is a bug.

A command prints the sentence of a `UserError` and exits with its code; any other exception shows
its traceback. The sentence states the rule, the value and the remedy.
"""

from __future__ import annotations

from typing import ClassVar


class UserError(Exception):
    """An input, a place or a service is not as the command needs it."""

    exit_code: ClassVar[int] = 1


class SettingError(UserError):
    """A setting has a value that its rules refuse."""

    exit_code: ClassVar[int] = 2


class RunError(UserError):
    """A run cannot end as promised. The same command continues it once the cause is mended."""
