"""Where images come from: an inventory file, or archives to take an inventory of."""

from __future__ import annotations

import csv
import os
import tempfile
from dataclasses import dataclass, replace

from jobs.cli import locations
from jobs.cli.console import Progress, echo
from ops.archives import expansion, split_lists
from ops.archives.entry import Search
from ops.archives.inventory import Inventory
from ops.archives.layouts import GOOD, LAYOUTS, Layout, PathParser, composed
from ops.archives.listing import IMAGE_SUFFIXES, path_below
from ops.archives.split_lists import SplitLists
from ops.archives.tally import Tally
from ops.errors import SettingError
from ops.plain_text import printable
from ops.storage import files, s3
from ops.storage.paths import Out
from pipelines.tables import take_inventory

#: A larger list of names is another file: this holds a million names.
_NAMES_BYTES = 2**27


@dataclass(frozen=True)
class Listing:
    """Which images to list, and what their paths mean."""

    archive: str | list[str] = ""
    """A folder, an s3:// prefix, or a tar, zip or Parquet file; several as '["a", "b.tar"]'."""
    layout: str = ""
    """The layout of a public data set: mvtec, mvtec-ad-2, btad, dagm, mtd, mstc, visa, visa-raw or
    real-iad (see docs/data.md)."""
    pattern: str = ""
    """The fields in the paths of images, such as {product}/{split}/{defect}/{name}; * and **/ match
    anything."""
    mask_pattern: str = ""
    """The paths of masks, such as {product}/ground_truth/{defect}/{stem}_mask.png."""
    product: str = ""
    """The product of all images, if the pattern has no {product}; default: the archive's name."""
    good: str = ",".join(sorted(GOOD))
    """Values of {label} or {defect} that mean good, comma-separated."""
    train_names: str = ""
    """A text file with the names of the training images, one per line, or a CSV file with columns
    split and image. All other images are in split test. Or a JSON file as Real-IAD has them, or a
    folder of such files, with lists train and test; images in neither are left out."""
    train_share: float | None = None
    """If paths have no split: share of the parts, or of images of no part, whose good images are in
    split train, chosen by a hash. Parts with a defective image are not, nor are images whose label
    is unknown."""
    split: str = ""
    """List only images of this split."""
    suffixes: str = IMAGE_SUFFIXES
    """Suffixes of image files, space-separated."""
    column: str = ""
    """The column of Parquet files that holds the images, such as image or image.bytes; default:
    one named like an image, else the first whose values start like image files."""
    max_unpack_ratio: float = expansion.RATIO
    """Compressed tar and Parquet files are listed to at most this many times their size (and 64 MiB
    in any case); the rest is a problem row. Readers have --fetch.max-unpack-ratio."""

    def locations(self) -> list[str]:
        """The archives. Raises SettingError if none is named."""
        archives = [self.archive] if isinstance(self.archive, str) else list(self.archive)
        if not any(archives):
            raise SettingError(
                "name the images: --archive FOLDER, s3://..., FILE.tar, .zip, .parquet"
            )
        return [locations.checked("archive", place) for place in archives]

    def search(self) -> Search:
        """What is listed. Raises SettingError if an archive is itself written to."""
        own = tuple(
            place
            for name in ("out", "output", "model")
            if (place := getattr(self, name, "")) and not place.startswith("models:/")
        )
        for archive in self.locations():
            if any(path_below(archive, place) == "." for place in own):
                raise SettingError(
                    f"{archive} is both read as --archive and written to; choose another folder "
                    f"for the output, such as {archive.rstrip('/')}-out"
                )
        return Search(self.column, own, self.max_unpack_ratio)

    def path_parser(self) -> PathParser:
        """The parser of paths. Raises SettingError for unknown layouts, fields and shares."""
        if self.layout and self.layout not in LAYOUTS:
            raise SettingError(f"unknown layout {self.layout!r}; known: {', '.join(LAYOUTS)}")
        if self.layout and self.pattern:
            raise SettingError("--layout and --pattern exclude each other")
        base = LAYOUTS.get(self.layout) or Layout(self.pattern or "**/{name}", self.mask_pattern)
        place = self.locations()[0].rstrip("/")
        share = base.train_share if self.train_share is None else self.train_share
        if not 0 <= share <= 1:
            raise SettingError(f"train_share {share} must lie between 0 and 1")
        lists = self._split_lists(base, place)
        layout = replace(
            base,
            good=frozenset(word.strip().lower() for word in composed(self.good).split(",")),
            train_names=lists.train,
            test_names=lists.test,
            train_share=share,
            product=self.product or base.product,
        )
        own = os.path.basename(place if s3.is_s3(place) else os.path.abspath(place))
        return PathParser(layout, own.split(".")[0] or "product")

    def _split_lists(self, layout: Layout, place: str) -> SplitLists:
        """The lists of images that say which split an image belongs to, if there are any."""
        given = self.train_names
        if not given and layout.lists:
            known = [files.join(place, name) for name in layout.lists]
            given = next((k for k in known if files.exists(k) or files.is_folder(k)), "")
            if not given:
                raise SettingError(
                    f"--layout {self.layout} splits by {layout.lists[0]}, which {place} does not "
                    "hold; name it: --train-names FILE"
                )
        if not given:
            return SplitLists()
        if files.exists(given) or not files.is_folder(given):
            return _read_list(given)
        names = [name for name in files.names(given) if "/" not in name and name.endswith(".json")]
        if not names:
            raise SettingError(f"--train-names {given} is a folder without a .json file")
        return split_lists.union(_read_list(files.join(given, name)) for name in names)


