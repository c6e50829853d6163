"""Broken images through listing, reading and a detector: `python -m tests.faults mutations 10000`.

Each is read twice: by itself, with its time and memory taken, and then in a batch with others.
"""

from __future__ import annotations

import faulthandler
import hashlib
import io
import platform
import re
import tarfile
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from PIL import Image

from ops.archives import listing
from ops.archives.fetch import FetchSettings
from ops.archives.inventory import Inventory
from ops.archives.layouts import Layout, PathParser
from ops.detectors.model_folder import Model
from ops.failure import Failure
from ops.images.decode import DecodeSettings, decode
from ops.images.read_images import Read
from ops.images.resize import InputSettings, pack, resize
from ops.storage import uris
from ops.storage.paths import Out
from pipelines.cluster.resources import Resources
from pipelines.scoring.read_stage import read_rows
from pipelines.scoring.stream import ScoringStream, draw_step
from pipelines.tables import take_inventory
from tests.conftest import DATA, tiny_model
from tests.faults.mutations import MUTATIONS, SUFFIXES, Mutant, mutant

FETCH = FetchSettings(attempts=1, backoff=0)
BATCH, SECONDS = 250, 60
#: What belongs to a traceback or to this machine, and not into a sentence.
NO_WORDS = re.compile(
    r"Traceback|File \"|, line \d|0x[0-9a-f]{6}|frame #|site-packages|\.py\b|/tmp/"
)


class Outcome(NamedTuple):
    """What became of one image. `memory` in bytes beyond what was held; `changed`: other pixels."""

    mutant: Mutant
    status: str
    reason: str | None
    sha256: str | None
    seconds: float
    memory: int
    changed: bool
    score: float | None


class Tensors:
    """A model in this process."""

    def __init__(self, model: Model) -> None:
        self.card = model.card
        self.of_backbone = lambda: model.backbone
        self.masks = {}
        self.of_product = lambda product: model.products[product]


