"""From what a file says of images to rows of decisions about scores that are published.

A statement that names a run is about the bytes that this run scored, so it gets the row of that
run, whatever has become of the file since. Any other is about the current row under one model.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from ops.storage import uris
from ops.storage.paths import Out
from pipelines.labelling.decision_file import DecisionFile
from pipelines.labelling.refusals import Refusals, Rule
from pipelines.labelling.shapes import RegionsOfImage, region_of
from pipelines.labelling.statements import Statement
from pipelines.tables import current_scores, decisions
from pipelines.tables.model_names import NamedModel

Row = dict[str, Any]
#: Seconds by which clocks of other machines may be fast.
_FAST = datetime.timedelta(minutes=5)
_FUTURE = Rule("whose time lies in the future", "correct it, or the clock of this machine")
_SEVERAL = Rule(
    "that name several images", "name one by image_id, as python -m jobs.query shows it"
)
_NO_ROW = Rule(
    "of an image of which the named run has no row",
    "name the output folder of the report or query that they are from; if jobs.expire has removed "
    "the row, decide on a newer one",
)
_NO_REGION = Rule("of a region that the image has not", "python -m jobs.query --regions lists them")
_SHAPE = Rule(
    "of a shape that is no region of the image",
    "only a defect can be where the model has no region: remove the shape, or restore its box",
)
_ASKED = pa.schema(
    [
        ("number", pa.int64()),
        *((name, pa.string()) for name in ("image_id", "uri", "ending", "last", "run_id")),
    ]
)
#: Published rows of runs, and current ones.
_OF_RUNS = """
    read_parquet(getvariable('tables'), hive_partitioning = false) AS scores
    JOIN asked ON scores.run_id = asked.run_id AND
"""
_CURRENT = "current_scores($model) AS scores JOIN asked ON asked.run_id IS NULL AND"
#: Ways to name an image: the statements that use it, and the rows that they mean.
_NAMES = {
    "image_id": "scores.image_id = asked.image_id",
    "uri": "scores.uri = asked.uri",
    "ending": "regexp_extract(scores.uri, '[^/#]*$') = asked.last AND ("
    "ends_with(scores.uri, '/' || asked.ending) OR ends_with(scores.uri, '#' || asked.ending))",
}
#: What leads from where a tool keeps its files.
_UPWARDS = re.compile(r"^(\.{1,2}/)+")
_COLUMNS = ", ".join(f"scores.{name}" for name in decisions.OF_SCORE)
_REGIONS = """
    SELECT image_id, run_id, number, box_x, box_y, box_width, box_height
    FROM read_parquet(getvariable('region_tables'), hive_partitioning = false)
    SEMI JOIN decided USING (image_id, run_id)
