"""How much larger than itself an archive may become when it is unpacked."""

from __future__ import annotations

from ops.errors import UserError

#: Default limit. Real pictures, which are noisy, unpack to less than 20 times their size.
RATIO = 200.0
#: What any archive may unpack to, in bytes.
_FREE = 2**26


class Expands(UserError):
    """An archive unpacks to more than the limit."""


def most_bytes(packed: int, ratio: float) -> int:
    """What an archive of `packed` bytes may unpack to."""
    return max(_FREE, int(packed * ratio))


def check(unpacked: int, packed: int, ratio: float) -> None:
    """Raise Expands if `unpacked` bytes are too many for an archive of `packed` bytes."""
    if unpacked > most_bytes(packed, ratio):
        raise Expands(
            f"it unpacks to over {most_bytes(packed, ratio)} bytes from {packed}, more than "
            f"{ratio:g} times; if it is no bomb, raise --max-unpack-ratio and "
            "--fetch.max-unpack-ratio"
        )
