"""Drawn images of two products, with and without defects, for the demo and for tests."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Image = npt.NDArray[np.uint8]
PRODUCTS = ("washer", "fabric")
DEFECTS = ("blob", "scratch")


class Specimen(NamedTuple):
    """An image (size, size, 3) and the mask (size, size) of its defect, 255 inside it."""

    picture: Image
    mask: Image


def draw(product: str, seed: int, size: int = 128, defect: str | None = None) -> Specimen:
    """Draw one part. The same arguments give the same pixels."""
    rng = np.random.default_rng([PRODUCTS.index(product), seed])
    grey = _washer(rng, size) if product == "washer" else _fabric(rng, size)
    tint = (1.0, 0.97, 0.9) if product == "washer" else (0.75, 0.85, 1.0)
    mask = np.zeros((size, size), dtype=bool)
    if defect:
        mask = _blob(rng, size) if defect == "blob" else _scratch(rng, size)
        change = rng.choice([-0.35, 0.35]) if defect == "blob" else -0.3
        grey = grey + change * gaussian_filter(mask.astype(float), 0.7)
    grey = grey + rng.normal(0, 0.01, grey.shape)
    picture = np.clip(grey[..., None] * np.asarray(tint) * 255, 0, 255).astype(np.uint8)
    return Specimen(picture, mask.astype(np.uint8) * 255)


def _coordinates(size: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    return x, y


def _washer(rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    """A bright ring with tool marks on a dark background, slightly off centre."""
    x, y = _coordinates(size)
    radius = np.hypot(x - rng.normal(0, 0.01), y - rng.normal(0, 0.01))
    ring = 1 / (1 + np.exp(-(radius - 0.17) * 120)) * 1 / (1 + np.exp((radius - 0.42) * 120))
    marks = 0.06 * np.sin(radius * 160 + rng.uniform(0, 6.28))
    return np.asarray(0.15 + ring * (0.5 + marks) * rng.uniform(0.95, 1.05))


def _fabric(rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    """A plain weave, slightly sheared and unevenly lit."""
    x, y = _coordinates(size)
    shear = rng.normal(0, 0.02)
    warp = np.sin((x + shear * y) * 2 * np.pi * 14 + rng.uniform(0, 6.28))
    weft = np.sin((y - shear * x) * 2 * np.pi * 14 + rng.uniform(0, 6.28))
    light = 1 + 0.08 * x * rng.choice([-1, 1])
    return np.asarray((0.5 + 0.18 * warp * weft) * light)


def _blob(rng: np.random.Generator, size: int) -> npt.NDArray[np.bool_]:
    x, y = _coordinates(size)
    angle, spot = rng.uniform(0, 2 * np.pi), rng.uniform(0.22, 0.36)
    dx, dy = x - spot * np.cos(angle), y - spot * np.sin(angle)
    return np.asarray(np.hypot(dx * rng.uniform(0.8, 1.3), dy) < rng.uniform(0.04, 0.07))


def _scratch(rng: np.random.Generator, size: int) -> npt.NDArray[np.bool_]:
    x, y = _coordinates(size)
    angle, spot = rng.uniform(0, 2 * np.pi), rng.uniform(0.24, 0.34)
    dx, dy = x - spot * np.cos(angle), y - spot * np.sin(angle)
    turn = rng.uniform(0, np.pi)
    along = dx * np.cos(turn) + dy * np.sin(turn)
    across = -dx * np.sin(turn) + dy * np.cos(turn) + 0.6 * along**2
    return np.asarray((np.abs(along) < rng.uniform(0.1, 0.16)) & (np.abs(across) < 0.014))