def _read_list(file: str) -> SplitLists:
    """A list of images. Raises SettingError if it is none."""
    content = files.read_bytes(file, limit=_NAMES_BYTES)
    try:
        return split_lists.read(content.decode())
    except (ValueError, csv.Error) as error:
        raise SettingError(
            f"--train-names {file} is no list of names: {error}; write one name a line in UTF-8"
        ) from None


def take(listing: Listing, out: str, progress: Progress) -> Tally:
    """Take an inventory and print its counts."""
    path_parser = listing.path_parser()
    tally = take_inventory.take(
        listing.locations(),
        out,
        path_parser,
        listing.suffixes.split(),
        progress,
        listing.split or None,
        search=listing.search(),
    )
    echo(f"{tally.images} images and {tally.masks} masks listed")
    for kind, count in tally.kinds.most_common(20):
        echo(f"  {printable(kind)}: {count}")
    if path_parser.layout.label_by_mask and not tally.masks:
        echo("warning: there are no masks, so no image is known to be good or defective")
    if tally.other_files:
        endings = ", ".join(
            f"{n} {printable(suffix)}" for suffix, n in tally.other_suffixes.most_common(20)
        )
        echo(f"{tally.other_files} other files left out ({endings})")
    for reason, count in tally.left_out.most_common():
        echo(f"left out: {count} {reason}")
    for column, count in tally.columns.most_common(20):
        echo(f"images are taken from column {printable(column)} of {count} Parquet files")
    if tally.unmatched:
        echo(
            f"warning: {tally.unmatched} images do not match the pattern and have no product, "
            f"such as {printable(tally.example_unmatched)}"
        )
    if tally.shared_parts:
        echo(
            "warning: parts with images both in the split to fit on and in another: "
            f"{tally.shared_parts}; a detector that remembers single images rates the others as "
            "more normal than images of new parts"
        )
    if tally.problems:
        echo(
            f"warning: {tally.problems} archives cannot be read, or not to their end; the row of "
            f"each has the reason, such as: {printable(tally.example_problem)}"
        )
    return tally


def check(given: str, listing: Listing) -> None:
    """Check the settings of the source before anything starts. Raises SettingError."""
    if given and listing.archive:
        raise SettingError("--inventory and --archive exclude each other")
    if not given:
        listing.path_parser()
        listing.search()


def inventory_of(given: str, listing: Listing, out: Out, progress: Progress) -> Inventory:
    """The given inventory, or a new one of the archives, kept under the hash of its content."""
    if given:
        return Inventory(given)
    with tempfile.TemporaryDirectory(prefix="nightloupe-") as folder:
        path = os.path.join(folder, "inventory.parquet")
        take(listing, path, progress)
        return take_inventory.keep(path, out)
