"""The name of the person who started a command."""

from __future__ import annotations

import getpass


def user_name() -> str:
    """The name of the user; empty for an id without a name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
