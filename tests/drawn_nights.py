"""Two drawn nights with hostile names, what a report says of them, and the elements of a page."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from ops.archives.fetch import FetchSettings
from pipelines.reports import report_data
from pipelines.reports.report_data import ReportSettings
from pipelines.scoring.run import ScoreSettings
from pipelines.tables import run_records
from tests.runs import Part

HOSTILE = (
    "<script>window.ran=1</script>",
    '"><img src=x onerror=window.ran=1>.png',
    "' onmouseover='window.ran=1.png",
    "\u202egnp.exe",
    "javascript:window.ran=1",
    "..%3Cscript%3Ewindow.ran=1",
    "{{ 7 * 7 }}{% raw %}.png",
    "</title><svg onload=window.ran=1>.png",
)
EVIL = '<b onclick="window.ran=1">\u2066\x1b[2J'
PRODUCTS = ("bolt", "nut", EVIL)
NONE = ScoreSettings("none", False, 100)
FLAGGED = ScoreSettings("flagged", False, 100)
THRESHOLD = 2.0  # of the generated model


def no_progress(*_):
    """Reports no progress."""


def pictured(root, part):
    """A part with a picture where its row says, and the hash of it."""
    path = f"{part.folder}/{part.name}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pixels = np.random.default_rng(len(part.name)).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return replace(part, content=hashlib.sha256(open(path, "rb").read()).hexdigest())


def first_night(root):
    """Scores around 1.6; every third name is hostile; two of each product could not be read."""
    rng = np.random.default_rng(0)
    parts = []
    for number, product in enumerate(PRODUCTS):
        for i in range(40):
            name = f"{number}/{i}/{HOSTILE[i % len(HOSTILE)] if i % 3 == 0 else 'plain.png'}"
            score = None if i in {3, 5} else float(rng.normal(1.6, 0.4))
            part = Part(name, product, score, folder=f"{root}/parts", reason=f"{HOSTILE[0]} {i}")
            parts.append(pictured(root, part))
    return parts


def second_night(parts):
    """Noise; bolts drift."""
    rng = np.random.default_rng(1)
    return [
        replace(p, version="v2", score=p.score + float(rng.normal(0, 0.2)) + (p.product == "bolt"))
        if p.score is not None
        else replace(p, version="v2")
        for p in parts
    ]


def collect(out, runs=None, **settings):
    chosen = ReportSettings(**settings)
    return report_data.collect(
        out, runs or run_records.latest(out, 1), chosen, FetchSettings(), no_progress
    )


class Elements(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def of(self, *names):
        return [attrs for tag, attrs in self.tags if tag in names]
