"""What kills its own process: readers of certain images, as decoders have done, and checkpoints."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from ops.images.read_images import Read
from ops.storage import uris
from pipelines.fitting.worker import DetectorCheckpoint
from pipelines.scoring.stream import ScoringStream, _TimedScoreImages


@dataclass(frozen=True)
class Deadly(Read):
    victims: tuple[str, ...] = ()
    """Ends of addresses."""

    def __call__(self, rows):
        if any(uri.endswith(self.victims) for uri in rows["uri"].to_pylist()):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(rows)


@dataclass(frozen=True)
class DeadlyStream(ScoringStream):
    victims: tuple[str, ...] = ()

    @property
    def read(self):
        card = self.model.card
        products = frozenset(card.products)
        return Deadly(card.input, card.decode, self.fetch, products, victims=self.victims)


class DeadlyScoreImages(_TimedScoreImages):
    """A detector whose process is killed, once, by an image of a certain name."""

    def __call__(self, rows):
        for uri in rows["uri"].to_pylist():
            killed = Path(f"{uris.parse(uri).location}.killed")
            if "kills-detector" in uri and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(rows)


class DeadlyCheckpoint(DetectorCheckpoint):
    """Notes whose process is killed when it has noted 40 picks of washers, once.

    A line of the diary is a product, a process, and how many picks it noted.
    """

    diary: Path

    def write(self, found):
        super().write(found)
        assert self.read() == found  # so the ledger has it
        with self.diary.open("a") as diary:
            diary.write(f"{self._detector} {os.getpid()} {len(found[0])}\n")
        first = self.diary.read_text().split()[1]
        if self._detector == "washer" and len(found[0]) >= 40 and first == str(os.getpid()):
            os.kill(os.getpid(), signal.SIGKILL)
