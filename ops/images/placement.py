"""How pictures of one product differ in placement: shifts and turns, found by phase correlation.

Shifts by Kuglin and Hines, "The phase correlation image alignment method" (1975); turns, as Reddy
and Chatterji (1996), by the same of the spectra in polar coordinates, which shifts do not change.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.ndimage import map_coordinates, rotate

Floats = npt.NDArray[np.floating]
Pixels8 = npt.NDArray[np.uint8]

#: Side of the small pictures that are compared; a shift is known to a pixel of them.
SIDE = 128
#: Of fewer pictures no quantile is told.
FEWEST = 5
#: Of what is found, what nine of ten pictures keep within.
_QUANTILE = 0.9
#: Height of a peak of correlation, in standard deviations. Textures, whose peaks are where noise
#: happens to agree, reach 6.5; parts that have their structure in common, drawn with noise, 20.
_SHARP = 10.0
#: Turning pictures back must raise the peaks by this factor: a round part looks turned anyhow.
_BETTER = 1.2
#: Standard deviation, in pixels, of the Gaussian that smooths correlations.
_SIGMA = 1.0
#: Angles and radii of spectra in polar coordinates; radii are shares of the side.
_ANGLES, _RADII = 180, np.linspace(0.06, 0.4, 48)


class Placement(NamedTuple):
    """How far pictures lie from their median place; nine of ten are nearer."""

    shift: float
    """Share of the picture's width or height, of these the larger."""
    turn: float
    """Degrees, below 90: a part and the same part turned by half a turn are not told apart."""


class _Matches(NamedTuple):
    """Places (n, 2) relative to one of the arrays, and how sharp the peak of each is (n,)."""

    places: npt.NDArray[np.int64]
    sharpness: Floats

    @property
    def typical(self) -> float:
        """The sharpness that half of them reach."""
        return float(np.median(self.sharpness))

    @property
    def distances(self) -> Floats:
        """Distances (m, 2) of those with a sharp peak from their median place."""
        at = self.places[self.sharpness >= _SHARP]
        return np.asarray(np.abs(at - np.median(at, axis=0)))


def placement(pictures: Pixels8) -> Placement | None:
    """The placement of grey pictures (n, SIDE, SIDE).

    None of too few, and of pictures without structure in common, such as textures.
    """
    if len(pictures) < FEWEST:
        return None
    edges = _edges(pictures)
    shifts, turns = _matches(edges), _matches(_polar(edges))
    angle = 0.0
    if turns.typical >= _SHARP:
        upright = _matches(_edges(_turned(pictures, turns.places[:, 0])))
        if upright.typical > _BETTER * shifts.typical:
            shifts, angle = upright, float(np.quantile(turns.distances[:, 0], _QUANTILE))
    if shifts.typical < _SHARP:
        return None
    return Placement(float(np.quantile(shifts.distances.max(axis=1), _QUANTILE)) / SIDE, angle)


def _edges(pictures: Pixels8) -> Floats:
    """Lengths of gradients (n, SIDE, SIDE), without their mean, fading towards the border."""
    down, across = np.gradient(pictures.astype(np.float64), axis=(1, 2))
    lengths = np.hypot(down, across)
    window = np.outer(np.hanning(SIDE), np.hanning(SIDE))
    return np.asarray((lengths - lengths.mean(axis=(1, 2), keepdims=True)) * window)


def _matches(arrays: Floats) -> _Matches:
    """Correlate arrays (n, h, w) with the one of them that the others match best."""
    count, height, width = arrays.shape
    spectra = fft.rfft2(arrays)
    squares = fft.fftfreq(height)[:, None] ** 2 + fft.rfftfreq(width) ** 2
    spectra *= np.exp(-((np.pi * _SIGMA) ** 2) * squares) / (np.abs(spectra) + 1e-12)
    best: _Matches | None = None
    for number in range(count):
        found = fft.irfft2(spectra * spectra[number].conj(), s=(height, width))
        flat = found.reshape(count, -1)
        size = np.array([height, width])
        places = np.stack(np.unravel_index(flat.argmax(axis=1), (height, width)), axis=-1)
        places = (places + size // 2) % size - size // 2  # the far half lies before 0
        matches = _Matches(places, flat.max(axis=1) / (flat.std(axis=1) + 1e-12))
        if best is None or matches.typical > best.typical:
            best = matches
    assert best
    return best


def _polar(edges: Floats) -> Floats:
    """Spectra (n, angles, radii) of half a turn, without their mean over angles."""
    spectra = np.log1p(np.abs(fft.fftshift(fft.fft2(edges), axes=(1, 2))))
    angles = np.arange(_ANGLES)[:, None] * np.pi / _ANGLES
    radii = _RADII * SIDE
    at = SIDE / 2 + radii * np.sin(angles), SIDE / 2 + radii * np.cos(angles)
    polar = np.stack([map_coordinates(spectrum, at, order=1) for spectrum in spectra])
    return np.asarray(polar - polar.mean(axis=1, keepdims=True))


def _turned(pictures: Pixels8, degrees: npt.NDArray[np.int64]) -> Pixels8:
    """Each picture turned about its centre, clockwise."""
    turned = [
        rotate(picture, angle, reshape=False, order=1, mode="nearest")
        for picture, angle in zip(pictures, degrees, strict=True)
    ]
    return np.stack(turned)
