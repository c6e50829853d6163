"""URIs in tables against locations in settings.

A *location* is what a person types and a file system takes: `/data/a b.png`, `s3://bucket/a#1.png`.
A *URI* is what tables hold: with a scheme, a member of an archive behind `#`, and the characters
that would make it ambiguous (`%`, `#`, `?`, control characters, bytes that are not UTF-8)
percent-encoded. Everything else stays as it is, so that most URIs can be pasted into other tools.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

_AMBIGUOUS = re.compile("[%#?\x00-\x1f\x7f\udc80-\udcff]")


class Parsed(NamedTuple):
    """Where a URI points: a location, and the member inside of it if that is an archive."""

    location: str
    member: str | None


def _encode(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"%{code - 0xDC00 if code >= 0xDC80 else code:02X}"


def quote(text: str) -> str:
    """Percent-encode what would make a URI ambiguous, and nothing else."""
    return _AMBIGUOUS.sub(_encode, text)


def unquote(text: str) -> str:
    """Undo `quote`; bytes that are not UTF-8 come back as the file system gave them."""
    return os.fsdecode(unquote_to_bytes(text.encode("utf-8", "surrogateescape")))


def make(location: str, member: str | None = None) -> str:
    """The URI of a location, or of a member of the archive there."""
    scheme, separator, rest = location.partition("://")
    head = (
        f"{scheme}://{quote(rest)}" if separator else f"file://{quote(os.path.abspath(location))}"
    )
    return head if member is None else f"{head}#{quote(member)}"


def parse(uri: str) -> Parsed:
    """Take a URI apart into a location and a member."""
    head, separator, member = uri.partition("#")
    location = unquote(head.removeprefix("file://"))
    return Parsed(location, unquote(member) if separator else None)
