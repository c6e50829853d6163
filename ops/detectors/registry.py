"""All detectors by name."""

from __future__ import annotations

from ops.detectors.cflow import CFlow
from ops.detectors.csflow import CsFlow
from ops.detectors.detector import Detector
from ops.detectors.differnet import DifferNet
from ops.detectors.fastflow import FastFlow
from ops.detectors.glance.detector import Glance
from ops.detectors.padim import PaDiM
from ops.detectors.patchcore import PatchCore
from ops.detectors.spade import Spade
from ops.detectors.ssnf import Ssnf
from ops.errors import SettingError

DETECTORS: dict[str, type[Detector]] = {
    detector.name: detector
    for detector in (PatchCore, Spade, PaDiM, DifferNet, FastFlow, CFlow, CsFlow, Ssnf, Glance)
}


def detector_class(name: str) -> type[Detector]:
    """A detector's class. Raises SettingError that lists the known names."""
    if name not in DETECTORS:
        raise SettingError(f"unknown method {name!r}; known: {', '.join(DETECTORS)}")
    return DETECTORS[name]
