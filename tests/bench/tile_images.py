"""Images of one product for the benchmark of detectors: read once, changed, and exposed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ops.archives.fetch import fetch
from ops.images.decode import DecodeSettings, decode
from ops.images.exposure import normalise_exposure
from ops.images.packed_pixels import views
from ops.images.read_images import Read
from ops.images.resize import InputSettings, resize_mask, unpack
from pipelines.fitting.request import FitRequest

Integers = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class Change(NamedTuple):
    """How scored images are changed, as another exposure would: v -> (factor * v) ** gamma."""

    name: str
    factor: float = 1.0
    gamma: float = 1.0

    @classmethod
    def named(cls, name: str) -> Change:
        """as_is, x0.7 (brightness times 0.7), gamma0.8, ... Raises SystemExit for others."""
        if name == "as_is":
            return cls(name)
        match = re.fullmatch(r"(x|gamma)(\d+(?:\.\d+)?)", name)
        if not match:
            raise SystemExit(f"unknown change {name!r}; give as_is, x0.7, gamma0.8 or the like")
        value = float(match[2])
        return cls(name, factor=value) if match[1] == "x" else cls(name, gamma=value)

    def __call__(self, pixels: Integers, full_scale: int) -> Integers:
        """Integer pixels of the same type, clipped at full scale."""
        if self.factor == self.gamma == 1:
            return pixels
        values = (pixels / full_scale * self.factor).clip(0, 1) ** self.gamma
        return np.rint(values * full_scale).astype(pixels.dtype)


AS_IS = Change("as_is")


@dataclass(frozen=True)
class Images:
    """Some images of one product, as integers (H, W, C) of the input's size."""

    pixels: list[Integers]
    depths: list[int]
    rows: pa.Table
    """Their rows of the inventory."""
    input: InputSettings

    @classmethod
    def read(cls, rows: pa.Table, request: FitRequest) -> Images:
        """Read rows of an inventory. Raises SystemExit if an image cannot be read."""
        read = Read(request.input, request.decode, request.fetch, threads=1)(rows)
        failed = read.filter(pc.not_equal(read["status"], "ok"))
        if len(failed):
            raise SystemExit(f"{len(failed)} images cannot be read: {failed['reason'][0]}")
        size = request.input.sides
        depths, channels = read["bit_depth"].to_pylist(), read["channels"].to_pylist()
        packed = zip(views(read["pixels"]), channels, depths, strict=True)
        return cls([unpack(*one, size).copy() for one in packed], depths, rows, request.input)

    def batches(self, change: Change = AS_IS, count: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers (B,) and images (B, 3, H, W) in [0, 1], exposed as the input's settings say."""
        for start in range(0, len(self.pixels), count):
            numbers = torch.arange(start, min(start + count, len(self.pixels)))
            yield numbers, torch.cat([self._exposed(number, change) for number in numbers.tolist()])

    def _exposed(self, number: int, change: Change) -> Tensor:
        full_scale = 2 ** self.depths[number] - 1
        changed = torch.from_numpy(change(self.pixels[number], full_scale)).permute(2, 0, 1)
        return normalise_exposure(changed[None], full_scale, self.input.exposure).expand(
            -1, 3, -1, -1
        )

    @property
    def labels(self) -> npt.NDArray[np.bool_]:
        """True for defective images."""
        return np.asarray(self.rows["label"].to_numpy() == 1)

    def masks(self, request: FitRequest) -> list[npt.NDArray[np.bool_] | None]:
        """Masks (H, W) of all images; None of a defective image without one, or an empty one."""
        size = self.input.sides[::-1]
        masks: list[npt.NDArray[np.bool_] | None] = []
        for label, uri in zip(self.labels, self.rows["mask_uri"].to_pylist(), strict=True):
            if not label:
                masks.append(np.zeros(size, dtype=bool))
                continue
            mask = None
            if uri:
                data = fetch(uri, None, None, request.fetch)
                decoded = decode(data, DecodeSettings(bit_depth=16, range="0,1"))
                mask = resize_mask(decoded.pixels, self.input)
            masks.append(mask if mask is not None and mask.any() else None)
        return masks
