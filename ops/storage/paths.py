"""Names of all files below an output folder and in a model folder."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote

from ops.storage import files

MODEL_CARD = "model.json"
BACKBONE = "_backbone.safetensors"
LICENCE = "_licence.txt"  # of the backbone's weights, in a model folder
TABLE = "part-00000.parquet"  # the only file of a published run
JOINT = "_joint.safetensors"  # of a detector that all products share
CALIBRATED_BY = "_held-out.parquet"  # the images that calibrated a model
ORIGINS = "_bank-origins.parquet"  # which places of good pictures a model's banks hold


#: A longer name is shortened. File systems take 255 bytes, and suffixes follow.
_LONGEST = 200
_CUT_ESCAPE = re.compile(r"%[0-9A-F]?$")
#: Names that Windows and its file servers take for devices, whatever their suffix.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.ASCII | re.IGNORECASE)


def member(number: int) -> str:
    """The folder of one member in the model folder of an ensemble, by its number from 0."""
    return f"_member-{number}"


def file_name(product: str) -> str:
    """A product's name as a file name, with the characters escaped that a path gives a meaning.

    A leading `_` or `.` is escaped too, so that no product's file is hidden or overwrites
    `BACKBONE` or `JOINT`; so is the first letter of a name like `CON`. A long name is its start, a
    plus, which no other name has, and its hash.
    """
    quoted = quote(product, safe=" ")
    if quoted[:1] in {"_", "."} or _DEVICE.match(quoted):
        quoted = f"%{ord(quoted[0]):02X}{quoted[1:]}"
    if len(quoted) <= _LONGEST:
        return quoted
    digest = hashlib.blake2b(product.encode(), digest_size=16).hexdigest()
    start = quoted[: _LONGEST - len(digest) - 1]
    return f"{_CUT_ESCAPE.sub('', start)}+{digest}"


def product_file(product: str) -> str:
    """The file of one product's tensors in a model folder."""
    return f"{file_name(product)}.safetensors"


def mask_file(detector: str) -> str:
    """The file of the inspection mask of one detector's pictures."""
    return f"{file_name(detector)}.mask.png"


#: Kinds of pictures in a model folder.
HELD_OUT, SYNTHETIC, INSPECTED = "held-out", "synthetic", "inspected"


def picture_file(file: str, kind: str) -> str:
    """The file of a picture of the given kind that belongs to the tensors of `file`."""
    return f"{file.removesuffix('.safetensors')}.{kind}.png"


def picture_kind(picture: str) -> str:
    """The kind that `picture_file` was given for this file."""
    return picture.removesuffix(".png").rpartition(".")[2]


def model_side(model_id: str) -> str:
    """What stands for all rows of a model in `Out.comparisons`; ids of runs start with a date."""
    return f"model-{file_name(model_id)}"


def _sharded(image_id: str) -> str:
    # Ids are hashes, but an inventory from elsewhere may contain anything.
    return f"{file_name(image_id[:2])}/{file_name(image_id)}.png"


