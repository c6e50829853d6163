"""Query the current scores of a model: of each image, the newest valid row of all nights.

python -m jobs.query --out out --product washer --limit 50
python -m jobs.query --out s3://bucket/out --where "width > 1000" --output worst.csv
python -m jobs.query --out out --model-id "tiles v3" --columns p_value,model,overlay_uri,uri
python -m jobs.query --out out --by line,product --where "fields['shift'] = 'late'"
python -m jobs.query --out out --parts true --output parts.csv
python -m jobs.query --out out --regions true --where is_anomalous --output regions.json
python -m jobs.query --out out --false-alarm-rate 0.001 --output relabelled.parquet

Anomalous images come first, of these the ones that the last night scored, then those with the
smallest p-value that their product can have, then the smallest p-values. Of images with equal
p-values, the highest scores of each product come in turn: scores of two products or models are
never compared.
--threshold or --false-alarm-rate replace the model's thresholds; nothing is scored again.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from jobs.cli import coco, entry, field_columns, group_rows, rows
from jobs.cli.console import echo
from jobs.cli.group_rows import GroupRows
from jobs.cli.image_rows import ImageRows
from jobs.cli.part_rows import PartRows
from jobs.cli.region_rows import RegionRows
from ops.errors import SettingError
from ops.storage.paths import Out
from pipelines.tables import current_scores, decided_images, gone, model_names, path_fields
from pipelines.tables.model_names import NamedModel

_Row = dict[str, Any]
_SCREEN = 20


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.query."""

    out: str = "out"
    """The output folder that holds the nights."""
    model_id: str = ""
    """The model: its id or the start of it, or a name that a run recorded, such as "tiles v3" or
    champion; default: the model of the latest finished run."""
    product: str = ""
    """Only images of this product."""
    parts: bool = False
    """One row for each part of several images, where paths name {part}: its worst view, what failed
    or is missing, and a p-value of the part. --where and --columns are then over the columns of
    this table."""
    regions: bool = False
    """One row for each region of a map above the pixel threshold, with its box. --where and
    --columns are then over the columns of this table. --threshold, on map values, and
    --false-alarm-rate leave out regions; none is added or cut anew. An --output that ends in .json
    is a COCO file."""
    by: str = ""
    """One row for each value of a column (product, part, view, status) or of a field of the paths'
    pattern, such as line; or for each combination of several, comma-separated. Rows have counts of
    images, failed and anomalous ones, and the share of anomalous ones."""
    where: str = ""
    """An SQL expression over is_new, the columns of the score table and those of decisions, such as
    "width > 1000 and decided is null" or "fields['line'] = 'A'". Products are stored in Unicode's
    composed form, NFC."""
    columns: str = ""
    """Columns to show, comma-separated: is_new (scored by the last night under the model),
    overlay_uri, model, those of the score table, field_line for the field {line} of the paths'
    pattern, and those of decisions: decided (what a person said of the same bytes under any model),
    decided_by, decided_when and decided_model_id; default: all in a file."""
    new_first: bool = True
    """Put images that the last night scored before others with the same verdict."""
    limit: int | None = None
    """The largest number of rows; default: 20 on the screen, all in a file."""
    threshold: float | dict[str, float] | None = None
    """Scores above it are anomalous: a number for all products, or a threshold for each product as
    '{"washer": 4.5}'."""
    false_alarm_rate: float | dict[str, float] | None = None
    """Share of good images that may be called anomalous, instead of the model's: a number for all
    products, or one for each as jobs.tune writes them, '{"washer": 0.02}'; others keep theirs."""
    inventory: str = ""
    """Only images of this inventory file."""
    gone: bool = False
    """Also show images that the last night did not find in the archive any more."""
    false_alarms: bool | None = None
    """Show anomalous images that a person called false alarms under this model; default: in a file,
    with --by, and where --where asks for decisions. Another model that calls such an image
    anomalous shows it."""
    output: str = ""
    """The .parquet or .csv file to write (with --regions also .json), a path or s3:// URI; default:
    the screen."""
    raw: bool = False
    """Write the text of a .csv file as it is. Else what a spreadsheet would take for a formula gets
    a leading ', and control characters are escaped."""


