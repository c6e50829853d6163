"""The inventory: a Parquet table of images, sorted by product, then container, then place in it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ops.archives import listing
from ops.archives.entry import PARQUET, Entry, Search
from ops.archives.layouts import PathParser, composed
from ops.archives.other_kinds import left_out_as
from ops.archives.system_files import SYSTEM_FILES, is_system_file
from ops.archives.tally import Tally
from ops.errors import UserError
from ops.plain_text import printable
from ops.storage import files, parquet, uris
from ops.storage.parquet import column

SCHEMA = pa.schema(
    [
        column("image_id", pa.string(), "128-bit hash of uri and version, in hex"),
        column("uri", pa.string(), "full address; the name of a member of an archive follows #"),
        column("bytes", pa.int64(), "size of the file; null where the listing does not give it"),
        column(
            "version",
            pa.string(),
            "size and times, or etag; of a member also its place, size, CRC",
        ),
        column(
            "member",
            pa.int64(),
            "entry of a zip, row of Parquet, offset of the bytes in a tar, or -1 - that of the "
            "header where bytes cannot be read without it; else null",
        ),
        column("product", pa.string(), "what the image shows; null if its path does not match"),
        column("part", pa.string(), "which part of the product; null where paths do not name it"),
        column("view", pa.string(), "from where it is seen; null where paths do not name it"),
        column("fields", parquet.TEXTS, "other fields of the path pattern by name; else null"),
        column("split", pa.string(), "train, test, ...; null where paths do not name it"),
        column("label", pa.int8(), "0 good, 1 defective, null unknown"),
        column("defect", pa.string(), "kind of defect, as named in the path"),
        column("mask_uri", pa.string(), "address of the ground-truth mask of a defective image"),
        column(
            "problem",
            pa.string(),
            "damage of an archive: the row stands for images that could not be listed",
        ),
    ],
    metadata={"nightloupe": "inventory 3"},
)
#: Metadata of an inventory: counts of the listing that it was made from, as JSON.
TALLY = "nightloupe.listing"
#: Columns of names that are compared, which inventories of other tools may have in other forms.
_NAMES = ("product", "part", "view")
#: The order in SQL in which images are read: each container at a time, in its own order.
READING_ORDER = "split_part(uri, '#', 1), member NULLS FIRST, uri"
#: The order of an inventory in SQL.
ORDER = f"product NULLS LAST, {READING_ORDER}"
#: Columns of a listing, before masks are joined to their images and rows sorted.
LISTED = pa.schema([*SCHEMA, pa.field("is_mask", pa.bool_()), pa.field("mask_key", pa.string())])


def image_id(uri: str, version: str) -> str:
    """The 128-bit identifier of one version of one image, in hex."""
    return hashlib.blake2b(f"{uri}\n{version}".encode(), digest_size=16).hexdigest()


def listed(
    locations: Sequence[str],
    path_parser: PathParser,
    suffixes: Sequence[str],
    tally: Tally,
    rows: int = 10_000,
    search: Search = Search(),
) -> Iterator[pa.RecordBatch]:
    """Stream the images and masks of archives as batches of `LISTED`; count all else in `tally`."""
    endings = tuple(suffixes)
    found = (entry for place in locations for entry in listing.entries(place, search, tally))
    listed_rows = (_row(entry, path_parser, endings, tally) for entry in found)
    image_rows = (row for row in listed_rows if row)
    while batch := list(islice(image_rows, rows)):
        yield pa.RecordBatch.from_pylist(batch, schema=LISTED)


def _row(
    entry: Entry, path_parser: PathParser, suffixes: tuple[str, ...], tally: Tally
) -> dict[str, object] | None:
    if not entry.problem:
        if is_system_file(entry.name):
            tally.left_out[SYSTEM_FILES] += 1
            return None
        if not (entry.name.lower().endswith(suffixes) or _is_row_without_suffix(entry)):
            if reason := left_out_as(entry.name, is_member="#" in entry.uri):
                tally.left_out[reason] += 1
            else:
                tally.count_other(entry.name)
            return None
    problem = printable(entry.problem) if entry.problem else None
    # URIs keep the bytes of names that are not UTF-8; products and labels must be valid text, and
    # the same text however a file system composes its letters.
    text = entry.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    named = path_parser(text if text.isascii() else composed(text))
    if named.left_out and not entry.problem:
        tally.left_out[named.left_out] += 1
        return None
    if problem:
        tally.problems += 1
        tally.example_problem = tally.example_problem or problem
    elif named.is_mask:
        tally.masks += 1
    else:
        tally.images += 1
        if not named.matched:
            tally.unmatched += 1
            tally.example_unmatched = tally.example_unmatched or uris.quote(entry.name)
    return {
        "image_id": image_id(entry.uri, entry.version),
        "uri": entry.uri,
        "bytes": entry.bytes,
        "version": entry.version,
        "member": entry.member,
        "product": named.product,
        "part": named.part,
        "view": named.view,
        "fields": named.fields,
        "split": named.split,
        "label": named.label,
        "defect": named.defect,
        "problem": problem,
        "is_mask": named.is_mask and not entry.problem,
        "mask_key": named.mask_key,
    }


def _is_row_without_suffix(entry: Entry) -> bool:
    """Whether an entry is a row of Parquet without a suffix: its column holds images."""
    if "." in entry.name.rsplit("/", 1)[-1]:
        return False
    return uris.parse(entry.uri).location.lower().endswith(PARQUET)


class Inventory:
    """An inventory file, read by row numbers. Workers can share it."""

    def __init__(self, location: str) -> None:
        self.location = location
        with parquet.opened(location) as table:
            missing = set(SCHEMA.names) - set(table.schema_arrow.names)
            if missing:
                raise UserError(
                    f"{location} is not an inventory: it lacks the columns {sorted(missing)}; "
                    "make one with python -m jobs.inventory"
                )
            kind = table.schema_arrow.field("fields").type
            if kind != parquet.TEXTS:
                raise UserError(f"column fields of {location} is {kind}, not {parquet.TEXTS}")
            groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        self.starts = [0]
        for count in groups:
            self.starts.append(self.starts[-1] + count)

    def __len__(self) -> int:
        return self.starts[-1]

    def tally(self) -> dict[str, Any]:
        """Counts of the listing: what was found and left out; empty if they were not kept."""
        with parquet.opened(self.location) as table:
            text = (table.schema_arrow.metadata or {}).get(TALLY.encode())
            stored = (table.metadata.metadata or {}).get(TALLY.encode(), text)
        return dict(json.loads(stored)) if stored else {}

    def rows(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows [start, stop) in the order of the file; products, parts and views are in NFC."""
        bounds = list(zip(self.starts, self.starts[1:], strict=False))
        groups = [i for i, (low, high) in enumerate(bounds) if low < stop and high > start]
        if not groups:
            return SCHEMA.empty_table().select(list(columns or SCHEMA.names))
        names = tuple(columns or SCHEMA.names)
        if len(groups) == 1:
            rows = _group(self.location, files.describe(self.location).version, groups[0], names)
        else:
            with parquet.opened(self.location) as table:
                rows = table.read_row_groups(groups, columns=list(names))
        return _with_composed_names(rows.slice(start - self.starts[groups[0]], stop - start))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a small inventory, or a few columns of a large one."""
        return self.rows(0, len(self), columns)

    def products(self) -> frozenset[str]:
        """The products of its images, in NFC."""
        products: set[str | None] = set()
        with parquet.opened(self.location) as table:
            for batch in table.iter_batches(2**20, columns=["product"]):
                products.update(pc.unique(batch["product"]).to_pylist())
        return frozenset(composed(name) for name in products if name is not None)

    def content_hash(self) -> str:
        """A hash of ids, products and problems, equal for inventories of the same images.

        Parts, views and fields belong to it where there are any.
        """
        digest = hashlib.blake2b(digest_size=16)
        with parquet.opened(self.location) as table:
            names = ["image_id", "product", "problem", "part", "view", "fields"]
            for batch in table.iter_batches(columns=names):
                for name in names[:3]:
                    digest.update("\n".join(map(str, batch[name].to_pylist())).encode())
                for name in names[3:]:
                    if batch[name].null_count < len(batch):
                        text = "\n".join(map(str, batch[name].to_pylist()))
                        digest.update(f"\n{name}\n{text}".encode())
        return digest.hexdigest()


@functools.lru_cache(maxsize=2)
def _group(location: str, version: str, group: int, columns: tuple[str, ...]) -> pa.Table:  # noqa: ARG001 - a rewritten file is read again
    """A row group of an inventory, of which a process that reads images needs few rows at a time.

    Parquet gives no part of a group, and decoding the whole takes as long as reading some images.
    """
    with parquet.opened(location) as table:
        return table.read_row_group(group, columns=list(columns))


def _with_composed_names(rows: pa.Table) -> pa.Table:
    """Rows whose products, parts and views are in NFC."""
    for name in _NAMES:
        at = rows.schema.get_field_index(name)
        if at < 0 or pc.all(pc.string_is_ascii(rows[name])).as_py() is not False:
            continue
        # Not `pc.utf8_normalize`, which returns NFD whatever form it is asked for (Arrow 25.0.1).
        names = [text and composed(text) for text in rows[name].to_pylist()]
        rows = rows.set_column(at, rows.schema.field(at), pa.array(names, pa.string()))
    return rows