class Out:
    """Paths below one output folder."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def work(self, run_id: str = "") -> str:
        """The folder of an unfinished run, or of all of them."""
        return files.join(self.root, "_work", run_id).rstrip("/")

    def chunk(self, run_id: str, number: int) -> str:
        """One finished chunk of an unfinished run."""
        return files.join(self.work(run_id), f"part-{number:05d}.parquet")

    def table(self, night: str, run_id: str) -> str:
        """The published score table of a run."""
        folder = files.join(self.scores(), f"night={night}", f"run={run_id}")
        return files.join(folder, TABLE)

    def scores(self) -> str:
        """The folder of all published score tables."""
        return files.join(self.root, "scores")

    def regions(self) -> str:
        """The folder of all published tables of regions."""
        return files.join(self.root, "regions")

    def region_table(self, night: str, run_id: str) -> str:
        """The published table of the regions of a run."""
        folder = files.join(self.regions(), f"night={night}", f"run={run_id}")
        return files.join(folder, TABLE)

    def labels(self) -> str:
        """The folder of all tables of decisions."""
        return files.join(self.root, "labels")

    def label_table(self, name: str) -> str:
        """A table of decisions that were published together."""
        return files.join(self.labels(), f"part-{name}.parquet")

    def map(self, model_id: str, image_id: str) -> str:
        """The map of one image under one model."""
        return files.join(self.maps(model_id), _sharded(image_id))

    def maps(self, model_id: str) -> str:
        """The folder of all maps of a model."""
        return files.join(self.root, "maps", model_id)

    def overlay(self, model_id: str, image_id: str) -> str:
        """The map of one image, drawn over it."""
        return files.join(self.root, "overlays", model_id, _sharded(image_id))

    def model(self, model_id: str) -> str:
        """The default folder of a fitted model."""
        return files.join(self.root, "models", model_id)

    def run(self, run_id: str) -> str:
        """The record of a run: settings when it starts, totals when it ends."""
        return files.join(self.runs(), f"{run_id}.json")

    def runs(self) -> str:
        """The folder of all run records."""
        return files.join(self.root, "runs")

    def inventory(self, name: str) -> str:
        """An inventory that a job took itself, named by the hash of its content."""
        return files.join(self.root, "inventories", f"{name}.parquet")

    def warehouse(self) -> str:
        """The inventory of all images that the last night took."""
        return self.inventory("newest")

    def nights(self) -> str:
        """The folder of the records of nights."""
        return files.join(self.root, "nights")

    def night(self, name: str) -> str:
        """The record of a night: pending images when it starts, totals when it ends."""
        return files.join(self.nights(), f"{name}.json")

    def promotions(self) -> str:
        """The folder of the records of moved aliases."""
        return files.join(self.root, "promotions")

    def promotion(self, name: str) -> str:
        """The record of an alias that was moved to another version of a model."""
        return files.join(self.promotions(), f"{name}.json")

    def lock(self) -> str:
        """The lock that admits one night at a time: a file, or a prefix on S3."""
        return files.join(self.root, "_lock")

    def leases(self) -> str:
        """The lock on a local file system without file locks: a folder."""
        return files.join(self.root, "_leases")

    def part_calibrations(self, model_id: str) -> str:
        """A copy of a model's calibrations of parts, for readers that have no model."""
        return files.join(self.root, "parts", f"{file_name(model_id)}.json")

    def inspection_masks(self, model_id: str) -> str:
        """The folder of copies of a model's inspection masks, for readers that have no model."""
        return files.join(self.root, "masks", file_name(model_id))

    def evaluation(self, run_id: str) -> str:
        """The metrics of a run, one row per product."""
        return files.join(self.root, "evaluations", f"{run_id}.parquet")

    def picture(self, run_id: str, product: str) -> str:
        """A plot of the curves and scores of one product in a run."""
        return files.join(self.root, "evaluations", run_id, f"{file_name(product)}.png")

    def drift(self, run_id: str) -> str:
        """How a night's scores differ from earlier nights, one row per product."""
        return files.join(self.root, "drift", f"{run_id}.parquet")

    def comparison(self, before: str, after: str, name: str) -> str:
        """A table of the comparison of two runs, or of two models by their `model_side`."""
        return files.join(self.comparisons(before, after), f"{name}.parquet")

    def comparisons(self, before: str, after: str) -> str:
        """The folder of a comparison."""
        return files.join(self.root, "comparisons", f"{before}--{after}")

    def compared(self, before: str, after: str, product: str) -> str:
        """A plot of the scores of one product on both sides of a comparison."""
        folder = self.comparisons(before, after)
        return files.join(folder, "pictures", f"{file_name(product)}.png")

    def report(self, name: str) -> str:
        """The report of a run or a night."""
        return files.join(self.reports(), f"{name}.html")

    def trends(self) -> str:
        """The page about all nights."""
        return self.report("trends")

    def index(self) -> str:
        """The page that lists all reports."""
        return self.report("index")

    def reports(self) -> str:
        """The folder of all pages."""
        return files.join(self.root, "reports")

    def run_summary(self, run_id: str) -> str:
        """Counts and quantiles of a run, one row per product."""
        return files.join(self.summaries(), f"{run_id}.parquet")

    def summaries(self) -> str:
        """The folder of the summaries of all runs."""
        return files.join(self.root, "summaries")

    def spool(self) -> str:
        """The folder of records that the tracker has not received yet."""
        return files.join(self.root, "_spool")

    def tracker(self) -> str:
        """The local tracking database."""
        return files.join(self.root, "mlflow.db")
