"""What people are told of how much of their pictures a detector sees."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.fitting.picture_sizes import Detail

#: A pixel seen of so many pixels of the picture is warned of.
_COARSE = 3.0


def detail_seen(detail: Detail | None) -> Iterator[str]:
    """Sentences about the picture of which the least is seen; none if no picture was read."""
    if detail is None:
        return
    width, height = detail.size
    step = f"{detail.step:.3g}"
    yield (
        f"a pixel that the network sees is {step} {'pixel' if step == '1' else 'pixels'} of a "
        f"picture of {width:,} x {height:,}, and a patch {detail.patch:.3g}; smaller defects are "
        "easily missed"
    )
    if detail.step >= _COARSE:
        yield (
            "warning: most of the picture's detail is not seen; for small defects, raise "
            "--input.size or cut pictures into tiles (--input.fit tile)"
        )