def main(argv: Sequence[str]) -> int:
    """Query current scores."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    as_coco = settings.regions and settings.output.endswith(coco.SUFFIX)
    if as_coco and settings.columns:
        raise SettingError("--columns has no meaning for a COCO file; leave it out")
    if not as_coco:
        rows.check_output(settings.output)
    if settings.limit is not None and settings.limit < 1:
        raise SettingError(f"limit {settings.limit} must be at least 1")
    kind, schema, on_screen = _rows_of(settings)
    columns = _columns(settings, schema, on_screen)
    entry.check_access(settings)
    out = Out(settings.out)
    model = model_names.chosen(out, settings.model_id)
    listing = None if settings.gone or settings.inventory else gone.newest_listing(out)
    asked = kind(settings, out, model, listing)
    has_decisions = kind in (ImageRows, GroupRows)
    left_out = dismissed = 0

    def read(database: duckdb.DuckDBPyConnection, check: Callable[[], None]) -> list[_Row] | int:
        nonlocal left_out, dismissed
        model_names.check_has_rows(database, out, model)
        shown = _with_fields(columns, schema, settings.output, database, model)
        found = asked.read(database, settings.limit or (None if settings.output else _SCREEN))
        selected = (field_columns.select(batch, shown) for batch in found)
        answer: list[_Row] | int
        if as_coco:
            answer = coco.write(settings.output, rows.checked(selected, check), str(model))
        elif settings.output:
            of_file = field_columns.schema(schema, shown)
            answer = rows.write(settings.output, of_file, selected, settings.raw, check)
        else:
            answer = list(itertools.chain.from_iterable(batch.to_pylist() for batch in selected))
        left_out = gone.count(database)
        dismissed = decided_images.dismissed(database) if has_decisions else 0
        return answer

    others = listing.location if listing else settings.inventory
    answer = current_scores.read_consistently(
        out, read, "2GB", others, regions=settings.regions, labels=has_decisions
    )
    echo(f"model: {model}")
    if left_out:
        echo(f"{left_out:,} images are gone from the archive and left out; --gone true shows them")
    if dismissed:
        echo(
            f"{dismissed:,} images were called false alarms under this model and are left out; "
            "--false-alarms true shows them"
        )
    if not answer:
        echo(f"no such {kind.noun} under this model")
    elif isinstance(answer, int):
        echo(f"{answer:,} {kind.noun}s: {settings.output}")
    else:
        rows.show(answer, columns)
    return 0


def _rows_of(
    settings: Settings,
) -> tuple[type[ImageRows | PartRows | RegionRows | GroupRows], pa.Schema, str]:
    """The kind of rows, their columns, and those for the screen. Raises SettingError."""
    asked = [name for name in ("parts", "regions", "by") if getattr(settings, name)]
    if len(asked) > 1:
        raise SettingError(f"--{asked[0]} and --{asked[1]} exclude each other")
    if settings.by:
        schema = group_rows.schema(settings.by)
        return GroupRows, schema, ",".join(schema.names)
    kind = PartRows if settings.parts else RegionRows if settings.regions else ImageRows
    return kind, kind.schema, kind.on_screen


def _columns(settings: Settings, schema: pa.Schema, on_screen: str) -> list[str]:
    """The names of the columns to show. Raises SettingError for an unknown one."""
    known = schema.names
    chosen = settings.columns or (",".join(known) if settings.output else on_screen)
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    for name in names:
        if name not in known and not field_columns.is_one(name, schema):
            similar = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise SettingError(f"columns: there is no {name!r}{hint} Known: {', '.join(known)}")
    if not names:
        raise SettingError(f"--columns {chosen} names no column; known: {', '.join(known)}")
    return list(dict.fromkeys(names))


def _with_fields(
    columns: Sequence[str],
    schema: pa.Schema,
    output: str,
    database: duckdb.DuckDBPyConnection,
    model: NamedModel,
) -> Sequence[str]:
    """The columns to write: in a CSV file each field has its own. Raises SettingError."""
    asked = [name for name in columns if field_columns.is_one(name, schema)]
    is_wide = output.endswith(".csv") and field_columns.FIELDS in columns
    if not asked and not is_wide:
        return columns
    known = path_fields.names(database, model.model_id)
    field_columns.check([name.removeprefix(path_fields.PREFIX) for name in asked], known)
    return field_columns.spread(columns, known) if is_wide else columns


if __name__ == "__main__":
    entry.start(main)
