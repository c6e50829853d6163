"""Names and messages from outside as text that is safe to show."""

from __future__ import annotations

import html
import re

#: Characters at which spreadsheets take a cell for a formula, also as East Asian wide forms.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
#: What Markdown gives a meaning within a line.
_MARKDOWN = re.compile(r"([\\`*\[\]|~])")


def printable(text: str) -> str:
    """A text whose invisible characters are escaped: control characters, line breaks, those that
    turn the direction of writing, odd spaces, and bytes that are not UTF-8.

    A terminal would obey some of them, and others make one name look like another.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def spreadsheet_cell(text: str) -> str:
    """A text as the cell of a CSV file that no spreadsheet takes for a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def in_markdown(text: str) -> str:
    """A text in a line of Markdown, without a link, a picture, a column or a tag of its own."""
    return _MARKDOWN.sub(lambda match: f"&#{ord(match[1])};", html.escape(printable(text)))
