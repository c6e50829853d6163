"""URIs in tables, and locations in settings.

A *location* is a path as typed by people and used by file systems: `/data/a b.png`,
`s3://bucket/a#1.png`. A *URI* is the form stored in tables: it has a scheme, the column of a table
follows `?column=`, the name of a member of an archive follows `#`, its number `?member=` where
several masks have that name, and characters that would make it ambiguous (`%`, `#`, `?`, control
characters, bytes that are not UTF-8) are percent-encoded. All other characters stay the same, so
that most URIs can be pasted into other tools.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

_COLUMN = "?column="
#: What the number of a member follows.
MEMBER = "?member="
_AMBIGUOUS = re.compile("[%#?\x00-\x1f\x7f\udc80-\udcff]")


class Parsed(NamedTuple):
    """The location of a URI, and the name of the member if the location is an archive."""

    location: str
    member: str | None


def _encode(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"%{code - 0xDC00 if code >= 0xDC80 else code:02X}"


def quote(text: str) -> str:
    """Percent-encode only the characters that would make a URI ambiguous."""
    return _AMBIGUOUS.sub(_encode, text)


def unquote(text: str) -> str:
    """The inverse of `quote`; other bytes than UTF-8 become surrogates, as in `os.fsdecode`."""
    return os.fsdecode(unquote_to_bytes(text.encode("utf-8", "surrogateescape")))


def make(location: str, member: str | None = None) -> str:
    """The URI of a location, or of a member of the archive there."""
    scheme, separator, rest = location.partition("://")
    head = (
        f"{scheme}://{quote(rest)}" if separator else f"file://{quote(os.path.abspath(location))}"
    )
    return head if member is None else of_member(head, member)


def of_member(archive: str, member: str) -> str:
    """The URI of a member, given that of its archive."""
    return f"{archive}#{quote(member)}"


def with_column(uri: str, column: str | None) -> str:
    """The URI of a location with the column of the table there that holds what is meant."""
    return uri if column is None else f"{uri}{_COLUMN}{quote(column)}"


def column(uri: str) -> str | None:
    """The column that a URI names."""
    _, separator, name = uri.partition("#")[0].partition(_COLUMN)
    return unquote(name) if separator else None


def member_number(uri: str) -> int | None:
    """The number of the member that a URI names, for an archive with several of its name."""
    _, separator, number = uri.partition("#")[0].partition(MEMBER)
    return int(number) if separator else None


def container(uri: str) -> str:
    """The URI without the member that it names."""
    return uri.partition("#")[0]


def parse(uri: str) -> Parsed:
    """Split a URI into a location and a member."""
    head, separator, member = uri.partition("#")
    plain = head.partition(_COLUMN)[0].partition(MEMBER)[0]
    location = unquote(plain.removeprefix("file://"))
    return Parsed(location, unquote(member) if separator else None)
