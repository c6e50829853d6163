"""Names and messages from outside as text that is safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text whose invisible characters are escaped: control characters, line breaks, those that
    turn the direction of writing, odd spaces, and bytes that are not UTF-8.

    A terminal would obey some of them, and others make one name look like another.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]