"""


def rows(
    out: Out,
    file: DecisionFile,
    model: Callable[[], NamedModel],
    who: str,
    now: datetime.datetime,
) -> list[Row]:
    """Rows of `decision_table.SCHEMA`, one for each statement, in their order.

    `model` is asked if a statement names no run. `who` and `now` are for statements that name no
    person and no time. Raises UserError that names statements without a row, and other ones that
    cannot be taken.
    """
    given, refusals = file.statements, Refusals(file.location)
    for each in given:
        if each.at and each.at > now + _FAST:
            refusals.add(_FUTURE, each.where, each.at.isoformat())
    named = model() if any(not each.run_id for each in given) else None
    found, regions = current_scores.read_consistently(
        out, lambda database, _: _read(database, given, named), regions=True
    )
    decided = []
    for number, each in enumerate(given):
        if (score := _score(each, found.get(number, []), out, named, refusals)) is None:
            continue
        of_image = regions.get((score["image_id"], score["run_id"]), {})
        decided.append(
            decisions.decided(
                score,
                each.decision,
                who=each.who or who,
                source=file.source,
                region=_region(each, of_image, refusals),
                at=each.at or now,
                comment=each.comment,
            )
        )
    refusals.check()
    return decided


def _read(
    database: duckdb.DuckDBPyConnection, given: Sequence[Statement], model: NamedModel | None
) -> tuple[dict[int, list[Row]], dict[tuple[str, str], RegionsOfImage]]:
    """Rows of scores by the number of the statement, and the regions of these images by run."""
    asked = pa.Table.from_pylist(list(_asked(given)), _ASKED)
    database.register("asked", asked)
    found: dict[int, dict[str, Row]] = {}
    for source, of_run in ((_OF_RUNS, True), (_CURRENT, False)):
        of_source = [row for row in asked.to_pylist() if (row["run_id"] is not None) == of_run]
        for name, same in _NAMES.items():
            if any(row[name] is not None for row in of_source):
                sql = f"SELECT asked.number, {_COLUMNS} FROM {source} {same}"  # noqa: S608 - text of this file
                values = {} if of_run or model is None else {"model": model.model_id}
                for row in database.sql(sql, params=values).to_arrow_table().to_pylist():
                    found.setdefault(row.pop("number"), {})[row["image_id"]] = row
    return {number: list(rows.values()) for number, rows in found.items()}, _regions(
        database, given, found
    )


def _asked(given: Sequence[Statement]) -> Iterator[Row]:
    """What is looked for: each statement, by one of the ways to name an image."""
    for number, each in enumerate(given):
        row = {"number": number, "run_id": each.run_id or None}
        if each.image_id:
            yield row | {"image_id": each.image_id}
        elif "://" in each.address:
            yield row | {"uri": each.address}
        elif each.address.startswith("/"):
            yield row | {"uri": uris.make(each.address)}
        else:  # as it is, or as addresses escape it
            name = _UPWARDS.sub("", each.address)
            for ending in {name, uris.quote(name)}:
                yield row | {"ending": ending, "last": ending.replace("#", "/").split("/")[-1]}


def _regions(
    database: duckdb.DuckDBPyConnection,
    given: Sequence[Statement],
    found: dict[int, dict[str, Row]],
) -> dict[tuple[str, str], RegionsOfImage]:
    """Boxes of regions by number, by image and run, of images of which a region is decided."""
    keys = [
        {"image_id": row["image_id"], "run_id": row["run_id"]}
        for number, rows in found.items()
        if given[number].region or given[number].box
        for row in rows.values()
    ]
    schema = pa.schema([("image_id", pa.string()), ("run_id", pa.string())])
    database.register("decided", pa.Table.from_pylist(keys, schema))
    regions: dict[tuple[str, str], RegionsOfImage] = {}
    for image, run, number, *box in database.sql(_REGIONS).fetchall() if keys else ():
        regions.setdefault((image, run), {})[number] = (box[0], box[1], box[2], box[3])
    return regions


def _score(
    each: Statement,
    found: Sequence[Row],
    out: Out,
    model: NamedModel | None,
    refusals: Refusals,
) -> Row | None:
    """The row of the score that a statement is about; None if it is refused."""
    image = each.image_id or each.address
    if len(found) == 1:
        return found[0]
    if found:
        refusals.add(_SEVERAL, each.where, image)
    elif each.run_id:
        refusals.add(_NO_ROW, each.where, f"{image} in {each.run_id}")
    else:
        refusals.add(
            Rule(
                f"that name no image which {out.root} has now under model {model}",
                "name images as python -m jobs.query shows them, or another model by --model-id",
            ),
            each.where,
            image,
        )
    return None


def _region(each: Statement, regions: RegionsOfImage, refusals: Refusals) -> int | None:
    """The number of the region that a statement is about; None if it is of the whole image."""
    if each.region is not None:
        if each.region not in regions:
            refusals.add(_NO_REGION, each.where, each.region)
        return each.region
    if each.box is None:
        return None
    number = region_of(each.box, regions)
    if number is None and each.decision != "defect":
        refusals.add(_SHAPE, each.where, each.decision)
    return number
