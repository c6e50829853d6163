"""Query the current scores of a model: of each image, the newest valid row of all nights.

python -m jobs.query --out out --product washer --limit 50
python -m jobs.query --out s3://bucket/out --where "width > 1000" --output worst.csv
python -m jobs.query --out out --model-id "tiles v3" --columns p_value,model,overlay_uri,uri
python -m jobs.query --out out --false-alarm-rate 0.001 --output relabelled.parquet

Anomalous images come first, of these the ones that the last night scored, then the smallest
p-values. Of images with equal p-values, the highest scores of each product come in turn: scores of
two products or models are never compared.
--threshold or --false-alarm-rate replace the model's thresholds; nothing is scored again.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from jobs.cli import entry, rows
from jobs.cli.console import echo
from ops.archives.layouts import composed
from ops.errors import SettingError, UserError
from ops.plain_text import printable
from ops.results.calibration import promised_rate
from ops.storage.paths import Out
from pipelines.tables import current_scores, gone, model_names, run_records, view_columns
from pipelines.tables.current_scores import VerdictRule
from pipelines.tables.model_names import NamedModel
from pipelines.tables.view_columns import ViewColumns

_Row = dict[str, Any]
_SCREEN = 20
_ON_SCREEN = "is_new,is_anomalous,p_value,score,status,product,peak_x,peak_y,uri,reason"


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
    where: str = ""
    """An SQL expression over is_new and the columns of the score table, such as "width > 1000".
    Products are stored in Unicode's composed form, NFC."""
    columns: str = ""
    """Columns to show, comma-separated: is_new (scored by the last night under the model),
    overlay_uri, model, and those of the score table; default: all in a file."""
    new_first: bool = True
    """Put images that the last night scored before others with the same verdict."""
    limit: int | None = None
    """The largest number of rows; default: 20 on the screen, all in a file."""
    threshold: float | dict[str, float] | None = None
    """Scores above it are anomalous: a number for all products, or a threshold for each product as
    '{"washer": 4.5}'."""
    false_alarm_rate: float | None = None
    """Share of good images that may be called anomalous, instead of the model's."""
    inventory: str = ""
    """Only images of this inventory file."""
    gone: bool = False
    """Also show images that the last night did not find in the archive any more."""
    output: str = ""
    """The .parquet or .csv file to write, a path or s3:// URI; default: the screen."""
    raw: bool = False
    """Write the text of a .csv file as it is. Else what a spreadsheet would take for a formula gets
    a leading ', and control characters are escaped."""


def main(argv: Sequence[str]) -> int:
    """Query current scores."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    rows.check_output(settings.output)
    if settings.limit is not None and settings.limit < 1:
        raise SettingError(f"limit {settings.limit} must be at least 1")
    columns = _columns(settings)
    entry.check_access(settings)
    out = Out(settings.out)
    if settings.model_id:
        model = model_names.find(out, settings.model_id)
    else:
        model = model_names.named(run_records.finished(out))
    rules = _verdict_rules(settings, out, model.model_id)
    added = ViewColumns.of(out, model)
    listing = None if settings.gone or settings.inventory else gone.newest_listing(out)
    left_out = 0

    def read(database: duckdb.DuckDBPyConnection, check: Callable[[], None]) -> list[_Row] | int:
        nonlocal left_out
        found = _query(database, settings, model, rules, listing)
        selected = (added.complete(batch).select(columns) for batch in found)
        answer: list[_Row] | int
        if settings.output:
            schema = pa.schema([view_columns.SCHEMA.field(name) for name in columns])
            answer = rows.write(settings.output, schema, selected, settings.raw, check)
        else:
            answer = list(itertools.chain.from_iterable(batch.to_pylist() for batch in selected))
        left_out = gone.count(database)
        return answer

    others = listing.location if listing else settings.inventory
    answer = current_scores.read_consistently(out, read, "2GB", others)
    echo(f"model: {model}")
    if left_out:
        echo(f"{left_out:,} images are gone from the archive and left out; --gone true shows them")
    if not answer:
        echo("no such image under this model")
    elif isinstance(answer, int):
        echo(f"{answer:,} images: {settings.output}")
    else:
        rows.show(answer, columns)
    return 0


def _columns(settings: Settings) -> list[str]:
    """The names of the columns to show. Raises SettingError for an unknown one."""
    known = view_columns.SCHEMA.names
    chosen = settings.columns or (",".join(known) if settings.output else _ON_SCREEN)
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    for name in names:
        if name not in known:
            similar = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise SettingError(f"columns: there is no {name!r}{hint} Known: {', '.join(known)}")
    return list(dict.fromkeys(names))


def _query(
    database: duckdb.DuckDBPyConnection,
    settings: Settings,
    model: NamedModel,
    rules: dict[str, VerdictRule],
    listing: gone.Listing | None,
) -> Iterator[pa.RecordBatch]:
    """The rows that the settings ask for. Raises UserError if the model has none at all."""
    has_rows = "SELECT 1 FROM scores_of($model) LIMIT 1"
    if not database.execute(has_rows, {"model": model.model_id}).fetchall():
        others = [str(each) for each in model_names.models_of(Out(settings.out)) if each != model]
        raise UserError(
            f"model {model} has scored no image in {settings.out}; models of its runs: "
            f"{', '.join(others) or 'none'}"
        )
    return current_scores.query(
        database,
        model.model_id,
        where=settings.where,
        product=composed(settings.product),
        limit=settings.limit or (None if settings.output else _SCREEN),
        rules=rules,
        only=settings.inventory,
        new_first=settings.new_first,
        listing=listing,
    )


def _verdict_rules(settings: Settings, out: Out, model_id: str) -> dict[str, VerdictRule]:
    """The rule of each product by the settings; empty if rows keep their verdicts."""
    threshold, rate = settings.threshold, settings.false_alarm_rate
    if threshold is not None and rate is not None:
        raise SettingError("--threshold and --false-alarm-rate exclude each other")
    if threshold is None and rate is None:
        return {}
    if isinstance(threshold, dict):
        rules = threshold.items()
        return {composed(product): VerdictRule(threshold=value) for product, value in rules}
    held_out = _held_out(out, model_id)
    if rate is not None:
        _warn_of_few_held_out(rate, held_out)
        return {product: VerdictRule.at_rate(rate, count) for product, count in held_out.items()}
    return {product: VerdictRule(threshold=threshold) for product in held_out}


def _warn_of_few_held_out(rate: float, held_out: dict[str, int]) -> None:
    """Warn of products whose p-values cannot be as low as a false-alarm rate."""
    rates = {product: promised_rate(rate, count) for product, count in held_out.items()}
    higher = {product: lowest for product, lowest in rates.items() if lowest > rate}
    if higher:
        worst = max(higher, key=lambda product: higher[product])
        echo(
            f"warning: {len(higher)} of {len(held_out)} products have too few held-out images for "
            f"a false-alarm rate of {rate:g}, such as {printable(worst)}: its "
            f"{held_out[worst]} images promise {higher[worst]:.3g}, which is used"
        )


def _held_out(out: Out, model_id: str) -> dict[str, int]:
    """How many images of each product were held out for a model, from the record of a run."""
    for record in reversed(run_records.started(out)):
        if record.get("model_id") == model_id and "held_out" in record:
            return {composed(name): count for name, count in record["held_out"].items()}
    raise UserError(
        f"no run in {out.runs()} records the held-out images of model {model_id}; "
        """name thresholds by product: --threshold '{"PRODUCT": 1.5}'"""
    )


if __name__ == "__main__":
    entry.start(main)