def memory(name: str) -> int:
    """Bytes by a name of /proc/self/status: VmRSS held, VmHWM held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(name)).split()[1]) * 1024


def photographs() -> list[Path]:
    """Some of the real ones, if they are there."""
    return [
        file
        for folder in sorted((DATA / "mtd").glob("MT_*/Imgs"))
        for file in sorted(folder.glob("*.jpg"))[:6]
    ]


def place(folder: Path, mutants: Sequence[Mutant]) -> None:
    """Half of them as files, the others as members of a tar, a packed tar and a zip."""
    with (
        tarfile.open(folder / "a.tar", "w") as plain,
        tarfile.open(folder / "b.tar.gz", "w:gz", compresslevel=1) as packed,
        zipfile.ZipFile(folder / "c.zip", "w", zipfile.ZIP_DEFLATED) as zipped,
    ):
        for number, one in enumerate(mutants):
            if number % 6 < 3:
                (folder / one.name).write_bytes(one.data)
            elif number % 6 == 5:
                zipped.writestr(one.name, one.data)
            else:
                info = tarfile.TarInfo(one.name)
                info.size = len(one.data)
                (plain if number % 6 == 3 else packed).addfile(info, io.BytesIO(one.data))


def listed(folder: Path, out: Path) -> Inventory:
    """An inventory of the folder, as jobs.inventory takes it."""
    suffixes = listing.IMAGE_SUFFIXES.split()
    path_parser = PathParser(Layout("**/{name}"), "part")
    take_inventory.take([str(folder)], str(out), path_parser, suffixes, lambda *_: None)
    return Inventory(str(out))


def outcomes(mutants: Sequence[Mutant]) -> Iterator[Outcome]:
    """Read and score one batch; whatever happens but a row each is an error."""
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as name:
        folder = Path(name) / "parts"
        folder.mkdir()
        place(folder, mutants)
        rows = read_rows(found := listed(folder, Path(name) / "parts.parquet"), 0, len(mutants))
        assert len(found) == len(mutants)
        model = Tensors(tiny_model("part"))
        draw = draw_step(model, Out(f"{name}/out"), "flagged")
        scoring = ScoringStream(model, draw, FETCH, Resources())
        by_name = {one.name: one for one in mutants}
        alone = []
        for at in range(len(rows)):
            row = rows.slice(at, 1)
            one = by_name[_name(row["uri"][0].as_py())]
            alone.append(_alone(scoring.read, row, one))
        faulthandler.dump_traceback_later(SECONDS * 5, exit=True)
        together = scoring.run_locally(rows).to_pylist()
        faulthandler.cancel_dump_traceback_later()
        for outcome, row in zip(alone, together, strict=True):
            once = (outcome.status, outcome.reason, outcome.sha256)
            again = (row["status"], row["reason"], row["content_sha256"])
            assert once == again, f"{outcome.mutant.name}: {once}, and then {again}"
            broken = broken_rules(outcome, row["uri"])
            assert not broken, f"{outcome.mutant.name}: {broken}: {outcome.reason}"
            yield outcome._replace(score=row["score"])


def _name(uri: str) -> str:
    location, member = uris.parse(uri)
    return member or Path(location).name


def _alone(read: Read, row: pa.Table, one: Mutant) -> Outcome:
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    held, start = memory("VmRSS"), time.perf_counter()
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    (got,) = read(row).to_pylist()
    faulthandler.cancel_dump_traceback_later()
    seconds = time.perf_counter() - start
    changed = got["status"] == "ok" and got["pixels"] != reference(one.source, read.input)
    return Outcome(
        one,
        got["status"],
        got["reason"],
        got["content_sha256"],
        seconds,
        memory("VmHWM") - held,
        changed,
        None,
    )


def reference(source: bytes, settings: InputSettings) -> bytes:
    """What an undamaged file gives the detector."""
    try:
        return pack(resize(decode(source, DecodeSettings()), settings)).tobytes()
    except Failure:
        return b""


def broken_rules(outcome: Outcome, uri: str) -> list[str]:
    """What is wrong with a row, as people would put it; nothing, if all is well."""
    broken = []
    sha256 = hashlib.sha256(outcome.mutant.data).hexdigest()
    if outcome.sha256 is None and outcome.status == "ok":
        broken.append("no hash")
    if outcome.sha256 not in {None, sha256}:
        broken.append("the hash is not that of the file")
    if outcome.status == "ok" and outcome.reason is None:  # otherwise, what was left out of it
        return broken
    reason = outcome.reason or ""
    if not reason or not reason.isprintable() or len(reason) > 300:
        broken.append("no sentence")
    without = reason.replace(uris.parse(uri).location, "")
    if found := NO_WORDS.search(without):
        broken.append(f"{found.group()!r} in its reason")
    return broken


def rows(seed: int, count: int) -> Iterator[Outcome]:
    """The first `count` images of a seed."""
    real = photographs()
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        yield from outcomes([mutant(seed, number, real) for number in numbers])


def main(words: list[str]) -> None:
    """Read so many (10,000) of a seed (0), and print the table."""
    count, seed = (int(word) for word in [*words, *("10000", "0")[len(words) :]])
    held, start = memory("VmRSS"), time.perf_counter()
    cells: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    slowest: dict[str, Outcome] = {}
    fattest: dict[str, int] = Counter()
    reasons: dict[tuple[str, str], str] = {}
    counts: Counter[tuple[str, str]] = Counter()
    most = 0
    for outcome in rows(seed, count):
        what, kind = outcome.mutant.mutation, outcome.mutant.kind
        cells[what, kind][outcome.status] += 1
        cells[what, kind]["changed"] += outcome.changed
        slowest[what] = max(slowest.get(what, outcome), outcome, key=lambda x: x.seconds)
        fattest[what] = max(fattest[what], outcome.memory)
        told = re.sub(r"\d+", "N", (outcome.reason or "").split(" (it starts")[0])
        counts[outcome.status, told] += 1
        reasons.setdefault((outcome.status, told), f"{outcome.mutant.name}: {outcome.reason}")
        most = max(most, memory("VmHWM"))
    seconds = time.perf_counter() - start
    print(f"{count} images of seed {seed}, {len(photographs())} photographs among their sources;")
    print(f"Pillow {Image.__version__}, Python {platform.python_version()}; {seconds:.0f} s;")
    print(f"peak of the process {most / 2**20:.0f} MiB, {held / 2**20:.0f} MiB before\n")
    print("| damage |", " | ".join(SUFFIXES), "| slowest | most memory |")
    print("|---" * (len(SUFFIXES) + 3) + "|")
    for what in MUTATIONS:
        if what not in slowest:
            continue
        line = [_cell(cells[what, kind]) for kind in SUFFIXES]
        slow, fat = slowest[what].seconds * 1000, fattest[what] / 2**20
        print(f"| {what} | {' | '.join(line)} | {slow:.0f} ms | {fat:.0f} MiB |")
    total = Counter()
    for cell in cells.values():
        total.update(cell)
    print(f"\nall: {_cell(total)}\n")
    for (status, told), number in counts.most_common():
        if told:
            print(f"{number:6} {status}: {reasons[status, told]}")


def _cell(found: Counter[str]) -> str:
    words = [f"{found[name]} {name}" for name in sorted(found) if found[name] and name != "changed"]
    if found["changed"]:
        words.append(f"({found['changed']} changed)")
    return ", ".join(words).replace(", (", " (") or "-"
